"""The steps of a bulk run on a Ray cluster: Ray Data loads images on CPUs and asks a pool of actors that hold the models.

The answers come back to this process, the driver, which stores and pushes them as in a run without Ray. It needs no GPU and loads no model.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from typing import Any

import numpy as np

from backend.batch.steps import IMAGES_A_STEP, Loaded, Pace, Stages, answer_step, split
from backend.batch.work import Answered, BatchTask, TaskResult, Work, failed
from backend.corrections.log_records import Served
from backend.errors import BatchError
from backend.images.store import LoadedImage
from backend.settings import Settings
from sam4mllm.cli.options import hush
from sam4mllm.errors import first_line
from sam4mllm.host_memory import keep_freed_memory
from sam4mllm.pipeline import Pipeline

ROWS_A_BLOCK = 8
"""Tasks that go through the cluster together. If this process is killed, each worker loses at most about so many answers."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would send usage statistics to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

Row = dict[str, Any]


class Loader:
    """An actor on a CPU. It loads and decodes a task's image; if that fails, its row holds the reason in place of the pixels."""

    def __init__(self, work: Work) -> None:
        self._load = work.loader()

    def __call__(self, row: Row) -> Row:
        job = _job(row)
        began = time.perf_counter()
        try:
            image = self._load(job)
        except Exception as error:
            return _row(failed(job, error))
        height, width = image.pixels.shape[:2]
        taken = {"sha256": image.sha256, "seconds": time.perf_counter() - began, "reason": "", "message": "", "answer": ""}
        return {"job": row["job"], "pixels": image.pixels.tobytes(), "height": height, "width": width, **taken}


class Model:
    """An actor that holds the models. Raises BatchError if their version is not that of the run."""

    def __init__(self, load: Callable[[], Pipeline], settings: Settings, work: Work, version: str) -> None:
        keep_freed_memory()
        hush()
        self._pipeline = load()
        self._answer, self._pace = work.answerer(), Pace()
        own = self._pipeline.version
        if own != version:
            raise BatchError(f"a worker has the version {own} and another {version}; give all the same models and SAM4MLLM_HOME")

    def __call__(self, table: Any) -> Any:
        """Answer the tasks in a pyarrow table of loaded rows, and return a table of their results.

        The table is not a batch of NumPy arrays, which would cut the zero bytes off a picture's end.
        """
        loaded = [_loaded(row) for row in table.to_pylist()]
        steps = split(loaded, self._pace)
        return type(table).from_pylist(
            [_row(outcome) for step in steps for outcome in answer_step(self._pipeline, step, self._answer, self._pace)]
        )


def ray_stages(load: Callable[[], Pipeline], settings: Settings, work: Work) -> tuple[str, Stages]:
    """Return the version of the cluster's models, and the stages of the run.

    ``load`` is called once on the cluster to learn the version, and then in each actor that holds models. The stages take all tasks before
    they yield the first result. The cluster is the one at RAY_ADDRESS, else one that runs on this machine, else one that is started here
    for this run. Raises BatchError if Ray is not installed or the cluster fails. The stages raise it, too, if the cluster fails later.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        ray: Any = import_module("ray")
        data: Any = import_module("ray.data")
    except ImportError as error:
        raise BatchError(f"--ray needs Ray ({first_line(error)}): pip install 'sam4mllm[ray]'") from error
    try:
        ray.init(include_dashboard=None if os.environ.get("RAY_ADDRESS") else False, log_to_driver=False, logging_level=logging.ERROR)
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        models: Any = {"num_gpus": 1, "num_cpus": 1} if gpus and settings.device != "cpu" else {"num_cpus": 1}
        actors = gpus if "num_gpus" in models else max(1, cpus - 1)
        version = str(ray.get(ray.remote(_version).options(**models).remote(load, settings)))
    except Exception as error:
        raise _told(error) from error

    def stages(jobs: Iterator[BatchTask]) -> Iterator[TaskResult]:
        rows = [{"job": json.dumps([job.id, job.data])} for job in jobs]
        if not rows:
            return
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        try:
            dataset = data.from_items(rows, override_num_blocks=-(-len(rows) // ROWS_A_BLOCK))
            loaded = dataset.map(
                Loader,
                fn_constructor_args=[work],
                compute=data.ActorPoolStrategy(min_size=1, max_size=max(1, cpus - actors)),
                num_cpus=0.25,
            )
            answered = loaded.map_batches(
                Model,
                batch_size=IMAGES_A_STEP,
                batch_format="pyarrow",
                fn_constructor_args=[load, settings, work, version],
                compute=data.ActorPoolStrategy(min_size=1, max_size=actors),
                **models,
            )
            for row in answered.iter_rows():
                yield _outcome(row)
        except Exception as error:
            raise _told(error) from error

    return version, stages


def _version(load: Callable[[], Pipeline], settings: Settings) -> str:
    hush()
    return load().version


def _told(error: Exception) -> BatchError:
    """Return a BatchError of one line: the last line of what Ray tells in many."""
    cause: BaseException = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return BatchError(f"the Ray cluster could not do it: {lines[-1] if lines else type(cause).__name__}")


def _job(row: Row) -> BatchTask:
    number, data = json.loads(row["job"])
    return BatchTask(number, data)


def _loaded(row: Row) -> Loaded:
    job = _job(row)
    if row["reason"]:
        return Loaded(job, outcome=TaskResult(job, None, row["reason"], row["message"]))
    pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3).copy()
    return Loaded(job, LoadedImage(pixels, row["sha256"]), row["seconds"])


def _row(outcome: TaskResult) -> Row:
    """Return a task's answer or failure as a row. All rows have the same columns, whether they hold a picture, an answer or a failure."""
    answer = "" if outcome.answered is None else json.dumps([outcome.answered.result, [asdict(one) for one in outcome.answered.served]])
    job = json.dumps([outcome.job.id, outcome.job.data])
    nothing = {"pixels": b"", "height": 0, "width": 0, "sha256": "", "seconds": 0.0}
    return {"job": job, **nothing, "reason": outcome.reason, "message": outcome.message, "answer": answer}


def _outcome(row: Row) -> TaskResult:
    if row["reason"]:
        return TaskResult(_job(row), None, row["reason"], row["message"])
    result, served = json.loads(row["answer"])
    return TaskResult(_job(row), Answered(result, [Served(**{**one, "box_px": tuple(one["box_px"])}) for one in served]))
