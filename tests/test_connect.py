"""Connecting a project against a Label Studio in memory that keeps entries and webhooks as the real one does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.errors import LabelStudioError, ParametersError
from backend.label_studio.client import LabelStudio
from backend.label_studio.config_template import DEMO_CONFIG, make_config, offer_config
from backend.label_studio.events import WEBHOOK_EVENTS
from backend.label_studio.label_config import Label, read_label_config
from backend.setup.connect import UnfitConfigError, connect
from backend.support.demo_project import demo_notice
from tests.backend_fakes import CONFIG, settings

SHIPPED = (Path(__file__).parents[1] / "label_config.xml").read_text(encoding="utf-8")
URL = "http://sam4mllm.internal:9090"
SCORE = "tasks:predictions_score"
COLUMNS = [
    {"id": "image", "target": "tasks", "parent": "data", "visibility_defaults": {"explore": True, "labeling": True}},
    {"id": "description", "target": "tasks", "parent": "data", "visibility_defaults": {"explore": True, "labeling": False}},
    {"id": "data", "target": "tasks"},
    {"id": "predictions_score", "target": "tasks", "visibility_defaults": {"explore": False, "labeling": False}},
    {"id": "reviewed", "target": "tasks", "visibility_defaults": {"explore": False, "labeling": False}},
]
NO_MASK = (
    '<View><Image name="i" value="$img"/><Choices name="c" toName="i"/>'
    '<KeyPointLabels name="k" toName="i"><Label value="Cup"/></KeyPointLabels></View>'
)


class Server:
    """One project; an entry that is made brings its webhook, and a webhook that is changed without events loses them."""

    def __init__(self, config: str = CONFIG, annotations: int = 0) -> None:
        self.project: dict[str, Any] = {"id": 7, "label_config": config, "total_annotations_number": annotations}
        self.entries: list[dict[str, Any]] = []
        self.hooks: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = [{"id": 3, "data": {"hiddenColumns": {"explore": [], "labeling": []}}}]
        self.changes: list[str] = []
        self.is_label_studio = True
        self.refusal: httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, method = request.url.path, request.method
        body = json.loads(request.content) if request.content else {}
        if method != "GET":
            self.changes.append(f"{method} {path}")
            if self.refusal is not None:
                return self.refusal
        if path == "/api/version":
            return httpx.Response(200 if self.is_label_studio else 401, json={"label-studio-os-package": {"version": "1.23.2"}})
        if path.startswith("/api/dm/"):
            return self._data_manager(method, path, body)
        return self._of_project(method, path, body)

    def _of_project(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        if path == "/api/projects/7/":
            self.project |= body
            return httpx.Response(200, json=self.project)
        kind = re.match(r"/api/(ml|webhooks)\b", path)
        if kind is None:
            return httpx.Response(404, json={"detail": "No Project matches the given query."})
        kept = self.entries if kind[1] == "ml" else self.hooks
        if method == "GET":
            return httpx.Response(200, json=kept)
        if method == "POST":
            kept.append({"id": len(kept) + 1})
            one = kept[-1]
        else:
            one = next(one for one in kept if one["id"] == int(path.rstrip("/").rpartition("/")[2]))
        one |= self._stored(kind[1], body)
        if kind[1] == "ml" and not any(hook["url"] == body["url"] + "/webhook" for hook in self.hooks) and method == "POST":
            hook = {"id": len(self.hooks) + 1, "url": body["url"] + "/webhook", "send_for_all_actions": True, "headers": {}}
            self.hooks.append({**hook, "actions": [], "is_active": True, "send_payload": True})
        return httpx.Response(200, json=one)

    def _data_manager(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        if path == "/api/dm/columns/":
            return httpx.Response(200, json={"columns": COLUMNS})
        if method == "POST":
            self.views.append({"id": 4, **body})
        if method == "PATCH":
            self.views[0] |= body
        return httpx.Response(200, json=self.views if method == "GET" else self.views[0])

    @staticmethod
    def _stored(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "webhooks":
            return {**body, "actions": body.get("actions", [])}
        return {**body, "state": "CO", "basic_auth_pass_is_set": bool(body.get("basic_auth_pass")), "model_version": "v1"}


def run(
    server: Server,
    tmp_path: Path,
    url: str = URL,
    config: str | None = None,
    force: bool = False,
    parameters: str | None = None,
    **given: Any,
) -> list[bool]:
    """What was changed: config, entry, webhook. Each time the last lines are of the data manager, and that the demo's models serve."""
    client = LabelStudio("http://ls:8080", "a" * 40, transport=httpx.MockTransport(server))
    *steps, _, told = connect(client, settings(tmp_path, **given), 7, url, ["v1"], config, force, parameters)
    assert told.line == f"models: {demo_notice(settings(tmp_path))}"
    return [step.changed for step in steps]


GUARDED = {"auth_password": "pw", "webhook_secret": "s"}


def test_a_new_project_gets_entry_password_header_and_events_and_then_stays(tmp_path: Path) -> None:
    server = Server()
    assert run(server, tmp_path, **GUARDED) == [False, True, True]
    [entry], [hook] = server.entries, server.hooks
    assert (entry["url"], entry["is_interactive"], entry["basic_auth_user"], entry["basic_auth_pass"]) == (URL, True, "sam4mllm", "pw")
    assert hook["headers"] == {"X-Webhook-Secret": "s"}
    assert hook["actions"] == list(WEBHOOK_EVENTS)
    before = len(server.changes)
    assert run(server, tmp_path, **GUARDED) == [False, False, False]
    assert len(server.changes) == before


def test_what_label_studio_makes_by_itself_is_enough_without_secrets(tmp_path: Path) -> None:
    server = Server()
    assert run(server, tmp_path) == [False, True, False]
    assert server.changes == ["POST /api/ml/"]


@pytest.mark.parametrize(
    ("damage", "changed"),
    [
        pytest.param(lambda server: server.entries[0].update(is_interactive=False), [False, True, False], id="not interactive"),
        pytest.param(lambda server: server.entries[0].update(state="ER"), [False, True, False], id="password changed"),
        pytest.param(lambda server: server.entries[0].update(auth_method="NONE"), [False, True, False], id="no password"),
        pytest.param(lambda server: server.hooks[0].update(headers={"x-webhook-secret": "old"}), [False, False, True], id="old secret"),
        pytest.param(
            lambda server: server.hooks[0].update(url=f"{URL}/webhook/s/", headers={}), [False, False, True], id="a path that is no route"
        ),
        pytest.param(lambda server: server.hooks[0].update(is_active=False), [False, False, True], id="switched off"),
        pytest.param(lambda server: server.hooks[0].update(actions=["TASKS_CREATED"]), [False, False, True], id="events"),
        pytest.param(lambda server: server.hooks[0].update(send_payload=False), [False, False, True], id="no payload"),
        pytest.param(lambda server: server.hooks.clear(), [False, False, True], id="no webhook"),
    ],
)
def test_what_is_wrong_is_mended_and_nothing_else(damage: Any, changed: list[bool], tmp_path: Path) -> None:
    server = Server()
    run(server, tmp_path, **GUARDED)
    server.hooks[0]["headers"]["X-Team"] = "kept"
    damage(server)
    assert run(server, tmp_path, **GUARDED) == changed
    assert run(server, tmp_path, **GUARDED) == [False, False, False]
    assert len(server.entries) == len(server.hooks) == 1
    assert server.hooks[0]["headers"]["X-Webhook-Secret"] == "s"
    assert set(server.hooks[0]["headers"]) <= {"X-Webhook-Secret", "X-Team"}


def test_models_that_are_not_the_demos_are_not_spoken_of(tmp_path: Path) -> None:
    client = LabelStudio("http://ls:8080", "a" * 40, transport=httpx.MockTransport(Server()))
    steps = connect(client, settings(tmp_path, model="qwen", segmenter="vit_h:a.pth"), 7, URL, ["v1"])
    assert [step.line.partition(":")[0] for step in steps] == ["label config", "backend", "webhook", "data manager"]


def test_a_new_address_moves_the_entry_and_keeps_its_title(tmp_path: Path) -> None:
    server = Server()
    run(server, tmp_path)
    server.entries[0]["title"] = "v1"
    assert run(server, tmp_path, url="http://10.0.0.7:9090") == [False, True, True]
    [entry] = server.entries
    assert (entry["url"], entry["title"]) == ("http://10.0.0.7:9090", "v1")
    assert [hook["url"] for hook in server.hooks] == [f"{URL}/webhook", "http://10.0.0.7:9090/webhook"]


def test_entries_and_webhooks_of_others_are_left_alone(tmp_path: Path) -> None:
    server = Server()
    server.entries.append({"id": 1, "url": "http://yolo.internal:9090", "title": "YOLO", "state": "DI", "model_version": "y"})
    server.hooks.append({"id": 1, "url": "http://chat.example.com/hook", "headers": {}})
    others = json.dumps([server.entries[0], server.hooks[0]])
    run(server, tmp_path, **GUARDED)
    assert json.dumps([server.entries[0], server.hooks[0]]) == others
    assert len(server.entries) == len(server.hooks) == 2


def test_a_config_that_will_not_do_is_refused_with_one_to_set(tmp_path: Path) -> None:
    server = Server(NO_MASK)
    with pytest.raises(UnfitConfigError, match=r"has none of BrushLabels.*--config default") as caught:
        run(server, tmp_path)
    assert server.changes == []
    assert run(server, tmp_path, config="default") == [True, True, False]
    assert server.project["label_config"] == caught.value.offered
    found = read_label_config(caught.value.offered)
    assert found.mask.labels == (Label("Cup"),)
    assert found.image_value == "$img"
    assert run(server, tmp_path, config="default") == [False, False, False]


def test_the_config_of_annotations_is_changed_only_by_force(tmp_path: Path) -> None:
    server = Server(annotations=3)
    with pytest.raises(LabelStudioError, match=r"has 3 annotations.*--force"):
        run(server, tmp_path, config=SHIPPED)
    assert server.changes == []
    assert run(server, tmp_path, config=SHIPPED, force=True)[0]
    assert server.project["label_config"] == SHIPPED
    assert not run(server, tmp_path, config=SHIPPED)[0]


@pytest.mark.parametrize(
    ("status", "answer", "line"),
    [
        pytest.param(403, {"detail": "URL resolves to a reserved network address (block: 10.0.0.0/8)"}, "USE_DEFAULT_BANNED", id="gate"),
        pytest.param(
            400,
            {"validation_errors": {"non_field_errors": ["Successfully connected … Reason: 503 Server Error: Service Unavailable"]}},
            "models are not loaded",
            id="loading",
        ),
        pytest.param(
            400, {"validation_errors": {"non_field_errors": ["Can't connect: [Errno 111] Connection refused"]}}, "(Conn", id="down"
        ),
        pytest.param(403, {"detail": "You do not have permission"}, "member of the project", id="no right"),
        pytest.param(502, {}, "see its log", id="broken"),
    ],
)
def test_refusals_are_one_line_with_a_cure(status: int, answer: dict[str, Any], line: str, tmp_path: Path) -> None:
    server = Server()
    server.refusal = httpx.Response(status, json=answer)
    with pytest.raises(LabelStudioError) as caught:
        run(server, tmp_path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_server_is_not_taken_for_label_studio(tmp_path: Path) -> None:
    server = Server()
    server.is_label_studio = False
    with pytest.raises(LabelStudioError, match="is not Label Studio"):
        run(server, tmp_path)
    assert server.changes == []


def test_a_host_that_gets_no_webhooks_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    server = Server()
    with pytest.raises(LabelStudioError, match="host name without a dot"):
        run(server, tmp_path, url="http://backend:9090")
    assert server.changes == []


def test_a_project_whose_text_area_is_for_remarks_is_told(tmp_path: Path) -> None:
    client = LabelStudio(
        "http://ls:8080", "a" * 40, transport=httpx.MockTransport(Server(CONFIG.replace('name="prompt"', 'name="comment"')))
    )
    told = [connect(client, settings(tmp_path, prompt_control=name), 7, URL)[0].line for name in ("prompt", "comment")]
    assert 'add <TextArea name="prompt" toName="image"/>' in told[0]
    assert "TextArea" not in told[1]


def test_an_offered_config_has_the_prompt_that_the_setting_names(tmp_path: Path) -> None:
    server = Server("<View/>")
    run(server, tmp_path, config="default", prompt_control="phrase")
    found = read_label_config(server.project["label_config"], "phrase")
    assert found.prompt is not None
    assert found.unread == ()


def test_the_shipped_config_is_the_one_that_is_offered() -> None:
    assert make_config([Label("Object")]) == DEMO_CONFIG == SHIPPED
    assert offer_config("no xml") == offer_config("<View/>") == SHIPPED


def test_an_offered_config_keeps_labels_aliases_and_odd_characters() -> None:
    labels = (Label('A "big" <cup> & co', ("mug", "beaker")), *(Label(f"Thing {index}") for index in range(9)))
    found = read_label_config(make_config(labels, "$img", "what"))
    assert found.mask.labels == labels
    assert found.keypoint is not None
    assert found.prompt is not None
    assert offer_config(make_config(labels, "$img", "what"), "what") == make_config(labels, "$img", "what")


PARAMETERS = {"prompts": {"Cup": "the coffee cup"}, "strategy": "box"}


def test_a_projects_parameters_are_set_kept_and_taken_away(tmp_path: Path) -> None:
    server = Server()
    assert run(server, tmp_path, parameters=json.dumps(PARAMETERS)) == [False, True, False]
    [entry] = server.entries
    assert entry["extra_params"] == {"prompts": {"Cup": ["the coffee cup"]}, "strategy": "box"}
    assert run(server, tmp_path, parameters=json.dumps(PARAMETERS)) == [False, False, False]
    assert run(server, tmp_path) == [False, False, False]
    entry["is_interactive"] = False
    run(server, tmp_path)
    assert entry["extra_params"]["strategy"] == "box"
    assert run(server, tmp_path, parameters="{}") == [False, True, False]
    assert entry["extra_params"] is None


def test_parameters_that_do_not_fit_the_project_are_refused(tmp_path: Path) -> None:
    server = Server()
    for wrong, line in (("{", "no JSON"), ('{"prompts": {"Cap": "a cap"}}', "the label 'Cap' of prompts is not in the labelling config")):
        with pytest.raises(ParametersError, match=line):
            run(server, tmp_path, parameters=wrong)
    assert server.changes == []


@pytest.mark.parametrize(
    ("views", "hidden"),
    [
        pytest.param([], {"explore": ["tasks:reviewed"], "labeling": ["tasks:data.description", SCORE, "tasks:reviewed"]}, id="no tab yet"),
        pytest.param([{"id": None, "data": {"hiddenColumns": {"explore": [SCORE]}}}], {"explore": [SCORE]}, id="no number"),
        pytest.param(
            [{"id": 3, "data": {"title": "Mine", "hiddenColumns": {"explore": ["a", SCORE], "labeling": [SCORE]}}}],
            {"explore": ["a"], "labeling": [SCORE]},
            id="hidden",
        ),
        pytest.param([{"id": 3, "data": {"hiddenColumns": {"explore": ["a"]}}}], {"explore": ["a"]}, id="shown"),
        pytest.param([{"id": 3, "data": {"title": "as it comes"}}], None, id="says nothing"),
    ],
)
def test_the_score_is_shown_in_the_data_manager(views: list[dict[str, Any]], hidden: dict[str, Any] | None, tmp_path: Path) -> None:
    server = Server()
    server.views = views
    run(server, tmp_path)
    [view] = server.views
    assert view["data"].get("hiddenColumns") == hidden
    before = len(server.changes)
    run(server, tmp_path)
    assert len(server.changes) == before


def test_a_tab_that_hides_the_score_is_left_alone_where_another_shows_it(tmp_path: Path) -> None:
    server = Server()
    server.views = [{"id": 3, "data": {"hiddenColumns": {"explore": [SCORE]}}}, {"id": 4, "data": {"hiddenColumns": {"explore": []}}}]
    run(server, tmp_path)
    assert server.views[0]["data"]["hiddenColumns"]["explore"] == [SCORE]


def test_an_entry_that_is_mended_keeps_the_parameters_that_it_has(tmp_path: Path) -> None:
    """Label Studio tells the server of a change with what the request says, before it looks at what is stored."""
    server = Server()
    run(server, tmp_path, parameters=json.dumps(PARAMETERS))
    server.entries[0]["is_interactive"] = False
    bodies: list[Any] = []
    store = server._stored
    server._stored = lambda kind, body: bodies.append(body) or store(kind, body)  # type: ignore[method-assign,func-returns-value]
    run(server, tmp_path)
    assert [body.get("extra_params") for body in bodies] == [server.entries[0]["extra_params"]]


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        pytest.param('<Label value="Cup" alias="Cup"/><Label value="Spoon"/>', ["Cup", "Spoon"], id="its own alias"),
        pytest.param('<Label value="Cup"/><Label value="Mug" alias="Cup"/>', ["Cup", "Mug"], id="another's name"),
        pytest.param('<Label value="Cup: point" alias="Cup"/>', ["Cup: point"], id="no such label"),
    ],
)
def test_a_config_that_is_offered_keeps_all_labels(labels: str, kept: list[str]) -> None:
    xml = f'<View><Image name="i" value="$i"/><BrushLabels name="m" toName="i">{labels}</BrushLabels></View>'
    offered = offer_config(xml)
    assert [label.value for label in read_label_config(offered).mask.labels] == kept
    assert offer_config(offered) == offered
