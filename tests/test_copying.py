"""Questions that go on from copies of a state: the chains of a row, decoding side by side, and what a row teaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sam4mllm.errors import TrainingError
from sam4mllm.grounding import copying
from sam4mllm.grounding.copying import chains_of
from sam4mllm.grounding.decoding import write
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import ROOT, Segment, pack
from sam4mllm.training.collate import UNLEARNED, TrainingRow
from sam4mllm.training.loss import row_loss
from sam4mllm.training.sharding import shard
from sam4mllm.training.unpacking import shares_of
from tests.family_checks import IMAGE, Subject
from tests.family_models import KINDS, PHRASES
from tests.test_mllm import assert_same, inquiry

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def grounder(tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    return Subject(KINDS["Qwen3.5"], tmp_path_factory.mktemp("qwen3_5")).grounder


@st.composite
def trees(draw: st.DrawFn) -> list[Segment]:
    """Segments of one to four tokens, each below the prefix or an earlier one."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    return [Segment((7,) * length, draw(st.integers(ROOT, index - 1))) for index, length in enumerate(lengths)]


@given(segments=trees())
@settings(max_examples=60, deadline=None, database=None)
def test_the_chains_of_a_row_hold_what_its_mask_shows(segments: list[Segment]) -> None:
    row = pack(segments)
    chains = chains_of(row.mask)
    for token, seen in enumerate(row.mask):
        before = tuple(np.flatnonzero(seen))
        assert any(chain[: len(before)] == before for chain in chains), token
    for chain in chains:
        assert row.offsets[list(chain)].tolist() == list(range(len(chain)))
    for chain in chains:
        assert not any(chain == other[: len(chain)] for other in chains if other != chain)


@pytest.mark.parametrize("at_once", [pytest.param(1, id="one by one"), pytest.param(8, id="side by side")])
def test_answers_written_side_by_side_are_those_written_alone(
    at_once: int, grounder: MllmGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one length or not, of a single token too; a question that ends early leaves the others as they are."""
    scene = grounder.open(IMAGE)
    questions = [grounder.encode(text) for text in ("9", "the dog", "a left cup", "all zebras 12", "12 the dog below")]
    assert len(questions[0]) == 1
    alone = [write(grounder, scene, [question], frozenset(), 5)[0] for question in questions]
    assert len({one.ids for one in alone}) == len(alone)
    monkeypatch.setattr(copying, "COPIES_AT_ONCE", at_once)
    ends = frozenset({alone[1].ids[1]})
    lengths = []
    for found, expected in zip(write(grounder, scene, questions, ends, 5), alone, strict=True):
        lengths.append(next((place for place, token in enumerate(expected.ids) if token in ends), 5))
        assert found.ids == expected.ids[: lengths[-1]]
        told = expected.log_probabilities[: lengths[-1]]
        assert found.log_probabilities[: lengths[-1]] == pytest.approx(told, abs=1e-4)
    assert min(lengths) < max(lengths)


def test_a_scene_is_as_it_was_after_its_questions(grounder: MllmGrounder) -> None:
    """States are changed in place, of copies alone."""
    scene = grounder.open(IMAGE)
    question = inquiry(PHRASES[0], [[5, 5, 60, 80]], 0, 9)
    [first] = grounder.ask(scene, [question])
    write(grounder, scene, [grounder.question(PHRASES[1])], frozenset(), 3)
    [again] = grounder.ask(scene, [question])
    assert_same(first, again, 0)
    assert scene.nbytes == copying.cache_bytes(scene.cache) > 0


def test_a_row_teaches_each_answer_once(grounder: MllmGrounder) -> None:
    """The gradient of all its conversations is that of each answer's token in a prompt of its own."""
    model = grounder.checkpoint.model
    row = pack([Segment((5, 6, 7)), Segment((8, 9), 0), Segment((10, 11, 12), 0), Segment((13, 14))])
    targets = np.full(10, UNLEARNED)
    targets[[1, 4, 6, 7, 9]] = [20, 21, 22, 23, 24]
    parts = list(shares_of(model, TrainingRow(row, targets)))
    assert [part.row.ids.tolist() for part, _ in parts] == [[5, 6, 7, 8, 9], [5, 6, 7, 10, 11, 12], [13, 14]]
    assert sorted(target for part, _ in parts for target in part.targets.tolist() if target != UNLEARNED) == [20, 21, 22, 23, 24]
    encoded = grounder.checkpoint.encode(grounder.checkpoint, grounder.markup.opening, Image.fromarray(IMAGE))
    with torch.no_grad():
        found = sum(share * float(row_loss(model, encoded, part)) for part, share in parts)
        alone = []
        for place in np.flatnonzero(targets != UNLEARNED):
            chain = np.flatnonzero(row.mask[place])
            last = np.full(len(chain), UNLEARNED)
            last[-1] = targets[place]
            alone.append(float(row_loss(model, encoded, TrainingRow(pack([Segment(tuple(row.ids[chain]))]), last))))
    assert found == pytest.approx(np.mean(alone), abs=1e-5)


def test_a_model_that_is_packed_learns_a_row_as_it_is(tmp_path: Path) -> None:
    row = TrainingRow(pack([Segment((5, 6)), Segment((7,))]), np.array([1, 2, 3]))
    [(part, share)] = shares_of(Subject(KINDS["Qwen3-VL"], tmp_path).load().model, row)
    assert part is row
    assert share == 1.0


def test_states_cannot_be_spread_over_processes(grounder: MllmGrounder) -> None:
    with pytest.raises(TrainingError, match=r"^model has layers that keep states, which FSDP cannot spread here; run accelerate config"):
        shard(grounder.checkpoint.model, "model")
