"""The same run on a Ray cluster: Ray Data gets the images on CPUs and asks the models of a pool of actors; results come back here.

What the driver does, results on disk and pushes, is that of a run without Ray.
"""

from __future__ import annotations

from backend.batch.run import Stages
from backend.batch.work import Source, Work
from backend.settings import Settings


def ray_stages(settings: Settings, adapter: str | None, work: Work, source: Source) -> tuple[str, Stages]:
    """The version that the cluster's models have, and the stages."""
    raise NotImplementedError
