"""A thought before the answer: asked for, cut off in time, kept apart from what is answered, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sam4mllm.grounding.decoding import Thinking, Written, write
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.frames import Frame
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.reading import ONLY_THOUGHT, read_answer
from sam4mllm.options import THOUGHT_TOKENS, Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.plain_text import shortened
from sam4mllm.prompts.answer_text import fold, has_thought_tag, thoughts_of, without_thoughts
from sam4mllm.prompts.conversation import ChatMarkup
from sam4mllm.prompts.dialects import DEFAULT
from sam4mllm.prompts.thinking import ASK, BEGIN, END, open_thought
from tests.fakes import FakeGrounder, FakeSegmenter
from tests.family_models import PHRASES
from tests.test_mllm import picture
from tests.thinking_models import OPENED, PLAIN, thinking_grounder, without_tags

torch.set_num_threads(1)

IMAGE = Frame(1000, 1000, (1008, 1008))
BOX = "[100,100,300,500]"
OTHER = "[5,5,90,90]"


# -- what is a thought ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An answer, the thought in it, and how many boxes it gives."""

    name: str
    text: str
    thought: str
    boxes: int = 1
    note: str = ""


ROWS = (
    Row("no thought", BOX, ""),
    Row("a thought", f"<think>It is the left one.</think>{BOX}", "It is the left one."),
    Row("with white space", f"<think>\nIt is the left one.\n</think>\n\n{BOX}", "It is the left one."),
    Row("boxes in it", f"<think>{OTHER} is a bowl.</think>{BOX}", f"{OTHER} is a bowl."),
    Row("empty", f"<think></think>{BOX}", ""),
    Row("empty, as templates write it", f"<think>\n\n</think>\n\n{BOX}", ""),
    Row("opened by the template", f"It is the left one.\n</think>\n\n{BOX}", "It is the left one."),
    Row("opened by the template, boxes in it", f"Not {OTHER}.</think>{BOX}", f"Not {OTHER}."),
    Row("several", f"<think>One.</think><think>Two, {OTHER}.</think>{BOX}", f"One.\nTwo, {OTHER}."),
    Row("several, words between", f"<think>One.</think> hm <think>Two.</think>{BOX}", "One.\nTwo."),
    Row("nested", f"<think>One <think>two</think> {OTHER} three</think>{BOX}", f"One two {OTHER} three"),
    Row("ended twice", f"<think>One.</think> {OTHER}, wait.</think>{BOX}", f"One. {OTHER}, wait."),
    Row("ended twice, the second last", f"<think>One.</think>{BOX}</think>", "One."),
    Row("not ended", f"<think>It may be {OTHER} or", f"It may be {OTHER} or", 0, ONLY_THOUGHT),
    Row("not ended, alone", "<think>", "", 0, ONLY_THOUGHT),
    Row("second not ended", f"<think>One.</think><think>{OTHER}", f"One.\n{OTHER}", 0, ONLY_THOUGHT),
    Row("not ended, after the answer", f"{BOX} <think>was it {OTHER}", f"was it {OTHER}"),
    Row("capitals", f"<Think>It is left.</THINK>{BOX}", "It is left."),
    Row("full-width", f"＜think＞左边，{OTHER}＜/think＞{BOX}", f"左边，{OTHER}"),
    Row("Kimi-VL", f"◁think▷not {OTHER}◁/think▷{BOX}", f"not {OTHER}"),
    Row("Gemma 4", f"<|channel>thought\nnot {OTHER}<channel|>{BOX}", f"not {OTHER}"),
    Row("Gemma 4, empty", f"<|channel>thought\n<channel|>{BOX}", ""),
    Row("thinking", f"<thinking>not {OTHER}</thinking>{BOX}", f"not {OTHER}"),
    Row("reasoning and answer", f"<reasoning>not {OTHER}</reasoning><answer>{BOX}</answer>", f"not {OTHER}"),
    Row("ß, longer when folded", f"<think>die große, {OTHER}</think>{BOX}", f"die große, {OTHER}"),
    Row("none after it", f"<think>not {OTHER}</think>none", f"not {OTHER}", 0),
)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_a_thought_is_cut_out_and_kept(row: Row) -> None:
    answer = read_answer(DEFAULT, IMAGE, row.text)
    assert [instance.numbers for instance in answer.instances] == [(100, 100, 300, 500)] * row.boxes
    assert answer.note == row.note
    assert answer.absent == (row.text.endswith("none"))
    assert thoughts_of(row.text) == row.thought


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<THINK>",
        "◁think▷",
        "◁/think▷",
        "<|channel>thought",
        "<channel|>",
        "<answer>",
        "</answer>",
        "＜/think＞",
        BOX,
        "ß",
        "İ",
        "none",
        "\n",
        "\ud800",
        "</",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)
QUICK = settings(max_examples=300, deadline=None, database=None)


@QUICK
@given(TEXTS)
def test_any_text_is_cut_without_an_error(text: str) -> None:
    folded = fold(text)
    assert len(without_thoughts(folded)) == len(folded)
    assert bool(thoughts_of(text)) <= has_thought_tag(text)
    read_answer(DEFAULT, IMAGE, text)


@QUICK
@given(TEXTS.filter(lambda text: not has_thought_tag(text)))
def test_whatever_is_thought_has_no_part_in_the_answer(thought: str) -> None:
    text = f"<think>{thought}</think>{BOX}"
    assert [instance.numbers for instance in read_answer(DEFAULT, IMAGE, text).instances] == [(100, 100, 300, 500)]
    assert thoughts_of(text) == thought.strip()
    assert not read_answer(DEFAULT, IMAGE, f"<think>{thought}").instances


@pytest.mark.parametrize(
    ("to_answer", "opened"),
    [
        pytest.param("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n", id="without thoughts"),
        pytest.param("<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n", id="opened by the template"),
        pytest.param("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_start|>assistant\n<think>\n", id="an empty thought"),
        pytest.param("<|assistant|>\n<think></think>\n", "<|assistant|>\n<think>\n", id="an empty thought in one line"),
        pytest.param("<|turn>model\n<|channel>thought\n<channel|>", "<|turn>model\n<think>\n", id="Gemma's empty thought"),
        pytest.param(" ASSISTANT:", " ASSISTANT:<think>\n", id="Vicuna"),
    ],
)
def test_a_thought_is_opened_once(to_answer: str, opened: str) -> None:
    assert open_thought(to_answer) == opened


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        pytest.param("It is\nthe  left one.", 40, "It is the left one.", id="all of it"),
        pytest.param("one two three", 13, "one two three", id="just room"),
        pytest.param("one two three", 12, "one two…", id="whole words"),
        pytest.param("one two three", 8, "one two…", id="just room for a word and the sign"),
        pytest.param("one two three", 7, "one…", id="no room for the sign"),
        pytest.param("x" * 20, 8, "xxxxxxx…", id="one long word"),
        pytest.param("a\x00b \u202ec", 40, r"a\x00b \u202ec", id="control characters"),
        pytest.param("", 8, "", id="nothing"),
    ],
)
def test_a_text_in_short(text: str, most: int, short: str) -> None:
    assert shortened(text, most) == short


# -- how it is written ---------------------------------------------------------------------------------------------------------------------


class Script:
    """A model that says what it is told to, a text for each question: characters are tokens, and 0 ends an answer.

    "§" ends its thought without a tag. What follows it is said once the closing tag was put in.
    """

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.heard = [""] * len(texts)
        self.first: list[int] = []
        self.checkpoint: Any = self
        self.tokenizer = self

    @staticmethod
    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def forward(
        self,
        scene: Any,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        keep: NDArray[np.int64],
        cache: Any = None,
        of: Any = None,
    ) -> tuple[Tensor, Any]:
        """Logits of which the next character's is the greatest; a row is of the question whose first token it sees."""
        if cache is None:
            self.first = np.flatnonzero(offsets == 0).tolist()
            which = list(range(len(self.first)))
        else:
            which = [next(index for index, column in enumerate(self.first) if row[column]) for row in mask]
            for index, token in zip(which, ids.tolist(), strict=True):
                self.heard[index] += chr(token)
        logits = torch.full((len(which), 70_000), -20.0)
        logits[torch.arange(len(which)), [self._next(index) for index in which]] = 0.0
        return logits, "cache"

    def _next(self, index: int) -> int:
        text, heard = self.texts[index], self.heard[index]
        thought, _, answer = text.partition("§")
        rest = answer[len(heard.partition(END)[2]) :] if END in heard and answer else thought[len(heard) :]
        return ord(rest[0]) if rest else 0


CLOSE = tuple(map(ord, END))
ENDS = frozenset({0})


def say(*texts: str, budget: int = 50, limit: int = 40) -> list[Written]:
    questions = [[63] * (3 + number) for number in range(len(texts))]
    return write(Script(*texts), None, questions, ENDS, limit, Thinking(budget, CLOSE))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "thought", "answer", "cut_at"),
    [
        pytest.param(f"Left.\n</think>\n\n{BOX}", "Left.", BOX, 0, id="ends by itself"),
        pytest.param(f"Left.</think>{BOX}", "Left.", BOX, 0, id="without white space"),
        pytest.param(f"<think>Left.</think>{BOX}", "Left.", BOX, 0, id="opened once more"),
        pytest.param(f"Not {OTHER}.</think>{BOX}", f"Not {OTHER}.", BOX, 0, id="boxes in it"),
        pytest.param(f"Left</thought>{BOX}", "Left", BOX, 0, id="ended by another tag"),
        pytest.param(f"</think>{BOX}", "", BOX, 0, id="empty"),
        pytest.param(f"{'Hm. ' * 30}§{BOX}", ("Hm. " * 13)[:50].strip(), BOX, 50, id="cut off"),
        pytest.param(f"Left.§{BOX}", "Left.", BOX, 0, id="broken off by the model"),
        pytest.param(f"§{BOX}", "", BOX, 0, id="broken off at once"),
        pytest.param("Left.</think>", "Left.", "", 0, id="nothing after it"),
        pytest.param(f"Left.</think>{chr(10) * 9}{BOX}", "Left.", "\n" * 5 + BOX, 0, id="more white space than there should be"),
    ],
)
def test_a_thought_and_its_answer(text: str, thought: str, answer: str, cut_at: int) -> None:
    [written] = say(text)
    assert (written.thought, written.text, written.cut_at) == (thought, answer, cut_at)
    assert written.finished
    assert len(written.log_probabilities) == len(written.ids) + 1
    expected = ord(answer[0]) if answer else 0
    assert int(written.beginnings.argmax()) == expected, "the first logits are those of the answer's first token"


def test_a_budget_is_exact_and_the_answer_has_its_own() -> None:
    [written] = say(f"{'a' * 50}</think>{'b' * 60}", budget=60, limit=40)
    assert (written.thought, written.text, written.finished, written.cut_at) == ("a" * 50, "b" * 40, False, 0)
    [written] = say(f"{'a' * 50}§{BOX}", budget=50)
    assert (written.thought, written.cut_at) == ("a" * 50, 0)
    [written] = say(f"{'a' * 51}§{BOX}", budget=50)
    assert (written.thought, written.cut_at) == ("a" * 50, 50)


def test_thoughts_of_unequal_length_are_written_as_alone() -> None:
    texts = [f"Left.</think>{BOX}", f"{'Hm. ' * 30}§none", f"{'x' * 30}\n</think>\n\n{OTHER}", f"§{BOX}"]
    for together, text in zip(say(*texts), texts, strict=True):
        [alone] = say(text)
        assert (together.text, together.thought, together.cut_at) == (alone.text, alone.thought, alone.cut_at)
        assert together.log_probabilities == alone.log_probabilities


def test_a_tag_that_shares_its_last_token_with_the_answer_loses_nothing() -> None:
    class Merged(Script):
        @staticmethod
        def decode(ids: Sequence[int]) -> str:
            return Script.decode(ids).replace("¤", ">[")

    [written] = write(Merged(f"Left.</think¤{BOX[1:]}"), None, [[63] * 3], ENDS, 40, Thinking(50, CLOSE))  # type: ignore[arg-type]
    assert (written.thought, written.text) == ("Left.", ">" + BOX)


# -- on models -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[OPENED, PLAIN])
def grounder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    return thinking_grounder(request.param, tmp_path_factory.mktemp("thinking"), 10)


def test_a_question_opens_one_thought(grounder: MllmGrounder) -> None:
    decode = grounder.checkpoint.tokenizer.decode
    asked = decode(grounder.question(PHRASES[0], "reason"))
    assert grounder.thinks
    assert asked.count("<think>") == 1
    assert asked.endswith(BEGIN)
    assert ASK in asked
    assert "<think>" not in decode(grounder.question(PHRASES[0]))


def test_each_thought_is_cut_off_and_answered(grounder: MllmGrounder) -> None:
    """Random weights never end a thought."""
    scene = grounder.open(picture(1))
    found = grounder.ground(scene, PHRASES, "reason")
    for one, phrase in zip(found, PHRASES, strict=True):
        [alone] = grounder.ground(scene, [phrase], "reason")
        assert "the thought was cut off at 10 tokens" in one.note
        assert one.thought == alone.thought
        assert one.thought
        np.testing.assert_array_equal(one.boxes_px, alone.boxes_px)
        np.testing.assert_allclose(one.no_target_probability, alone.no_target_probability, atol=1e-5)


def test_a_written_thought_equals_the_whole_conversation(grounder: MllmGrounder) -> None:
    """The cache, the positions and the closing tag that was put in: the answer is that of the whole text in one pass."""
    scene = grounder.open(picture(2))
    question = grounder.question(PHRASES[1], "reason")
    thinking = Thinking(7, tuple(grounder.encode(END)))
    never = frozenset({grounder.checkpoint.model.config.get_text_config().vocab_size + 1})
    [written] = write(grounder, scene, [question], never, 3, thinking)
    [thought] = write(grounder, scene, [question], never, 7)
    assert written.cut_at == 7
    [again] = write(grounder, scene, [[*question, *thought.ids, *thinking.close]], never, 3)
    assert written.ids == again.ids
    np.testing.assert_allclose(written.log_probabilities, again.log_probabilities, atol=1e-4)


def test_a_thought_that_is_given_stands_where_the_models_own_would(grounder: MllmGrounder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def recording(*given: Any) -> list[Written]:
        asked.extend(given[2])
        return write(*given)

    monkeypatch.setattr("sam4mllm.grounding.mllm.write", recording)
    thoughts = ["it is the left one" if index else "" for index, _ in enumerate(PHRASES)]
    found = grounder.ground_after(grounder.open(picture(4)), PHRASES, thoughts)
    assert [one.thought for one in found] == thoughts
    for ids, phrase, thought in zip(asked, PHRASES, thoughts, strict=True):
        assert ids == [*grounder.question(phrase, "reason"), *grounder.encode(thought), *grounder.encode(END)]


@pytest.mark.parametrize(
    ("text", "boxes", "note"),
    [
        pytest.param("answer", 1, "", id="an answer"),
        pytest.param("<think>wait</think>answer", 1, "", id="and a second thought"),
        pytest.param("<think>wait", 0, ONLY_THOUGHT, id="a second thought without an end"),
    ],
)
def test_probabilities_are_of_the_answer(grounder: MllmGrounder, text: str, boxes: int, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = grounder.open(picture(3))
    spelled = grounder.checkpoint.tokenizer.decode(grounder.box_answer(scene, "the cup", np.array([[20, 30, 70, 90]], np.float32))[:-1])
    ids = grounder.encode(text.replace("answer", spelled))
    written = Written(grounder.checkpoint.tokenizer.decode(ids), tuple(ids), (-0.1,) * len(ids), torch.zeros(2000), True, "The left.")
    monkeypatch.setattr("sam4mllm.grounding.mllm.write", lambda *_: [written])
    [found] = grounder.ground(scene, ["the cup"], "reason")
    np.testing.assert_allclose(found.box_probabilities, [np.exp(-0.1)] * boxes)
    assert found.note == note
    assert found.thought.startswith("The left.")
    assert ("wait" in found.thought) == ("wait" in text)


def test_a_model_without_words_for_a_thought_answers_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As the demo model: its tokenizer knows the words of its questions and answers alone."""
    checkpoint = load_checkpoint(str(without_tags(tiny_checkpoint, tmp_path)), torch.device("cpu"))
    grounder = MllmGrounder(checkpoint, max_new_tokens=12)
    assert not grounder.thinks
    assert grounder.question(PHRASES[0], "reason") == grounder.question(PHRASES[0])
    scene = grounder.open(picture(4))
    [plain], [reason] = (grounder.ground(scene, PHRASES[:1], question) for question in ("box", "reason"))
    assert reason.thought == ""
    assert reason.note == plain.note
    assert reason.no_target_probability == pytest.approx(plain.no_target_probability, abs=1e-6)  # an answer of boxes is drafted


def test_only_the_version_of_reason_follows_the_budget() -> None:
    def versions(tokens: int) -> list[str]:
        return [
            Pipeline(FakeGrounder({}), FakeSegmenter(), Options(strategy, thought_tokens=tokens)).version
            for strategy in ("box", "ppg", "pqpp", "reason")
        ]

    usual, longer = versions(THOUGHT_TOKENS), versions(2 * THOUGHT_TOKENS)
    assert usual[:3] == longer[:3]
    assert usual[3] != longer[3]
    assert len(set(usual)) == 4


@pytest.mark.parametrize("tokens", [0, -1, 16_385])
def test_a_budget_that_is_none_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="thought_tokens must be from 1 to 16,384"):
        Options(thought_tokens=tokens)


def test_the_markup_has_no_part_in_it(grounder: MllmGrounder) -> None:
    """Adapters' papers hold a hash of the markup; what a template opens a thought with must not change it."""
    plain = ChatMarkup(grounder.markup.opening, grounder.markup.to_answer.replace(BEGIN, ""), grounder.markup.to_question)
    assert grounder.markup == plain
