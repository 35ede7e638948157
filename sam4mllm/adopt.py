"""An adapter from elsewhere becomes a version: what is wrong with it is said here, not when it is to serve."""

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
    """What is said of an adapter by whoever adds it. ``strategy`` and ``points`` win over its papers; ``model`` and ``dialect``, a name or
    a file, are for one without papers, and must be those of the papers else.

    ``segmenter``, ``device``, ``options`` and ``precision`` are those it is to serve with, after which it is named: elsewhere its version
    has the same number and another hash.
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
    """Add the adapter in a folder to a registry, with its papers or with what is claimed. It does not serve yet.

    An adapter of the MLLM alone keeps the champion's part for the segmenter, and one of the segmenter alone its part for the MLLM; the
    champion is then the new version's parent.

    Args:
        folder: what ``sam4mllm train`` or peft has written; whatever else is in it is left there.
        registry: where to.
        claims: what its papers do not say.

    Raises:
        RegistryError: it is not safe, or not what its papers say.
        ModelError, TemplateError: its model or dialect cannot be had, or it is for another one.
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
    """The version that serves, whole and safe, or None; a damaged one is in nobody's way unless its part for the MLLM is needed.

    Raises RegistryError then.
    """
    try:
        serving = registry.serving()
        return None if serving is None else registry.verify(serving)
    except RegistryError:
        if WEIGHTS in own:
            return None
        raise


def _kept(champion: Path, own: Mapping[str, Path], segmenter: Segmenter) -> dict[str, Path]:
    """The champion's files of a part that an adapter does not have itself. One for another segmenter is left out, which is said."""
    kept = {name: champion / name for part in parts_of(champion) for name in part if name not in own}
    if SEGMENTER_WEIGHTS in kept:
        try:
            with_adapter(segmenter, champion)
        except ModelError as error:
            log.warning("the new version has no part for the segmenter: %s", error)
            return {name: path for name, path in kept.items() if name not in SEGMENTER_FILES}
    return kept


def _papers(files: Mapping[str, Path], papers: Papers | None, outline: Checkpoint, claims: Claims, name: str) -> Papers:
    """Of the version to be: those of its part for the MLLM, if it has papers, or new ones, with what is claimed."""
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
    base_model = papers.base_model if claims.model is None else lasting_name(claims.model)  # it may have moved
    asked = {"strategy": claims.strategy or papers.strategy, "points": claims.points or papers.points}
    metrics = papers.metrics if papers.files == hashes else {}  # which were measured on other masks
    own = {field.name: getattr(papers, field.name) for field in fields(Papers)}
    return Papers(**{**own, **asked, "base_model": base_model, "files": hashes, "metrics": metrics})


def appoint(adapter: str, registry: Registry, claims: Claims) -> None:
    """See that a registry has an adapter, a folder or a version; in an empty one it becomes the champion.

    Of a registry that has it, the champion serves, whichever that is by now: it may have learned, or have been rolled back. So too if the
    folder is gone by then.

    Raises RegistryError if it has others and not this one, and what ``adopt`` raises.
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
