"""Pipelines whose MLLM runs on a vLLM server: the server loads the adapters, and the segmenter runs in this process."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

import torch

from sam4mllm.adapters.fields import BASE
from sam4mllm.errors import EngineAwayError, ModelError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.encoders import encode_qwen_vl
from sam4mllm.grounding.families import outline_checkpoint, resolve
from sam4mllm.identity import slug
from sam4mllm.loading import Variants, pick_device
from sam4mllm.options import AUTO, Options, Precision
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.vllm.client import VllmClient
from sam4mllm.vllm.grounder import VllmGrounder
from sam4mllm.vllm.probe import check_merger

START_SECONDS = 1800.0
"""For how long the start waits for the engine (the vLLM server). An engine may be started at the same time as this process, and takes
minutes to load its weights.
"""

log = logging.getLogger(__name__)


def load_vllm_variants(
    url: str, home: Path, model: str, segmenter: str, device: str | None, options: Options | None, precision: Precision = AUTO
) -> VllmVariants:
    """Load the segmenter, and all of a model but its weights, which the server at ``url`` has.

    ``home`` is a folder that the server sees under the same path. Raises ModelError, TemplateError and ExtensionError as loading a model
    here does. Raises ModelError also if the server has another model, cannot serve a model of this family, or lacks a flag, which the
    message names; EngineAwayError if it has not answered after START_SECONDS; OSError if ``home`` cannot be written.
    """
    place = pick_device(device)
    client = VllmClient(url)
    name = find_model(client, model, patience=START_SECONDS)
    checkpoint = outline_checkpoint(model, torch.device("cpu"), precision)
    if checkpoint.encode is not encode_qwen_vl:
        raise ModelError(f"{model} cannot be asked by an engine: that is done with Qwen-VL from 2 on; leave SAM4MLLM_ENGINE empty")
    made = VllmVariants(client, name, checkpoint, load_segmenter(segmenter, place), options, slug(model), place)
    check_merger(client, VllmGrounder(checkpoint, client, name), home)
    log.info("the engine at %s has %s", client.url, model)
    return made


def find_model(client: VllmClient, model: str, patience: float = 0.0) -> str:
    """Return the server's name for a model. If the server does not answer, try again until ``patience`` seconds are over.

    A try that fails lasts the client's PATIENCE_SECONDS or longer, also if ``patience`` is 0; each but the last is told in the log. Raises
    EngineAwayError if the last one fails; ModelError if the server has another model, or is no vLLM server.
    """
    end = time.monotonic() + patience
    while True:
        try:
            bases = [one for one in client.models() if not one.get("parent")]
            break
        except EngineAwayError as error:
            if time.monotonic() > end:
                raise
            log.warning("%s; waiting for it", error)
    wanted = {model, resolve(model), Path(resolve(model)).name}
    for one in bases:
        root = str(one.get("root") or "")
        if root in wanted or Path(root).name in wanted:
            return str(one["id"])
    serves = ", ".join(str(one.get("root")) for one in bases) or "nothing"
    raise ModelError(f"the engine at {client.url} serves {serves}, and SAM4MLLM_MODEL is {model}; start either with the other's model")


class VllmVariants(Variants):
    """Pipelines as those of :class:`~sam4mllm.loading.Variants`, whose MLLM is on a server. The server knows each adapter by the name of
    its version, so several backends may share one server.
    """

    def __init__(
        self,
        client: VllmClient,
        name: str,
        checkpoint: Checkpoint,
        segmenter: Segmenter,
        options: Options | None,
        slug: str,
        device: torch.device,
    ) -> None:
        self._client, self._name = client, name
        super().__init__(checkpoint, segmenter, options, slug)
        self._device = device

    def _grounder(self, version: str, checkpoint: Checkpoint, thought_tokens: int) -> VllmGrounder:
        return VllmGrounder(checkpoint, self._client, self._name if version == BASE else version, thought_tokens)

    def _attach(self, version: str, folder: Path) -> None:
        self._client.load(version, folder.absolute())

    def _detach(self, version: str) -> None:
        with suppress(EngineAwayError):  # a server that does not answer will have no adapter when it is restarted
            self._client.unload(version)

    @property
    def nbytes(self) -> int:
        return self._segmenter.nbytes

    @property
    def _movable(self) -> bool:
        return False

    def away(self) -> None:
        """Raise ModelError: the MLLM is in the server's process, so this process cannot free its device."""
        raise ModelError("an engine does not leave its device; use SAM4MLLM_TRAIN_MODE=beside, or device:N")
