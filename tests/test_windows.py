"""Layers that see so far back: what each token of a row sees, and the same loss and logits as by the model's own masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Gemma4TextConfig

from sam4mllm.errors import ModelError
from sam4mllm.grounding.encoders import with_text
from sam4mllm.grounding.families import see_everything
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.packing import ROOT, Segment, pack
from sam4mllm.grounding.windows import last_seen, masks, window_of
from sam4mllm.training.collate import UNLEARNED, TrainingRow
from sam4mllm.training.loss import row_loss
from tests.family_checks import IMAGE, Subject
from tests.family_gemma import GEMMA, WINDOW
from tests.family_models import KINDS

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=GEMMA)
def grounder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    return Subject(GEMMA[request.param], tmp_path_factory.mktemp("gemma")).grounder


@st.composite
def trees(draw: st.DrawFn) -> list[Segment]:
    """Segments of one to four tokens, each below the prefix or an earlier one."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    return [Segment((7,) * length, draw(st.integers(ROOT, index - 1))) for index, length in enumerate(lengths)]


@given(segments=trees(), window=st.integers(1, 12))
@settings(max_examples=60, deadline=None, database=None)
def test_a_window_goes_by_positions_wherever_a_token_stands(segments: list[Segment], window: int) -> None:
    row, prefix = pack(segments), 5
    positions = np.concatenate([np.arange(prefix), row.offsets + prefix])
    visible = np.concatenate([np.ones((len(row.ids), prefix), np.bool_), row.mask], 1)
    near = positions[prefix:, None] - positions[None] < window
    assert np.array_equal(last_seen(torch.from_numpy(visible), window).numpy(), visible & near)


def test_a_row_teaches_what_its_conversations_would_by_the_models_own_masks(grounder: MllmGrounder) -> None:
    """Image tokens that see ahead included, and the bound of the logits."""
    checkpoint = grounder.checkpoint
    model = checkpoint.model
    encoded = checkpoint.encode(checkpoint, grounder.markup.opening, Image.fromarray(IMAGE))
    assert int(encoded.inputs["mm_token_type_ids"].sum()) > WINDOW
    conversations = [list(range(20, 60)), list(range(30, 45))]
    row = pack([Segment(tuple(ids)) for ids in conversations])
    targets = np.full(len(row.ids), UNLEARNED)
    targets[row.lasts] = [70, 71]
    alone = []
    with torch.no_grad():
        found = float(row_loss(model, encoded, TrainingRow(row, targets)))
        for ids, target in zip(conversations, (70, 71), strict=True):
            logits = model(**with_text(encoded, torch.tensor(ids), torch.arange(len(ids))), use_cache=False).logits[0, -1]
            alone.append(float(F.cross_entropy(logits, torch.tensor(target))))
    assert found == pytest.approx(np.mean(alone), abs=1e-5)


@pytest.mark.parametrize("mutual", [None, [False, True, True, True, False]], ids=["none", "image tokens"])
def test_tokens_see_ahead_in_layers_with_a_window_alone(grounder: MllmGrounder, mutual: list[bool] | None) -> None:
    visible = torch.ones(5, 5, dtype=torch.bool).tril()
    found = masks(grounder.checkpoint.model, visible, None if mutual is None else torch.tensor(mutual))
    assert isinstance(found, dict)
    assert set(found) == {"full_attention", "sliding_attention"}
    ahead = (found["sliding_attention"][0, 0] == 0) & ~visible
    assert ahead.nonzero().tolist() == ([] if mutual is None else [[1, 2], [1, 3], [2, 3]])
    assert (found["full_attention"][0, 0] == 0).equal(visible)


def test_image_tokens_see_ahead_where_the_model_has_them_so(grounder: MllmGrounder) -> None:
    checkpoint = grounder.checkpoint
    encoded = checkpoint.encode(checkpoint, grounder.markup.opening, Image.fromarray(IMAGE))
    large = checkpoint.model.config.get_text_config().use_bidirectional_attention == "vision"
    assert (encoded.mutual is not None) == large
    if encoded.mutual is not None:
        assert encoded.mutual.equal(encoded.inputs["mm_token_type_ids"][0] == 1)


def test_logits_are_bounded_as_by_the_model_itself(grounder: MllmGrounder) -> None:
    model, ids = grounder.checkpoint.model, torch.arange(20, 40)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        hidden = model.model(input_ids=ids, return_dict=True).last_hidden_state
        assert (logits_of(model, hidden) - model.lm_head(hidden)).abs().max() > 1e-2
        torch.testing.assert_close(logits_of(model, hidden), expected, atol=1e-5, rtol=0)


def test_the_part_that_hears_is_not_loaded(tmp_path: Path) -> None:
    subject = Subject(GEMMA["Gemma 4, E2B and E4B"], tmp_path)
    model = subject.load().model
    assert '"audio_config": {' in (subject.source / "config.json").read_text()
    assert not [name for name, _ in model.named_parameters() if "audio" in name]


def test_windows_stay_where_layers_have_masks_of_their_own() -> None:
    text = Gemma4TextConfig(sliding_window=512)
    assert see_everything(text, "model") is None
    assert window_of(text) == 512
    with pytest.raises(ModelError, match=r"^model: its tokens see those after them, so it writes no answers"):
        see_everything(Gemma4TextConfig(use_bidirectional_attention="all"), "model")


def test_other_models_take_one_mask(tmp_path: Path) -> None:
    model = Subject(KINDS["LLaVA-NeXT, Mistral"], tmp_path).load().model
    assert isinstance(masks(model, torch.ones(2, 2, dtype=torch.bool)), torch.Tensor)
