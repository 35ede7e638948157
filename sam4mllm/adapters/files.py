"""Checks of an adapter's folder: it may hold plain LoRA configurations, finite weights in safetensors, and a manifest with their hashes.

A pickle is refused by its name, or because safetensors cannot read it; it is never unpickled. RegistryError is raised for what is missing
or refused, and for weights that cannot be read; OSError for any other file, or a folder, that cannot be opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sam4mllm.adapters.fields import CONFIG, FILES, MANIFEST, SEGMENTER_FILES, is_number, is_whole, matches, parse_object, shown
from sam4mllm.adapters.manifest import Manifest
from sam4mllm.durable import file_sha256
from sam4mllm.errors import RegistryError, first_line
from sam4mllm.plain_text import listed

if TYPE_CHECKING:
    from torch import Tensor  # the import takes seconds, and code that only handles versions does not need it

FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)(?P<older>(?<=vector)\.weight)?",
    re.DOTALL,
)
"""Matches the names of an adapter's tensors as peft saves them; earlier versions of peft wrote ``.weight`` after DoRA's
``lora_magnitude_vector``."""

MAX_RANK = 4_096
"""The highest rank that an adapter may have; published ones have up to 512."""

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_LIBRARY = re.compile(r"transformers(\.[a-z0-9_]+)*|sam4mllm\.qwen_vl_chat\.model")
_MAX_TEXT = 1 << 20
"""The most bytes of a JSON file; a LoRA configuration with its lists of modules has a few thousand."""
_DTYPES = {"torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"}


def parts_of(folder: Path) -> tuple[tuple[str, str], ...]:
    """Return the parts of an adapter of which a folder has any file: FILES, SEGMENTER_FILES or both; FILES if it has no file of either."""
    found = tuple(part for part in (FILES, SEGMENTER_FILES) if any((folder / name).exists() for name in part))
    return found or (FILES,)


def check_names(found: set[str], wanted: set[str]) -> None:
    """Raise RegistryError unless the file names ``found`` in a folder are exactly those in ``wanted``."""
    pickles = {name for name in found if Path(name).suffix.lower() in _PICKLES}
    if pickles:
        raise RegistryError(f"{listed(pickles)} may run code when it is opened, and was not; save the adapter as safetensors")
    if found - wanted:
        raise RegistryError(f"{listed(found - wanted)} does not belong there; an adapter is {listed(wanted)}")
    if wanted - found:
        raise RegistryError(f"{listed(wanted - found)} is missing; an adapter is {listed(wanted)}")


def check_adapter(folder: Path, part: tuple[str, str] = FILES) -> dict[str, Any]:
    """Check that a part of an adapter is safe to load, and return its configuration; other files are ignored.

    Whether the tensors fit a model is checked once it is loaded (:mod:`sam4mllm.adapters.factors`). Raises RegistryError if the part is not
    safe, a file is missing, or the weights cannot be read; OSError if the configuration cannot be opened.
    """
    named, weights = part
    check_weights(folder / weights)
    config = parse_object(read_text(folder / named), named)
    check_config(config, named)
    return config


def check_parts(folder: Path) -> None:
    """Check all parts that a folder has. Raises RegistryError and OSError as ``check_adapter`` does."""
    for part in parts_of(folder):
        check_adapter(folder, part)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a version's folder. Raises RegistryError if it is missing, not valid or that of another version; OSError if it
    cannot be opened.
    """
    manifest = Manifest.from_json(read_text(folder / MANIFEST))
    if manifest.version != folder.name:
        raise RegistryError(f"its manifest is of {manifest.version}; a version cannot be renamed")
    return manifest


def check_folder(folder: Path) -> Manifest:
    """Check that a version is complete and safe to load, and return its manifest.

    The folder must hold no further files, each file must have the hash that the manifest names, and each part must pass ``check_adapter``.
    Raises RegistryError if not, OSError if a file cannot be opened.
    """
    found = {path.name for path in folder.iterdir()}
    check_names(found, {*(name for part in parts_of(folder) for name in part), MANIFEST})
    manifest = read_manifest(folder)
    check_names(found, {*manifest.files, MANIFEST})
    for name, sha256 in hash_files(folder).items():
        if sha256 != manifest.files[name]:
            raise RegistryError(f"{name} is not the file that its manifest names (SHA-256); restore it or add the adapter again")
    check_parts(folder)
    return manifest


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256, in hex, of each file of the parts that a folder has, by file name. Raises RegistryError if a file of a part is
    missing or not a plain file, OSError if one cannot be read.
    """
    hashes: dict[str, str] = {}
    for part in parts_of(folder):
        for name in part:
            _check_plain(folder / name)
            hashes[name] = file_sha256(folder / name)
    return hashes


def read_text(path: Path) -> str:
    """Return the text of a small file. Raises RegistryError if it is missing, not a plain file, over _MAX_TEXT bytes or not UTF-8; OSError
    if it cannot be opened.
    """
    _check_plain(path)
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise RegistryError(f"{path.name} is over {_MAX_TEXT:,} bytes; restore it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RegistryError(f"{path.name} is not UTF-8 text; restore it") from error


def _check_plain(path: Path) -> None:
    """Raises RegistryError unless the path is a regular file, so that no link, pipe or device is opened."""
    if path.is_symlink() or not path.is_file():
        raise RegistryError(f"{path.name} is missing or not a plain file; restore it")


def check_weights(path: Path) -> list[str]:
    """Check that a file holds nothing but LoRA factors of finite numbers, and return their names.

    safetensors itself checks the lengths and types in the header, but not whether numbers are finite. Raises RegistryError if the file is
    missing or holds anything else, OSError if its folder cannot be searched.
    """
    _check_plain(path)
    try:
        with safe_open(path, framework="pt") as weights:
            names = weights.keys()
            if not names:
                raise RegistryError(f"{path.name} holds no tensors; save the adapter again")
            for name in names:
                _check_tensor(name, weights.get_tensor(name), path.name)
            return list(names)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise RegistryError(f"{path.name} cannot be read as safetensors ({first_line(error)}); save the adapter again") from error


def _check_tensor(name: str, tensor: Tensor, file: str) -> None:
    if not FACTOR.fullmatch(name):
        raise RegistryError(
            f"{file}: {shown(name)} is no LoRA factor; save the factors alone, without modules_to_save, biases or base weights"
        )
    if str(tensor.dtype) not in _DTYPES:
        raise RegistryError(f"{file}: {shown(name)} is {tensor.dtype}, but weights are 16, 32 or 64 bit floats")
    if not tensor.isfinite().all():
        raise RegistryError(f"{file}: {shown(name)} holds NaN or infinity; train again with a lower learning rate")


def check_config(config: Mapping[str, Any], name: str = CONFIG) -> None:
    """Raise RegistryError unless a configuration has only the settings of a plain LoRA, among them ``peft_type`` and ``r``, with values
    that peft treats as data.

    Other settings, and other values of some that are allowed, make peft import modules by name (``auto_mapping``, ``megatron_core``), read
    further files (``corda_config``), or change the base model's own weights (``init_lora_weights``).
    """
    unknown = config.keys() - _CONFIG.keys()
    if unknown:
        raise RegistryError(f"{name} has keys that no plain LoRA needs: {listed(unknown)}; remove them")
    if config.get("peft_type") is None or config.get("r") is None:
        raise RegistryError(f"{name}: peft_type must be LORA and r its rank")
    for key, value in config.items():
        if value is not None and not _CONFIG[key](value):
            raise RegistryError(f"{name}: {key} may not be {shown(value)}")


# -- values --------------------------------------------------------------------------------------------------------------------------------


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_off(value: object) -> bool:
    return not value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 1_000


def _is_names(value: object) -> bool:
    """Whether a value is a list of names of modules, or one pattern."""
    return _is_name(value) or (isinstance(value, list) and all(_is_name(name) for name in value))


def _is_wholes(value: object) -> bool:
    """Whether a value is one whole number (of a layer or token), a list of them, or an object with such a value for each module."""
    if isinstance(value, dict):
        return all(_is_wholes(some) for some in value.values())
    return is_whole(value) or (isinstance(value, list) and all(is_whole(number) for number in value))


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_ranks(value: object) -> bool:
    return isinstance(value, dict) and all(_is_rank(rank) for rank in value.values())


def _is_pattern(value: object) -> bool:
    return isinstance(value, dict) and all(is_number(number) for number in value.values())


def _is_known_class(value: object) -> bool:
    """Whether a value names a class of transformers or of this package; peft imports that class when asked for an automatic model."""
    if not isinstance(value, dict) or set(value) - {"base_model_class", "parent_library", "unsloth_fixed"}:
        return False
    library, model = value.get("parent_library"), value.get("base_model_class")
    named = isinstance(model, str) and model.isidentifier() and matches(_LIBRARY, library)
    return named and value.get("unsloth_fixed") in (None, True, False)


_CONFIG: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version", "task_type"), _is_name),
    **dict.fromkeys(("inference_mode", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), _is_flag),
    **dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters"), _is_names),
    **dict.fromkeys(("layers_to_transform", "trainable_token_indices"), _is_wholes),
    "rank_pattern": _is_ranks,
    "alpha_pattern": _is_pattern,
    **dict.fromkeys(("lora_alpha", "lora_dropout"), is_number),
    **dict.fromkeys(("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"), _is_off),
    **dict.fromkeys(("arrow_config", "corda_config", "eva_config", "kasa_config", "loftq_config", "lora_ga_config"), _is_off),
    **dict.fromkeys(("megatron_config", "monteclora_config", "velora_config"), _is_off),
    "auto_mapping": _is_known_class,
    "bias": lambda value: value in ("none", "all", "lora_only"),
    "init_lora_weights": lambda value: _is_flag(value) or value == "gaussian",
    "megatron_core": lambda value: value == "megatron.core",
    "peft_type": lambda value: value == "LORA",
    "qalora_group_size": is_whole,
    "r": _is_rank,
}
"""The fields that a configuration may have, each with the check that its value is harmless; null always is, but ``check_config`` requires
a value for ``peft_type`` and ``r``."""
