"""LoRA adapters on a checkpoint's model: a new or a stored one to train, and stored ones to serve, of which one at a time is active.

peft replaces layers inside the model, so any code that calls the model uses the active adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, LoraModel, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from sam4mllm.adapters.conversion import renew
from sam4mllm.adapters.factors import Declared, declare, fill, pick_factors
from sam4mllm.adapters.fields import BASE, WEIGHTS
from sam4mllm.adapters.files import check_adapter
from sam4mllm.checkpoints import FAULTS
from sam4mllm.errors import ModelError, first_line
from sam4mllm.grounding.checkpoint import Checkpoint


def attach(checkpoint: Checkpoint, rank: int, alpha: int, dropout: float) -> PeftModel:
    """Attach a new adapter to the layers that the model's family names, ready to train; all other weights are frozen.

    It changes no output until it is trained, because one of its two factors is zero. Raises ModelError if the model has no such layers.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=checkpoint.lora_targets, bias="none")
    try:
        return wrap(checkpoint.model, config, "default", in_float32=True)
    except ValueError as error:
        raise ModelError(f"{checkpoint.source} has no layers for LoRA ({first_line(error)})") from error


def attach_stored(checkpoint: Checkpoint, folder: Path, dropout: float) -> PeftModel:
    """Attach a folder's adapter, with its own rank and weights, to be trained further; all other weights are frozen.

    Raises RegistryError if it is not safe to load; ModelError if it does not fit the model, which may then hold peft's layers already, or
    if a file cannot be opened.
    """
    try:
        declared, found = _read(folder, check_adapter(folder), checkpoint)
        config = declared.to_peft()
        config.inference_mode, config.lora_dropout = False, dropout
        model = wrap(checkpoint.model, config, "default", in_float32=True)
        fill({name: checkpoint.model.get_submodule(name) for name in declared.ranks}, "default", found)
    except FAULTS as error:
        raise ModelError(f"the adapter in {folder} does not fit {checkpoint.source}: {first_line(error)}") from error
    return model


def save_adapter(model: PeftModel, folder: Path, base: str, strength: float = 1.0) -> None:
    """Write the adapter that ``attach`` or ``attach_stored`` returned as a plain PEFT folder. Call it once: ``strength`` also changes the
    model's own configuration.

    Args:
        model: the model with the trained adapter.
        folder: the folder to write to; it may exist. An adapter in it is replaced, and a README.md removed.
        base: the name of the base model that is written into the adapter's configuration.
        strength: the factor by which the saved adapter's alpha is scaled, and so the change that it makes.
    """
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path = base
    config.lora_alpha *= strength
    config.alpha_pattern = {name: alpha * strength for name, alpha in config.alpha_pattern.items()}
    model.save_pretrained(str(folder), save_embedding_layers=False)  # else peft asks the hub about the base model
    (folder / "README.md").unlink(missing_ok=True)


class Adapters:
    """The adapters that are loaded on one checkpoint, of which one or none is active. Only one thread may use them at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model: PeftModel | None = None
        self._slots: dict[str, str] = {}
        self._count = 0
        self._active = BASE

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the loaded adapters, in the order in which they were loaded."""
        return tuple(self._slots)

    def load(self, name: str, folder: Path) -> None:
        """Load a plain LoRA beside the others, but do not activate it. Nothing is done if an adapter ``name`` is loaded already.

        Raises RegistryError if it is not safe to load, OSError if a file cannot be opened, ModelError if it does not fit the model; the
        model is unchanged then.
        """
        if name in self._slots:
            return
        config = check_adapter(folder)
        self._count += 1
        slot = f"adapter{self._count}"  # peft makes it a module's name, which may not hold the dots of a version
        try:
            self._insert(slot, folder, config)
        except FAULTS as error:
            self._forget(slot)
            raise ModelError(f"the adapter in {folder} does not fit {self._checkpoint.source}: {first_line(error)}") from error
        finally:
            self._restore()
        self._slots[name] = slot

    def use(self, name: str) -> None:
        """Make a loaded adapter the active one; BASE turns all adapters off. Raises ModelError if it is not loaded."""
        if name != self._active:
            if name != BASE and name not in self._slots:
                raise ModelError(f"the adapter {name} is not loaded")
            self._active = name
            self._restore()

    def drop(self, name: str) -> None:
        """Unload an adapter; nothing is done if it is not loaded. Raises ModelError if it is active."""
        if name == self._active and name != BASE:
            raise ModelError(f"the adapter {name} is in use")
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._forget(slot)
            self._restore()

    def _insert(self, slot: str, folder: Path, foreign: Mapping[str, Any]) -> None:
        """Put an adapter into the model. Its factors get the precision of the layers that they change, because autocast computes in that
        precision during training, too.
        """
        model = self._checkpoint.model
        declared, found = _read(folder, foreign, self._checkpoint)
        config = declared.to_peft()
        if self._model is None:
            self._model = wrap(model, config, slot, in_float32=False)
        else:
            self._model.add_adapter(slot, config, autocast_adapter_dtype=False)
        fill({name: model.get_submodule(name) for name in declared.ranks}, slot, found)

    def _forget(self, slot: str) -> None:
        """Remove a slot, even one that was loaded only in part, and put back the base layers that have no adapter left."""
        model = self._checkpoint.model
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                module.set_adapter([other for other in module.active_adapters if other != slot])
                module.delete_adapter(slot)
                if not module.lora_A and not module.lora_embedding_A:
                    model.set_submodule(name, module.get_base_layer())
        if self._model is not None:
            self._model.peft_config.pop(slot, None)
            if not self._model.peft_config:
                self._model = None
                del model.peft_config

    def _restore(self) -> None:
        """Activate the adapter in use again, because loading and deleting change that; freeze the model and set it to evaluation mode."""
        if self._model is None:
            return
        lora = self._model.base_model
        assert isinstance(lora, LoraModel)
        if self._active == BASE:
            lora.disable_adapter_layers()
        else:
            lora.enable_adapter_layers()
            self._model.set_adapter(self._slots[self._active])
        self._model.requires_grad_(False)
        self._model.eval()


def _read(folder: Path, foreign: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[Declared, dict[str, Tensor]]:
    """Return what an adapter with the configuration ``foreign`` declares on the model, and its factors, both under today's layer names.

    Raises ValueError if they do not fit.
    """
    config, tensors = renew(foreign, load_file(folder / WEIGHTS))
    declared = declare(config, checkpoint.model, checkpoint.lora_targets)
    return declared, pick_factors(tensors, declared, checkpoint.model)


def wrap(model: Any, config: LoraConfig, slot: str, in_float32: bool) -> PeftModel:
    """Return peft's model with a first adapter, whose weights are in float32 or in the model's own precision."""
    with warnings.catch_warnings():  # peft 0.21 reads a property of transformers by its deprecated name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel(model, config, adapter_name=slot, autocast_adapter_dtype=in_float32)
