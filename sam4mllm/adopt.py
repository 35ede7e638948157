"""An adapter from elsewhere becomes a version: what is wrong with it is said here, not when it is to serve."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from sam4mllm.adapters.fields import FILES, SEGMENTER_FILES, SEGMENTER_WEIGHTS
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
from sam4mllm.options import AUTO, LearnedStrategy, Options, PointsName, Precision
from sam4mllm.prompts.dialects import Dialect, load_dialect
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter


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
    serving = _serving(registry, folder)
    model = choose_model(claims.model, read_papers(folder) or _left(folder, serving), folder)
    dialect = None if claims.dialect is None else load_dialect(claims.dialect)
    outline = outline_checkpoint(model, pick_device(claims.device), claims.precision)
    papers = _papers(folder, serving, outline, dialect, claims)
    segmenter = load_segmenter(choose_segmenter(claims.segmenter, papers), torch.device("cpu"))
    files = {name: folder / name for part in parts_of(folder) for name in part}
    parent = None
    if serving is not None and (FILES not in parts_of(folder) or _draws_here(registry.path(serving.version), segmenter)):
        files = {name: registry.path(serving.version) / name for name in serving.files} | files
        parent = serving.version
    if SEGMENTER_WEIGHTS in files:
        with_adapter(segmenter, files[SEGMENTER_WEIGHTS].parent)
    papers = replace(papers, files={name: file_sha256(path) for name, path in files.items()})
    identity = Variants(outline, segmenter, claims.options, slug(model)).identity_for(papers)
    return registry.add(files, papers, slug=slug(model), identity=identity, parent=parent)


def _serving(registry: Registry, folder: Path) -> Manifest | None:
    """The champion, or None; a damaged one is in nobody's way unless its part for the MLLM is needed. Raises RegistryError then."""
    try:
        return registry.champion()
    except RegistryError:
        if FILES in parts_of(folder):
            return None
        raise


def _left(folder: Path, serving: Manifest | None) -> Papers | None:
    """The papers of the champion, where a folder without its own changes the segmenter alone, so that the rest stays the champion's."""
    return serving if FILES not in parts_of(folder) else None


def _papers(folder: Path, serving: Manifest | None, outline: Checkpoint, dialect: Dialect | None, claims: Claims) -> Papers:
    """Of the version to be: the folder's own, the champion's or new ones, with what is claimed; all but the hashes of its files."""
    papers = read_papers(folder) or _left(folder, serving)
    checkpoint = checkpoint_for(outline, papers, dialect, str(folder))
    if FILES in parts_of(folder):
        attach_stored(checkpoint, folder, 0.0)
    papers = papers or Papers(
        base_model=lasting_name(checkpoint.source),
        base_sha256=checkpoint.base_sha256,
        template_sha256=checkpoint.template_sha256,
        data_sha256=None,
        metrics={},
        files=hash_files(folder),
        dialect=asdict(checkpoint.dialect),
    )
    base_model = papers.base_model if claims.model is None else lasting_name(claims.model)  # it may have moved
    own = {field.name: getattr(papers, field.name) for field in fields(Papers)}
    strategy, points = claims.strategy or papers.strategy, claims.points or papers.points
    return Papers(**{**own, "base_model": base_model, "strategy": strategy, "points": points})


def _draws_here(champion: Path, segmenter: Segmenter) -> bool:
    """Whether the champion has a part for this segmenter, which then goes along with an adapter of the MLLM alone."""
    if SEGMENTER_FILES not in parts_of(champion):
        return False
    try:
        with_adapter(segmenter, champion)
    except (ModelError, RegistryError):
        return False
    return True


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
