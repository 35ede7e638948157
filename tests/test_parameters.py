"""A project's extra parameters: read, checked against its config, kept, and in force from one request to the next."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.corrections.log import CorrectionLog
from backend.corrections.log_faults import LogError
from backend.corrections.review_book import ReviewBook
from backend.corrections.reviews import read_reviews
from backend.errors import ParametersError
from backend.label_studio.label_config import read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters, check_parameters, read_parameters, without_effect
from backend.label_studio.phrases import Wanted, wanted
from backend.label_studio.wire import PredictRequest, Task, read_setup
from backend.serving.project_parameters import ProjectParameters
from backend.web.app import create_app
from backend.web.overview import look
from sam4mllm.pipeline import Pipeline
from tests.backend_fakes import CONFIG, PROJECT, House, house, task
from tests.fakes import FakeGrounder, FakeSegmenter, grounding
from tests.review_fakes import CONFIG as REVIEWED
from tests.review_fakes import blob, created, log_of, region, served

WHOLE = {"prompts": {"Cup": "the left cup; all cups", "Dog": None}, "field": "caption", "strategy": "box", "threshold": 0.4}
READ = Parameters({"Cup": ("the left cup", "all cups"), "Dog": ()}, "caption", "box", 0.4)


@pytest.fixture
def where(tmp_path: Path) -> Iterator[House]:
    opened = house(tmp_path)
    yield opened
    opened.service.close(5.0)


def ask(where: House, *tasks: object, context: tuple[dict[str, Any], ...] | None = None) -> list[Any]:
    return [json.loads(answer) for answer in where.service.predictor.predict(PredictRequest(list(tasks), PROJECT, CONFIG, context))]


def note(where: House, given: object) -> None:
    where.service.note_parameters(PROJECT, given, read_label_config(CONFIG))


def phrases(answer: dict[str, Any]) -> list[str]:
    """What an answer's regions are for, by their notes."""
    return [region["meta"]["text"][0] for region in answer["result"]]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        pytest.param(None, NO_PARAMETERS, id="none"),
        pytest.param("  ", NO_PARAMETERS, id="blank"),
        pytest.param({}, NO_PARAMETERS, id="empty"),
        pytest.param({"prompts": None, "field": None, "strategy": None, "threshold": None}, NO_PARAMETERS, id="nulls"),
        pytest.param(WHOLE, READ, id="all"),
        pytest.param(json.dumps(WHOLE), READ, id="as text"),
        pytest.param({"prompts": {"Cup": ["a cup", "a mug", "a cup"]}}, Parameters({"Cup": ("a cup", "a mug")}), id="a list"),
        pytest.param({"threshold": 1}, Parameters(threshold=1.0), id="a whole number"),
    ],
)
def test_parameters_are_read_and_written_alike(given: object, read: Parameters) -> None:
    assert read_parameters(given) == read
    assert read_parameters(read.to_json()) == read


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param([1], "must be an object", id="a list"),
        pytest.param("{", "no JSON", id="no JSON"),
        pytest.param("[" * 100_000, "no JSON", id="deep"),
        pytest.param(" " * 100_001, "characters", id="long"),
        pytest.param({"promts": {}}, "'promts' is not known; use prompts, field, strategy, threshold", id="unknown"),
        pytest.param({"prompts": "a cup"}, "prompts must be an object", id="prompts of a wrong type"),
        pytest.param({"prompts": {"Cup": 3}}, "the prompt of 'Cup' must be a text", id="a number"),
        pytest.param({"prompts": {"Cup": " ; "}}, "the prompt of 'Cup' is empty; write null", id="an empty prompt"),
        pytest.param({"prompts": {"Cup": "x" * 501}}, "the prompt of 'Cup': the phrase has 501", id="a long prompt"),
        pytest.param({"prompts": {"Cup": ";".join(map(str, range(33)))}}, "33 phrases", id="too many phrases"),
        pytest.param({"prompts": {"\ud800": "x"}}, "not valid text", id="half a character in a label"),
        pytest.param({"field": "\ud800"}, "not valid text", id="half a character in a field"),
        pytest.param({"field": ""}, "field must be a key", id="no field"),
        pytest.param({"field": ["a"]}, "field must be a key", id="a field of a wrong type"),
        pytest.param({"strategy": "best"}, "strategy must be one of box, ppg", id="unknown strategy"),
        pytest.param({"strategy": ["box"]}, "strategy must be one of box, ppg", id="a list of strategies"),
        pytest.param({"threshold": 1.1}, "from 0 to 1, not 1.1", id="out of range"),
        pytest.param({"threshold": float("nan")}, "from 0 to 1, not nan", id="no number"),
        pytest.param({"threshold": "0.4"}, "from 0 to 1, not '0.4'", id="a text"),
        pytest.param({"threshold": True}, "from 0 to 1, not True", id="a truth value"),
    ],
)
def test_what_cannot_be_used_is_one_line(given: object, problem: str) -> None:
    with pytest.raises(ParametersError) as caught:
        read_parameters(given)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("prompts", "field", "strategy", "threshold", "Cup", "x")), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(JSON)
def test_nothing_foreign_raises_anything_else(given: object) -> None:
    problem = ""
    try:
        read = read_parameters(given)
        check_parameters(read, read_label_config(CONFIG))
        assert read_parameters(read.to_json()) == read
    except ParametersError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        pytest.param({"Cap": "the cap"}, "the label 'Cap' of prompts is not in the labelling config, which has 'Cup', 'Dog'", id="unknown"),
        pytest.param({"Cup": "it", "Dog": "it"}, "'it' is asked for two labels, 'Cup' and 'Dog'", id="one phrase for two"),
        pytest.param({"Cup": "Dog"}, "'Dog' is asked for two labels, 'Cup' and 'Dog'", id="another label's name"),
    ],
)
def test_prompts_fit_the_labels_of_the_config(prompts: dict[str, str], problem: str) -> None:
    with pytest.raises(ParametersError, match=problem):
        check_parameters(read_parameters({"prompts": prompts}), read_label_config(CONFIG))


def test_labels_without_prompts_may_share_a_phrase() -> None:
    config = read_label_config(CONFIG.replace('value="Cup"', 'value="c1" alias="thing"').replace('value="Dog"', 'value="c2" alias="thing"'))
    check_parameters(NO_PARAMETERS, config)
    check_parameters(read_parameters({"prompts": {"c1": "the cup"}}), config)
    with pytest.raises(ParametersError, match="'thing' is asked for two labels"):
        check_parameters(read_parameters({"prompts": {"c1": "thing"}}), config)


def test_a_tasks_own_labels_may_have_prompts() -> None:
    config = read_label_config(CONFIG.replace('<BrushLabels name="mask"', '<BrushLabels value="$labels" name="mask"'))
    parameters = read_parameters({"prompts": {"Spoon": "the ladle"}})
    check_parameters(parameters, config)
    own = parameters.apply(config.for_task({"labels": ["Spoon"]}))
    asked = [Wanted("the ladle", "Spoon"), Wanted("Cup", "Cup"), Wanted("Dog", "Dog")]
    assert wanted(Task(1, {"image": "a.png", "labels": ["Spoon"]}), own, (), "description") == asked


def test_labels_are_asked_for_by_their_prompts_unless_the_task_says_more() -> None:
    config = READ.apply(read_label_config(CONFIG))
    assert wanted(Task(1, {}), config, (), "caption") == [Wanted("the left cup", "Cup"), Wanted("all cups", "Cup")]
    assert wanted(Task(1, {"caption": "the dog"}), config, (), "caption") == [Wanted("the dog", "Dog")]
    odd = read_parameters({"prompts": {"Dog": "the flaw"}}).apply(read_label_config(CONFIG))
    assert wanted(Task(1, {}), odd, ("the flaw",), "caption") == [Wanted("the flaw", "Dog")]
    assert odd.digest != config.digest != read_label_config(CONFIG).digest


def test_a_threshold_that_nothing_looks_at_is_told() -> None:
    assert "box does not look at it" in without_effect(Parameters(threshold=0.3), "box")
    assert without_effect(Parameters(threshold=0.3), "choose") == ""
    assert without_effect(Parameters(threshold=0.3, strategy="concept"), "box") == ""
    assert without_effect(Parameters(strategy="box"), "choose") == ""


def test_setup_brings_them_and_the_version_stays(where: House) -> None:
    version, client = where.service.version, create_app(where.service).test_client()
    assert phrases(ask(where, task())[0]) == ["for: Cup"]
    body = {"project": f"{PROJECT}.1", "schema": CONFIG, "extra_params": {"prompts": {"Cup": "the left cup"}, "strategy": "box"}}
    assert read_setup(body).parameters == body["extra_params"]
    assert client.post("/setup", json=body).get_json() == {"model_version": version}
    [answer] = ask(where, task())
    assert phrases(answer) == ["for: the left cup; by the project's parameters: strategy box"]
    assert answer["model_version"] == version
    assert answer["result"][0]["value"]["brushlabels"] == ["Cup"]
    assert client.post("/setup", json={**body, "extra_params": None}).status_code == 200
    assert phrases(ask(where, task())[0]) == ["for: Cup"]


def test_they_shape_the_answer_and_the_key_of_its_memory(where: House) -> None:
    note(where, {"field": "caption"})
    one = task(caption="the left cup", description="the dog")
    assert phrases(ask(where, one)[0]) == ["for: the left cup"]
    note(where, {"field": "caption", "strategy": "box"})
    assert "strategy box" in phrases(ask(where, one)[0])[0]
    note(where, {"field": "caption", "strategy": "ppg"})
    assert "strategy ppg" in phrases(ask(where, one)[0])[0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param({"prompts": {"Cap": "the cap"}}, "the label 'Cap' of prompts", id="unknown label"),
        pytest.param({"threshold": "high"}, "threshold must be a number", id="wrong type"),
        pytest.param({"threshold": 2}, "from 0 to 1", id="out of range"),
        pytest.param({"strategy": "choose"}, "needs a segmenter that takes phrases", id="not possible here"),
    ],
)
def test_the_old_ones_serve_where_new_ones_cannot_be_used(
    where: House, given: object, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    note(where, {"prompts": {"Cup": "the left cup"}})
    for _ in range(3):
        note(where, given)
    assert phrases(ask(where, task())[0])[0].startswith("for: the left cup")
    assert problem in look(where.service).parameters[PROJECT]
    page = create_app(where.service).test_client().get("/").get_data(as_text=True)
    assert f"Project {PROJECT}: its extra parameters are not used" in page
    assert len([record for record in caplog.records if "extra parameters" in record.message]) == 1
    note(where, {"prompts": {"Cup": "all cups"}})
    assert look(where.service).parameters == {}
    assert len(phrases(ask(where, task())[0])) == 2


def test_a_request_is_answered_by_those_that_it_began_with(where: House) -> None:
    note(where, {"prompts": {"Cup": "the left cup", "Dog": None}})
    where.images.delay = 0.3
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask, where, *(task(number) for number in range(1, 7)))
        threading.Event().wait(0.1)
        note(where, {"prompts": {"Cup": "all cups", "Dog": None}})
        assert [phrases(answer)[0] for answer in answers.result()] == ["for: the left cup"] * 6
    where.images.delay = 0.0
    assert phrases(ask(where, task(7))[0]) == ["for: all cups"] * 2


def test_they_hold_after_a_restart(tmp_path: Path) -> None:
    first = house(tmp_path)
    note(first, WHOLE | {"threshold": None})
    first.service.close(5.0)
    second = house(tmp_path)
    try:
        assert second.service.parameters.of(PROJECT) == Parameters(READ.prompts, "caption", "box")
        assert second.service.parameters.of(PROJECT + 1) == second.service.parameters.of(None) == NO_PARAMETERS
    finally:
        second.service.close(5.0)


def test_a_threshold_reaches_the_segmenter() -> None:
    seen: list[float] = []

    class Noting(Pipeline):
        def _locate(self, opened: Any, phrases: Any, options: Any, seconds: Any) -> Any:
            seen.append(options.threshold)
            return super()._locate(opened, phrases, options, seconds)

    pipeline = Noting(FakeGrounder({"a": grounding("a", [[1, 1, 9, 9]])}), FakeSegmenter(), slug="fake")
    image = np.zeros((80, 100, 3), np.uint8)
    version = [one.version for threshold in (None, 0.2) for one in pipeline.segment(image, ["a"], threshold=threshold)]
    assert seen == [pipeline.options.threshold, 0.2]
    assert len({*version}) == 1


def test_a_log_that_cannot_keep_them_costs_nothing_but_the_restart(tmp_path: Path) -> None:
    class Broken:
        def parameters(self, project: int, wait: float) -> Parameters:
            raise LogError("the disk is gone", "io")

        def note_parameters(self, project: int, parameters: Parameters) -> None:
            raise LogError("the disk is gone", "io")

    parameters = ProjectParameters(Broken())
    assert parameters.of(3) == NO_PARAMETERS
    parameters.note(3, {"field": "caption"}, read_label_config(CONFIG), None)
    assert parameters.of(3).field == "caption"


def test_what_a_newer_release_kept_counts_as_none(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "log.sqlite")
    try:
        log._keep("parameters", [3, '{"colour": "red"}'])
        assert log.parameters(3) == NO_PARAMETERS
    finally:
        log.close()


def test_corrections_teach_the_prompt_that_a_label_is_asked_by(tmp_path: Path) -> None:
    log = log_of(tmp_path, created(region("h", blob(4), "Dog", "manual"), phrase=None, config=REVIEWED))
    book = ReviewBook(log, "description")
    try:
        assert [(one.phrase, one.label, one.by_label) for one in book.read().reviews] == [("Dog", "Dog", True)]
        log.note_parameters(PROJECT, read_parameters({"prompts": {"Dog": "the wet hound"}}))
        assert [(one.phrase, one.label, one.by_label) for one in book.read().reviews] == [("the wet hound", "Dog", False)]
    finally:
        log.close()


def test_what_was_served_by_a_prompt_keeps_its_label(tmp_path: Path) -> None:
    """Nothing in "the flaw" says which label it is of."""
    given = [served("a", blob(4), "the flaw", "Dog"), served("b", blob(16), "the cup", "Cup")]
    result = region("a", blob(4), "Dog"), region("b", blob(16)), region("h", blob(2, 14, 4), "Dog", "manual")
    log = log_of(tmp_path, created(*result, phrase=None, config=REVIEWED), served=given)
    try:
        found = read_reviews(log, "description")
        assert found.refused == []
        assert {(one.phrase, one.label, one.outcome) for one in found.reviews} == {
            ("the flaw", "Dog", "edited"),
            ("the cup", "Cup", "accepted"),
        }
    finally:
        log.close()


def test_a_kept_strategy_that_other_models_cannot_do_is_the_servers(tmp_path: Path) -> None:
    log = CorrectionLog(tmp_path / "corrections.sqlite")
    log.note_parameters(PROJECT, read_parameters({"strategy": "concept", "field": "caption"}))
    log.close()
    where = house(tmp_path)
    try:
        note(where, {"strategy": "concept", "field": "caption"})
        assert "needs a segmenter that takes phrases" in where.service.parameters.problems[PROJECT]
        assert where.service.parameters.of(PROJECT) == Parameters(field="caption")
        assert phrases(ask(where, task(caption="the left cup"))[0]) == ["for: the left cup"]
    finally:
        where.service.close(5.0)


def test_corrections_from_before_the_prompts_still_follow_their_labels(tmp_path: Path) -> None:
    given = [served("a", blob(4), "Dog", "Dog")]
    log = log_of(tmp_path, created(region("a", blob(4), "Dog"), phrase=None, config=REVIEWED), served=given)
    log.note_parameters(PROJECT, read_parameters({"prompts": {"Dog": "the wet hound"}}))
    try:
        [review] = read_reviews(log, "description").reviews
        assert (review.phrase, review.label, review.by_label) == ("Dog", "Dog", True)
    finally:
        log.close()
