"""From an image to gradients: the rows that are asked about it, their losses, and what happens if memory does not suffice."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sam4mllm.data.conversations import Turn
from sam4mllm.data.examples import Example
from sam4mllm.errors import PhraseError, TrainingError
from sam4mllm.grounding.asking import MAX_ROW
from sam4mllm.grounding.checkpoint import Encoded
from sam4mllm.grounding.frames import Frame
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.training.collate import Collator, TrainingRow
from sam4mllm.training.features import VisionMemory
from sam4mllm.training.loss import row_loss
from sam4mllm.training.plan import TrainingPlan
from sam4mllm.training.pool import TrainingImage
from sam4mllm.training.processes import Processes
from sam4mllm.training.squash import squashed
from sam4mllm.training.unpacking import shares_of
from sam4mllm.training.variety import Variety

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "out of memory, and with FSDP no image can be left out; set phrases, or use smaller images"


class ImageGradients:
    """Adds the gradients of one image after another to the ``trained`` weights.

    Args:
        grounder: the model, its tokenizer and its dialect.
        collator: writes the rows.
        vary: changes an image at random, where the plan asks for that.
        trained: the weights that are learned.
        plan: its batch, squash and feature_megabytes are used.
        scaler: keeps the gradients of float16 from becoming zero.
        processes: the processes that share a step.
    """

    def __init__(
        self,
        grounder: MllmGrounder,
        collator: Collator,
        vary: Variety,
        trained: Iterable[nn.Parameter],
        plan: TrainingPlan,
        scaler: torch.amp.GradScaler,
        processes: Processes,
    ) -> None:
        self._grounder = grounder
        self._model = grounder.checkpoint.model
        self._collator = collator
        self._vary = vary
        self._trained = list(trained)
        self._plan = plan
        self._scaler = scaler
        self._processes = processes
        self._features = VisionMemory(self._model, plan.feature_megabytes << 20)
        self._last: tuple[Encoded, TrainingRow] | None = None
        self._left_out: set[tuple[str, str]] = set()

    def learn(self, shown: TrainingImage, rng: np.random.Generator) -> list[Tensor]:
        """Add the gradients of an image, and return its losses: of the whole image, of a close-up and of a look back, where it has them.

        An image with a conversation has one loss. The list is empty if the image cannot be used; a warning in the log says why. With FSDP,
        raises TrainingError if memory runs out. Raises DatasetError if the picture of an object to paste cannot be read.
        """
        torch.manual_seed(int(rng.integers(2**62)))  # so that dropout follows from the seed, the step and the image's place in it
        if shown.turns:
            loss = self._learn_talk(shown)
            return [] if loss is None else [loss]
        shown = self._vary(shown, rng)
        shown = replace(shown, examples=tuple(example for example in shown.examples if self.may_be_asked(example)))
        if not shown.examples:
            return []
        whole, collator = self.learn_whole(shown, rng), self._collator
        if whole is None:
            return []
        losses: list[Tensor | None] = [whole]
        if (seen := collator.close_up(shown.image, shown.examples, rng)) is not None:
            losses.append(self._learn_view(seen.image, lambda frame: collator.close_row(frame, seen, rng), shown, "a close-up"))
        if (look := collator.look(shown.image, shown.examples, rng)) is not None:
            losses.append(self._learn_view(look.image, lambda _: collator.look_row(look), shown, "a look back"))
        return [loss for loss in losses if loss is not None]

    @torch.no_grad()
    def measure(self, shown: TrainingImage, rng: np.random.Generator) -> float | None:
        """Return the loss of the whole image, not varied, and learn nothing from it. The caller must have set the model to evaluation mode.

        None if no phrase may be asked, the image processor refuses the image, or the row is longer than MAX_ROW; NaN if memory runs out.
        With FSDP, raises TrainingError instead.
        """
        examples = [example for example in shown.examples if self.may_be_asked(example)]
        try:
            encoded, frame = self.encode(shown.image)
        except ValueError:  # image processors refuse extreme aspect ratios
            return None
        row = self._collator.row(frame, examples, rng)
        if not examples or len(row.row.ids) > MAX_ROW:
            return None
        try:
            with self._features.of(shown.image):  # the same pictures are measured again and again
                return sum(share * float(self.loss(encoded, part)) for part, share in shares_of(self._model, row))
        except torch.cuda.OutOfMemoryError as error:
            if self._processes.sharded:
                raise TrainingError(OUT_OF_MEMORY) from error
        torch.cuda.empty_cache()
        return math.nan

    def may_be_asked(self, example: Example) -> bool:
        try:
            self._grounder.check_phrase(example.phrase)
            self._grounder.check_phrase(example.thought, "thought")
        except PhraseError as error:
            if (example.image, example.phrase) not in self._left_out:  # a picture comes up again and again
                log.warning("a phrase about %s is left out: %s", example.image, error)
            self._left_out.add((example.image, example.phrase))
            return False
        return True

    def _learn_talk(self, shown: TrainingImage) -> Tensor | None:
        try:
            for text in (text for turn in shown.turns for text in (turn.question, turn.answer)):
                self._grounder.check_phrase(text)
            encoded, _ = self.encode(shown.image)
        except (PhraseError, ValueError) as error:
            log.warning("a conversation about %s is left out: %s", shown.name, error)
            return None
        with self._features.of(shown.image):
            loss = self._try(encoded, self._collator.talk_row(shown.turns))
        if loss is None:
            log.warning("a conversation about %s is left out: it is too large", shown.name)
        return loss

    def learn_whole(self, shown: TrainingImage, rng: np.random.Generator) -> Tensor | None:
        examples, name = shown.examples, shown.examples[0].image
        try:
            encoded, frame = self.encode(shown.image)
        except ValueError as error:  # image processors refuse extreme aspect ratios
            log.warning("%s is left out: %s", name, error)
            return None
        while True:
            with nullcontext() if shown.varied else self._features.of(shown.image):
                loss = self._try(encoded, self._collator.row(frame, examples, rng))
            if loss is not None or len(examples) == 1:
                break
            log.warning("%s with %d phrases is too large; tried again with half of them", name, len(examples))
            kept = rng.permutation(len(examples))[: len(examples) // 2]
            examples = tuple(examples[index] for index in sorted(kept))
        if loss is None:
            log.warning("%s is left out: it is too large even with one phrase", name)
        return loss

    def _learn_view(self, view: NDArray[np.uint8], row: Callable[[Frame], TrainingRow], shown: TrainingImage, what: str) -> Tensor | None:
        """Add the gradient of another view of an image, a close-up or a look back, and return its loss; None if it is too large.

        ``row`` makes the row from the frame of the view; ``what`` names the view in messages.
        """
        encoded, frame = self.encode(view)
        loss = self._try(encoded, row(frame))
        if loss is None:
            log.warning("%s of %s is left out: it is too large", what, shown.examples[0].image)
        return loss

    def _try(self, encoded: Encoded, row: TrainingRow) -> Tensor | None:
        """Add the gradient of a row and return its loss; None if the row is longer than MAX_ROW, or the GPU's memory runs out.

        With FSDP, raises TrainingError if memory runs out.
        """
        if len(row.row.ids) > MAX_ROW:
            return None
        if self._processes.sharded:
            self._processes.add_up([1.0])  # says that this process still has a row; see keep_pace
            self._last = encoded, row
        try:
            return self._add_gradient(encoded, row)
        except torch.cuda.OutOfMemoryError as error:
            if self._processes.sharded:  # the others are in the middle of a pass, so this one cannot try again
                raise TrainingError(OUT_OF_MEMORY) from error
            pass  # the error keeps tensors alive, so the cache is emptied only after this block
        torch.cuda.empty_cache()
        return None

    def keep_pace(self) -> None:
        """With FSDP, repeat passes and drop their gradients until no process has rows left: all must make the same number of passes."""
        while self._processes.sharded and self._processes.add_up([0.0])[0]:
            encoded, row = self._last or self._any_row()
            torch.autograd.grad(self.loss(encoded, row), self._trained, allow_unused=True)

    def _any_row(self) -> tuple[Encoded, TrainingRow]:
        encoded, _ = self.encode(np.zeros((64, 64, 3), np.uint8))
        return encoded, self._collator.talk_row([Turn("?", self._grounder.dialect.no_target)])

    def _add_gradient(self, encoded: Encoded, row: TrainingRow) -> Tensor:
        """Return the loss of a row. Its gradient is added to all weights or to none, because memory may run out half way through
        the backward pass, and the caller then goes on without this row.
        """
        total, found = torch.zeros((), device=self._grounder.device), dict[Tensor, Tensor]()
        for part, share in shares_of(self._model, row):
            loss = self.loss(encoded, part)
            scaled = self._scaler.scale(loss * share / self._plan.batch)
            gradients = torch.autograd.grad(scaled, self._trained, allow_unused=True)
            for weight, gradient in zip(self._trained, gradients, strict=True):
                if gradient is not None:
                    found[weight] = found[weight].add_(gradient) if weight in found else gradient
            total += share * loss.detach()
        for learned, gradient in found.items():
            learned.grad = gradient if learned.grad is None else learned.grad.add_(gradient)
        return total

    def loss(self, encoded: Encoded, row: TrainingRow) -> Tensor:
        dtype = self._model.dtype
        with torch.autocast(self._grounder.device.type, dtype, enabled=dtype is not torch.float32):
            return row_loss(self._model, encoded, row)

    def encode(self, image: NDArray[np.uint8]) -> tuple[Encoded, Frame]:
        picture = squashed(Image.fromarray(image), self._plan.squash)
        encoded = self._grounder.checkpoint.encode(self._grounder.checkpoint, self._grounder.markup.opening, picture)
        device = self._grounder.device
        inputs = {name: tensor.to(device) for name, tensor in encoded.inputs.items()}
        there = replace(encoded, inputs=inputs, positions=encoded.positions.to(device))
        return there, Frame(image.shape[1], image.shape[0], encoded.resized)
