"""Add an adapter from elsewhere to the registry as a version. Its faults are reported here, not when it is to serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from sam4mllm.adapters.fields import SEGMENTER_FILES, SEGMENTER_WEIGHTS, WEIGHTS
from sam4mllm.adapters.files import check_parts, hash_files, parts_of
from sam4mllm.adapters.follow import checkpoint_for, choose_model, choose_segmenter, lasting_name
from sam4mllm.adapters.loose import find_adapter, read_papers
from sam4mllm.adapters.lora import attach_stored
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.adapters.segmenter import with_adapter
from sam4mllm.durable import file_sha256
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import outline_checkpoint
from sam4mllm.identity import slug
from sam4mllm.loading import Variants, pick_device
from sam4mllm.options import AUTO, NO_ADAPTER, NO_MODEL, LearnedStrategy, Options, PointsName, Precision
from sam4mllm.prompts.dialects import load_dialect
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claims:
    """What the caller who adds an adapter says about it.

    ``strategy`` and ``points`` override those in its papers. ``model`` and ``dialect`` (a name or a file) are for an adapter without
    papers; if it has papers, they must agree with them. ``segmenter``, ``device``, ``options`` and ``precision`` are those that the adapter
    is to serve with. The hash in the version's name depends on them: where it serves with others, it has the same number and another hash.
    """

    model: str | None = None
    strategy: LearnedStrategy | None = None
    points: PointsName | None = None
    dialect: str | None = None
    segmenter: str | None = None
    device: str | None = None
    options: Options = Options()  # noqa: RUF009 – frozen
    precision: Precision = AUTO


def adopt(folder: Path, registry: Registry, claims: Claims) -> Manifest:
    """Add the adapter in a folder to a registry, with its papers or with the claims, and return its manifest. It does not serve yet.

    If the adapter is for the MLLM alone, the new version takes over the champion's part for the segmenter, unless that was made for another
    segmenter or the champion is damaged; if it is for the segmenter alone, the champion's part for the MLLM. The champion is then the new
    version's parent.

    Args:
        folder: what ``sam4mllm train`` or peft has written; other files in it are not copied.
        registry: the registry that gets the new version.
        claims: what the adapter's papers do not say.

    Raises:
        RegistryError: the adapter is not safe to load, its files are not those that its papers name, or another segmenter is claimed than
            the papers name; the champion's part for the MLLM is needed and damaged; or the registry cannot be written.
        ModelError, TemplateError: its model or dialect cannot be loaded, or the adapter is for another one.
    """
    _check(folder)
    if claims.model == NO_MODEL:
        raise ModelError(NO_ADAPTER.format(folder))
    own = {name: folder / name for part in parts_of(folder) for name in part}
    champion = _champion(registry, own)
    papers = read_papers(folder) if champion is None or WEIGHTS in own else champion
    model = choose_model(claims.model, papers, folder)
    segmenter = load_segmenter(choose_segmenter(claims.segmenter, papers, folder), torch.device("cpu"))
    kept = {} if champion is None else _kept(registry.path(champion.version), own, segmenter)
    files = own | kept
    outline = outline_checkpoint(model, pick_device(claims.device), claims.precision)
    papers = _papers(files, papers, outline, claims, str(folder))
    if SEGMENTER_WEIGHTS in own:
        with_adapter(segmenter, folder)
    identity = Variants(outline, segmenter, claims.options, slug(model)).identity_for(papers)
    parent = champion.version if champion is not None and kept else None
    return registry.add(files, papers, slug=slug(model), identity=identity, parent=parent)


def _champion(registry: Registry, own: Mapping[str, Path]) -> Manifest | None:
    """Return the manifest of the version that serves, once its files are verified, or None if none serves.

    A damaged champion also counts as None if the new adapter, whose files are ``own``, has a part for the MLLM itself. Raises RegistryError
    if it has none, so that the damaged champion's part would be needed.
    """
    try:
        serving = registry.serving()
        return None if serving is None else registry.verify(serving)
    except RegistryError:
        if WEIGHTS in own:
            return None
        raise


def _kept(champion: Path, own: Mapping[str, Path], segmenter: Segmenter) -> dict[str, Path]:
    """Return the champion's files of the parts that are not in the new adapter's files, ``own``.

    The champion's part for the segmenter is left out, with a warning in the log, if it was made for another segmenter.
    """
    kept = {name: champion / name for part in parts_of(champion) for name in part if name not in own}
    if SEGMENTER_WEIGHTS in kept:
        try:
            with_adapter(segmenter, champion)
        except ModelError as error:
            log.warning("the new version has no part for the segmenter: %s", error)
            return {name: path for name, path in kept.items() if name not in SEGMENTER_FILES}
    return kept


def _papers(files: Mapping[str, Path], papers: Papers | None, outline: Checkpoint, claims: Claims, name: str) -> Papers:
    """Return the papers of the new version: those of its part for the MLLM, or new ones if that has none, with the claims applied.

    A part for the MLLM is attached to ``outline``, to see whether it fits. ``name`` is the adapter's, for messages. Raises ModelError if it
    does not fit, or if the model or the dialect is not the one that it was trained with; TemplateError if a dialect is not valid;
    RegistryError if it is not safe to load.
    """
    dialect = None if claims.dialect is None else load_dialect(claims.dialect)
    checkpoint = checkpoint_for(outline, papers, dialect, name)
    if WEIGHTS in files:
        attach_stored(checkpoint, files[WEIGHTS].parent, 0.0)
    hashes = {file: file_sha256(path) for file, path in files.items()}
    papers = papers or Papers(
        base_model=lasting_name(checkpoint.source),
        base_sha256=checkpoint.base_sha256,
        template_sha256=checkpoint.template_sha256,
        data_sha256=None,
        metrics={},
        files=hashes,
        dialect=asdict(checkpoint.dialect),
    )
    base_model = papers.base_model if claims.model is None else lasting_name(claims.model)  # the model's folder may have moved since
    asked = {"strategy": claims.strategy or papers.strategy, "points": claims.points or papers.points}
    metrics = papers.metrics if papers.files == hashes else {}  # those of other files were measured on other masks
    own = {field.name: getattr(papers, field.name) for field in fields(Papers)}
    return Papers(**{**own, **asked, "base_model": base_model, "files": hashes, "metrics": metrics})


def appoint(adapter: str, registry: Registry, claims: Claims) -> None:
    """Make sure that a registry holds ``adapter``, a folder or the name of a version, and that the registry has decided on a champion.

    A registry without a readable version adopts the adapter and promotes it. A registry that holds it and has never decided on a champion,
    that is, has no history, promotes it, too. In a registry that holds it and has decided, nothing changes: the champion serves, which may
    have been retrained or rolled back since. Nor does anything change if the registry has decided and the adapter's folder is gone by then.

    Raises RegistryError if the registry holds other adapters and not this one, or the folder is gone and the registry has not decided;
    and whatever ``adopt`` and ``Registry.promote`` raise.
    """
    decided = bool(registry.history())
    try:
        folder = find_adapter(adapter, registry.root.parent)
    except RegistryError:
        if decided:
            return
        raise
    known = registry.versions()
    if folder.parent == registry.root:
        same = [folder.name]
    else:
        _check(folder)
        hashes = hash_files(folder)
        same = [manifest.version for manifest in known if manifest.files.items() >= hashes.items()]
    if same:
        if not decided:
            registry.promote(same[-1])
        return
    if known:
        serving = registry.serving() or "the base model"
        line = f"{registry.root} has other adapters, and {serving} serves; let this one serve with"
        raise RegistryError(f"{line}: sam4mllm adapters add {adapter} --promote")
    registry.promote(adopt(folder, registry, claims).version)


def _check(folder: Path) -> None:
    try:
        check_parts(folder)
    except OSError as error:
        raise RegistryError(f"{folder} cannot be read ({error.strerror}); give an adapter's folder") from error
    except RegistryError as error:
        raise RegistryError(f"{folder}: {error}") from error
