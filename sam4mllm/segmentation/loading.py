"""Which segmenter a setting names, and its weights: a folder of ours, or an official SAM checkpoint file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from sam4mllm.demo.architecture import build_segmenter
from sam4mllm.errors import ModelError, first_line
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.segmentation.sam import SamSegmenter

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "assets" / "segmenter"
BUILDERS = {"demo": build_segmenter, **{name: sam_model_registry[name] for name in ("vit_b", "vit_l", "vit_h")}}

OFFICIAL_SHA256 = {
    "vit_b": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "vit_l": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "vit_h": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
"""SHA-256 of the authors' files sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth and sam_vit_h_4b8939.pth."""


def load_segmenter(source: str, device: torch.device) -> Segmenter:
    """The segmenter that ``source`` names: ``demo``, or ``vit_b|vit_l|vit_h:PATH`` with an official .pth or its weights as .safetensors.

    ``PATH#sha256=<64 hex>`` admits another .pth file, one that the user vouches for. Raises ModelError with one line on what is
    wrong and what to do.
    """
    if source == "demo":
        return _place(_load_folder(DEMO_FOLDER), device, f"demo:{_digest(DEMO_FOLDER / 'model.safetensors')}")
    name, _, path = source.partition(":")
    if name not in BUILDERS or name == "demo" or not path:
        raise ModelError(f"{source!r} is no segmenter: use demo, vit_b:PATH, vit_l:PATH or vit_h:PATH")
    file, _, trusted = path.partition("#sha256=")
    if not Path(file).is_file():
        raise ModelError(f"there is no file {file}; give the path of the {name} weights")
    digest = _digest(Path(file))
    if trusted and digest != trusted.lower():
        raise ModelError(f"{file} is not the file you named: its SHA-256 is {digest}")
    return _place(_load_file(name, Path(file), digest, bool(trusted)), device, f"{name}:{digest}")


def _place(model: Sam, device: torch.device, source: str) -> SamSegmenter:
    try:
        return SamSegmenter(model.to(device).eval(), source)
    except RuntimeError as error:
        raise ModelError(f"the segmenter does not fit on {device}: {first_line(error)}") from error


def _load_folder(folder: Path) -> Sam:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{folder} is not a complete segmenter folder: model.safetensors is missing")
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"]
        model = BUILDERS[name]()
        model.load_state_dict(load_file(weights))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} could not be loaded as a segmenter: {first_line(error)}") from error
    return model


def _load_file(name: str, path: Path, digest: str, trusted: bool) -> Sam:
    if path.suffix != ".safetensors" and not trusted and digest != OFFICIAL_SHA256[name]:
        raise ModelError(
            f"{path} is not the published {name} file (its SHA-256 is {digest}); use that file, convert yours to .safetensors, "
            "or add #sha256=<its hash> to the path if you trust it"
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_pickled(path)
        model = BUILDERS[name]()
        model.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"{path} does not hold {name} weights: {first_line(error)}") from error
    return model


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The one place where a pickle-based file is read: weights only, and only a file of a known hash."""
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
