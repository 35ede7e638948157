"""The plan (quantisation, training mode) that fits the GPU: ``serve`` and ``doctor`` print it, ``serve --plan auto`` uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend.errors import SettingsError
from backend.settings import Settings
from sam4mllm.fitting import Fit, Mode, choose_fit, describe_fit
from sam4mllm.options import NO_MODEL


@dataclass(frozen=True)
class GpuPlan:
    """The plan that fits the GPU, None if none does, and a line that describes it or says what would fit."""

    fit: Fit | None
    line: str


def find_plan(settings: Settings) -> GpuPlan | None:
    """Return the plan for the settings' models on this machine's GPU.

    It is None where there is nothing to plan: without a GPU, if the settings use several GPUs (``device_map``, or training on a GPU of its
    own), for the demo model, without an MLLM, or if the model's size is unknown or it cannot be quantised as set.

    Raises ModelError if the device is not there.
    """
    if settings.model in ("demo", NO_MODEL) or settings.device_map is not None or settings.train_mode.startswith("device:"):
        return None
    from sam4mllm.loading import pick_device  # noqa: PLC0415 – torch takes seconds to import
    from sam4mllm.memory import count_demands, free_bytes  # noqa: PLC0415
    from sam4mllm.options import Precision  # noqa: PLC0415
    from sam4mllm.precision import describe  # noqa: PLC0415

    device = pick_device(settings.device)
    training = settings.training.plan
    demands = count_demands(settings.model, settings.segmenter, device, settings.precision, training.rank) if device.type == "cuda" else []
    if "quantize" in settings.model_fields_set:
        demands = [demand for demand in demands if demand.quantize == settings.quantize]
    if not demands:
        return None
    free = free_bytes(device)
    fit = choose_fit(demands, free, _modes(settings))
    name, dtype = Path(settings.model).name or settings.model, describe(Precision(settings.dtype), device)
    return GpuPlan(fit, describe_fit(name, fit, demands, free, dtype, training.budget_seconds))


def tell_plan(settings: Settings) -> str:
    """Return the line of ``find_plan``, and how to use the plan if the settings differ from it; empty if there is no plan.

    Raises ModelError if the device is not there.
    """
    plan = find_plan(settings)
    if plan is None:
        return ""
    taken = plan.fit is None or (plan.fit.demand.quantize == settings.quantize and plan.fit.mode in (settings.train_mode, "none"))
    return plan.line if taken else f"{plan.line}; `sam4mllm serve --plan auto` takes this plan"


def take_plan(settings: Settings) -> dict[str, str]:
    """Return the environment variables that set what the plan says. Raises SettingsError if there is no plan or nothing fits, and
    ModelError if the device is not there.
    """
    if not settings.has_model:
        raise SettingsError("SAM4MLLM_PLAN=auto plans for an MLLM, and the model is none; leave --plan and SAM4MLLM_PLAN out")
    plan = find_plan(settings)
    if plan is None:
        raise SettingsError("SAM4MLLM_PLAN=auto plans for one GPU and a model whose size is known; set SAM4MLLM_QUANTIZE and _TRAIN_MODE")
    if plan.fit is None:
        raise SettingsError(plan.line)
    mode = settings.train_mode if plan.fit.mode == "none" else plan.fit.mode
    return {"SAM4MLLM_QUANTIZE": plan.fit.demand.quantize, "SAM4MLLM_TRAIN_MODE": mode}


def _modes(settings: Settings) -> tuple[Mode, ...]:
    """Return the training modes that a plan may choose from: the one that is set, or if none is set both."""
    if "train_mode" not in settings.model_fields_set:
        return ("beside", "pause")
    return ("pause",) if settings.train_mode == "pause" else ("beside",)
