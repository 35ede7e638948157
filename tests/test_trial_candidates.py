"""The file that names what a trial compares: what it says, and that whatever else is in it is told in one line."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam4mllm.errors import EvaluationError
from sam4mllm.options import Options, Precision
from sam4mllm.trial.candidates import KEYS, Contender, read_candidates

FULL = """
[box]
strategy = "box"

["Qwen2.5-VL_7B"]
model = "FOLDER"
segmenter = "vit_h:sam_vit_h_4b8939.pth"
adapter = "ADAPTER"
strategy = "pqpp"
points = "joint"
pattern = "interior"
threshold = 1
quantize = "4bit"
dtype = "bf16"
dialect = "spoken.json"
device = "cuda:1"
"""


def read(folder: Path, text: str) -> list[Contender]:
    path = folder / "candidates.toml"
    path.write_text(text, encoding="utf-8")
    return read_candidates(path)


def test_each_table_is_a_candidate(tmp_path: Path) -> None:
    box, full = read(tmp_path, FULL)
    assert (box.name, box.given()) == ("box", {"strategy": "box"})
    assert full.name == "Qwen2.5-VL_7B"
    assert set(full.given()) == set(KEYS)
    assert full.options == Options("pqpp", joint=True, pattern="interior", threshold=1.0)
    assert full.precision == Precision("bf16", "4bit")
    assert box.options == Options("box")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "has no candidate; write a table for each", id="empty"),
        pytest.param('strategy = "box"', "strategy stands outside of a candidate", id="no table"),
        pytest.param("[a\n", "is no TOML", id="no TOML"),
        pytest.param('[a]\nstratgy = "box"', "a has the unknown key stratgy; known are model, segmenter", id="unknown key"),
        pytest.param("[a]\nmodel = 7", "a: model is a text, not 7", id="a number for a text"),
        pytest.param('[a]\nadapter = ""', "a: adapter is a text, not ''", id="an empty text"),
        pytest.param('[a]\nstrategy = ["box"]', "a: strategy is a text, not ['box']", id="a list for a text"),
        pytest.param('[a]\nstrategy = "boxes"', "a: strategy is one of auto, box, ppg", id="unknown strategy"),
        pytest.param('[a]\npoints = "both"', "a: points is one of packed, joint, not 'both'", id="unknown points"),
        pytest.param('[a]\nquantize = "2bit"', "a: quantize is one of none, 8bit, 4bit", id="unknown quantisation"),
        pytest.param('[a]\nthreshold = "0.5"', "a: threshold is a number from 0 to 1", id="a text for a number"),
        pytest.param("[a]\nthreshold = true", "a: threshold is a number from 0 to 1", id="a truth for a number"),
        pytest.param("[a]\nthreshold = nan", "a: threshold is a number from 0 to 1", id="not a number"),
        pytest.param("[a.b]\n", "a has the unknown key b", id="a table in a table"),
        pytest.param("[[a]]\n", "a stands outside of a candidate", id="a list of tables"),
        pytest.param('["../a"]\n', "a candidate cannot be called '../a'", id="a name that leads elsewhere"),
        pytest.param('["a\\u202eb"]\n', "a candidate cannot be called 'a\\u202eb'", id="a name that turns text"),
        pytest.param(f"[{'a' * 41}]\n", "at most 40 letters", id="a long name"),
    ],
)
def test_what_is_wrong_is_told_with_candidate_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "candidates.toml"))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_candidates(tmp_path / "none.toml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(["[a]\n", "[b.c]\n", '"', "=", "threshold", "1e999", "\n", "'x'"])).map("".join)
)
def test_any_text_gives_candidates_or_one_line(tmp_path: Path, text: str) -> None:
    with contextlib.suppress(EvaluationError):
        assert read(tmp_path, text)


def test_the_guides_file_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "trial.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [one.name for one in read(tmp_path, example)] == ["box", "taught", "taught-in-4-bit"]
    [keys] = re.findall(r"^Keys are (.*?), with the ", page, re.MULTILINE)
    assert re.findall(r"`(\w+)`", keys) == list(KEYS)
