"""Which segmenter a setting names, and its weights: a folder of ours, a file of SAM or EfficientViT-SAM, a checkpoint of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from torch import Tensor

from sam4mllm.checkpoints import CONFIG, WEIGHTS, check_state, read_object, require_files
from sam4mllm.durable import file_sha256
from sam4mllm.errors import ExtensionError, ModelError, Sam4mllmError, first_line
from sam4mllm.extensions import Extension, find, names
from sam4mllm.segmentation import efficientvit, pretrained
from sam4mllm.segmentation.attention import fuse_attention
from sam4mllm.segmentation.detection import DetectingSegmenter
from sam4mllm.segmentation.names import split_name
from sam4mllm.segmentation.pretrained import load_detector, load_transformers
from sam4mllm.segmentation.protocol import Segmenter
from sam4mllm.segmentation.sam import SamSegmenter
from sam4mllm.segmentation.small_sam import build_segmenter

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "assets" / "segmenter"

OFFICIAL_SHA256 = {
    "vit_b": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "vit_l": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "vit_h": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
"""SHA-256 of the authors' files sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth and sam_vit_h_4b8939.pth."""

FILES = (*OFFICIAL_SHA256, *efficientvit.NAMES)
"""The segmenters that are named together with the path of their weights."""
PROTOCOL = ("identity", "nbytes", "to", "encode", "decode")
"""The attributes that a :class:`~sam4mllm.segmentation.protocol.Segmenter` must have."""
OURS = ("demo", *FILES)
"""Names that no other package may take."""


def load_segmenter(source: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Segmenter:
    """Load the segmenter that ``source`` names (docs/segmenters.md).

    A name is one of these:

    - ``demo``;
    - ``vit_b|vit_l|vit_h:PATH``, or ``efficientvit-sam-xl1:PATH`` and its smaller sizes, with weights as .safetensors or SAM's official
      .pth;
    - a folder or hub id of a transformers checkpoint;
    - the name of an entry point ``sam4mllm.segmenters``, alone or followed by ``:`` and an argument for it;
    - a folder or hub id of a detector, ``+``, and one of the above.

    Args:
        source: the name; ``PATH#sha256=<64 hex>`` also admits a .pth or .pt file that is not the official one but that the user
            vouches for.
        device: where the segmenter runs.
        dtype: precision in which images are encoded on a GPU; on a CPU it is float32.

    Raises:
        ModelError: one line on what is wrong and what to do.
        ExtensionError: likewise, of another package's segmenter.
    """
    if device.type != "cuda":
        dtype = torch.float32
    try:
        segmenter = _load_both(source, dtype)
    except ExtensionError:
        raise
    except ModelError as error:
        raise ModelError(f"SAM4MLLM_SEGMENTER or --segmenter: {error}") from error
    try:
        segmenter.to(device)
    except RuntimeError as error:
        raise ModelError(f"the segmenter does not fit on {device}: {first_line(error)}") from error
    return segmenter


def takes_phrases(source: str) -> bool:
    """Whether the segmenter that ``source`` names takes phrases itself; true for another package's, which might. No weights are loaded.

    A name that is no path on this machine and has not the form of a hub id gives False; loading it raises the error. Raises ModelError
    if the config.json of a folder or hub id cannot be read.
    """
    detector, name = split_name(source)
    if detector is not None or is_brought(name):
        return True
    named = "/" in name.strip("/") or Path(name).exists()  # else it is no checkpoint's name, and loading says so
    return named and name.partition(":")[0] not in OURS and pretrained.takes_phrases(name)


def is_brought(name: str) -> bool:
    """Whether a segmenter's name, without a detector's before it, is another package's."""
    return find("segmenters", name.partition(":")[0], OURS) is not None


def _load_both(source: str, dtype: torch.dtype) -> Segmenter:
    """Load the segmenter, and the detector if one stands before it. The segmenter comes first: it is smaller, and its name is more easily
    mistyped. Raises ModelError also if no segmenter, or a second detector, follows the ``+``.
    """
    detector, name = split_name(source)
    if detector is None:
        return _load(name, dtype)
    if not name:
        raise ModelError(f"{source!r} names no segmenter after the +, which draws the boxes: use {source}vit_h:PATH or another")
    if split_name(name)[0] is not None:
        raise ModelError(f"{source!r} names two detectors: use one, +, and the segmenter that draws")
    segmenter = _load(name, dtype)
    return DetectingSegmenter(load_detector(detector, dtype), segmenter)


def _load(source: str, dtype: torch.dtype) -> Segmenter:
    if source == "demo":
        return SamSegmenter(_load_folder(DEMO_FOLDER), f"demo:{file_sha256(DEMO_FOLDER / WEIGHTS)}", dtype)
    name, _, path = source.partition(":")
    if name in FILES:
        return _load_named(name, path, dtype)
    if (extension := find("segmenters", name, OURS)) is not None:
        return _load_brought(extension, path, dtype)
    if "/" not in source.strip("/") and not Path(source).exists():
        raise ModelError(
            f"{source!r} is no segmenter: use demo, vit_b:PATH, vit_l:PATH, vit_h:PATH, efficientvit-sam-xl1:PATH, "
            f"{''.join(f'{brought}, ' for brought in names('segmenters', OURS))}a folder, or a hub id"
        )
    return load_transformers(source, dtype)


def _load_brought(extension: Extension, path: str, dtype: torch.dtype) -> Segmenter:
    """Return the segmenter that another package makes, given ``path``, the argument in its name, which may be empty.

    Raises ExtensionError if the package cannot be imported or makes no segmenter; a Sam4mllmError of the package itself passes through.
    """
    make = extension.load()
    if not callable(make):
        raise extension.refused("is no function that makes a segmenter")
    try:
        segmenter: Segmenter = make(path, dtype)
    except Sam4mllmError:
        raise
    except Exception as error:  # whatever another package raises
        raise extension.refused(f"cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
    missing = [name for name in PROTOCOL if not hasattr(segmenter, name)]
    if missing:
        raise extension.refused(f"makes no segmenter: it lacks {', '.join(missing)}")
    return segmenter


def _load_named(name: str, path: str, dtype: torch.dtype) -> SamSegmenter:
    if not path:
        raise ModelError(f"{name} is no segmenter without its weights: use {name}:PATH")
    file, _, trusted = path.partition("#sha256=")
    if not Path(file).is_file():
        raise ModelError(f"there is no file {file}; give the path of the {name} weights")
    digest = file_sha256(Path(file))
    if trusted and digest != trusted.lower():
        raise ModelError(f"{file} is not the file you named: its SHA-256 is {digest}")
    segmenter = SamSegmenter if name in OFFICIAL_SHA256 else efficientvit.EfficientViTSegmenter
    return segmenter(_load_file(name, Path(file), digest, bool(trusted)), f"{name}:{digest}", dtype)


def _build(name: str, state: Mapping[str, Tensor]) -> Any:
    """The model of a name with these weights.

    Raises ValueError naming weights that are missing, unknown or of another shape, and ModelError if the model's package is missing.
    """
    if name in efficientvit.NAMES:
        model: Any = efficientvit.build(name)
    else:
        model = fuse_attention(build_segmenter() if name == "demo" else sam_model_registry[name]())
    check_state(model.state_dict(), state)
    model.load_state_dict(state)
    return model


def _load_folder(folder: Path) -> Any:
    require_files(folder, str(folder), ((WEIGHTS,),))
    try:
        name = read_object(folder / CONFIG, str(folder))["architecture"]
        return _build(name, load_file(folder / WEIGHTS)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} could not be loaded as a segmenter: {first_line(error)}") from error


def _load_file(name: str, path: Path, digest: str, trusted: bool) -> Any:
    if path.suffix != ".safetensors" and not trusted and digest != OFFICIAL_SHA256.get(name):
        raise ModelError(
            f"{path} is not the published {name} file (its SHA-256 is {digest}); use that file, convert yours to .safetensors, "
            "or add #sha256=<its hash> to the path if you trust it"
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_pickled(path)
        return _build(name, state).eval()
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"{path} does not hold {name} weights: {first_line(error)}") from error


def _read_pickled(path: Path) -> Mapping[str, Tensor]:
    """Read the weights in a pickle-based file, which is either the authors' own by its SHA-256 or one whose SHA-256 the user named.
    ``_load_named`` and ``_load_file`` check this.

    Only the conversion of published folders reads such files, too.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    found: Mapping[str, Tensor] = state.get("state_dict", state)  # some of EfficientViT's files wrap it
    return found
