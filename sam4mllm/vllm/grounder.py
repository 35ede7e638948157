"""A grounder whose model runs on a vLLM server. It writes the prompts and reads the answers as
:class:`~sam4mllm.grounding.mllm.MllmGrounder` does, and gives the same answers, but requests the model's tokens from the server.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from sam4mllm.grounding.asking import NOTHING_SAID
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.decoding import Thinking, Written, write_from
from sam4mllm.grounding.many import parted
from sam4mllm.grounding.mllm import MllmGrounder, Told
from sam4mllm.grounding.naming import NAME_QUESTION, NAME_TOKENS, read_name
from sam4mllm.grounding.protocol import Inquiry, Question, Replies, Scene
from sam4mllm.grounding.scene import MllmScene, Prefix
from sam4mllm.options import THOUGHT_TOKENS
from sam4mllm.prompts.dialects import DEMO
from sam4mllm.vllm.client import Continuation, Picture, Spoken, VllmClient

STRETCH = 64
"""How many tokens of an answer are requested at a time. If a thought is cut off or closed, at most that many tokens were computed in vain.
"""


@dataclass(frozen=True, eq=False)
class VllmScene(MllmScene):
    """An image that the server has seen, with its file, which is sent again if the server no longer has it. Its KV cache is empty."""

    picture: Picture


class VllmGrounder(MllmGrounder):
    """Implements :class:`~sam4mllm.grounding.protocol.Grounder`.

    Args:
        checkpoint: an outline: tokenizer, image processor, config and dialect, but no weights.
        client: the server.
        name: what the server calls the model, or the adapter on it.
        thought_tokens: the most tokens of a thought before an answer, where a thought is asked for.
    """

    def __init__(self, checkpoint: Checkpoint, client: VllmClient, name: str, thought_tokens: int = THOUGHT_TOKENS) -> None:
        super().__init__(checkpoint, thought_tokens=thought_tokens)
        self._client, self._name = client, name
        self._opening = self.encode(self.markup.opening)

    def open_each(self, images: Sequence[NDArray[np.uint8]]) -> list[MllmScene]:
        return [self._open(image) for image in images]

    def _open(self, image: NDArray[np.uint8]) -> VllmScene:
        encoded = self._encode_image(image)  # refuses what the model cannot take, and says how the image is resized
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        png = file.getvalue()
        height, width = image.shape[:2]
        picture = Picture(hashlib.sha256(png).hexdigest(), png)
        self._client.show(self._name, self._opening, picture)
        return VllmScene(width, height, len(png), Prefix(DynamicCache()), 0, 0, 1, encoded.resized, picture)

    def _write(self, told: Sequence[Told], question: Question, thinking: Thinking | None) -> list[Written]:
        del question
        watched = (self._none_start, self._box_start)

        def answer(one: Told) -> Written:
            return self._answer_to(one.scene, one.question, self.max_new_tokens, thinking, watched)

        return self._client.at_once(answer, told)

    def _answer_to(
        self, scene: Scene, question: Sequence[int], most: int, thinking: Thinking | None = None, watched: Sequence[int] = ()
    ) -> Written:
        decode = self.checkpoint.tokenizer.decode
        return write_from(decode, partial(self._say, scene, watched), question, self._ends, most, thinking)

    def _say(self, scene: Scene, watched: Sequence[int], ids: Sequence[int]) -> Iterator[tuple[int, float, Callable[[], Tensor]]]:
        """Yield what the model says after ``ids``, a question and the answer so far, as ``write_from`` needs it."""
        said = self._client.generate(self._asked(scene, ids, STRETCH, watched))
        for one in said:
            yield one.id, one.chances[one.id], partial(self._beginnings, one.chances)

    def _asked(self, scene: Scene, ids: Sequence[int], most: int, watched: Sequence[int]) -> Continuation:
        return Continuation(self._name, [*self._opening, *ids], own_scene(scene).picture, most, self._ends, watched)

    def _beginnings(self, chances: Mapping[int, float]) -> Tensor:
        """Return log-probabilities (vocabulary,) of all tokens: those that the server told, and minus infinity for the rest."""
        found = torch.full((len(self.checkpoint.tokenizer),), -torch.inf)
        for token, chance in chances.items():
            found[token] = chance
        return found

    def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
        each = [(scene, inquiry) for scene, inquiries in asked for inquiry in inquiries]
        if joint:
            return parted(self._client.at_once(self._ask_joint, each), [len(inquiries) for _, inquiries in asked])
        questions, counts = [], []
        for scene, inquiry in each:
            points = self.point_numbers(own_scene(scene), inquiry.points_px)
            first, head = self.history(own_scene(scene), inquiry)
            questions += [self._verdict(scene, [*first, *head, *self.joint_question([point])]) for point in points]
            counts.append(len(points))
        said = [spoken[0] for spoken in self._client.generate_each(questions)]
        return parted([self._replies(some) for some in parted(said, counts)], [len(inquiries) for _, inquiries in asked])

    def _ask_joint(self, asked: tuple[Scene, Inquiry]) -> Replies:
        """Ask about all points of a box in one question, as published: one request for each verdict, with the earlier verdicts in the
        prompt.
        """
        scene, inquiry = asked
        points = self.point_numbers(own_scene(scene), inquiry.points_px)
        first, head = self.history(own_scene(scene), inquiry)
        question = [*first, *head, *self.joint_question(points)]
        said: list[Spoken] = []
        for _ in points:
            answered = self.verdicts.spell(self._replies(said).inside > 0.5)
            said += self._client.generate(self._verdict(scene, [*question, *answered]))[:1]
        return self._replies(said)

    def _verdict(self, scene: Scene, ids: Sequence[int]) -> Continuation:
        return self._asked(scene, ids, 1, [*self.verdicts.yes, *self.verdicts.no])

    def _replies(self, said: Sequence[Spoken]) -> Replies:
        return self.verdicts.weigh([one.chances for one in said]) if said else NOTHING_SAID

    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        for phrase in phrases:
            self.check_phrase(phrase)
        asked = [self._verdict(scene, self.look_back_question(phrase)) for phrase in phrases]
        return self._replies([spoken[0] for spoken in self._client.generate_each(asked)])

    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        if self.dialect.name == DEMO.name:  # the demo model knows only the words of its own dialect
            return ["" for _ in phrases]
        for phrase in phrases:
            self.check_phrase(phrase)
        questions = [self.encode(NAME_QUESTION.format(phrase=phrase) + self.markup.to_answer) for phrase in phrases]
        answers = self._client.at_once(lambda question: self._answer_to(scene, question, NAME_TOKENS), questions)
        return [read_name(answer.text) if answer.finished else "" for answer in answers]

    def beginning(self, image: NDArray[np.uint8], phrase: str) -> float:
        """The log-probability that the answer about a phrase in an image begins with a box."""
        [first] = self._client.generate(self._asked(self._open(image), self.question(phrase), 1, [self._box_start]))
        return first.chances[self._box_start]

    def called(self, name: str) -> VllmGrounder:
        """Return a grounder like this one that asks the model or adapter ``name`` on the server."""
        return VllmGrounder(self.checkpoint, self._client, name, self._thinking.budget)


def own_scene(scene: Scene) -> VllmScene:
    """Return the scene, which must be a VllmScene. Raises TypeError if another kind of grounder opened it."""
    if not isinstance(scene, VllmScene):
        raise TypeError("this scene was opened by another grounder")
    return scene
