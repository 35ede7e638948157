"""Sharding of the frozen base model over the processes (FSDP2): each holds a share of every decoder layer, and gathers a layer when needed.

The adapter is not sharded: its weights, gradients and optimiser moments are whole in every process, in float32, so that updates, saved
states and the adapter's file are the same as without sharding. Embeddings, head and vision tower stay whole as well. While the model is
being loaded, each process holds all of it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard

from sam4mllm.errors import TrainingError
from sam4mllm.grounding.copying import keeps_states


def shard(model: Any, source: str) -> None:
    """Shard the decoder layers of a model that has its adapter attached; ``source`` is the model's name, for messages.

    Raises TrainingError if the model has no decoder layers that can be found, has layers that keep states, or is quantised.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin  # noqa: PLC0415 – takes seconds

    layers = _decoder_layers(model)
    if not layers:
        raise TrainingError(f"{source} has no decoder layers that FSDP could spread; run accelerate config without it")
    if keeps_states(model.config):  # a row takes a pass for each conversation; rows differ in these, so processes would wait for each other
        raise TrainingError(f"{source} has layers that keep states, which FSDP cannot spread here; run accelerate config without FSDP")
    frozen = [weight for layer in layers for weight in layer.parameters() if not weight.requires_grad]
    if not all(weight.is_floating_point() for weight in frozen):
        raise TrainingError(f"{source} is quantised, which FSDP cannot spread here; run accelerate config without FSDP")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    spread = {id(weight) for weight in frozen}
    options = {
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        "ignored_params": {weight for weight in model.parameters() if id(weight) not in spread},
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model.model, **options)  # so that the next layer is gathered while one computes; the root itself has nothing to shard


def _decoder_layers(model: Any) -> list[nn.Module]:
    layers = getattr(getattr(getattr(model, "model", None), "language_model", None), "layers", ())
    return list(layers)
