"""The training process. ``python -m backend.learning.trainer RUN`` trains an adapter and compares it with the champion; with ``smoke RUN``
it only tests that the adapter loads and answers.

``RUN`` is the folder of a run (:class:`backend.learning.run_folder.RunFolder`); all that the process needs to know is in its ``job.json``.
After SIGTERM it saves its training state and ends, and the next start goes on from there. It is a process of its own, so that none of its
failures, such as running out of memory, ends the server.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.learning.compare import answer_all, score
from backend.learning.evaluation import read_pair
from backend.learning.gate import PairedSample, is_kept
from backend.learning.job import STOPPED, TrainingJob
from backend.learning.paired_tests import BOOTSTRAP_PAIRS
from backend.learning.report import choose_changes
from backend.learning.run_folder import PICTURE_SIDES, RunFolder, is_number, read_text
from backend.learning.snapshot import ACCEPTED, HOLDOUT, UNASSISTED, how_made, project_of
from backend.learning.views import VIEWS
from backend.serving.edges import Edges
from backend.support.logs import TextFormatter
from sam4mllm.adapters.files import check_parts
from sam4mllm.adapters.loose import LooseAdapter, read_papers
from sam4mllm.data.examples import EXAMPLES, Example
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.durable import file_sha256, locked, replace_file
from sam4mllm.errors import Sam4mllmError, first_line
from sam4mllm.head_noun import head_noun
from sam4mllm.host_memory import keep_freed_memory
from sam4mllm.loading import Variants, load_variants
from sam4mllm.overlay import draw
from sam4mllm.pipeline import Pipeline
from sam4mllm.training.recipe import Progress
from sam4mllm.training.session import Extras, Session

log = logging.getLogger(__name__)

PICTURES = 10
SCENES = {"golden": (200, 2, "test"), "replay": (600, 5, "train")}
"""Of the golden set and the replay: the number of scenes, the phrases of each scene, and the split."""
SEEDS = {"golden": 880_001, "replay": 880_002}
"""Seeds of both sets. Neither the demo model's training nor its published figures used them; sets of other scenes need other seeds."""
TELL_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0 if all was done, STOPPED if the run was told to stop or its server is gone, else 1.

    With 1, one line on standard error says why, unless the smoke test's answer has a score that is not finite. Errors other than
    Sam4mllmError, OSError, FloatingPointError and a lack of memory are raised.
    """
    keep_freed_memory()
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())  # no logged text may look like the line "error: …" that says why the process failed
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    *mode, folder = arguments
    run = RunFolder(Path(folder))
    try:
        job = TrainingJob.read(run)
        torch.set_num_threads(job.threads)
        if mode == ["smoke"]:
            return _smoke(run, job)
        with locked(run.lock):  # a process whose server was killed may be at its last step
            return _run(run, job)
    except Sam4mllmError as error:
        print(f"error: {error}", file=sys.stderr)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        print(
            "error: out of memory; use SAM4MLLM_TRAIN_MODE=pause, SAM4MLLM_QUANTIZE=4bit, another device, or a smaller model",
            file=sys.stderr,
        )
    except (FloatingPointError, OSError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
    return 1


def _run(run: RunFolder, job: TrainingJob) -> int:
    if not run.adapter.exists() and not _train(run, job):
        return STOPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # a comparison saves no state: it is done again from its start
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _evaluate(run, job)
    return 0


# -- training ------------------------------------------------------------------------------------------------------------------------------


def _train(run: RunFolder, job: TrainingJob) -> bool:
    drawn_as = drawn_by(read_examples(Path(job.dataset)))
    where = (Path(job.dataset), run.adapter, job.plan, job.model, job.device, _replay(job), drawn_as)
    start = None if job.start is None else Path(job.start)
    session = Session(*where, start=start, extras=Extras(job.asking), precision=job.precision)
    signal.signal(signal.SIGTERM, lambda *_: session.trainer.stop())
    tell, parent = Teller(run), os.getppid()

    def follow(progress: Progress) -> None:
        tell(progress)
        if os.getppid() != parent:  # the server is gone; the next one takes the run up
            session.trainer.stop()

    return session.run(follow)


def _replay(job: TrainingJob) -> Path | None:
    """Return the folder of replay examples, which keep the base model from forgetting, or None.

    They are the job's, or for the demo model, scenes like those that it was trained on.
    """
    if job.replay:
        return Path(job.replay)
    return draw_scenes(Path(job.home))["replay"] if job.model == "demo" else None


def draw_scenes(home: Path) -> dict[str, Path]:
    """Return the folders of the golden set and of the replay (SCENES), which are drawn from demo scenes if they are not there.

    A set that an earlier release drew with another seed, split or size is drawn again.
    """
    folders = {name: home / name for name in SCENES}
    for name, (count, phrases, split) in SCENES.items():
        found = read_examples(folders[name]) if (folders[name] / EXAMPLES).exists() else []
        phrases_of = Counter(example.image for example in found)
        alike = all(example.split == split and example.source.startswith(f"scenes:{SEEDS[name]}:") for example in found)
        if not alike or len(phrases_of) != count or max(phrases_of.values()) != phrases:
            shutil.rmtree(folders[name], ignore_errors=True)
            write_scenes(folders[name], count, SEEDS[name], phrases=phrases, split=split)
    return folders


class Teller:
    """Adds every step that it is told of to the run's curve, and writes how far the run is, at most once in TELL_SECONDS and at the last
    step.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        self._run.add_to_curve(progress.step, progress.loss, progress.validation)
        if time.monotonic() - self._last >= TELL_SECONDS or progress.step == progress.steps:
            self._last = time.monotonic()
            self._run.write_progress("training", progress.step, progress.steps)


def labeller(examples: Sequence[Example]) -> Callable[[Example], str]:
    """Return a function that gives an example's label, or an empty text if it has none.

    If the examples are of several projects, the project's number is added, for a label may mean different things in two projects.
    """
    several = len({project_of(example.source) for example in examples}) > 1

    def label_of(example: Example) -> str:
        name = example.label or ""
        return f"{name} (project {project_of(example.source)})" if several else name

    return label_of


def drawn_by(examples: Sequence[Example]) -> Callable[[Example], str]:
    """Return a function that gives a correction's group for sampling: its label or, if all share one label, the noun of its phrase (empty
    if that is not sure), so that a rare object is not lost.
    """
    label_of = labeller(examples)

    def noun_of(example: Example) -> str:
        head = head_noun(example.phrase)
        return head.noun if head.sure else ""

    return label_of if len({label_of(example) for example in examples}) > 1 else noun_of


# -- comparison ----------------------------------------------------------------------------------------------------------------------------


def _evaluate(run: RunFolder, job: TrainingJob) -> None:
    check_parts(run.adapter)
    variants = load_variants(job.model, job.segmenter, job.device, job.options, job.precision)
    champion = variants.base
    if job.champion is not None:
        champion = variants.load(Path(job.champion), LooseAdapter(job.champion_version, read_papers(Path(job.champion))))
    challenger = variants.load(run.adapter, _challenger(run))
    dataset = Path(job.dataset)
    holdout = [example for example in read_examples(dataset) if example.split == HOLDOUT]
    scores: defaultdict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    edges, count = Edges(Path(job.home)), VIEWS if len({example.image for example in holdout}) < BOOTSTRAP_PAIRS else 1
    for index, found in enumerate(answer_all([champion, challenger], dataset, holdout, count)):
        run.write_progress("comparing", index, count * len(holdout))
        example = found.example
        edge = edges.of(project_of(example.source), example.label, champion.decoder)
        scores[_name(example)].append([score(answer, example, edge) for answer in found.answers])
    pairs = _pairs(holdout, scores)
    kept = is_kept([read_pair(one) for one in pairs])
    golden = (None, None) if kept else _golden(run, job, champion, challenger)
    pictures = _picture_changes(run, job, champion, challenger, holdout, pairs)
    result = {"pairs": pairs, "golden_champion": golden[0], "golden_challenger": golden[1], "pictures": pictures}
    replace_file(run.evaluation, json.dumps(result).encode())


def _name(example: Example) -> tuple[str, str, str]:
    """What tells an example from all others: two tasks may have one picture and one phrase."""
    return example.image, example.phrase, example.source


def _pairs(holdout: Sequence[Example], scores: Mapping[tuple[str, str, str], list[list[float]]]) -> list[dict[str, Any]]:
    """Return each held-out example that was answered, with both versions' mean scores over its views, in order of the images.

    For a mask that a reviewer accepted, only the unchanged picture counts, and no other view: the gate's rule for ties
    (:mod:`backend.learning.gate`) is about the picture that the reviewer saw.
    """
    label_of, pairs = labeller(holdout), list[dict[str, Any]]()
    for example in sorted(holdout, key=lambda example: example.image):
        if _name(example) in scores:
            how = how_made(example.source)
            seen = scores[_name(example)][: 1 if how == ACCEPTED else None]
            before, after = np.mean(seen, axis=0).tolist()
            made = {"accepted": how == ACCEPTED, "unassisted": how == UNASSISTED}
            pairs.append({**asdict(PairedSample(label_of(example), before, after, example.image, **made)), "phrase": example.phrase})
    return pairs


def _golden(run: RunFolder, job: TrainingJob, champion: Pipeline, challenger: Pipeline) -> tuple[float, float]:
    """Return the mean scores of champion and challenger on the golden set. The champion's is kept in the home and used again."""
    folder = Path(job.golden) if job.golden else draw_scenes(Path(job.home))["golden"]
    examples = read_examples(folder)
    kept = Path(job.home) / "golden-scores" / f"{job.champion_version}-{file_sha256(folder / EXAMPLES)[:8]}.json"
    known = _known_score(kept)
    pipelines = [challenger] if known is not None else [champion, challenger]
    scores = []
    for index, found in enumerate(answer_all(pipelines, folder, examples)):
        run.write_progress("golden set", index, len(examples))
        scores.append([score(answer, found.example) for answer in found.answers])
    means = np.mean(scores, axis=0).tolist()
    if known is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, json.dumps(means[0]).encode())
        return float(means[0]), float(means[1])
    return float(known), float(means[0])


def _known_score(path: Path) -> float | None:
    """A mean that was kept; None if it has to be worked out."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return None
    return float(value) if is_number(value) and 0 <= value <= 1 else None


def _picture_changes(
    run: RunFolder, job: TrainingJob, champion: Pipeline, challenger: Pipeline, holdout: Sequence[Example], pairs: Sequence[dict[str, Any]]
) -> list[int]:
    """Save overlays, before and after, of the pairs that :func:`choose_changes` picks, at most PICTURES, and return their indices in
    ``pairs``.
    """
    chosen = choose_changes([pair["champion"] for pair in pairs], [pair["challenger"] for pair in pairs], PICTURES)
    wanted: defaultdict[tuple[str, str], list[int]] = defaultdict(list)  # several where tasks share a picture and a phrase
    for index in chosen:
        wanted[pairs[index]["image"], pairs[index]["phrase"]].append(index)
    examples = list({key: example for example in holdout if (key := (example.image, example.phrase)) in wanted}.values())
    run.pictures.mkdir(exist_ok=True)
    made: list[int] = []
    for found in answer_all([champion, challenger], Path(job.dataset), examples):
        for index in wanted[found.example.image, found.example.phrase]:
            for side, answer in zip(PICTURE_SIDES, found.answers, strict=True):
                _shrunk(draw(found.image, [answer])).save(run.picture(index, side))
            made.append(index)
    return made


def _shrunk(picture: Image.Image) -> Image.Image:
    picture.thumbnail((480, 480))
    return picture


def _challenger(run: RunFolder) -> LooseAdapter:
    return LooseAdapter("challenger-0-00000000", read_papers(run.adapter))


def _smoke(run: RunFolder, job: TrainingJob) -> int:
    """Have the new adapter answer once, in this fresh process. Return the exit code: 0 if the answer's score is finite, else 1."""
    variants: Variants = load_variants(job.model, job.segmenter, job.device, job.options, job.precision)
    pipeline = variants.load(run.adapter, _challenger(run))
    [answer] = pipeline.segment(np.full((96, 96, 3), 127, np.uint8), ["object"])
    return 0 if np.isfinite(answer.score) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
