"""Converting the weights of a published checkpoint to safetensors files under other names.

All names and shapes are compared with a plan before anything is written. Only the tensors of one output file are held in memory at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sam4mllm.checkpoints import INDEX, WEIGHTS, read_object
from sam4mllm.errors import ModelError, first_line

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The names that transformers gave to weights before safetensors."""
SHARD_BYTES = 1 << 30
"""The most bytes of tensors in an output file; a single larger tensor has a file of its own."""
COMPUTED = re.compile(r"(.*\.)?(inv_freq|masked_bias)")
"""Matches the names of buffers that early transformers saved and that the model computes itself; they are skipped."""
_FAULTS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    AssertionError,
    UnpicklingError,
    SafetensorError,
)
_DTYPES = {torch.float16, torch.bfloat16, torch.float32}


@dataclass(frozen=True)
class Published:
    """A published tensor: its ``shape``, and ``make``, which returns the tensors that it becomes by their new names.

    A checkpoint may lack an ``optional`` tensor.
    """

    shape: tuple[int, ...]
    make: Callable[[Tensor], Mapping[str, Tensor]]
    optional: bool = False


Plan = Mapping[str, Published]
"""All tensors of a checkpoint by their published names."""


def renamed(name: str, *shape: int) -> Published:
    """Return the plan of a tensor that only gets another name."""
    return Published(shape, lambda tensor: {name: tensor})


def split_rows(names: Sequence[str], *shape: int) -> Published:
    """Return the plan of a tensor that is cut into equal blocks of rows, one for each name."""
    return Published(shape, lambda tensor: dict(zip(names, tensor.chunk(len(names)), strict=True)))


def find_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights, safetensors if it has both kinds. If there is an index, they are the files that it names.

    Raises ModelError if there are no weights, if a file that the index names is missing, or if the index is malformed.
    """
    for whole, index in ((WEIGHTS, INDEX), (PICKLED, PICKLED_INDEX)):
        if (folder / index).is_file():
            return _indexed(folder, index)
        if (folder / whole).is_file():
            return [folder / whole]
    raise ModelError(f"{folder} has no weights; fetch {WEIGHTS} or {PICKLED}, or all of its shards and their index")


def _indexed(folder: Path, index: str) -> list[Path]:
    named = read_object(folder / index, str(folder)).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) and Path(file).name == file for file in named.values()):
        raise ModelError(f"{folder}: {index} has not a weight_map of files as it should; fetch that file again")
    files = [folder / name for name in sorted(set(named.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(f"{folder} is not complete: {missing[0]} is missing, which {index} names; fetch it too")
    return files


def read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file by name. The file is memory-mapped, so that a tensor is read only when it is used. Raises ModelError
    naming the file if it cannot be read or holds anything but plain tensors.
    """
    try:
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except _FAULTS as error:
        reason = "it names what is no tensor, and was not run" if isinstance(error, UnpicklingError) else first_line(error)
        raise ModelError(f"{path} cannot be read as weights ({reason:.200}); fetch it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not tensors by their names; fetch the model's own file")
    for name, tensor in found.items():
        if not isinstance(name, str) or type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
            raise ModelError(f"{path}: {name!r:.80} is no plain tensor; fetch the model's own file")
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 – it is no dict


def _read_pickled(path: Path) -> object:
    """The one place where a published .bin file is read. Tensors and plain containers are admitted; a pickle that names anything else is
    refused, and nothing that it names is called.
    """
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def convert_tensors(files: Sequence[Path], plan: Plan, out: Path) -> int:
    """Write the tensors that the plan makes of the files' tensors into the folder ``out``, and return how many were written.

    Optional tensors may be missing, and tensors whose names match COMPUTED are skipped. Raises ModelError, before anything is written,
    naming any other tensor that is missing, unknown, there twice, or of a wrong shape or type, or a file that ``read_file`` refuses.
    """
    _check(files, plan)
    writer = _Writer(out)
    for path in files:
        for name, tensor in _learned(read_file(path)):
            for new, made in plan[name].make(tensor).items():
                writer.add(new, made)
    return writer.finish()


def _check(files: Sequence[Path], plan: Plan) -> None:
    places: dict[str, Path] = {}
    for path in files:
        for name, tensor in _learned(read_file(path)):
            if name not in plan:
                raise ModelError(f"{path} holds {name!r:.120}, which the model that config.json describes does not have")
            if name in places:
                raise ModelError(f"{path} and {places[name].name} both hold {name}; fetch the model anew into an empty folder")
            if tuple(tensor.shape) != plan[name].shape:
                raise ModelError(
                    f"{path}: {name} is {tuple(tensor.shape)}, but {plan[name].shape} by config.json; fetch both from one place"
                )
            if tensor.dtype not in _DTYPES:
                raise ModelError(f"{path}: {name} is {tensor.dtype}, not 16 or 32 bit floats; quantised files cannot be converted")
            places[name] = path
    missing = [name for name, wanted in plan.items() if name not in places and not wanted.optional]
    if missing:
        raise ModelError(
            f"{files[0].parent} lacks {len(missing):,} of the model's tensors, among them {missing[0]}; fetch its weights again"
        )


def _learned(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in tensors.items() if not COMPUTED.fullmatch(name))


class _Writer:
    """Writes tensors to safetensors files of up to SHARD_BYTES in a folder, with an index if there are several files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._bytes = 0
        self._files: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor. It is copied, so that a larger tensor that it is a view of can be freed."""
        if self._held and self._bytes + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self._held[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes

    def finish(self) -> int:
        """Write what is left, give the files their final names, which contain the number of files, and return the number of tensors."""
        self._flush()
        count = len(self._files)
        if count == 1:
            self._temporary(1).rename(self._folder / WEIGHTS)
            return len(self._files[0])
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._files, 1):
            final = WEIGHTS.replace(".", f"-{number:05}-of-{count:05}.")
            self._temporary(number).rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return len(weight_map)

    def _flush(self) -> None:
        self._files.append(list(self._held))
        save_file(self._held, self._temporary(len(self._files)), {"format": "pt"})
        self._held, self._bytes = {}, 0

    def _temporary(self, number: int) -> Path:
        return self._folder / f"{number}.part"
