"""An adapter from elsewhere becomes a version: what is wrong with it is said here, not when it is to serve."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sam4mllm.adapters.fields import FILES
from sam4mllm.adapters.files import check_adapter, hash_files
from sam4mllm.adapters.follow import checkpoint_for, choose_model, choose_segmenter, lasting_name
from sam4mllm.adapters.loose import find_adapter, read_papers
from sam4mllm.adapters.lora import attach_stored
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import RegistryError
from sam4mllm.grounding.families import outline_checkpoint
from sam4mllm.identity import slug
from sam4mllm.loading import Variants, pick_device
from sam4mllm.options import AUTO, LearnedStrategy, Options, PointsName, Precision
from sam4mllm.prompts.dialects import load_dialect
from sam4mllm.segmentation.loading import load_segmenter


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

    Args:
        folder: what ``sam4mllm train`` or peft has written; whatever else is in it is left there.
        registry: where to.
        claims: what its papers do not say.

    Raises:
        RegistryError: it is not safe, or not what its papers say.
        ModelError, TemplateError: its model or dialect cannot be had, or it is for another one.
    """
    _check(folder)
    papers = read_papers(folder)
    model = choose_model(claims.model, papers, folder)
    dialect = None if claims.dialect is None else load_dialect(claims.dialect)
    outline = outline_checkpoint(model, pick_device(claims.device), claims.precision)
    checkpoint = checkpoint_for(outline, papers, dialect, str(folder))
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
    strategy, points = claims.strategy or papers.strategy, claims.points or papers.points
    papers = replace(papers, base_model=base_model, strategy=strategy, points=points)
    segmenter = load_segmenter(choose_segmenter(claims.segmenter, papers), torch.device("cpu"))
    identity = Variants(outline, segmenter, claims.options, slug(model)).identity_for(papers)
    return registry.add({name: folder / name for name in FILES}, papers, slug=slug(model), identity=identity)


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
        same = [manifest.version for manifest in known if manifest.files == hashes]
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
        check_adapter(folder)
    except OSError as error:
        raise RegistryError(f"{folder} cannot be read ({error.strerror}); give an adapter's folder") from error
    except RegistryError as error:
        raise RegistryError(f"{folder}: {error}") from error
