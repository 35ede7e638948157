"""The job of a run's training process, and its exit code for a stop. Importing this module does not load the training code."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from backend.errors import LearningError
from backend.learning.run_folder import RunFolder
from sam4mllm.durable import replace_file
from sam4mllm.options import AUTO, THOUGHT_TOKENS, THRESHOLD, AskedStrategy, LookBack, Options, Pattern, Precision
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan

STOPPED = 3
"""Exit code of a run that was asked to stop and can go on."""


@dataclass(frozen=True)
class TrainingJob:
    """What a training process is to do; paths are absolute.

    ``champion`` is the folder of the champion's adapter, None for the base model, and ``champion_version`` its version. ``start`` is the
    folder of the adapter from which training starts, None for a new one. ``asking`` None means to ask as in the training of ``start``.
    If ``golden`` is None, the golden set is made of demo scenes; if ``replay`` is None, only the demo model has a replay, of demo scenes.
    """

    model: str
    segmenter: str
    device: str | None
    strategy: AskedStrategy
    joint: bool | None
    dataset: str
    replay: str | None
    golden: str | None
    home: str
    champion: str | None
    champion_version: str
    plan: TrainingPlan
    threads: int
    # jobs that an older release wrote lack these
    pattern: Pattern = "spread"
    precision: Precision = AUTO
    asking: Asking | None = field(default_factory=Asking)
    start: str | None = None
    threshold: float = THRESHOLD
    thought_tokens: int = THOUGHT_TOKENS
    look_back: LookBack = "off"

    @property
    def options(self) -> Options:
        return Options(
            self.strategy,
            self.joint,
            pattern=self.pattern,
            threshold=self.threshold,
            thought_tokens=self.thought_tokens,
            look_back=self.look_back,
        )

    def write(self, run: RunFolder) -> None:
        replace_file(run.job, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, run: RunFolder) -> TrainingJob:
        """Read the job of a run. Raises LearningError if it cannot be read as one, OSError if the file cannot be opened."""
        try:
            fields = json.loads(run.job.read_text(encoding="utf-8"))
            parts = {"precision": Precision(**fields.get("precision", {})), "asking": _asking(fields.get("asking", {}))}
            return cls(**{**fields, "plan": TrainingPlan(**{**_FORMERLY, **fields["plan"]}), **parts})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise LearningError(f"{run.job} is no job of a run; start another run") from error


_FORMERLY = {"validation_share": 0.0}
"""What stands for fields of the plan that a job of an earlier release lacks, where that is not their default."""


def _asking(fields: dict[str, Any] | None) -> Asking | None:
    return None if fields is None else Asking(**fields)


def training_threads() -> int:
    """Return the number of threads for training: OMP_NUM_THREADS, or without it half of the cores, so that serving keeps the others.

    On two cores the demo model's steps take as long with two threads as with one, for twice the processor time.
    """
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return int(allowed) if allowed.isdecimal() and int(allowed) else max(1, (os.cpu_count() or 1) // 2)
