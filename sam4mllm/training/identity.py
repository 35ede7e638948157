"""The identity of a training run, a hash: a run is resumed only with the settings and the data that it began with."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from sam4mllm.adapters.files import hash_files
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.identity import digest_of
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool
from sam4mllm.training.targets import Targets

_LEFT_OUT = ("seconds_between_saves", "recompute", "feature_megabytes", "validation_share")
"""Fields of the plan that change only the speed, or what the pool's hash tells already: which pictures are set aside."""
_LATER = (
    ("squash", None),
    ("every_box", False),
    ("spread", "serving"),
    ("order", "left"),
    ("look_share", 0.0),
    ("least_epochs", None),
    ("augment_share", 0.0),
    ("paste_share", 0.0),
)
"""Fields that later releases added, each with the value that stands for the former behaviour.

They are left out of the hash at that value, so that a run that began in an earlier release can still be resumed.
"""


def identity_of_run(plan: TrainingPlan, asking: Asking, targets: Targets, checkpoint: Checkpoint, pool: Pool, start: Path | None) -> str:
    """Return the hash of all that determines the weights at each step.

    ``start`` is the folder of the adapter that the run goes on from, or None. Raises RegistryError or OSError if a file of that adapter is
    missing or cannot be read.
    """
    learned = {name: value for name, value in asdict(plan).items() if name not in _LEFT_OUT and (name, value) not in _LATER}
    parts = {
        "plan": {name: None if value == math.inf else value for name, value in learned.items()},
        "asking": {name: value for name, value in asdict(asking).items() if (name, value) not in _LATER},
        "targets": targets.identity,
        "model": checkpoint.fingerprint,
        "precision": asdict(checkpoint.precision),
        "pool": pool.sha256,
    }
    if start is not None:
        parts["start"] = hash_files(start)
    return digest_of(parts)
