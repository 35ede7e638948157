"""The worker process that tries one candidate: it loads the models, goes through the pictures that have no result yet, and ends.

Each candidate has a process of its own, so that the former candidate has left the memory, the peak memory is the candidate's own, and a
kernel that kills the process for its memory kills nothing else. The process reads a line of JSON, a :class:`Job`, from standard input,
which stays open: when the trial ends and thereby closes it, this process ends at once. On standard output it writes a line of JSON for each
picture that is done, or one that says what went wrong. Everything else goes to standard error, which the trial keeps in a file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.durable import locked
from sam4mllm.errors import Sam4mllmError, first_line
from sam4mllm.evaluation.clicking import correct
from sam4mllm.evaluation.run import by_image, choose, draw_oracle, measure
from sam4mllm.evaluation.sharing import SharingGrounder
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.run_lengths import to_rle
from sam4mllm.trial.candidates import Contender
from sam4mllm.trial.tried import TrialJournal, TriedPhrase, TriedPicture
from sam4mllm.values import Segmentation

JOURNAL, LOCK = "journal.jsonl", "worker.lock"
"""Files in a trial's folder: the results, and the lock that a worker holds while it runs."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Job:
    """What a worker has to do: try ``candidate`` on the pictures in ``missing``.

    ``missing`` maps the path of each picture to its key in the journal, which lies in ``folder``. ``dataset`` is the dataset's folder, of
    which only ``split`` is used if it is named.
    """

    candidate: Mapping[str, object]
    dataset: str
    split: str | None
    folder: str
    missing: Mapping[str, str]

    def to_line(self) -> str:
        """Return the job as a line of JSON, which ``read_job`` reads."""
        return json.dumps(asdict(self)) + "\n"


def read_job(stream: TextIO) -> Job:
    """The job in the first line of a stream."""
    return Job(**json.loads(stream.readline()))


def work(job: Job, load: Callable[[Contender], Pipeline]) -> Iterator[str]:
    """Try the job's candidate on each missing picture; yield the picture's path once its result is in the journal.

    ``load`` loads a candidate. Raises Sam4mllmError, and any error that a model raises if it is too large or broken.
    """
    candidate = Contender(**job.candidate)  # type: ignore[arg-type]
    folder = Path(job.folder)
    with locked(folder / LOCK):  # waits until the worker of a killed trial has ended
        journal = TrialJournal(folder / JOURNAL)
        images = [group for group in by_image(choose(Path(job.dataset), job.split)) if group[0].image in job.missing]
        began = time.perf_counter()
        pipeline = load(candidate)
        loading = time.perf_counter() - began
        for group in images:
            image = group[0].image
            if journal.find(job.missing[image]) is None:
                journal.add(job.missing[image], candidate.name, image, try_picture(pipeline, Path(job.dataset), group, loading))
            yield image


def try_picture(pipeline: Pipeline, dataset: Path, group: Sequence[Example], loading: float) -> TriedPicture:
    """Answer all phrases of a picture in one call, then measure the upper bound and the clicks for each phrase with a target.

    ``group`` is the picture's examples. ``loading``, the seconds of loading, only passes into the result.
    """
    image = load_example_image(dataset, group[0])
    shared = pipeline.through(SharingGrounder(pipeline.grounder))
    began = time.perf_counter()
    opened = shared.open(image)
    answers = shared.segment(opened, [example.phrase for example in group])
    seconds = time.perf_counter() - began
    phrases = tuple(_judge(shared, opened, example, answer) for example, answer in zip(group, answers, strict=True))
    return TriedPicture(phrases, seconds, loading, peak_memory(), _gpu_memory())


def _judge(pipeline: Pipeline, opened: Opened, example: Example, answer: Segmentation) -> TriedPhrase:
    sample, rle = measure(answer.mask, example), to_rle(answer.mask)
    if not example.has_target:
        return TriedPhrase(sample, rle)
    bound = measure(draw_oracle(pipeline, opened, example), example).iou
    return TriedPhrase(sample, rle, bound, correct(pipeline, opened, example, answer))


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    try:  # not by getrusage, whose peak starts at what the parent process had
        line = next(line for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def _gpu_memory() -> int:
    import torch  # noqa: PLC0415 – takes seconds, for which the message on a wrong command line should not wait

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _load(candidate: Contender) -> Pipeline:
    from sam4mllm.loading import load_pipeline  # noqa: PLC0415

    one = candidate
    return load_pipeline(one.model, one.segmenter, one.device, one.options, one.adapter, one.precision, one.dialect)


def _end_with_the_trial() -> None:
    """End this process at once when the trial's end of standard input is closed."""
    while os.read(0, 1):  # not by sys.stdin, whose lock a thread may not hold when the interpreter ends
        pass
    os._exit(1)


def main() -> int:
    """Do the job on standard input and return the exit status: 0, or 1 if it failed and the last line of output says why."""
    job = read_job(sys.stdin)
    threading.Thread(target=_end_with_the_trial, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what libraries print goes to standard error
        try:
            for image in work(job, _load):
                print(json.dumps({"image": image}), file=out, flush=True)
        except Exception as error:  # any error ends this candidate only; the trial goes on with the others
            traceback.print_exc()
            print(json.dumps({"failed": describe(error)}), file=out, flush=True)
            return 1
    return 0


def describe(error: Exception) -> str:
    """Return an error as one line for users."""
    if isinstance(error, Sam4mllmError):
        return str(error)
    line = first_line(error)[:200]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in line:
        return f"it does not fit into memory ({line}); set quantize or a smaller dtype, or take a smaller model"
    return f"{type(error).__name__}: {line}"


if __name__ == "__main__":
    sys.exit(main())
