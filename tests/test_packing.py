"""Packing is right if it cannot be told from separate prompts: first against a slow reference, then inside a real attention stack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from sam4mllm.grounding.packing import ROOT, Segment, additive, pack

torch.set_num_threads(1)

QUICK = settings(max_examples=100, deadline=None, database=None)

DRAWN = """
position       0 1 2    3 4 5 5 6 3
A              x x x    x
A              x x x    x x
a              x x x    x x x
b              x x x    x x   x
b              x x x    x x   x x
B              x x x              x
"""


def test_mask_as_drawn() -> None:
    """The picture in the module's docstring, read literally: prefix of three, phrase A A, questions a and b b below it, phrase B."""
    row = pack([Segment((10, 11)), Segment((12,), 0), Segment((13, 14), 0), Segment((15,))])
    first, *lines = DRAWN.strip().splitlines()
    positions = [int(text) for text in first.split()[1:]]
    drawn = np.array([[line[24 + 2 * column : 25 + 2 * column] == "x" for column in range(6)] for line in lines])
    assert all(line[15:20] == "x x x" for line in lines)
    assert np.array_equal(row.mask, drawn)
    assert (row.offsets + 3).tolist() == positions[3:]
    assert row.ids.tolist() == [10, 11, 12, 13, 14, 15]
    assert row.starts.tolist() == [0, 2, 3, 5]
    assert row.lengths.tolist() == [2, 1, 2, 1]
    assert row.lasts.tolist() == [1, 2, 4, 5]


@st.composite
def trees(draw: st.DrawFn) -> list[Segment]:
    segments: list[Segment] = []
    for index in range(draw(st.integers(0, 8))):
        ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=4))
        segments.append(Segment(tuple(ids), draw(st.integers(ROOT, index - 1))))
    return segments


def path(segments: list[Segment], index: int) -> list[tuple[int, int]]:
    """What a separate prompt for a segment would hold: (segment, place in it) of every token after the prefix."""
    parent = segments[index].parent
    before = [] if parent == ROOT else path(segments, parent)
    return before + [(index, place) for place in range(len(segments[index].ids))]


@QUICK
@given(segments=trees())
def test_row_is_as_walking_every_path(segments: list[Segment]) -> None:
    row = pack(segments)
    tokens = [(index, place) for index, segment in enumerate(segments) for place in range(len(segment.ids))]
    assert row.ids.tolist() == [segments[index].ids[place] for index, place in tokens]
    assert row.mask.shape == (len(tokens), len(tokens))
    for at, (index, place) in enumerate(tokens):
        walked = path(segments, index)
        own = walked.index((index, place))
        assert row.offsets[at] == own
        assert [tokens[other] for other in np.flatnonzero(row.mask[at])] == sorted(walked[: own + 1])
    assert [tokens[start] for start in row.starts] == [(index, 0) for index in range(len(segments))]
    assert [tokens[last] for last in row.lasts] == [(index, len(segment.ids) - 1) for index, segment in enumerate(segments)]


@QUICK
@given(segments=trees())
def test_row_is_causal_and_sees_itself(segments: list[Segment]) -> None:
    mask = pack(segments).mask
    assert not np.triu(mask, 1).any()
    assert mask.diagonal().all()


def test_types() -> None:
    for row in (pack([]), pack([Segment((1,))])):
        assert row.mask.dtype == np.bool_
        assert {part.dtype for part in (row.ids, row.offsets, row.starts, row.lengths, row.lasts)} == {np.dtype(np.int64)}


def test_nothing() -> None:
    row = pack([])
    assert row.mask.shape == (0, 0)
    assert row.ids.shape == row.offsets.shape == row.starts.shape == row.lengths.shape == row.lasts.shape == (0,)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        pytest.param([Segment(())], "at least one token", id="empty segment"),
        pytest.param([Segment((1,)), Segment((), 0)], "at least one token", id="empty child"),
        pytest.param([Segment((1,), 0)], "segment 0 must come after its parent", id="its own parent"),
        pytest.param([Segment((1,), 1), Segment((2,))], "segment 0 must come after its parent", id="child before its parent"),
        pytest.param([Segment((1,)), Segment((2,), 7)], "segment 1 must come after its parent", id="no such parent"),
        pytest.param([Segment((1,)), Segment((2,), -2)], "segment 1 must come after its parent", id="below the root"),
    ],
)
def test_what_is_no_tree_is_refused(segments: list[Segment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(segments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_additive(dtype: torch.dtype) -> None:
    mask = torch.tensor([[True, False], [True, True]])
    found = additive(mask, dtype)
    assert found.dtype == dtype
    assert found.tolist() == [[0, torch.finfo(dtype).min], [0, 0]]
    assert mask.tolist() == [[True, False], [True, True]]


PREFIX = tuple(range(40, 45))
TREE = [
    Segment((1, 2, 3)),
    Segment((4, 5), 0),
    Segment((6,), 0),
    Segment((7, 8), 1),
    Segment((9, 10, 11, 12)),
    Segment((4, 5), 4),
    Segment((7, 8), 4),
]


@pytest.fixture(scope="module")
def model() -> Qwen2Model:
    torch.manual_seed(0)
    config = Qwen2Config(  # type: ignore[call-arg]  # not among its typed fields
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    return Qwen2Model(config).eval()


def separate(model: Qwen2Model, index: int) -> torch.Tensor:
    """The hidden states (length, 32) of one segment in a prompt of its own."""
    ids = [TREE[segment].ids[place] for segment, place in path(TREE, index)]
    hidden = model(torch.tensor([[*PREFIX, *ids]]), use_cache=False).last_hidden_state[0]
    return hidden[-len(TREE[index].ids) :]


@torch.inference_mode()
@pytest.mark.parametrize("cached", [pytest.param(False, id="one row"), pytest.param(True, id="prefix kept")])
def test_packed_row_gives_what_separate_prompts_give(model: Qwen2Model, cached: bool) -> None:
    row, prefix = pack(TREE), len(PREFIX)
    total = len(row.ids)
    ids = torch.tensor([[*PREFIX, *row.ids.tolist()]])
    positions = torch.cat([torch.arange(prefix), torch.from_numpy(row.offsets) + prefix])[None]
    mask = torch.ones(prefix + total, prefix + total, dtype=torch.bool).tril()
    mask[prefix:, prefix:] = torch.from_numpy(row.mask)
    if cached:
        cache = model(ids[:, :prefix], past_key_values=DynamicCache(), use_cache=True).past_key_values
        ids, positions, mask = ids[:, prefix:], positions[:, prefix:], mask[prefix:]
    else:
        cache = None
    found = model(
        ids,
        position_ids=positions,
        attention_mask=additive(mask, torch.float32)[None, None],
        past_key_values=cache,
        use_cache=cached,
    ).last_hidden_state[0, -total:]
    for index, (start, length) in enumerate(zip(row.starts, row.lengths, strict=True)):
        torch.testing.assert_close(found[start : start + length], separate(model, index), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_separate_prompts_differ(model: Qwen2Model) -> None:
    """The same tokens below other parents: the test above would be worth nothing if the parent made no difference."""
    assert not torch.allclose(separate(model, 1), separate(model, 5), atol=1e-2)
    assert not torch.allclose(separate(model, 3), separate(model, 6), atol=1e-2)
