"""The papers of an adapter that is being trained: what it changes, what it learned from, and how it is to be asked."""

from __future__ import annotations

import math
from dataclasses import asdict

from sam4mllm.adapters.fields import FILES
from sam4mllm.adapters.follow import lasting_name
from sam4mllm.adapters.manifest import Papers
from sam4mllm.errors import TrainingError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.training.asking import Asking
from sam4mllm.training.plan import TrainingPlan

_UNWRITTEN = "0" * 64


def new_papers(
    checkpoint: Checkpoint,
    data_sha256: str,
    plan: TrainingPlan,
    asking: Asking | None,
    segmenter: str | None,
    start: Papers | None = None,
) -> Papers:
    """Return the papers of an adapter before it is trained. The caller fills in the hashes of its files and its metrics afterwards.

    Serving is to ask about points in the way that most of them are asked in training (``joint_share``). ``segmenter``, which chose the
    points of PPG answers, is recorded only if PPG answers are learned; else it is the one in ``start``, the papers of the adapter that
    training goes on from, if there is one. An infinite number in the plan is written as null, because JSON has no infinity.
    """
    asking = asking or Asking()
    former = None if start is None else start.segmenter
    numbers = {name: None if value == math.inf else value for name, value in asdict(plan).items()}
    return Papers(
        base_model=lasting_name(checkpoint.source),
        base_sha256=checkpoint.base_sha256,
        template_sha256=checkpoint.template_sha256,
        data_sha256=data_sha256,
        metrics={},
        files=dict.fromkeys(FILES, _UNWRITTEN),
        strategy="pqpp",
        points="joint" if asking.joint_share > 0.5 else "packed",
        dialect=asdict(checkpoint.dialect),
        segmenter=lasting_name(segmenter) if segmenter is not None and asking.prompt_share else former,
        plan={**numbers, "asking": asdict(asking)},
    )


def asking_of(papers: Papers | None) -> Asking | None:
    """Return how images were asked about in an adapter's training, for a run that goes on from it and is not told another way.

    None if there are no papers, if they do not say, or if they have fields or values that this release does not take.
    """
    asked = None if papers is None or papers.plan is None else papers.plan.get("asking")
    try:
        return Asking(**asked) if isinstance(asked, dict) else None
    except (TypeError, TrainingError):  # another release wrote the papers, and its Asking had other fields or ranges
        return None
