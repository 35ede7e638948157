"""One call of ``sam4mllm batch``: a shard of a project or a folder, from the settings to the summary."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from backend.batch.folder import FolderSource, FolderWork
from backend.batch.models import load_serving
from backend.batch.run import Nowhere, Pusher, Sink, Tally, run
from backend.batch.steps import Stages, local_stages
from backend.batch.store import Store, opened
from backend.batch.view import View
from backend.batch.work import ProjectSource, ProjectWork, Shard, TaskSource, Work
from backend.corrections.log import CorrectionLog
from backend.errors import BatchError, ParametersError
from backend.label_studio.backend_entry import own_url, pick_entry, read_entries, tidy
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig, read_label_config
from backend.label_studio.parameters import Parameters, check_parameters, read_parameters
from backend.settings import Settings
from backend.setup.machine_checks import check_possible
from sam4mllm.adapters.registry import Registry
from sam4mllm.durable import replace_file
from sam4mllm.errors import ModelError, RegistryError

TASKS_A_PART = 50
"""Tasks in a part: few enough for results to be seen soon in Label Studio, and enough for the requests of a push to cost little."""
GOES_ON = "the same command goes on"
WHOLE = Shard()

_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class BatchPlan:
    """What a call asks for.

    ``target`` is a project's id or a folder of pictures, ``out`` the folder for results. ``phrases`` are asked about every picture of the
    folder; if there are none, the folder is a dataset with phrases of its own. ``adapter`` is a version or an adapter's folder; None is the
    registry's champion. ``part`` is the number of tasks in a part, and ``ray`` says whether the models are on a Ray cluster.
    """

    target: int | Path
    out: Path
    shard: Shard = WHOLE
    phrases: tuple[str, ...] = ()
    adapter: str | None = None
    part: int = TASKS_A_PART
    ray: bool = False

    @property
    def name(self) -> str:
        return f"project {self.target}" if isinstance(self.target, int) else self.target.name


def read_shard(text: str) -> Shard:
    """Return the shard that a text names: ``2/8`` is the second of eight. Raises ValueError for any other text."""
    found = _SHARD.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"{text!r} is no shard; write 2/8 for the second of eight")
    return Shard(int(found[1]), int(found[2]))


def run_batch(plan: BatchPlan, settings: Settings) -> dict[str, Any]:
    """Work on the plan's shard to its end, or until SIGINT or SIGTERM comes, and return what was done as a dict that JSON can hold.

    Results are kept under ``out``, in a folder for the version with a folder for the shard. Those of pictures are also joined into one file
    beside the shard's folder, unless the run was stopped. Tasks that fail are only counted. Raises Sam4mllmError if the run cannot begin or
    go on.
    """
    source, work, label_studio = _open_target(plan, settings)
    stop = threading.Event()
    version, stages = _models(plan, settings, work, source, stop)
    folder = plan.out / version
    notes = CorrectionLog(settings.home / "corrections.sqlite") if label_studio is not None else None
    try:
        with View(plan.name) as view, _setting(stop), opened(folder / plan.shard.name, plan.part) as store:
            sink = _sink(plan, label_studio, version, store, stop)
            tally = run(source, version, work, stages, store, sink, notes=notes, show=view.show, stop=stop)
            joined = None if label_studio is not None or tally.stopped else _join(folder / f"{plan.shard.name}.jsonl", store)
    finally:
        if notes is not None:
            notes.close()
        if label_studio is not None:
            label_studio.close()
    return _summary(plan, version, tally, joined)


def _open_target(plan: BatchPlan, settings: Settings) -> tuple[TaskSource, Work, LabelStudio | None]:
    """Return where the tasks come from, what is asked of them, and Label Studio (None for a folder).

    Raises Sam4mllmError if one of these cannot be used; it is called before the models are loaded, which takes long.
    """
    if not isinstance(plan.target, int):
        if not plan.target.is_dir():
            raise BatchError(f"{plan.target} is no folder; give a folder, or the number of a project")
        return FolderSource(plan.target, plan.shard, plan.phrases), FolderWork(settings, plan.target.absolute()), None
    if plan.phrases:
        raise BatchError(f"--phrase is for folders of pictures; a project's phrases are its tasks' {settings.phrase_field!r}")
    return open_project(settings, plan.target, plan.shard)


def results_of(settings: Settings, project: int) -> Path:
    """Where a project's results are kept, a folder for each version in it."""
    return settings.home / "batch" / f"project-{project}"


def open_project(settings: Settings, number: int, shard: Shard = WHOLE) -> tuple[ProjectSource, ProjectWork, LabelStudio]:
    """Return the source of a project's tasks, the work on them, and its Label Studio. Raises Sam4mllmError if it cannot be used."""
    token = settings.label_studio_api_key.get_secret_value()
    if not settings.label_studio_url or not token:
        raise BatchError("a project is asked of Label Studio: set LABEL_STUDIO_URL, and LABEL_STUDIO_API_KEY to a token")
    label_studio = LabelStudio(settings.label_studio_url, token)
    project = label_studio.project(number)
    config = read_label_config(project["label_config"])
    work = ProjectWork(settings, number, project["label_config"], _parameters(label_studio, settings, number, config))
    return ProjectSource(label_studio, number, shard), work, label_studio


def _parameters(label_studio: LabelStudio, settings: Settings, project: int, config: LabelConfig) -> Parameters:
    """Return the extra parameters in a project's backend entry for this server, or the defaults if it has no entry or they are empty.

    Raises BatchError if they cannot be used, LabelStudioError if the entries cannot be read.
    """
    versions: list[str] = []
    with suppress(RegistryError):
        versions = [manifest.version for manifest in Registry(settings.home).versions()]
    entry = pick_entry(read_entries(label_studio, project), tidy(settings.url) or own_url(settings), versions)
    try:
        parameters = read_parameters(entry.parameters if entry else None)
        check_parameters(parameters, config)
        if parameters.strategy is not None:
            check_possible(parameters.strategy, settings)
    except (ParametersError, ModelError) as error:
        raise BatchError(f"the extra parameters of project {project} cannot be used: {error}") from error
    return parameters


def _models(plan: BatchPlan, settings: Settings, work: Work, source: TaskSource, stop: threading.Event) -> tuple[str, Stages]:
    if plan.ray:
        from backend.batch.on_ray import ray_stages  # noqa: PLC0415 – may not be installed

        return ray_stages(partial(load_serving, settings, plan.adapter), settings, work)
    pipeline = load_serving(settings, plan.adapter)
    return pipeline.version, local_stages(pipeline, work, source, stop=stop)


def _sink(plan: BatchPlan, label_studio: LabelStudio | None, version: str, store: Store, stop: threading.Event) -> Sink:
    if label_studio is None or not isinstance(plan.target, int):
        return Nowhere()
    return Pusher(label_studio, plan.target, version, store, stop)


def _join(path: Path, store: Store) -> Path:
    """Write all results of a shard to one file of examples, sorted by picture, and return its path. A former file there is replaced.

    Raises BatchError if the file cannot be written.
    """
    examples = [example for result in store.results().values() if isinstance(result, list) for example in result]
    lines = [json.dumps(example, ensure_ascii=False).encode() + b"\n" for example in sorted(examples, key=lambda one: str(one["image"]))]
    try:
        replace_file(path, b"".join(lines))
    except OSError as error:
        raise BatchError(f"{path} cannot be written ({error.strerror}); free space; {GOES_ON}") from error
    return path


def _summary(plan: BatchPlan, version: str, tally: Tally, joined: Path | None) -> dict[str, Any]:
    began = psutil.Process().create_time()
    return {
        "version": version,
        "shard": f"{plan.shard.index}/{plan.shard.count}",
        "done": tally.done,
        "kept": tally.kept,
        "failed": sum(tally.failed.values()),
        "reasons": [{"reason": text, "tasks": count, "first": tally.first[text]} for text, count in tally.failed.most_common()],
        "pushed": tally.pushed.new,
        "already": tally.pushed.already,
        "gone": tally.pushed.gone,
        "repeated": tally.pushed.repeated,
        "seconds": (tally.ended or time.monotonic()) - tally.began,
        "rate": tally.rate,
        "models": tally.models,
        "first_task_after": tally.first_task - began if tally.first_task else None,
        "stopped": tally.stopped,
        "results": str(joined or plan.out / version / plan.shard.name),
    }


@contextmanager
def _setting(stop: threading.Event) -> Iterator[None]:
    """Within the block, Ctrl-C or SIGTERM sets ``stop``. The same signal a second time ends the process at once.

    That loses no more than the answers in progress. Outside of the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    former: list[Callable[..., Any] | int | None] = [signal.getsignal(number) for number in numbers]

    def end(number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
