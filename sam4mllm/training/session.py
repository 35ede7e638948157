"""A training session: from a dataset's folder to one adapter.

A session can be stopped and resumed. The adapter's folder appears complete or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sam4mllm.adapters.fields import FILES, MANIFEST, SEGMENTER_FILES
from sam4mllm.adapters.files import check_adapter, check_parts, hash_files, parts_of
from sam4mllm.adapters.follow import checkpoint_for, choose_model
from sam4mllm.adapters.loose import read_papers
from sam4mllm.data.conversations import read_conversations
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.durable import sync_tree, whole_folder
from sam4mllm.errors import DatasetError, TrainingError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.memory import announce
from sam4mllm.options import AUTO, Precision
from sam4mllm.prompts.dialects import load_dialect
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.training.asking import Asking
from sam4mllm.training.papers import asking_of, new_papers
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import Pool, phrase_of
from sam4mllm.training.processes import Processes, join_processes
from sam4mllm.training.recipe import Progress, Trainer
from sam4mllm.training.targets import NO_TARGETS, Targets, Track, make_targets

TRAIN = "train"
"""The split of the examples that are learned from."""


@dataclass(frozen=True)
class Extras:
    """Options of a session beyond its examples.

    ``asking``: how images are asked about; None: as in the training of the adapter that the run goes on from, or else the default.
    ``segmenter``: the name of the segmenter that chooses the points of PPG answers; None: they are taken from serving's pattern. ``track``
    wraps the pictures while the segmenter chooses, for a progress bar. ``conversations``: a file in the LLaVA format; ``images``: the
    folder that the paths in it are relative to; None: that file's own folder.
    """

    asking: Asking | None = None
    segmenter: str | None = None
    conversations: Path | None = None
    images: Path | None = None
    track: Track = lambda pictures, total: pictures


class Session:
    """A training run that writes an adapter to the folder ``out``, and its training states to a hidden folder beside it.

    Raises:
        TrainingError: ``out`` is there and not empty, or cannot be written; the processes cannot form a group, or ``precision`` does not go
            with them; or for the reasons that Trainer gives.
        DatasetError, ModelError: ``dataset``, ``replay``, ``model``, ``device`` or one of ``extras`` cannot be used.
        TemplateError: ``dialect`` is no dialect, or the model's chat template lacks what is needed.
        RegistryError: the adapter ``start`` is not safe to load, or its files are not those that its papers name.
    """

    def __init__(
        self,
        dataset: Path,
        out: Path,
        plan: TrainingPlan,
        model: str | None,
        device: str | None,
        replay: Path | None,
        label: Callable[[Example], Hashable] = phrase_of,
        *,
        start: Path | None = None,
        dialect: str | None = None,
        extras: Extras | None = None,
        precision: Precision = AUTO,
    ) -> None:
        """Load the data and the model, and prepare the trainer.

        ``model`` is the base model; None takes that of ``start``, or the demo model. ``start`` is the folder of an adapter to go on from,
        which is prompted as its papers say; None begins with a new one. If it has a part for the segmenter, that part is copied unchanged.
        ``label`` returns the label of an example (see :class:`~sam4mllm.training.pool.Pool`). ``dialect``, a name or a file, is for a model
        that is not prompted as its family is, or for an adapter without papers.
        """
        papers = None if start is None else read_papers(start)
        model = choose_model(model, papers, start)
        self._drawing = start if start is not None and SEGMENTER_FILES in parts_of(start) else None
        start = start if start is not None and FILES in parts_of(start) else None
        extras = extras or Extras()
        extras = replace(extras, asking=extras.asking or asking_of(papers))
        self.out = Path(os.path.abspath(out))
        self.runs = self.out.with_name(f".{self.out.name}.run")
        refuse_taken(self.out)
        self.processes = join_processes(device)
        _refuse_precision(precision, self.processes)
        self.examples = select_examples(dataset)
        datasets = [(dataset, self.examples)]
        replayed = [] if replay is None else [(replay, select_examples(replay))]
        talks = [] if extras.conversations is None else read_conversations(extras.conversations, extras.images)
        pool = Pool(datasets, replayed, label, talks, plan.phrases, plan.validation_share)
        spoken = None if dialect is None else load_dialect(dialect)
        rank = plan.rank if start is None else int(check_adapter(start)["r"])
        announce(model, self.processes.device, precision, rank=rank)
        targets = self._make_targets([*datasets, *replayed], extras)
        checkpoint = load_checkpoint(model, self.processes.device, precision)
        checkpoint = checkpoint_for(checkpoint, papers, spoken, "" if start is None else str(start))
        self.trainer = Trainer(checkpoint, pool, plan, self.runs, extras.asking, targets, self.processes, start)
        self._papers = new_papers(checkpoint, pool.sha256, self.trainer.plan, extras.asking, extras.segmenter, papers)
        self._last: Progress | None = None

    def run(self, tell: Callable[[Progress], None]) -> bool:
        """Train, write the adapter, remove the training states and return True.

        If the run was stopped before its end, return False; no adapter is written, and a session with the same data and settings goes on
        from the last training state. ``tell`` is called as in :meth:`~sam4mllm.training.recipe.Trainer.train`.
        """

        def note(progress: Progress) -> None:
            self._last = progress
            tell(progress)

        with writing(self.out):
            if not self.trainer.train(note):
                return False
            if self.processes.first:
                self._publish()
        if self.processes.first:
            shutil.rmtree(self.runs, ignore_errors=True)
        self.processes.wait()
        return True

    def _publish(self) -> None:
        refuse_taken(self.out)
        with whole_folder(self.out) as temporary:
            self.trainer.save_adapter(temporary, self._papers.base_model)
            if self._drawing is not None:
                for name in SEGMENTER_FILES:
                    shutil.copyfile(self._drawing / name, temporary / name)
            check_parts(temporary)
            steps = self.trainer.kept or (None if self._last is None else self._last.step)
            metrics = {} if self._last is None or steps is None else {"loss": self._last.loss, "steps": float(steps)}
            papers = replace(self._papers, files=hash_files(temporary), metrics=metrics)
            (temporary / MANIFEST).write_text(papers.to_json(), encoding="utf-8")
            sync_tree(temporary)

    def _make_targets(self, datasets: list[tuple[Path, list[Example]]], extras: Extras) -> Targets:
        """Have the segmenter choose points for PPG answers, if any are learned; its memory is free again before the model is loaded."""
        asking = extras.asking or Asking()
        if extras.segmenter is None or not asking.prompt_share:
            return NO_TARGETS
        segmenter = load_segmenter(extras.segmenter, self.processes.device)
        return make_targets(datasets, segmenter, asking, self.processes, extras.track)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder in which ``out`` will be, and turn any OSError within the context into a TrainingError of one line."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise TrainingError(f"{out.parent} cannot be written ({error.strerror}); free space or choose another folder") from error


def _refuse_precision(precision: Precision, processes: Processes) -> None:
    if precision.device_map is not None and processes.count > 1:
        raise TrainingError("--device-map spreads a model in one process; leave it out under accelerate launch, or use FSDP2 there")
    if precision.quantize != "none" and processes.sharded:
        raise TrainingError("FSDP cannot shard quantised weights; leave --quantize out, or train without FSDP")


def select_examples(folder: Path) -> list[Example]:
    """Return the examples of a dataset's split TRAIN. The other splits are for tests.

    Raises DatasetError if the dataset cannot be read, or has no such example; it then names the splits that there are.
    """
    examples = read_examples(folder)
    chosen = [example for example in examples if example.split == TRAIN]
    if not chosen:
        splits = ", ".join(f"{split} ({count:,})" for split, count in sorted(Counter(example.split for example in examples).items()))
        raise DatasetError(f"{folder} has no example of the split {TRAIN} to train on; it has {splits or 'no example at all'}")
    return chosen


def refuse_taken(out: Path) -> None:
    """Raises TrainingError if ``out`` exists and is not an empty folder, so that no adapter can be written there."""
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not an empty folder; choose another one for the adapter")
