"""The notes of `sam4mllm doctor` on the server, which are no faults: its strategy, the plan for its GPU, and what its scores mean."""

from __future__ import annotations

from pathlib import Path

from backend.settings import Settings
from backend.setup.gpu_plan import tell_plan
from sam4mllm.adapters.registry import Registry
from sam4mllm.confidence import FIT_FROM, Calibration
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.options import Strategy, describe_strategy, resolve_strategy


def tell_strategy(settings: Settings) -> str:
    """Describe the strategy that the server uses with these settings and the version that is to serve."""
    strategy, learned = serving_strategy(settings)
    return f"{'' if settings.has_model else 'no MLLM; '}{describe_strategy(strategy, learned)}"


def serving_strategy(settings: Settings) -> tuple[Strategy, bool]:
    """Return the strategy that the server uses with these settings, and whether the model was trained to answer about points."""
    if not settings.has_model:
        return "concept", False
    try:
        champion = Registry(settings.home).champion()
    except RegistryError:  # check_adapters reports it
        champion = None
    demo, has_adapter = settings.model == "demo", champion is not None and champion.changes_mllm
    asked = settings.options if champion is None else champion.asked(settings.options)
    return resolve_strategy(asked.strategy, demo=demo, has_adapter=has_adapter), demo or has_adapter


def tell_fit(settings: Settings) -> list[str]:
    """Return a line on the plan that fits this machine's GPU, if there is one. No server may be running: it takes up GPU memory."""
    try:
        plan = tell_plan(settings)
    except ModelError:  # check_models reports it
        return []
    return [plan] if plan else []


def tell_score(home: Path) -> str:
    """Say whether scores are calibrated and so are probabilities."""
    try:
        count = Calibration.from_json((home / "score.json").read_text(encoding="utf-8")).count
    except (OSError, ValueError):
        return f"score not calibrated: it orders, and is no probability, until {FIT_FROM} masks are reviewed"
    return f"score calibrated on {count} reviewed masks"
