"""What a run's training process is told and tells back; the server, which only writes it, does without what training needs."""

from __future__ import annotations

import json
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
    """What a run is to do; paths are absolute.

    ``champion`` is the adapter's folder, None for the base model, ``champion_version`` its name; ``start`` is the adapter that the run goes
    on from, None if from none; ``asking`` None goes on asking as in that one's training. Where no golden set is named, demo scenes are; and
    where no replay is, the demo model has demo scenes.
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
    # of these an older server's jobs say nothing
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
        """Raises LearningError."""
        try:
            fields = json.loads(run.job.read_text(encoding="utf-8"))
            parts = {"precision": Precision(**fields.get("precision", {})), "asking": _asking(fields.get("asking", {}))}
            return cls(**{**fields, "plan": TrainingPlan(**fields["plan"]), **parts})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise LearningError(f"{run.job} is no job of a run; start another run") from error


def _asking(fields: dict[str, Any] | None) -> Asking | None:
    return None if fields is None else Asking(**fields)
