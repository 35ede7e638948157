"""From the names in settings to a Pipeline."""

from __future__ import annotations

import gc
import hashlib
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sam4mllm.adapters.files import BASE, Manifest
from sam4mllm.adapters.former import former_identity, former_template, keep_name
from sam4mllm.adapters.loose import LooseAdapter, describe_adapter, find_adapter
from sam4mllm.errors import ModelError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.families import DEMO, load_checkpoint
from sam4mllm.grounding.mllm import ANSWER_TOKENS, MllmGrounder
from sam4mllm.identity import digest_of
from sam4mllm.memory import announce
from sam4mllm.options import AUTO, Options, Precision, resolve_strategy
from sam4mllm.pipeline import Pipeline, Versioned
from sam4mllm.precision import movable, move
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter

if TYPE_CHECKING:
    from sam4mllm.adapters.lora import Adapters


def load_pipeline(
    model: str,
    segmenter: str,
    device: str | None,
    options: Options | None,
    adapter: str | None = None,
    precision: Precision = AUTO,
) -> Pipeline:
    """See :func:`sam4mllm.load`."""
    load = partial(load_variants, model, segmenter, device, options, precision)
    if adapter is None:
        return load().base
    folder = find_adapter(adapter)
    described = describe_adapter(folder, slug(model))  # before the seconds that loading takes
    return load().load(folder, described)


def load_variants(
    model: str,
    segmenter: str,
    device: str | None,
    options: Options | None,
    precision: Precision = AUTO,
) -> Variants:
    """Load both models; adapters can then be loaded beside each other. Raises ModelError, before loading if they cannot fit."""
    place = pick_device(device)
    announce(model, place, precision, segmenter=segmenter)
    checkpoint = load_checkpoint(model, place, precision)
    return Variants(checkpoint, load_segmenter(segmenter, place), options, slug(model))


class Variants:
    """Pipelines that share one base model and one segmenter, each with its own adapter. For one thread at a time, as an engine's is."""

    def __init__(self, checkpoint: Checkpoint, segmenter: Segmenter, options: Options | None, slug: str) -> None:
        self.checkpoint = checkpoint
        self._segmenter = segmenter
        self._options = options or Options()
        self._slug = slug
        self._adapters: Adapters | None = None
        self._device: torch.device = checkpoint.model.device
        self.base = self._pipeline(BASE, None)

    def load(self, folder: Path, adapter: Manifest | LooseAdapter) -> Pipeline:
        """A pipeline with the adapter in a folder. Raises RegistryError if it is not safe, ModelError if it is another base model's."""
        if isinstance(adapter, Manifest):
            self._check_base(adapter)
            adapter = self._as_named(adapter)
        if self._adapters is None:
            from sam4mllm.adapters.lora import Adapters  # noqa: PLC0415 – peft takes seconds, and the base model does without

            self._adapters = Adapters(self.checkpoint)
        self._adapters.load(adapter.version, folder)
        return self._pipeline(adapter.version, adapter)

    def drop(self, version: str) -> None:
        """Free the adapter of a version whose pipeline is used no more."""
        if self._adapters is not None:
            self._adapters.use(BASE)
            self._adapters.drop(version)

    @property
    def nbytes(self) -> int:
        """Memory of both models' weights."""
        weights: int = sum(weight.nbytes for weight in self.checkpoint.model.parameters())
        return weights + self._segmenter.nbytes

    def away(self) -> None:
        """Move both models to the CPU, and free the device for another process. Scenes and embeddings that are kept stay valid.

        Raises ModelError if the model is spread over several devices.
        """
        if not movable(self.checkpoint.model):
            raise ModelError("a model that is spread by SAM4MLLM_DEVICE_MAP=auto cannot leave its devices; use another SAM4MLLM_TRAIN_MODE")
        self._move(torch.device("cpu"))
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def back(self) -> None:
        """Move both models to their device again."""
        self._move(self._device)

    def _move(self, device: torch.device) -> None:
        if movable(self.checkpoint.model):
            move(self.checkpoint.model, device)
        self._segmenter.to(device)

    def _activate(self, version: str) -> None:
        if self._adapters is not None:
            self._adapters.use(version)

    def _check_base(self, adapter: Manifest) -> None:
        for what, stored, own in (
            ("base model", adapter.base_sha256, (self.base_sha256,)),
            ("set of prompts", adapter.template_sha256, (self.template_sha256, self._former_template)),
        ):
            if stored not in own:
                raise ModelError(f"the adapter {adapter.version} was trained on another {what}; train again, or start with its own")

    def _as_named(self, adapter: Manifest) -> Manifest:
        """An adapter from before identities were hashes of JSON keeps its name."""
        if adapter.template_sha256 != self._former_template:
            return adapter
        pipeline = self._pipeline(adapter.version, adapter)
        former = former_identity(self.checkpoint, ANSWER_TOKENS, pipeline.segmenter.identity, pipeline.options)
        return keep_name(adapter, pipeline.identity, former)

    @property
    def _former_template(self) -> str:
        return former_template(self.checkpoint.dialect, self.checkpoint.markup)

    @property
    def identity(self) -> str:
        """What shapes the predictions of a new adapter besides itself."""
        return self._pipeline(BASE, LooseAdapter(BASE)).identity

    @property
    def base_sha256(self) -> str:
        """The hash of the base model."""
        return hashlib.sha256(self.checkpoint.fingerprint.encode()).hexdigest()

    @property
    def template_sha256(self) -> str:
        """The hash of what is said to it."""
        return digest_of({"dialect": asdict(self.checkpoint.dialect), "markup": asdict(self.checkpoint.markup)})

    def _pipeline(self, version: str, adapter: Versioned | None) -> Pipeline:
        whole = MllmGrounder(self.checkpoint, activate=lambda: self._activate(version))
        grounder = CloserGrounder(whole) if self.checkpoint.dialect.points_view == "close-up" else whole
        demo = self.checkpoint.source == DEMO
        strategy = resolve_strategy(self._options.strategy, None, demo=demo, has_adapter=adapter is not None)
        options = replace(self._options, strategy=strategy)
        return Pipeline(grounder, self._segmenter, options, self._slug, adapter, learned=demo or adapter is not None)


def pick_device(device: str | None) -> torch.device:
    """The named device, or a GPU if there is one. Raises ModelError if the name is not ``cpu`` or ``cuda``, or there is no such GPU."""
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


def slug(model: str) -> str:
    """A model's name as the first part of a version: lower case, at most 32 of ``[a-z0-9.-]``."""
    return re.sub(r"[^a-z0-9.-]+", "-", Path(model).name.lower()).strip("-")[:32] or "model"
