"""The status page: what it tells, what its buttons do, and who may press them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from backend.learning.agreement import BINS, HEIGHT, WIDTH, ReviewedAnswer, draw_trend, judged_of, measure_reliability
from backend.learning.worth import measure_worth
from backend.web.app import create_app
from backend.web.overview import SHOWN_RUNS, look
from tests.learning_fakes import School, school
from tests.test_auto_rollback import review

BASE_URL = "http://127.0.0.1"
SHARES = st.floats(0, 1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[School]:
    made = school(tmp_path)
    yield made
    made.service.close(5)


@pytest.fixture
def client(place: School) -> FlaskClient:
    return create_app(place.service).test_client()


class Forms(HTMLParser):
    """Each form's address and its fields."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append((values["action"], {}))
        elif tag == "input":
            self.found[-1][1][values["name"]] = values["value"]


def press(client: FlaskClient, action: str, subject: str | None = None, headers: dict[str, str] | None = None, **changes: str) -> Any:
    """The answer to a button as the page has it, with some of its fields changed."""
    forms = Forms(client.get("/", base_url=BASE_URL).text).found
    fields = next(fields for address, fields in forms if address == f"/actions/{action}" and subject in (None, fields["subject"]))
    return client.post(f"/actions/{action}", data={**fields, **changes}, headers=headers, base_url=BASE_URL)


# -- buttons -------------------------------------------------------------------------------------------------------------------------------


def test_train_stop_promote_and_roll_back(place: School, client: FlaskClient) -> None:
    first, second = place.add(), place.add(0.25)
    for version in (first, second):
        answer = press(client, "promote", version)
        assert (answer.status_code, answer.location) == (303, "/?done=promote")
        assert place.serving == version == place.service.version
    assert press(client, "rollback").status_code == 303
    assert place.serving == first
    assert "serves again" in client.get("/?done=rollback", base_url=BASE_URL).text

    place.service.engine.state = "loading"  # so that the run waits
    assert press(client, "train").status_code == 303
    [run] = place.service.learner.runs.all()
    assert run.reason == "asked for on the status page"
    assert press(client, "stop", run.id).status_code == 303
    assert [run.state for run in place.service.learner.runs.all()] == ["stopped"]
    place.service.engine.state = "ready"


@pytest.mark.parametrize(
    ("headers", "fields", "status"),
    [
        pytest.param({}, {}, 303, id="the page itself, an old browser"),
        pytest.param({"Sec-Fetch-Site": "same-origin", "Origin": BASE_URL}, {}, 303, id="the page itself"),
        pytest.param(
            {"Sec-Fetch-Site": "same-origin", "Origin": "https://labels.example.com"}, {}, 303, id="behind a proxy of another name"
        ),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, {}, 403, id="another site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, {}, 403, id="another port of this machine"),
        pytest.param({"Sec-Fetch-Site": "none"}, {}, 403, id="the address bar"),
        pytest.param({"Origin": "http://evil.example"}, {}, 403, id="another site, an old browser"),
        pytest.param({"Origin": "null"}, {}, 403, id="a sandboxed frame"),
        pytest.param({}, {"token": ""}, 403, id="no token"),
        pytest.param({}, {"token": "0" * 43}, 403, id="a guess"),
        pytest.param({}, {"token": "\u00e4\ud7ff"}, 403, id="a guess beyond ASCII"),
    ],
)
def test_only_the_page_itself_may_press(
    place: School, client: FlaskClient, headers: dict[str, str], fields: dict[str, str], status: int
) -> None:
    version = place.add()
    answer = press(client, "promote", version, headers, **fields)
    assert answer.status_code == status
    assert place.serving == (version if status == 303 else None)


def test_the_token_is_of_this_start(place: School, client: FlaskClient) -> None:
    other = create_app(place.service).test_client()
    token = re.search(r'name="token" value="([^"]+)"', other.get("/", base_url=BASE_URL).text)
    assert token is not None
    answer = press(client, "train", token=token[1])
    assert (answer.status_code, "older than this server" in answer.text) == (403, True)
    assert press(client, "train").status_code == 303


@pytest.mark.parametrize(
    ("action", "subject", "status", "says"),
    [
        pytest.param("promote", "demo-9-0123abcd", 400, "there is no version demo-9-0123abcd", id="no such version"),
        pytest.param("promote", "../../etc", 400, "is no version", id="a path"),
        pytest.param("stop", "run-000009", 400, "there is no such run", id="no such run"),
        pytest.param("rollback", "demo-9-0123abcd", 400, "another version serves by now", id="an old page"),
        pytest.param("launch", "", 404, "there is no such button", id="no such button"),
    ],
)
def test_what_cannot_be_done_is_said_on_the_page(
    place: School, client: FlaskClient, action: str, subject: str, status: int, says: str
) -> None:
    place.service.versions.promote(place.add())
    token = Forms(client.get("/", base_url=BASE_URL).text).found[0][1]["token"]
    answer = client.post(f"/actions/{action}", data={"token": token, "subject": subject}, base_url=BASE_URL)
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert 'href="/api"' in answer.text, "the page's links must hold on every address"


def test_pressed_twice_goes_one_back(place: School, client: FlaskClient) -> None:
    first, second = place.add(), place.add(0.25)
    place.service.versions.promote(first)
    place.service.versions.promote(second)
    assert press(client, "rollback").status_code == 303
    assert press(client, "rollback", subject=None).status_code == 303  # a fresh page names the next one back
    assert place.serving is None
    place.service.versions.promote(second)
    fields = {"token": Forms(client.get("/", base_url=BASE_URL).text).found[0][1]["token"], "subject": second}
    twice = [client.post("/actions/rollback", data=fields, base_url=BASE_URL).status_code for _ in range(2)]
    assert twice == [303, 400]


def test_rollback_over_the_api(place: School, client: FlaskClient) -> None:
    place.service.versions.promote(place.add())
    assert client.post("/api/versions/rollback", data=b"", base_url=BASE_URL).status_code == 400
    assert client.post("/api/versions/rollback", json={}, base_url=BASE_URL).status_code == 200
    assert place.serving is None
    again = client.post("/api/versions/rollback", json={}, base_url=BASE_URL)
    assert (again.status_code, again.get_json()["error"]) == (400, "no adapter serves, only the base model; there is nothing to roll back")


# -- the page ------------------------------------------------------------------------------------------------------------------------------


def test_the_page_runs_nothing_but_its_own_script(client: FlaskClient) -> None:
    pages = [client.get("/", base_url=BASE_URL) for _ in range(2)]
    nonces = []
    for page in pages:
        policy = page.headers["Content-Security-Policy"]
        [nonce] = re.findall(r"script-src 'nonce-([^']+)'", policy)
        assert re.findall(r"<script[^>]*>", page.text) == [f'<script nonce="{nonce}">']
        assert all(part in policy for part in ("default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"))
        nonces.append(nonce)
    assert nonces[0] != nonces[1]
    assert re.search(r"\son\w+=", pages[0].text) is None


def test_a_version_of_another_model_cannot_be_promoted(place: School, client: FlaskClient) -> None:
    place.add()
    place.loader.base_sha256 = "ef" * 32
    page = client.get("/", base_url=BASE_URL).text
    assert "of another model" in page
    assert "/actions/promote" not in page


def test_runs_are_shown_page_by_page(place: School, client: FlaskClient) -> None:
    runs = place.service.learner.runs
    for number in range(SHOWN_RUNS + 5):
        runs.save(runs.create(f"reason {number}"), state="postponed", message="there are too few")
    seen: list[str] = []
    for first in (0, SHOWN_RUNS):
        page = client.get(f"/?first={first}", base_url=BASE_URL).text
        seen += re.findall(r"<td>(run-\d{6})</td>", page)
    assert seen == [run.id for run in runs.all()]
    for nonsense in ("-1", "x", "9" * 40, "١"):
        assert client.get("/", query_string={"first": nonsense}, base_url=BASE_URL).status_code == 200


def test_the_api_says_what_the_page_shows(place: School, client: FlaskClient) -> None:
    version = place.add()
    place.service.versions.promote(version)
    told = client.get("/api", base_url=BASE_URL).get_json()
    assert told == json.loads(json.dumps(look(place.service).to_json()))
    assert (told["state"], told["version"], told["rolls_back_to"]) == ("ready", place.service.version, "the base model")
    assert [one["serving"] for one in told["versions"]] == [True]


def test_a_damaged_registry_is_said_not_hidden(place: School, client: FlaskClient) -> None:
    place.service.versions.promote(place.add())
    (place.service.versions.registry.root / "champion").write_text("../../nonsense\n")
    page = client.get("/", base_url=BASE_URL)
    assert page.status_code == 200
    assert "names no version" in page.text


def test_pictures_are_of_a_run_and_nothing_else(place: School, client: FlaskClient) -> None:
    run = place.service.learner.runs.create("test")
    folder = place.service.learner.runs.folder(run.id)
    folder.pictures.mkdir()
    folder.picture(3, "before").write_bytes(b"\x89PNG")
    (folder.path / "secret.png").write_bytes(b"\x89PNG")
    wanted = {
        f"{run.id}/pictures/3-before.png": 200,
        f"{run.id}/pictures/3-after.png": 404,
        f"{run.id}/pictures/4-before.png": 404,
        f"{run.id}/pictures/secret.png": 404,
        f"{run.id}/pictures/3-..%2f..%2fsecret.png": 404,
        "run-999999/pictures/3-before.png": 404,
        "..%2fruns/pictures/3-before.png": 404,
    }
    assert {name: client.get(f"/api/runs/{name}", base_url=BASE_URL).status_code for name in wanted} == wanted


def test_two_hundred_runs_and_fifty_versions_are_read_at_once(place: School, client: FlaskClient) -> None:
    runs = place.service.learner.runs
    for number in range(200):
        runs.save(runs.create(f"reason {number}"), state="kept", message="not better")
    for number in range(50):
        place.add(number / 100)
    client.get("/", base_url=BASE_URL)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert client.get("/", base_url=BASE_URL).status_code == 200
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5, took


# -- agreement -----------------------------------------------------------------------------------------------------------------------------


def judged(*ious: float, version: str = "demo-1-0123abcd", score: float | None = 0.5) -> list[ReviewedAnswer]:
    return [ReviewedAnswer(float(index), iou, version, score) for index, iou in enumerate(ious)]


@pytest.mark.parametrize("ious", [pytest.param([], id="none"), pytest.param([0.5], id="one")])
def test_too_few_reviews_have_no_curve(ious: list[float]) -> None:
    assert draw_trend(judged(*ious)) is None


def test_the_curve_is_the_mean_of_twenty() -> None:
    trend = draw_trend(judged(*[0.0] * 40, *[1.0] * 10))
    assert trend is not None
    assert (trend.count, trend.last) == (50, pytest.approx(0.5))


def test_a_change_of_version_is_marked() -> None:
    rows = [*judged(*[0.5] * 10), *judged(*[0.6] * 10, version="demo-2-0123abcd")]
    trend = draw_trend(rows)
    assert trend is not None
    assert [text for _, text in trend.marks] == ["1", "2"]


@given(st.lists(st.tuples(SHARES, st.integers(0, 99), st.none() | SHARES), min_size=2, max_size=900))
def test_the_curve_stays_in_its_frame(rows: list[tuple[float, int, float | None]]) -> None:
    trend = draw_trend([ReviewedAnswer(0.0, iou, f"demo-{number}-0123abcd", score) for iou, number, score in rows])
    assert trend is not None
    for x, y in (point.split(",") for point in trend.line.split()):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_the_score_is_compared_with_what_was_accepted() -> None:
    rows = [*judged(0.9, 0.9, 0.9, 0.1, score=0.95), *judged(0.1, 0.1, score=0.1), *judged(0.9, score=None)]
    found = measure_reliability(rows)
    assert found is not None
    assert [(one.low, one.high, one.count, one.accepted) for one in found.bins] == [(0.0, 0.2, 2, 0.0), (0.8, 1.0, 4, 0.75)]
    assert found.error == pytest.approx((2 * 0.1 + 4 * 0.2) / 6)
    assert measure_reliability(judged(0.5, score=None)) is None


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1))
def test_every_answer_is_in_one_bin(rows: list[tuple[float, float]]) -> None:
    found = measure_reliability([ReviewedAnswer(0.0, iou, "demo-1-0123abcd", score) for iou, score in rows])
    assert found is not None
    assert sum(one.count for one in found.bins) == len(rows) == found.count
    assert len(found.bins) <= BINS
    assert 0 <= found.error <= 1


def test_only_what_was_served_is_judged() -> None:
    version = "demo-1-0123abcd"
    reviews = [review(version, 0.5, 2.0), review(version, None, 0.0), review("", 0.7, 0.0), review(version, 0.9, 1.0)]
    assert [one.iou for one in judged_of(reviews)] == [0.9, 0.5]


def test_the_page_says_what_masks_are_worth_and_what_tasks_without_cost(tmp_path: Path) -> None:
    made = school(tmp_path, train_after=50)
    try:
        page = create_app(made.service).test_client()
        made.service.learner.close(5)  # its looks at the reviews would replace what follows
        assert "What the masks are worth" not in page.get("/").text
        assert "12 of 100 tasks" in page.get("/").text
        served = [replace(review("demo-1-aaaa", 1.0, 1.0), annotation=number, outcome="accepted", lead_time=12.0) for number in range(3)]
        drawn = [replace(review("", None, 2.0), annotation=9, outcome="drawn", unassisted=True, lead_time=42.0)]
        made.service.learner.worth = measure_worth([*served, *drawn])
        text = page.get("/").text
        assert all(figure in text for figure in ("12.0 s", "42.0 s", "100 %", "demo-1-aaaa"))
        assert "that takes annotators 6.0 minutes" in text
        metrics = page.get("/metrics").text
        assert 'sam4mllm_task_seconds{tasks="unassisted"} 42.0' in metrics
        assert 'sam4mllm_reviewed_tasks{tasks="assisted"} 3.0' in metrics
    finally:
        made.service.close(5)


def test_a_reviewer_is_left_out_and_taken_in_on_the_page(tmp_path: Path) -> None:
    made = school(tmp_path, leave_out=("project:99",))
    try:
        page, learner = create_app(made.service).test_client(), made.service.learner
        learner.close(5)  # its looks at the reviews would replace what follows
        learner.survey = learner.participants.survey([replace(review("demo-1-aaaa", 0.9, 1.0), reviewer=7)])
        text = page.get("/", base_url=BASE_URL).text
        assert "reviewer 7" in text
        assert "SAM4MLLM_LEAVE_OUT; no review of theirs" in text
        assert press(page, "leave-out", "reviewer:7").status_code == 303
        assert learner.participants.is_left_out(replace(review("", None, 1.0), reviewer=7))
        learner.survey = learner.participants.survey([replace(review("demo-1-aaaa", 0.9, 1.0), reviewer=7)])
        assert press(page, "take-in", "reviewer:7").status_code == 303
        assert not learner.participants.is_left_out(replace(review("", None, 1.0), reviewer=7))
        learner.survey = learner.participants.survey([replace(review("demo-1-aaaa", 0.9, 1.0), reviewer=7)])
        fields = next(fields for address, fields in Forms(page.get("/", base_url=BASE_URL).text).found if address == "/actions/leave-out")
        wrong = page.post("/actions/leave-out", data={**fields, "subject": "reviewer:<7>"}, base_url=BASE_URL)
        assert "is no participant" in wrong.text
        assert wrong.status_code >= 400
    finally:
        made.service.close(5)
