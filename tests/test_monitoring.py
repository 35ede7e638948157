"""What is told of the running server: metrics that dashboard, alerts and documentation agree on, and a log without secrets."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from backend.learning.agreement import ReviewedAnswer
from backend.learning.auto_rollback import ControlChart
from backend.learning.worth import measure_worth
from backend.support.logs import REQUEST_ID, JsonFormatter, TextFormatter, clean, log_config
from backend.web.app import create_app
from tests.backend_fakes import CONFIG, house, task
from tests.learning_fakes import School, school
from tests.test_auto_rollback import review
from tests.test_confidence import TYPICAL

ROOT = Path(__file__).parent.parent
BASE_URL = "http://127.0.0.1"
SECRET = "s3cr3t-of-the-webhook"
NAME = re.compile(r"\bsam4mllm_\w+")
SUFFIXES = re.compile(r"_(bucket|count|sum)$")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[School]:
    made = school(tmp_path, webhook_secret=SECRET)
    yield made
    made.service.close(5)


@pytest.fixture
def client(place: School) -> FlaskClient:
    return create_app(place.service).test_client()


def samples(client: FlaskClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every value of /metrics by name and labels."""
    text = client.get("/metrics", base_url=BASE_URL).text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}


def value(client: FlaskClient, name: str, **labels: str) -> float:
    return samples(client)[name, tuple(sorted(labels.items()))]


def fill(place: School, client: FlaskClient) -> None:
    """So much happens that every metric has a value."""
    registry = place.service.versions.registry
    place.service.versions.promote(place.add())
    runs = place.service.learner.runs
    runs.save(runs.create("test"), state="failed", message="it failed")
    place.service.engine.state = "loading"  # so that the next run waits
    runs.create("test")
    serving = registry.serving() or ""
    place.service.learner.close(5)  # its next look at the reviews would replace what follows
    place.service.learner.judged = tuple(ReviewedAnswer(float(at), 0.8, serving, 0.7) for at in range(30))
    place.service.learner.watch.state = ControlChart(0.8, 0.6, 0.8, 0.7, 30)
    place.service.learner.worth = measure_worth([replace(review(serving, 0.8, 1.0), lead_time=9.0)])
    tasks = [{"id": 1, "data": {"image": "x/100x80.png", "description": "the left cup"}}, {"id": 2, "data": {"image": "dead"}}]
    place.service.engine.state = "ready"
    client.post("/predict", json={"tasks": tasks, "project": "1.1", "label_config": CONFIG}, base_url=BASE_URL)
    client.post("/webhook", json={"action": "PROJECT_UPDATED"}, headers={"X-Webhook-Secret": SECRET}, base_url=BASE_URL)
    client.post("/webhook", json={}, base_url=BASE_URL)
    place.service.metrics.refused_annotations(0)


def exposed(client: FlaskClient) -> set[str]:
    return {SUFFIXES.sub("", name) for name, _ in samples(client) if name.startswith("sam4mllm_") and not name.endswith("_created")}


# -- metrics -------------------------------------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_route_and_status(client: FlaskClient) -> None:
    client.get("/health", base_url=BASE_URL)
    client.post(f"/webhook/{SECRET}", json={"action": "PROJECT_UPDATED"}, base_url=BASE_URL)
    client.post("/webhook/wrong", json={}, base_url=BASE_URL)
    client.get("/nowhere", base_url=BASE_URL)
    client.get("/health", base_url="http://evil.example")
    client.open("/health", method="ANYTHING", base_url=BASE_URL)
    count = "sam4mllm_request_seconds_count"
    assert value(client, count, method="GET", route="/health", status="200") == 1
    assert value(client, count, method="POST", route="/webhook/<secret>", status="201") == 1
    assert value(client, count, method="POST", route="/webhook/<secret>", status="401") == 1
    assert value(client, count, method="GET", route="none", status="404") == 1
    assert value(client, count, method="other", route="none", status="405") == 1
    assert value(client, "sam4mllm_refused_requests_total", reason="unauthorized") == 1
    assert value(client, "sam4mllm_refused_requests_total", reason="forbidden") == 1
    assert value(client, "sam4mllm_refused_requests_total", reason="not_found") == 1
    assert SECRET not in client.get("/metrics", base_url=BASE_URL).text


def test_a_refusal_is_counted_once_by_its_reason(client: FlaskClient) -> None:
    client.post("/predict", data=b"{", content_type="application/json", base_url=BASE_URL)
    refused = {labels: number for (name, labels), number in samples(client).items() if name == "sam4mllm_refused_requests_total"}
    assert refused == {(("reason", "request"),): 1.0}


def test_state_queue_and_caches(place: School, client: FlaskClient) -> None:
    fill(place, client)
    states = {labels[0][1]: number for (name, labels), number in samples(client).items() if name == "sam4mllm_state"}
    assert states == {"loading": 0, "ready": 1, "paused": 0, "failed": 0, "draining": 0}
    with place.service.engine.place(True):
        assert value(client, "sam4mllm_requests_in_house", kind="interactive") == 1
    assert value(client, "sam4mllm_requests_in_house", kind="interactive") == 0
    assert value(client, "sam4mllm_cache_misses_total", cache="answers") == 2
    tasks = [{"id": 1, "data": {"image": "x/100x80.png", "description": "the left cup"}}]
    client.post("/predict", json={"tasks": tasks, "project": "1.1", "label_config": CONFIG}, base_url=BASE_URL)
    assert value(client, "sam4mllm_cache_hits_total", cache="answers") == 1


def test_version_runs_and_agreement(place: School, client: FlaskClient) -> None:
    fill(place, client)
    named = {"version": place.service.version, "model": "demo", "segmenter": "demo"}
    assert value(client, "sam4mllm_serving_info", **named) == 1
    assert value(client, "sam4mllm_runs", state="failed") == value(client, "sam4mllm_last_run_failed") == 1
    assert value(client, "sam4mllm_agreement") == pytest.approx(0.8)
    assert value(client, "sam4mllm_score_calibration_error") == pytest.approx(0.3)
    assert value(client, "sam4mllm_score_calibrated") == 0
    leases = place.service.engine.model
    assert leases is not None
    leases.calibrate(TYPICAL)
    assert value(client, "sam4mllm_score_calibrated") == 1


def test_a_damaged_registry_costs_its_figures_only(place: School, client: FlaskClient) -> None:
    place.service.versions.promote(place.add())
    (place.service.versions.registry.root / "champion").write_text("../../nonsense\n")
    names = {name for name, _ in samples(client)}
    assert "sam4mllm_versions" not in names
    assert "sam4mllm_runs" in names


def test_a_scrape_is_cheap(place: School, client: FlaskClient) -> None:
    runs = place.service.learner.runs
    for _ in range(200):
        runs.save(runs.create("test"), state="kept")
    for number in range(50):
        place.add(number / 100)
    fill(place, client)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        client.get("/metrics", base_url=BASE_URL)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.25, took


# -- what others say of them ---------------------------------------------------------------------------------------------------------------


def test_the_documentation_lists_every_metric_and_no_other(place: School, client: FlaskClient) -> None:
    fill(place, client)
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(sam4mllm_\w+)", page, re.MULTILINE)) == exposed(client)


def test_the_dashboard_asks_for_what_there_is(place: School, client: FlaskClient) -> None:
    fill(place, client)
    dashboard = json.loads((ROOT / "docker" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [one["expr"] for panel in dashboard["panels"] for one in panel["targets"]]
    expressions += [one["expr"] for one in dashboard["annotations"]["list"]]
    asked = {SUFFIXES.sub("", name) for expression in expressions for name in NAME.findall(expression)}
    assert asked <= exposed(client)
    assert len(asked) > 15
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(cells) == len(set(cells)), "panels lie on each other"
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_the_alerts_ask_for_what_there_is_and_say_what_to_do(place: School, client: FlaskClient) -> None:
    fill(place, client)
    [group] = yaml.safe_load((ROOT / "docker" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    asked = {SUFFIXES.sub("", name) for rule in group["rules"] for name in NAME.findall(rule["expr"])}
    assert asked <= exposed(client)
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yaml"])
def test_labels_that_are_asked_for_exist(place: School, client: FlaskClient, file: str) -> None:
    fill(place, client)
    known: dict[str, set[str]] = {}
    for name, labels in samples(client):
        known.setdefault(SUFFIXES.sub("", name), {"le", "job", "instance"}).update(label for label, _ in labels)
    text = (ROOT / "docker" / file).read_text(encoding="utf-8").replace('\\"', '"')
    for name, matchers in re.findall(r"(sam4mllm_\w+)\{([^}]*)\}", text):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= known[SUFFIXES.sub("", name)], name
    for labels, name in re.findall(r"by \(([^)]*)\) \((?:rate|increase)\((sam4mllm_\w+)", text):
        assert {label.strip() for label in labels.split(",")} <= known[SUFFIXES.sub("", name)], name


# -- requests ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("abc-1.2_3", True, id="a proxy's"),
        pytest.param("", False, id="none"),
        pytest.param("x" * 65, False, id="too long"),
        pytest.param("a b", False, id="a space"),
        pytest.param("\u00e9", False, id="beyond ASCII"),
    ],
)
def test_a_request_has_an_id(client: FlaskClient, given: str, kept: bool) -> None:
    answer = client.get("/health", headers={"X-Request-ID": given.encode("utf-8").decode("latin-1")}, base_url=BASE_URL)
    assert (answer.headers["X-Request-ID"] == given) == kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["X-Request-ID"])


def test_every_line_of_a_request_carries_its_id(place: School, client: FlaskClient) -> None:
    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((REQUEST_ID.get(), record.getMessage()))

    lines: list[tuple[str, str]] = []
    keep = Keep()
    logging.getLogger("backend").addHandler(keep)
    logging.getLogger("backend").setLevel(logging.INFO)
    try:
        tasks = [{"id": number, "data": {"image": "dead"}} for number in range(1, 4)]
        body = {"tasks": tasks, "project": "1.1", "label_config": CONFIG}
        client.post("/predict", json=body, headers={"X-Request-ID": "one"}, base_url=BASE_URL)
        REQUEST_ID.set("one")
        place.service.engine.run(lambda _: logging.getLogger("backend").info("on the engine's thread"), True, time.monotonic() + 5)
    finally:
        REQUEST_ID.set("")
        logging.getLogger("backend").removeHandler(keep)
    assert [message for number, message in lines if number != "one"] == []
    told = [message for _, message in lines]
    assert sum("does not answer" in message for message in told) == 3
    assert any(message.startswith("POST /predict: 200 in") and "task 1, 2, 3" in message for message in told)
    assert "on the engine's thread" in told


def test_the_last_requests_of_label_studio_are_remembered(place: School, client: FlaskClient) -> None:
    fill(place, client)
    metrics = place.service.metrics
    assert [(one.route, one.status, one.tasks) for one in metrics.requests] == [("/predict", 200, "1, 2")]
    assert [(one.route, one.status, one.tasks) for one in metrics.events] == [("/webhook", 401, ""), ("/webhook", 201, "")]
    assert "secret is wrong" in metrics.events[0].message
    page = client.get("/", base_url=BASE_URL).text
    assert "secret is wrong" in page
    client.post(f"/webhook/{SECRET}", json={}, base_url=BASE_URL)
    assert SECRET not in client.get("/", base_url=BASE_URL).text


@pytest.mark.parametrize(
    ("address", "link"),
    [
        pytest.param("http://ls.example/", '<a href="http://ls.example/projects/3/data?task=7">project 3, task 7</a>', id="a host"),
        pytest.param("http://label-studio:8080", "<bdi>project 3, task 7</bdi>", id="a container's name"),
    ],
)
def test_a_task_without_an_answer_is_listed_once_until_it_has_one(tmp_path: Path, address: str, link: str) -> None:
    where = house(tmp_path, label_studio_url=address)
    try:
        metrics = where.service.metrics
        for message in ("the host is away", "the host is still away"):
            metrics.failed(7, "fetch", message, 3)
        metrics.failed(8, "fetch", "gone", 3)
        assert [(one.task, one.times, one.message) for one in metrics.recent] == [("8", 1, "gone"), ("7", 2, "the host is still away")]
        page = create_app(where.service).test_client().get("/").get_data(as_text=True)
        assert link in page
        assert "<small>2 times</small>" in page
        metrics.mended(7, 3)
        metrics.mended(8, 4)
        assert [one.task for one in metrics.recent] == ["8"]
    finally:
        where.service.close(5.0)


def test_events_do_not_push_out_predictions(tmp_path: Path) -> None:
    where = house(tmp_path)
    try:
        client = create_app(where.service).test_client()
        client.post("/predict", json={"tasks": [task(41)], "project": "3.1", "label_config": CONFIG})
        for _ in range(60):
            client.post("/webhook", json={"action": "TASKS_CREATED"})
        page = client.get("/").get_data(as_text=True)
        assert page.index("POST /predict") < page.index("The last events")
        assert page.count("POST /webhook") == 5
    finally:
        where.service.close(5.0)


# -- the log -------------------------------------------------------------------------------------------------------------------------------

PRESIGNED = "https://bucket.s3.amazonaws.com/a/cup.png?X-Amz-Signature=0badc0de&X-Amz-Credential=me"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyIjoxfQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param(f"GET {PRESIGNED} failed", "GET https://bucket.s3.amazonaws.com/a/cup.png?… failed", id="a presigned link"),
        pytest.param("'/data/local-files/?d=a/b.png' is gone", "'/data/local-files/?…' is gone", id="a path with a query"),
        pytest.param("data:image/png;base64,iVBORw0KGgo= is no image", "data:… is no image", id="an image"),
        pytest.param(f"token {TOKEN} is over", "token … is over", id="a personal token"),
        pytest.param("https://me:pass@host/x", "https://…@host/x", id="a password in an address"),
        pytest.param("POST /webhook/abc 401", "POST /webhook/… 401", id="a webhook's secret"),
        pytest.param("why? because", "why? because", id="a question"),
        pytest.param("task 7: 3 found in 0.4 s", "task 7: 3 found in 0.4 s", id="an ordinary line"),
    ],
)
def test_the_log_is_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text(), st.text(), st.text("abcdef0123456789", min_size=8))
def test_a_known_secret_is_never_written(before: str, after: str, secret: str) -> None:
    assert secret not in clean(before.replace(secret, "") + secret + after.replace(secret, ""), [secret]).replace("…", "")


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("backend.test", logging.ERROR, "x.py", 1, "%s", (message,), told)


def test_a_json_line_is_an_object_without_secrets() -> None:
    token = REQUEST_ID.set("abc")
    try:
        raise ValueError(f"no {SECRET} here")
    except ValueError as error:
        line = JsonFormatter([SECRET]).format(record(f"two\nlines, {SECRET}", error))
    finally:
        REQUEST_ID.reset(token)
    told = json.loads(line)
    assert "\n" not in line
    assert (told["level"], told["logger"], told["request"], told["message"]) == ("ERROR", "backend.test", "abc", "two\\nlines, …")
    assert "ValueError" in told["traceback"]
    assert SECRET not in line


def test_a_text_line_names_its_request() -> None:
    token = REQUEST_ID.set("abc")
    try:
        assert "ERROR backend.test [abc]: hello …" in TextFormatter([SECRET]).format(record(f"hello {SECRET}"))
    finally:
        REQUEST_ID.reset(token)
    assert "ERROR backend.test: hello" in TextFormatter().format(record("hello"))


@pytest.mark.parametrize("kind", ["text", "json"])
def test_the_configuration_is_one_that_python_takes(kind: Any) -> None:
    config = log_config(kind, [SECRET])
    configured = logging.config.DictConfigurator(config)  # type: ignore[attr-defined]
    formatter = configured.configure_formatter(config["formatters"]["lines"])
    assert SECRET not in formatter.format(record(SECRET))
