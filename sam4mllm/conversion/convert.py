"""Converting a folder in its first published layout, of a model or an adapter, to a folder that loads here.

The new folder is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.adapters.conversion import convert_adapter
from sam4mllm.adapters.fields import CONFIG as ADAPTER_CONFIG
from sam4mllm.adapters.fields import WEIGHTS as ADAPTER_WEIGHTS
from sam4mllm.checkpoints import CONFIG, FAULTS, read_object, require_files
from sam4mllm.conversion import internvl_chat, qwen_vl_chat
from sam4mllm.conversion.tensors import Plan, convert_tensors, find_files, read_file
from sam4mllm.durable import sync_tree, whole_folder
from sam4mllm.errors import ModelError, Sam4mllmError, first_line
from sam4mllm.originals import original_name

PICKLED_ADAPTER = "adapter_model.bin"
"""The name that peft gave to weights before safetensors."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: ``name`` is the kind of model, such as InternVL; ``tensors`` is how many tensors were written."""

    name: str
    tensors: int


@dataclass(frozen=True)
class _Layout:
    """The functions that convert one kind of model: they read its sizes, plan its tensors, and write all files but the weights."""

    read_sizes: Callable[[Mapping[str, Any], str], Any]
    plan_tensors: Callable[[Any], Plan]
    write_companions: Callable[[Path, Mapping[str, Any], Any, Path], None]


_LAYOUTS = {
    "Qwen-VL-Chat": _Layout(qwen_vl_chat.read_sizes, qwen_vl_chat.plan_tensors, qwen_vl_chat.write_companions),
    "InternVL": _Layout(internvl_chat.read_sizes, internvl_chat.plan_tensors, internvl_chat.write_companions),
}


def convert_folder(folder: Path, out: Path) -> str:
    """Convert a model or an adapter into ``out``, and return a description for the user.

    Raises ModelError as ``convert_model`` does, or RegistryError as ``convert_adapter`` does.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; fetch the model first, all of its files")
    if not (folder / ADAPTER_CONFIG).is_file():
        converted = convert_model(folder, out)
        return f"{converted.name}, {converted.tensors:,} tensors"
    pickled = (folder / PICKLED_ADAPTER).is_file() and not (folder / ADAPTER_WEIGHTS).is_file()
    notes = convert_adapter(folder, out, read_file, PICKLED_ADAPTER) if pickled else convert_adapter(folder, out)
    return "; ".join(["an adapter", *notes])


def convert_model(folder: Path, out: Path) -> Converted:
    """Convert the model in ``folder`` into ``out``, a new or empty folder.

    Raises ModelError if the folder holds no model that can be converted, is not complete, or ``out`` is not empty or cannot be written.
    Nothing is written to ``out`` then.
    """
    source = str(folder)
    require_files(folder, source, ())
    config = read_object(folder / CONFIG, source)
    name = original_name(config)
    if name is None:
        raise ModelError(
            f"{source} is of the type {config.get('model_type')!r:.80}; only Qwen-VL-Chat and InternVL as first published, and adapters, "
            "are converted"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is not empty; choose another folder")
    try:
        with whole_folder(out) as temporary:
            tensors = _write(_LAYOUTS[name], folder, config, temporary)
            sync_tree(temporary)
    except Sam4mllmError:
        raise
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror or first_line(error)}); free space, or allow writing there") from error
    except FAULTS as error:
        raise ModelError(f"{source} could not be converted: {first_line(error)}") from error
    return Converted(name, tensors)


def _write(layout: _Layout, folder: Path, config: Mapping[str, Any], out: Path) -> int:
    sizes = layout.read_sizes(config, str(folder))
    layout.write_companions(folder, config, sizes, out)
    return convert_tensors(find_files(folder), layout.plan_tensors(sizes), out)
