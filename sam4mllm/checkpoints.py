"""Checkpoints of transformers, in a folder or on the hub: check what they hold, load them, and tell one from another by a fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig

from sam4mllm.errors import ModelError, first_line
from sam4mllm.plain_text import listed

FAULTS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError, StrictDataclassError)
"""What transformers raises of files that are not as it expects them."""
CONFIG = "config.json"
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
"""Either file says how images are prepared: the older one is of the image processor alone, the newer one of a whole processor."""
TOKENIZER = ("tokenizer_config.json",)
CHAT_TEMPLATE = "chat_template.json"
"""The file that processors of transformers before 4.48 write for the chat template alone."""
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Says which shard holds which weight."""
SMALL = (CONFIG, *IMAGE_PROCESSOR, *TOKENIZER, CHAT_TEMPLATE, INDEX, "generation_config.json", "special_tokens_map.json", "dialect.json")
"""The files of a model's folder that hold a JSON object and are read whole, if they are there."""
MAX_BYTES = 64 << 20
"""The most bytes of a JSON file that is read; the index of a model of 400 billion weights has 5 MB."""
NAMED = 3
"""The most names that an error message lists of weights, or of files that lack their index. Of more files it gives only the number; of
weights it always gives the number, and the first NAMED names."""


def read_json(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file that others wrote.

    Raises:
        ValueError: the file holds no JSON object, is nested too deeply to be read, or has more than ``most`` bytes; the message names it.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path.name} is over {most:,} bytes")
    try:
        values = json.loads(data.decode())
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return values


def read_config(name: str, source: str, needed: Sequence[Sequence[str]], advice: str = "") -> dict[str, Any]:
    """Return the config.json of a folder or hub id, which says what kind of model it is. No code of the model is run.

    Args:
        name: the folder, or a hub id.
        source: what the user calls the model.
        needed: the other files of a folder, as for ``check_folder``; they are only looked for to name all that is missing beside
            config.json.
        advice: what the user can give instead if ``name`` is neither a folder nor a model on the hub; it ends the error message.

    Raises:
        ModelError: ``name`` is a path to nothing or to a file, its config.json is missing or no JSON object, or the hub does not have it.
    """
    if is_folder(name, source):
        if not (Path(name) / CONFIG).is_file():
            require_files(Path(name), source, needed)
        return read_object(Path(name) / CONFIG, source)
    try:
        return dict(PreTrainedConfig.get_config_dict(name)[0])
    except FAULTS as error:
        line = f"{source} is neither a folder nor a model that can be had from the hub ({first_line(error)})"
        raise ModelError(f"{line}; {advice}" if advice else line) from error


def check_folder(name: str, source: str, needed: Sequence[Sequence[str]]) -> None:
    """Check a local model folder, so that an error says what it lacks in words of ours. Files of a hub id are checked when they are loaded.

    Args:
        name: the folder, or a hub id.
        source: what the user calls the model.
        needed: groups of file names; beside config.json, one file of each group must be there.

    Raises:
        ModelError: ``name`` is a path to nothing or to a file, or the folder lacks files, weights or shards, or one of its JSON files does
            not hold a JSON object.
    """
    folder = Path(name)
    if not is_folder(name, source):
        return
    require_files(folder, source, needed)
    for file in SMALL:
        if (folder / file).is_file():
            read_object(folder / file, source)
    _check_weights(folder, source)


def require_files(folder: Path, source: str, needed: Sequence[Sequence[str]]) -> None:
    """Raise ModelError unless a folder holds config.json and one file of each group in ``needed``."""
    missing = [files[0] for files in ((CONFIG,), *needed) if not any((folder / file).is_file() for file in files)]
    if missing:
        raise ModelError(f"{source} is not a complete model folder: {', '.join(missing)} is missing")


def is_folder(name: str, source: str) -> bool:
    """Whether a model's name is a folder's; else it may be a hub id. Raises ModelError if it is a file's, or if there is nothing by that
    name and it begins like a path (with ``.``, ``/`` or ``~``) or ``source`` is ``demo``.
    """
    folder = Path(name)
    if folder.is_dir():
        return True
    if folder.exists():
        raise ModelError(f"{source} is a file; give the model's folder")
    if name.startswith((".", "/", "~")) or source == "demo":
        raise ModelError(f"{source}: there is no such folder ({name})")
    return False


def read_object(path: Path, source: str) -> dict[str, Any]:
    """Return the JSON object that a file of a model's folder holds. Raises ModelError if it cannot be read or is not a JSON object;
    ``source`` is what the user calls the model.
    """
    try:
        return read_json(path)
    except ValueError as error:
        raise ModelError(f"{source}: {error}; fetch that file again") from error
    except OSError as error:
        raise ModelError(f"{source}: {path.name} cannot be read ({error.strerror})") from error


def _check_weights(folder: Path, source: str) -> None:
    files = {path.name for path in folder.glob("*.safetensors")}
    if not files:
        raise ModelError(
            f"{source} has no .safetensors weights; convert them with transformers' save_pretrained, other formats are refused"
        )
    if WEIGHTS in files:
        return
    if not (folder / INDEX).is_file():
        shards = f"its weights are in {listed(files)}, and " if len(files) <= NAMED else f"its weights are in {len(files)} files, and "
        raise ModelError(f"{source}: {shards}{INDEX}, which says what each holds, is missing; fetch it too, or name one file {WEIGHTS}")
    index = read_object(folder / INDEX, source)
    shards_of = index.get("weight_map")
    if (
        not isinstance(index.get("metadata"), dict)
        or not isinstance(shards_of, dict)
        or not all(isinstance(file, str) for file in shards_of.values())
    ):
        raise ModelError(f"{source}: {INDEX} has not metadata and a weight_map of files as it should; fetch that file again")
    lost = set(shards_of.values()) - files
    if lost:
        raise ModelError(f"{source} is not a complete model folder: {listed(lost)} is missing, which {INDEX} names")


def load_model(auto: Any, name: str, source: str, config: Any, **options: Any) -> Any:
    """A model of transformers with all of its weights, none of them random.

    Args:
        auto: the class of transformers that loads it.
        name: the folder, or a hub id.
        source: what the user calls the model.
        config: its configuration.
        options: further arguments of ``from_pretrained``.

    Raises:
        ModelError: the checkpoint lacks weights, or holds them in another shape; the message names some. Output heads that are tied to the
            embeddings need not be there, unless the configuration says that they are not tied.
        Exception: one of FAULTS, or what the device raises.
    """
    for logger in ("modeling_utils", "distributed.tensor_parallel"):  # these two report weights in tables of many lines
        logging.getLogger(f"transformers.{logger}").setLevel(logging.ERROR)
    model, loading = auto.from_pretrained(
        name,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    missing, other = set(loading["missing_keys"]), {key[0] for key in loading["mismatched_keys"]}
    if missing:
        raise ModelError(f"{source} lacks {_count(missing, f'of the weights of its {config.model_type}')}; fetch its weights again")
    if other:
        raise ModelError(f"{source} holds {_count(other, f'weights of other shapes than {CONFIG} says')}; fetch both from one place")
    return model


def check_state(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Check that weights have the names and shapes of a torch model's ``own`` weights, before they are loaded into it.

    Raises ValueError, which names some of those that are missing, unknown or of another shape.
    """
    missing, unknown = own.keys() - found.keys(), found.keys() - own.keys()
    if missing:
        raise ValueError(f"it lacks {_count(missing, 'of them')}")
    if unknown:
        raise ValueError(f"it holds {_count(unknown, 'others')}")
    other = {name for name, tensor in own.items() if tensor.shape != found[name].shape}
    if other:
        raise ValueError(f"it holds {_count(other, 'of them in other shapes')}")


def _count(names: set[str], what: str) -> str:
    among = "" if len(names) <= NAMED else "among them "
    return f"{len(names):,} {what}: {among}{listed(sorted(names)[:NAMED])}"


def fingerprint(name: str, commit: str | None) -> str:
    """Return a hash of a folder's weights (.safetensors), .json and .jinja files; for a hub model, its name and commit."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
