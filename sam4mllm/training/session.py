"""One adapter from a dataset's folder: it can be stopped and gone on with, and its folder is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sam4mllm.adapters import check_adapter
from sam4mllm.data.examples import Example, read_examples
from sam4mllm.durable import partial, publish, remove
from sam4mllm.errors import TrainingError
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.loading import pick_device
from sam4mllm.training.plan import Plan
from sam4mllm.training.pool import Pool, phrase_of
from sam4mllm.training.recipe import Progress, Trainer

TRAIN = "train"
"""The split of the examples that are learned from."""


class Session:
    """A run with its checkpoints in a hidden folder beside ``out``, where the adapter will be.

    Raises:
        TrainingError: ``out`` is there and not empty, or cannot be written; and what Trainer raises.
        DatasetError, ModelError: ``dataset``, ``replay`` or ``model`` cannot be used.
    """

    def __init__(
        self,
        dataset: Path,
        out: Path,
        plan: Plan,
        model: str,
        device: str | None,
        replay: Path | None,
        label: Callable[[Example], Hashable] = phrase_of,
    ) -> None:
        self.out = Path(os.path.abspath(out))
        self.runs = self.out.with_name(f".{self.out.name}.run")
        _refuse_taken(self.out)
        self.examples = select_examples(dataset)
        replayed = [] if replay is None else [(replay, select_examples(replay))]
        pool = Pool([(dataset, self.examples)], replayed, label)
        self._model = model
        self.trainer = Trainer(load_checkpoint(model, pick_device(device)), pool, plan, self.runs)

    def run(self, tell: Callable[[Progress], None]) -> bool:
        """Train and write the adapter; False if it was stopped before its end."""
        with self._writing():
            if not self.trainer.train(tell):
                return False
            _refuse_taken(self.out)
            temporary = partial(self.out)
            remove(temporary)
            temporary.mkdir()
            self.trainer.save_adapter(temporary, self._model)
            check_adapter(temporary)
            publish(temporary, self.out)
        shutil.rmtree(self.runs, ignore_errors=True)
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise TrainingError(f"{self.out.parent} cannot be written ({error.strerror}); free space or choose another folder") from error


def select_examples(folder: Path) -> list[Example]:
    """The examples of a dataset that are marked for training, all if none is. Raises DatasetError."""
    examples = read_examples(folder)
    return [example for example in examples if example.split == TRAIN] or examples


def _refuse_taken(out: Path) -> None:
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not an empty folder; choose another one for the adapter")
