"""A Hugging Face multi-modal language model as a Grounder: the image is prefilled once, every question is a packed continuation of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from sam4mllm.errors import ImageError, PhraseError
from sam4mllm.geometry import distinct
from sam4mllm.grounding.asking import MAX_ROW, NOTHING_SAID, ask
from sam4mllm.grounding.bundle import Bundle, bundle, can_bundle, stretches
from sam4mllm.grounding.checkpoint import Checkpoint, Encoded
from sam4mllm.grounding.copying import Copies, Past, cache_bytes, continue_copies, keeps_states
from sam4mllm.grounding.decoding import Thinking, Written, write
from sam4mllm.grounding.drafting import spell
from sam4mllm.grounding.encoders import alike, position_ids
from sam4mllm.grounding.endings import generation_ends, read_ending
from sam4mllm.grounding.frames import Framed, to_numbers
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.many import parted
from sam4mllm.grounding.marks import said_boxes
from sam4mllm.grounding.naming import NAME_QUESTION, write_names
from sam4mllm.grounding.packing import ROOT, Segment, pack
from sam4mllm.grounding.prefix import LONGEST, read_alone, read_one_token, read_with
from sam4mllm.grounding.protocol import Inquiry, Question, Replies, Scene
from sam4mllm.grounding.reading import ReadInstance, note_on, read_answer
from sam4mllm.grounding.scene import MllmScene, Prefix, copy_cache, keeps_all, own_scene
from sam4mllm.grounding.sureness import box_probability
from sam4mllm.grounding.verdicts import Verdicts
from sam4mllm.grounding.windows import masks
from sam4mllm.identity import digest_of
from sam4mllm.options import THOUGHT_TOKENS
from sam4mllm.prompts.answer_text import thoughts_of
from sam4mllm.prompts.conversation import (
    BoxNumbers,
    PointNumbers,
    box_answer,
    box_question,
    points_body,
    points_head,
    prompt_question,
)
from sam4mllm.prompts.dialects import DEMO
from sam4mllm.prompts.look_back import look_back_question
from sam4mllm.prompts.thinking import END, can_think, open_thought, reason_question
from sam4mllm.values import Grounding, SpokenPoints

ANSWER_TOKENS = 400
"""Most tokens of an answer of :meth:`MllmGrounder.ground`, whichever question it is to, by default; a thought is not counted."""
PHRASES_AT_ONCE = 32
THOUGHTS_AT_ONCE = 8
"""How many phrases are answered together where the model thinks first: a thought is as long as several answers, and the keys and values of
all that is written stay in memory until the last answer ends."""
SAME_OBJECT = 0.9
"""IoU above which a box repeats an earlier one: a model that loops writes an object twice with a step's difference."""


@dataclass(frozen=True, eq=False)
class Told:
    """A phrase about a scene, and the tokens of its question."""

    scene: MllmScene
    phrase: str
    question: Sequence[int]


class MllmGrounder:
    """Implements :class:`~sam4mllm.grounding.protocol.Grounder`.

    Args:
        checkpoint: model, tokenizer, image processor and dialect.
        max_new_tokens: most tokens of an answer of :meth:`ground`, without its thought. A box takes about twenty where every digit is one.
        activate: called before each use of the model. Where several grounders share one model, it switches to the adapter of this one.
        thought_tokens: most tokens of a thought before an answer, where a thought is asked for.

    Raises:
        ModelError: the chat template writes nothing between an answer and the next question.
        TemplateError: the dialect's words for yes and no do not fit the tokenizer (:meth:`Verdicts.look_up
            <sam4mllm.grounding.verdicts.Verdicts.look_up>`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_new_tokens: int = ANSWER_TOKENS,
        activate: Callable[[], None] = lambda: None,
        thought_tokens: int = THOUGHT_TOKENS,
    ) -> None:
        self.checkpoint = checkpoint
        self._activate = activate
        self.dialect = checkpoint.dialect
        self.markup = checkpoint.markup
        self.max_new_tokens = max_new_tokens
        self.end, self.next_turn = read_ending(checkpoint, self.encode)
        self._ends = frozenset({self.end, *generation_ends(checkpoint.model)})
        self._control = tuple({*checkpoint.tokenizer.all_special_tokens, *checkpoint.tokenizer.get_added_vocab()})
        self.verdicts = Verdicts.look_up(self.encode, self.dialect)
        self._box_start = self.encode(box_answer(self.dialect, "", [(0, 0, 0, 0)]))[0]
        self._none_start = self.encode(self.dialect.no_target)[0]
        self.thinks = can_think(self.encode, checkpoint.tokenizer.decode)
        self._is_number = functools.cache(lambda token: checkpoint.tokenizer.decode([token]).strip().isdecimal())
        self._thinking = Thinking(thought_tokens, tuple(self.encode(END)))

    @property
    def identity(self) -> str:
        parts = {
            "model": self.checkpoint.fingerprint,
            "dialect": asdict(self.dialect),
            "markup": asdict(self.markup),
            "dtype": str(self.checkpoint.model.dtype),
            "quantize": self.checkpoint.precision.quantize,
            "max_new_tokens": self.max_new_tokens,
        }
        return digest_of(parts)[:8]

    @property
    def device(self) -> torch.device:
        device: torch.device = self.checkpoint.model.device
        return device

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a piece of the conversation. Each piece is encoded separately, in training as here, so that the tokens at
        the seams are the same.
        """
        return list(self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    def open(self, image: NDArray[np.uint8]) -> MllmScene:
        return self.open_each([image])[0]

    @torch.inference_mode()
    def open_each(self, images: Sequence[NDArray[np.uint8]]) -> list[MllmScene]:
        self._activate()
        encoded = [self._encode_image(image) for image in images]
        scenes: dict[int, MllmScene] = {}
        for same in alike(encoded):
            for some in stretches([encoded[index].inputs["input_ids"].shape[1] for index in same], MAX_ROW):
                for index, prefix in zip(same[some], self._prefixes([encoded[index] for index in same[some]]), strict=True):
                    scenes[index] = self._scene(images[index], encoded[index], prefix)
        return [scenes[index] for index in range(len(images))]

    def _encode_image(self, image: NDArray[np.uint8]) -> Encoded:
        try:
            return self.checkpoint.encode(self.checkpoint, self.markup.opening, Image.fromarray(image))
        except ValueError as error:  # some image processors refuse extreme aspect ratios, some encoders too many tokens
            raise ImageError(f"the model cannot take an image of {image.shape[1]} x {image.shape[0]} pixels: {error}") from error

    def _prefixes(self, encoded: Sequence[Encoded]) -> list[Prefix]:
        """Return the prefixes of images whose inputs have the same shapes. Several are read in one pass; a single one waits for its first
        question if the model can read both in one pass.
        """
        prefixes = [Prefix(one, self._read_alone) for one in encoded]
        if len(encoded) > 1 or encoded[0].inputs["input_ids"].shape[1] > LONGEST or not self._bytes_a_token:
            for prefix, cache in zip(prefixes, read_alone(self.checkpoint.model, encoded), strict=True):
                prefix.keep(cache)
        return prefixes

    def _read_alone(self, encoded: Encoded) -> DynamicCache:
        self._activate()
        return read_alone(self.checkpoint.model, [encoded])[0]

    @functools.cached_property
    def _bytes_a_token(self) -> int:
        """Of the cache after a prefix. 0 if a prefix must be read before its first question."""
        cache = read_one_token(self.checkpoint.model, self.end)
        return cache_bytes(cache) if keeps_all(cache) else 0

    def _scene(self, image: NDArray[np.uint8], encoded: Encoded, prefix: Prefix) -> MllmScene:
        height, width = image.shape[:2]
        length, following = encoded.inputs["input_ids"].shape[1], int(encoded.positions.max()) + 1
        nbytes = self._bytes_a_token * length or cache_bytes(prefix.cache)
        return MllmScene(width, height, nbytes, prefix, length, following, len(encoded.positions), encoded.resized)

    @torch.inference_mode()
    def ground(self, scene: Scene, phrases: Sequence[str], question: Question = "box") -> list[Grounding]:
        return self.ground_each([(scene, phrases)], question)[0]

    @torch.inference_mode()
    def ground_each(self, asked: Sequence[tuple[Scene, Sequence[str]]], question: Question = "box") -> list[list[Grounding]]:
        thinking = self._thinking if question == "reason" and self.thinks else None
        told = [Told(own_scene(scene), phrase, self.question(phrase, question)) for scene, phrases in asked for phrase in phrases]
        return parted(self._ground(told, question, thinking), [len(phrases) for _, phrases in asked])

    @torch.inference_mode()
    def ground_after(self, scene: Scene, phrases: Sequence[str], thoughts: Sequence[str]) -> list[Grounding]:
        if not self.thinks:
            return self.ground(scene, phrases, "reason")
        each = zip(phrases, thoughts, strict=True)
        told = [Told(own_scene(scene), phrase, [*self.question(phrase, "reason"), *self.thought(text)]) for phrase, text in each]
        return [replace(one, thought=text) for one, text in zip(self._ground(told, "reason", None), thoughts, strict=True)]

    def _ground(self, told: Sequence[Told], question: Question, thinking: Thinking | None) -> list[Grounding]:
        self._activate()
        for one in told:
            self.check_phrase(one.phrase)
        at_once = PHRASES_AT_ONCE if thinking is None else THOUGHTS_AT_ONCE
        return [grounding for some in _passes(told, at_once) for grounding in self._answer(some, question, thinking)]

    def _answer(self, told: Sequence[Told], question: Question, thinking: Thinking | None) -> list[Grounding]:
        """The answers to questions that are decoded together."""
        answers = self._write(told, question, thinking)
        return [self._read(one.scene, one.phrase, answer, question) for one, answer in zip(told, answers, strict=True)]

    def _write(self, told: Sequence[Told], question: Question, thinking: Thinking | None) -> list[Written]:
        drafted = question == "box" and not keeps_states(self.checkpoint.model.config)
        spellings = [spell(self.dialect, one.phrase, self.encode, self._is_number) if drafted else None for one in told]
        scenes = list({id(one.scene): one.scene for one in told}.values())
        of = [scenes.index(one.scene) for one in told]
        questions = [one.question for one in told]
        return write(self, bundle(scenes), questions, self._ends, self.max_new_tokens, thinking, spellings, of)

    def check_phrase(self, phrase: str, what: str = "phrase") -> None:
        """Raise PhraseError if a phrase contains a control token, with which a task's text could forge turns of the conversation.

        ``what``: how the error message refers to the text.
        """
        for token in self._control:
            if token in phrase:
                raise PhraseError(f"the {what} contains {token!r}, which is a control word of the model; leave it out")

    @torch.inference_mode()
    def confirm(self, scene: Scene, phrases: Sequence[str]) -> Replies:
        if not phrases:
            return NOTHING_SAID
        self._activate()
        for phrase in phrases:
            self.check_phrase(phrase)
        row = pack([Segment(tuple(self.look_back_question(phrase)), ROOT) for phrase in phrases])
        return self.verdicts.inside(self.forward(own_scene(scene), row.ids, row.offsets, row.mask, row.lasts)[0])

    def look_back_question(self, phrase: str) -> list[int]:
        """Ids of the question whether an outlined mask is what a phrase means, up to where yes or no is read."""
        return self.encode(look_back_question(self.dialect, phrase) + self.markup.to_answer)

    @torch.inference_mode()
    def name(self, scene: Scene, phrases: Sequence[str]) -> list[str]:
        if self.dialect.name == DEMO.name:  # the demo model knows only the words of its own dialect
            return ["" for _ in phrases]
        self._activate()
        for phrase in phrases:
            self.check_phrase(phrase)
        questions = [self.encode(NAME_QUESTION.format(phrase=phrase) + self.markup.to_answer) for phrase in phrases]
        return write_names(self, own_scene(scene), questions, self._ends)

    @torch.inference_mode()
    def ask(self, scene: Scene, inquiries: Sequence[Inquiry], joint: bool = False) -> list[Replies]:
        return self.ask_each([(scene, inquiries)], joint)[0]

    @torch.inference_mode()
    def ask_each(self, asked: Sequence[tuple[Scene, Sequence[Inquiry]]], joint: bool = False) -> list[list[Replies]]:
        self._activate()
        each = [(own_scene(scene), inquiry) for scene, inquiries in asked for inquiry in inquiries]
        return parted(ask(self, each, joint), [len(inquiries) for _, inquiries in asked])

    def history(self, scene: MllmScene, inquiry: Inquiry) -> tuple[list[int], list[int]]:
        """Ids of the phrase's first turn with its answer, and of the head of the question about one of its boxes."""
        return self.first_turn(scene, inquiry.grounding), self.points_head(scene, inquiry.grounding.boxes_px[inquiry.index])

    def first_turn(self, scene: Framed, grounding: Grounding) -> list[int]:
        """Ids of a phrase's question and of the answer that gives its boxes."""
        phrase = grounding.phrase
        return [*self.question(phrase), *self.box_answer(scene, phrase, said_boxes(self.dialect, grounding))]

    def question(self, phrase: str, question: Question = "box") -> list[int]:
        """Return the ids of the first turn up to where its answer begins, or, with the question "reason", to where its thought begins.

        If the tokenizer cannot spell the tags of a thought, "reason" is asked as "box" is.
        """
        if question == "reason" and self.thinks:
            return self.encode(reason_question(self.dialect, phrase) + open_thought(self.markup.to_answer))
        render = prompt_question if question == "prompt" else box_question
        return self.encode(render(self.dialect, phrase) + self.markup.to_answer)

    def box_answer(self, scene: Framed, phrase: str, boxes_px: NDArray[np.float32]) -> list[int]:
        """Return the ids of the answer that gives a phrase's boxes (N, 4), or the no-target words if there are none; with its end token."""
        return [*self.encode(box_answer(self.dialect, phrase, self.box_numbers(scene, boxes_px))), self.end]

    def thought(self, text: str) -> list[int]:
        """Return the ids of a thought's text and of its closing tag; the opening tag belongs to the question."""
        return [*self.encode(text), *self._thinking.close]

    def points_head(self, scene: Framed, box_px: NDArray[np.float32]) -> list[int]:
        """Return the token ids of the beginning of a turn that asks whether given points lie on what is in a box (4,): all before them."""
        return [*self.next_turn, *self.encode(points_head(self.dialect, self.box_numbers(scene, box_px[None])[0]))]

    def joint_question(self, points: Sequence[PointNumbers]) -> list[int]:
        """Return the ids that end a question about points: one point or several, up to where the first answer is read."""
        return self.encode(points_body(self.dialect, points)) + self.encode(self.markup.to_answer)

    def forward(
        self,
        scene: MllmScene | Bundle,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        keep: NDArray[np.int64],
        cache: Past | None = None,
        of: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Past]:
        """Continue a scene, or a bundle of scenes, with a packed row of T tokens. Return the logits (K, vocabulary) float32 at the indices
        ``keep`` (K,) of the row, and the cache after it.

        ``ids`` (T,) are the tokens; ``offsets`` (T,) are their positions, counted from the first position after the prefix. ``cache`` is
        what an earlier call returned, to which the row is added. None starts from a copy of the scene's own cache, which stays unchanged; a
        single scene's prefix that the model has yet to read is read in the same pass.
        ``mask`` (T, E + T) says what each token sees of the E tokens that ``cache`` holds beyond the prefixes, and of the row. ``of`` (T,)
        are the indices in the bundle of the scenes that the tokens are about; None means the first.
        """
        below = bundle([scene]) if isinstance(scene, MllmScene) else scene
        if keeps_states(self.checkpoint.model.config):
            assert not isinstance(cache, DynamicCache)
            return continue_copies(self.checkpoint.model, below.scenes[0], ids, offsets, mask, keep, cache)
        assert not isinstance(cache, Copies)
        if cache is None and (unread := below.unread) is not None:
            return read_with(self.checkpoint.model, below.scenes[0], unread, ids, offsets, mask, keep)
        past = copy_cache(below.cache) if cache is None else cache
        of = np.zeros(len(ids), np.int64) if of is None else of
        device = self.device
        visible = torch.from_numpy(np.concatenate([below.visible(of), mask], axis=1)).to(device)
        positions = torch.from_numpy(offsets + below.following(of)).to(device)
        output = self.checkpoint.model.model(
            input_ids=torch.from_numpy(ids)[None].to(device),
            attention_mask=masks(self.checkpoint.model, visible),
            position_ids=position_ids(positions.expand(below.rows, 1, -1)),
            past_key_values=past,
            use_cache=True,
            return_dict=True,
        )
        hidden = output.last_hidden_state[0, torch.from_numpy(keep).to(device)]
        return logits_of(self.checkpoint.model, hidden), past

    def _read(self, scene: MllmScene, phrase: str, answer: Written, question: Question) -> Grounding:
        """Read an answer as a Grounding: its boxes without repetitions, each with the probability of its tokens, and what else it says."""
        boxless = self.dialect.answers_with_points
        with_points = question == "prompt" or boxless
        read = read_answer(self.dialect, scene, answer.text, with_points=with_points, finished=answer.finished)
        boxes_px = np.array([instance.box_px for instance in read.instances], np.float32).reshape(-1, 4)
        kept = [read.instances[index] for index in distinct(boxes_px, SAME_OBJECT)]
        return Grounding(
            phrase=phrase,
            boxes_px=np.array([instance.box_px for instance in kept], np.float32).reshape(-1, 4),
            box_probabilities=np.array([self._probability(answer, instance) for instance in kept], np.float64),
            no_target_probability=self._no_target(answer, read.absent),
            points=tuple(SpokenPoints(instance.inside_px, instance.outside_px) for instance in kept) if with_points else (),
            note=note_on(read, answer.finished, answer.cut_at),
            thought="\n".join(filter(None, (answer.thought, thoughts_of(answer.text)))),
            boxless=boxless,
        )

    def _probability(self, answer: Written, instance: ReadInstance) -> float:
        spelled = 1 if instance.numbers is None else len(self.encode(self.dialect.spell_box(instance.numbers)))
        return box_probability(answer, instance, spelled, self.checkpoint.tokenizer.decode)

    def _no_target(self, answer: Written, absent: bool) -> float:
        """Return the probability that there is no such object.

        The demo model was taught only answers that begin with a box or with "none", so the probability follows from the logits of those two
        first tokens. Other models may deny the object in words of their own, or write words before a box. If the answer says that there is
        no such object (``absent``), the probability is the geometric mean of its tokens' probabilities, as for a box. Otherwise it is the
        probability of beginning with the first token of "none"; 0 if a box begins with the same token.
        """
        none, first = self._none_start, answer.beginnings
        if self.dialect.name == DEMO.name:
            return float(torch.sigmoid(first[none] - first[self._box_start]))
        if absent:
            return float(np.exp(np.mean(answer.log_probabilities)))
        return 0.0 if none == self._box_start else float(first[none].exp())

    def box_numbers(self, scene: Framed, boxes_px: NDArray[np.float32]) -> list[BoxNumbers]:
        return [(x1, y1, x2, y2) for x1, y1, x2, y2 in to_numbers(self.dialect, scene, boxes_px).tolist()]

    def point_numbers(self, scene: Framed, points_px: NDArray[np.float32]) -> list[PointNumbers]:
        """Points (K, 2) in the dialect's numbers."""
        return [(x, y) for x, y in to_numbers(self.dialect, scene, points_px).tolist()]


def _passes(told: Sequence[Told], at_once: int) -> Iterator[Sequence[Told]]:
    """Divide phrases, in order, into groups of up to ``at_once`` that are decoded together: those of one scene, or of several scenes where
    these can be bundled.
    """
    by_scene = [list(group) for _, group in groupby(told, lambda one: id(one.scene))]
    shared = all(can_bundle(own[0].scene) for own in by_scene)
    for own in [list(told)] if shared else by_scene:
        yield from (own[start : start + at_once] for start in range(0, len(own), at_once))
