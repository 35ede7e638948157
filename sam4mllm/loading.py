"""Load a Pipeline from the names of a model, a segmenter and adapters; load several that share the models."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sam4mllm.adapters.fields import BASE, FILES, SEGMENTER_FILES, SEGMENTER_WEIGHTS
from sam4mllm.adapters.files import parts_of
from sam4mllm.adapters.follow import checkpoint_for, choose_model, choose_segmenter
from sam4mllm.adapters.former import former_identity, former_template, keep_name
from sam4mllm.adapters.loose import LooseAdapter, describe_adapter, find_adapter, read_papers
from sam4mllm.adapters.manifest import Manifest, Papers
from sam4mllm.errors import ModelError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.families import DEMO, load_checkpoint
from sam4mllm.grounding.mllm import ANSWER_TOKENS, MllmGrounder
from sam4mllm.grounding.nobody import NoGrounder
from sam4mllm.identity import slug
from sam4mllm.memory import announce
from sam4mllm.options import AUTO, NO_ADAPTER, NO_MODEL, PLAIN, Options, Precision, brought_strategies, check_strategy, resolve_strategy
from sam4mllm.pipeline import Pipeline, Versioned
from sam4mllm.precision import movable, move
from sam4mllm.prompts.dialects import Dialect, load_dialect
from sam4mllm.segmentation.concept import ConceptSegmenter
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter

if TYPE_CHECKING:
    from sam4mllm.adapters.lora import Adapters

CPU = torch.device("cpu")


def load_pipeline(
    model: str | None,
    segmenter: str | None,
    device: str | None,
    options: Options | None,
    adapter: str | None = None,
    precision: Precision = AUTO,
    dialect: str | None = None,
    segmenter_adapter: str | None = None,
) -> Pipeline:
    """Load a pipeline; see :func:`sam4mllm.load`. ``segmenter_adapter`` is a folder or a version whose adapter of the mask decoder takes
    the place of the one in ``adapter``; None keeps that one, if there is one, and PLAIN leaves the mask decoder without one.
    """
    load = partial(load_variants, device=device, options=options, precision=precision, dialect=dialect)
    if adapter is None:
        variants = load(model or DEMO, segmenter or DEMO)
        return variants.drawing_with(segmenter_adapter, variants.base)
    if model == NO_MODEL:
        raise ModelError(NO_ADAPTER.format(adapter))
    folder = find_adapter(adapter)
    papers = read_papers(folder)  # read first, so that an error is raised before the seconds that loading takes
    model = choose_model(model, papers, folder)
    variants = load(model, choose_segmenter(segmenter, papers, folder))
    return variants.drawing_with(segmenter_adapter, variants.load(folder, describe_adapter(folder, slug(model), papers)))


def load_variants(
    model: str,
    segmenter: str,
    device: str | None,
    options: Options | None,
    precision: Precision = AUTO,
    dialect: str | None = None,
) -> Variants:
    """Load both models, for several adapters that can then be loaded beside each other.

    ``dialect`` is a name or a file; None is the model's own. If ``model`` is ``none``, only the segmenter is loaded.

    Raises ModelError if the device is not known or not there, a model cannot be loaded, the models cannot carry out the options' strategy
    or look back, or a dialect is given without an MLLM; and before loading if the weights cannot fit into memory. Raises TemplateError if
    the dialect or the model's chat template cannot be used; ExtensionError if another package's segmenter or model family cannot.
    """
    place = pick_device(device)
    brought_strategies()  # logs a warning, before anything is loaded, of a package that claims one of our names
    spoken = None if dialect is None else load_dialect(dialect)
    has_model = model != NO_MODEL
    if has_model:
        announce(model, place, precision, segmenter=segmenter)
    elif spoken is not None:
        raise ModelError("a dialect says how an MLLM is spoken to, and the model is none; leave --dialect out")
    draws = load_segmenter(segmenter, place)
    # checked here, so that an error is raised before the minutes that loading the MLLM takes
    asked = resolve_strategy((options or Options()).strategy, demo=False, has_adapter=False, has_model=has_model)
    check_strategy(asked, has_model=has_model, takes_phrases=isinstance(draws, ConceptSegmenter), segmenter=segmenter)
    checkpoint = load_checkpoint(model, place, precision) if has_model else None
    return Variants(checkpoint, draws, options, slug(model), spoken, place)


class Variants:
    """Pipelines that share one base model and one segmenter, each with its own adapter. Only one thread may use them at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        segmenter: Segmenter,
        options: Options | None,
        slug: str,
        dialect: Dialect | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Share the models among pipelines.

        ``checkpoint``: the base model, None for no MLLM. ``slug``: the first part of the versions' names. ``dialect``: the dialect in which
        the model is spoken to, None for its own; ``load`` refuses an adapter that was trained in another one than is given here.
        ``device``: where the segmenter is if there is no MLLM; else it is ignored, for both models are on the MLLM's device. Raises
        ModelError if the models cannot carry out the options' strategy or look back.
        """
        self._checkpoint = None if checkpoint is None else checkpoint_for(checkpoint, None, dialect)
        self._dialect = dialect
        self._segmenter = segmenter
        self._options = options or Options()
        self._slug = slug
        self._adapters: Adapters | None = None
        self._adapted: dict[str, Segmenter] = {}
        self._device: torch.device = device if checkpoint is None else checkpoint.model.device
        self.base = self._pipeline(BASE, None, self._checkpoint)

    @property
    def checkpoint(self) -> Checkpoint:
        """The base model. Raises ModelError if there is none."""
        if self._checkpoint is None:
            raise ModelError("there is no MLLM, for the model is none: no adapter can be used or trained; name a model")
        return self._checkpoint

    def load(self, folder: Path, adapter: Manifest | LooseAdapter) -> Pipeline:
        """Load the adapter in a folder and return a pipeline with it, which speaks to the model as the adapter's papers say.

        Raises RegistryError if the adapter is not safe to load, OSError if a file cannot be opened, and TemplateError if the dialect in its
        papers is not valid. Raises ModelError if it was trained on another base model or other prompts, in another dialect than the one
        asked for, or for the mask decoder of another segmenter; if it does not fit the models; or if there is no base model.
        """
        if self._checkpoint is None:
            raise ModelError(NO_ADAPTER.format(adapter.version))
        papers = adapter if isinstance(adapter, Manifest) else adapter.papers
        checkpoint = checkpoint_for(self.checkpoint, papers, self._dialect, adapter.version)
        parts = parts_of(folder)
        segmenter = self._segmenter
        if SEGMENTER_FILES in parts:
            from sam4mllm.adapters.segmenter import with_adapter  # noqa: PLC0415 – imports peft, which takes seconds

            segmenter = self._adapted[adapter.version] = with_adapter(self._segmenter, folder)
        elif isinstance(adapter, Manifest):
            adapter = self._as_named(adapter, checkpoint)
        if FILES not in parts:
            return self._pipeline(BASE, adapter, checkpoint, papers, segmenter)
        self._attach(adapter.version, folder)
        return self._pipeline(adapter.version, adapter, checkpoint, papers, segmenter)

    def _attach(self, version: str, folder: Path) -> None:
        """Load the MLLM's part of an adapter beside the others."""
        if self._adapters is None:
            from sam4mllm.adapters.lora import Adapters  # noqa: PLC0415 – imports peft, which takes seconds

            self._adapters = Adapters(self.checkpoint)
        self._adapters.load(version, folder)

    def drawing_with(self, name: str | None, pipeline: Pipeline) -> Pipeline:
        """Return a copy of one of these pipelines with another adapter of the mask decoder.

        ``name`` is the adapter's folder or version, PLAIN for no adapter, or None to return ``pipeline`` itself. ``away`` does not move the
        changed decoder, and ``drop`` does not free it. Raises RegistryError if there is no such adapter or it is not safe to load, OSError
        if a file cannot be opened, ModelError if it does not fit this segmenter or is another's.
        """
        if name is None:
            return pipeline
        if name == PLAIN:
            return pipeline.through(pipeline.grounder, segmenter=self._segmenter)
        from sam4mllm.adapters.segmenter import with_adapter  # noqa: PLC0415 – imports peft, which takes seconds

        return pipeline.through(pipeline.grounder, segmenter=with_adapter(self._segmenter, find_adapter(name)))

    def drop(self, version: str) -> None:
        """Free the adapter of a version whose pipeline is used no more; nothing is freed if it is not loaded."""
        self._adapted.pop(version, None)
        self._detach(version)

    def _detach(self, version: str) -> None:
        """Free the MLLM's part of an adapter."""
        if self._adapters is not None:
            self._adapters.use(BASE)
            self._adapters.drop(version)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights of the MLLM, with its adapters, and of the segmenter; mask decoders that adapters changed do not count."""
        weights: int = 0 if self._checkpoint is None else sum(weight.nbytes for weight in self._checkpoint.model.parameters())
        return weights + self._segmenter.nbytes

    def away(self) -> None:
        """Move both models to the CPU, and free the device for another process.

        Scenes and embeddings that are kept stay where they are, and can be used again after ``back``.

        Raises ModelError if the model is spread over several devices.
        """
        if not self._movable:
            raise ModelError("a model that is spread by SAM4MLLM_DEVICE_MAP=auto cannot leave its devices; use another SAM4MLLM_TRAIN_MODE")
        self._move(torch.device("cpu"))
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def back(self) -> None:
        """Move both models to their device again."""
        self._move(self._device)

    @property
    def _movable(self) -> bool:
        return self._checkpoint is None or movable(self._checkpoint.model)

    def _move(self, device: torch.device) -> None:
        if self._checkpoint is not None and self._movable:
            move(self._checkpoint.model, device)
        for segmenter in (self._segmenter, *self._adapted.values()):
            segmenter.to(device)

    def _activate(self, version: str) -> None:
        if self._adapters is not None:
            self._adapters.use(version)

    def _as_named(self, adapter: Manifest, checkpoint: Checkpoint) -> Manifest:
        """Return the manifest, changed so that its version keeps its former name if that is from before identities were hashes of JSON.

        The manifest of a later adapter is returned unchanged.
        """
        if adapter.template_sha256 != former_template(checkpoint.dialect, checkpoint.markup):
            return adapter
        pipeline = self._pipeline(adapter.version, adapter, checkpoint, adapter)
        former = former_identity(checkpoint, ANSWER_TOKENS, pipeline.segmenter.identity, pipeline.options)
        return keep_name(adapter, pipeline.identity, former)

    def identity_for(self, papers: Papers) -> str:
        """Return the identity (``Pipeline.identity``) of the pipeline that ``load`` would make for an adapter with these papers. The
        adapter's part for the mask decoder counts in it, its part for the MLLM does not.

        Raises ModelError if the adapter cannot serve here, TemplateError if the dialect in its papers is not valid.
        """
        checkpoint = checkpoint_for(self.checkpoint, papers, self._dialect)
        segmenter = self._segmenter
        if SEGMENTER_WEIGHTS in papers.files:
            from sam4mllm.adapters.segmenter import named_with  # noqa: PLC0415 – imports peft, which takes seconds

            segmenter = named_with(segmenter, papers.files)
        return self._pipeline(BASE, LooseAdapter(BASE, papers), checkpoint, papers, segmenter).identity

    @property
    def base_sha256(self) -> str:
        """The hash of the base model; empty if there is none, so that it equals no adapter's ``base_sha256``."""
        return "" if self._checkpoint is None else self._checkpoint.base_sha256

    @property
    def template_sha256(self) -> str:
        """The hash of the dialect and the chat markup in which the base model is spoken to; empty if there is no base model."""
        return "" if self._checkpoint is None else self._checkpoint.template_sha256

    def _pipeline(
        self,
        version: str,
        adapter: Versioned | None,
        checkpoint: Checkpoint | None,
        papers: Papers | None = None,
        segmenter: Segmenter | None = None,
    ) -> Pipeline:
        """Make a pipeline. ``version`` is that of the MLLM's adapter, BASE for none; ``adapter`` gives the pipeline's version its name, and
        may change the segmenter alone. ``papers``: the adapter's, which may name the strategy and how points are asked about; None without
        an adapter, or if it has none. ``segmenter``: the one that draws; None is the shared one.
        """
        segmenter = segmenter or self._segmenter
        if checkpoint is None:
            return Pipeline(NoGrounder(), segmenter, self._options, self._slug, learned=False)
        taught = adapter is not None and (version != BASE if papers is None else papers.changes_mllm)
        demo, options = checkpoint.source == DEMO, self._options if papers is None else papers.asked(self._options)
        whole = self._grounder(version, checkpoint, options.thought_tokens)
        grounder = CloserGrounder(whole) if checkpoint.dialect.points_view == "close-up" else whole
        options = replace(options, strategy=resolve_strategy(options.strategy, demo=demo, has_adapter=taught))
        return Pipeline(grounder, segmenter, options, self._slug, adapter, learned=demo or taught)

    def _grounder(self, version: str, checkpoint: Checkpoint, thought_tokens: int) -> MllmGrounder:
        """Return a grounder of the MLLM that switches to the adapter ``version`` (BASE: to none) before each use."""
        return MllmGrounder(checkpoint, activate=lambda: self._activate(version), thought_tokens=thought_tokens)


def pick_device(device: str | None) -> torch.device:
    """Return the named device; if ``device`` is None, a GPU if there is one, else the CPU.

    Raises ModelError if the name is not ``cpu``, ``cuda`` or ``cuda:N``, or if there is no such GPU.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is no device: use cpu, cuda or cuda:0") from error
    if place.type not in ("cpu", "cuda"):
        raise ModelError(f"{device!r} is not supported: use cpu, cuda or cuda:0")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"{device!r} is not there: {torch.cuda.device_count()} CUDA devices were found; use cpu or another number")
    return place
