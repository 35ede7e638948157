"""SAM4MLLM: a multi-modal language model finds what a phrase means, SAM draws it.

>>> import sam4mllm
>>> pipeline = sam4mllm.load()
>>> image = sam4mllm.load_image("kitchen.jpg")
>>> [answer] = pipeline.segment(image, ["the left cup"])
>>> answer.mask.shape == image.shape[:2]
True

A name is imported when it is first used: torch and transformers take seconds, and errors, options and ``--help`` need neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sam4mllm.clicks import Clicks
    from sam4mllm.errors import ImageError, ModelError, PhraseError, PromptError, RegistryError, Sam4mllmError
    from sam4mllm.images import load_image
    from sam4mllm.options import DtypeName, Options, Precision, QuantizeName, Strategy, Thresholds
    from sam4mllm.overlay import draw
    from sam4mllm.pipeline import Pipeline
    from sam4mllm.values import Grounding, Instance, Masks, Prompt, Segmentation

__version__ = "0.1.0"
__all__ = [
    "Clicks",
    "Grounding",
    "ImageError",
    "Instance",
    "Masks",
    "ModelError",
    "Options",
    "PhraseError",
    "Pipeline",
    "Precision",
    "Prompt",
    "PromptError",
    "RegistryError",
    "Sam4mllmError",
    "Segmentation",
    "Strategy",
    "Thresholds",
    "__version__",
    "draw",
    "load",
    "load_image",
]
_MODULES = {
    "clicks": ("Clicks",),
    "errors": ("ImageError", "ModelError", "PhraseError", "PromptError", "RegistryError", "Sam4mllmError"),
    "images": ("load_image",),
    "options": ("Options", "Precision", "Strategy", "Thresholds"),
    "overlay": ("draw",),
    "pipeline": ("Pipeline",),
    "values": ("Grounding", "Instance", "Masks", "Prompt", "Segmentation"),
}
_MODULE_OF = {name: f"sam4mllm.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    model: str | None = None,
    segmenter: str | None = None,
    device: str | None = None,
    options: Options | None = None,
    adapter: str | None = None,
    *,
    dtype: DtypeName = "auto",
    quantize: QuantizeName = "none",
    device_map: Literal["auto"] | None = None,
    dialect: str | None = None,
) -> Pipeline:
    """Load both models and put them into a Pipeline.

    Args:
        model: ``demo``, a folder, or a hub id of a supported family; ``none`` for the segmenter alone. If None, the model that the
        adapter's manifest (or, without one, its configuration) names, else ``demo``.
        segmenter: ``demo``, ``vit_b|vit_l|vit_h:PATH``, ``efficientvit-sam-xl1:PATH``, or a checkpoint folder or hub id. If None, the
        segmenter that the adapter's manifest (or its segmenter's configuration) names, else ``demo``.
        device: ``cpu``, ``cuda``, ``cuda:1``…; by default a GPU if there is one.
        options: the strategy, how the language model is asked about points, and which mask is taken; the defaults if None.
        adapter: a folder with a LoRA adapter, or a version in the registry; the base model alone if None.
        dtype: ``bf16``, ``fp16`` or ``fp32``; ``auto`` is ``bf16`` on a GPU (``fp16`` where that is only emulated) and ``fp32`` on a CPU.
        quantize: ``8bit`` or ``4bit`` weights of the language model; needs the extra ``quant``.
        device_map: ``auto`` spreads the language model over all GPUs.
        dialect: the forms of questions and answers, as a name in ``DIALECTS`` or a JSON file. If None, those that the adapter was trained
        in, else the model family's. An adapter that was trained in another dialect is refused.

    Raises:
        ModelError, RegistryError, TemplateError, ExtensionError: with one line on what is wrong and what to do.
    """
    from sam4mllm.loading import load_pipeline
    from sam4mllm.options import Precision

    precision = Precision(dtype, quantize, device_map)
    return load_pipeline(model, segmenter, device, options, adapter, precision, dialect)
