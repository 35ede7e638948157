"""Tokens, what a refusal tells the user, and duplicates, against a Label Studio in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from backend.errors import LabelStudioError
from backend.label_studio.client import LabelStudio

LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl-_"


class Server:
    """Label Studio as far as the client asks it; counts exchanges and keeps each request's line and token."""

    def __init__(self) -> None:
        self.exchanges = 0
        self.valid: set[str] = {f"Token {LEGACY}"}
        self.seen: list[tuple[str, str]] = []
        self.predictions: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, token = request.url.raw_path.decode(), request.headers.get("authorization", "")
        self.seen.append((f"{request.method} {path}", token))
        if path.endswith("/api/token/refresh/"):
            return self._exchange(json.loads(request.content))
        if token not in self.valid:
            return httpx.Response(401, json={"detail": "Invalid token."})
        if request.method == "DELETE":
            wanted = int(path.rstrip("/").rpartition("/")[2])
            left = [entry for entry in self.predictions if entry["id"] != wanted]
            found, self.predictions = len(left) < len(self.predictions), left
            return httpx.Response(204 if found else 404)
        return httpx.Response(200, json=self.predictions if "/predictions/" in path else {"id": 7, "data": {}})

    def _exchange(self, body: dict[str, str]) -> httpx.Response:
        if body != {"refresh": PERSONAL}:
            return httpx.Response(401, json={"detail": "Token is invalid"})
        self.exchanges += 1
        self.valid = {f"Bearer access{self.exchanges}"}
        return httpx.Response(200, json={"access": f"access{self.exchanges}"})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(
    server: Callable[[httpx.Request], httpx.Response], token: str = LEGACY, url: str = "http://ls:8080", **options: Any
) -> LabelStudio:
    return LabelStudio(url, token, transport=httpx.MockTransport(server), **options)


def test_no_token_no_header() -> None:
    assert client(Server(), "").authorization() == {}


@pytest.mark.parametrize("token", [LEGACY, f" {LEGACY}\n", "chosen-by-hand"])
def test_a_legacy_token_is_sent_as_it_is(token: str) -> None:
    server = Server()
    assert client(server, token).authorization() == {"Authorization": f"Token {token.strip()}"}
    assert not server.seen


def test_a_personal_token_is_exchanged_once_and_renewed_with_a_minute_to_spare() -> None:
    server, clock = Server(), Clock()
    subject = client(server, PERSONAL, clock=clock)
    assert [subject.authorization() for _ in range(3)] == [{"Authorization": "Bearer access1"}] * 3
    clock.now += 239
    assert subject.authorization() == {"Authorization": "Bearer access1"}
    clock.now += 1
    assert subject.authorization() == {"Authorization": "Bearer access2"}
    assert server.exchanges == 2
    assert server.seen[0] == ("POST /api/token/refresh/", "")


def test_a_401_renews_once() -> None:
    server = Server()
    subject = client(server, PERSONAL)
    subject.authorization()
    server.valid = set()
    assert subject.task(7)["id"] == 7
    assert [token for line, token in server.seen if "tasks" in line] == ["Bearer access1", "Bearer access2"]


def test_a_lasting_401_is_told_after_one_renewal() -> None:
    server = Server()

    def refuse(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        return answer if "token" in request.url.path else httpx.Response(401, json={"detail": "no"})

    with pytest.raises(LabelStudioError, match="does not take the token"):
        client(refuse, PERSONAL).task(7)
    assert server.exchanges == 2


def test_forgetting_an_older_access_token_keeps_the_newer() -> None:
    server = Server()
    subject = client(server, PERSONAL)
    first = subject.authorization()
    assert subject.forget(first)
    second = subject.authorization()
    assert subject.forget(first)
    assert subject.authorization() == second
    assert server.exchanges == 2
    assert not client(server).forget({"Authorization": f"Token {LEGACY}"})


def test_threads_share_one_exchange() -> None:
    server = Server()
    subject = client(server, PERSONAL)
    found: list[dict[str, str]] = []
    threads = [threading.Thread(target=lambda: found.append(subject.authorization())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"Authorization": "Bearer access1"}] * 8
    assert server.exchanges == 1


def test_a_sub_path_comes_before_every_route() -> None:
    server = Server()
    client(server, url="http://ls:8080/label-studio/").predictions(7)
    assert server.seen == [("GET /label-studio/api/predictions/?task=7", f"Token {LEGACY}")]


def test_request_sends_json_and_gives_what_is_answered() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(201, json=[request.method, json.loads(request.content)])

    assert client(echo).request("POST", "/api/predictions/", {"task": 1}) == ["POST", {"task": 1}]
    assert client(lambda _: httpx.Response(204)).request("POST", "/api/x/") is None


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        pytest.param(
            httpx.Response(401, json={"detail": "Invalid token."}), "or legacy tokens are disabled; make a personal access", id="401"
        ),
        pytest.param(
            httpx.Response(401, json={"detail": "legacy token authentication has been disabled for this organization"}),
            "has legacy tokens disabled for this organization .* make a personal access token",
            id="401 legacy disabled",
        ),
        pytest.param(httpx.Response(403), "a member of the project", id="403"),
        pytest.param(httpx.Response(404), "LABEL_STUDIO_URL is another server or lacks its sub-path", id="404"),
        pytest.param(httpx.Response(301, headers={"Location": "https://ls/"}), "set LABEL_STUDIO_URL to its final address", id="301"),
        pytest.param(httpx.Response(502, text="<html>"), "see its log", id="502"),
        pytest.param(httpx.Response(400, json={"detail": "no\nsuch  field"}), r"\(400: no such field\)", id="400"),
        pytest.param(httpx.Response(400, json=["x"]), r"\(400\)", id="400 without detail"),
        pytest.param(httpx.Response(200, text="<html>log in</html>"), "not Label Studio's API; check LABEL_STUDIO_URL", id="a page"),
        pytest.param(httpx.Response(200, json=[1]), "not Label Studio's API", id="a list"),
    ],
)
def test_each_refusal_says_what_to_do(answer: httpx.Response, advice: str) -> None:
    with pytest.raises(LabelStudioError, match=advice) as caught:
        client(lambda _: answer).task(7)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("answer", [{"results": []}, [1], [{"id": "x"}], None])
def test_predictions_of_another_form_are_refused(answer: object) -> None:
    with pytest.raises(LabelStudioError, match="not Label Studio's API"):
        client(lambda _: httpx.Response(200, json=answer)).predictions(7)


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.RemoteProtocolError("odd")])
def test_no_answer_names_the_setting(failure: Exception) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(LabelStudioError, match=r"http://ls:8080 .*check LABEL_STUDIO_URL"):
        client(fail).task(7)


@pytest.mark.parametrize(
    "answer", [httpx.Response(200, json={"access": None}), httpx.Response(200, json=[]), httpx.Response(200, text="x")]
)
def test_an_exchange_that_gives_no_token_is_told(answer: httpx.Response) -> None:
    with pytest.raises(LabelStudioError, match="not Label Studio's API"):
        client(lambda _: answer, PERSONAL).authorization()


def test_no_token_is_shown_anywhere() -> None:
    other = PERSONAL[:-1] + "x"
    subject = client(Server(), other)
    with pytest.raises(LabelStudioError, match="does not take the personal access token") as caught:
        subject.authorization()
    for text in (repr(subject), str(subject), repr(caught.value), repr(caught.value.__cause__), repr(client(Server()))):
        assert other not in text
        assert LEGACY not in text
    with pytest.raises(LabelStudioError) as wrong:
        client(Server(), "two words")
    assert "two words" not in str(wrong.value)


@pytest.mark.parametrize("url", ["", "ls:8080", "ftp://ls", "http://", "http://user:secret@ls", "http://l s"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_URL") as caught:
        LabelStudio(url, "")
    assert "secret" not in str(caught.value)


def test_a_path_cannot_lead_to_another_server() -> None:
    server = Server()
    with pytest.raises(ValueError, match="slash"):
        client(server).request("GET", "http://evil/")
    assert client(server).request("GET", "//evil/api/")["id"] == 7
    assert server.seen[0][0].startswith("GET /")


def prediction(number: int, version: str, result: object) -> dict[str, Any]:
    return {"id": number, "model_version": version, "result": result}


def test_later_duplicates_go_and_all_else_stays() -> None:
    server = Server()
    server.predictions = [
        prediction(9, "v1", [{"a": 1, "b": 2}]),
        prediction(3, "v1", [{"b": 2, "a": 1}]),
        prediction(5, "v2", [{"a": 1, "b": 2}]),
        prediction(6, "v1", [{"a": 1}]),
        prediction(7, "v1", []),
        prediction(8, "v1", []),
    ]
    assert client(server).drop_duplicates(7, "v1") == 2
    assert [entry["id"] for entry in server.predictions] == [3, 5, 6, 7]
    assert client(server).drop_duplicates(7, "v1") == 0


def test_a_duplicate_that_is_gone_already_is_not_counted() -> None:
    server = Server()
    server.predictions = [prediction(1, "v1", []), prediction(2, "v1", [])]
    listed = list(server.predictions)

    def stale(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            server.predictions = []
            return httpx.Response(200, json=listed)
        return server(request)

    assert client(stale).drop_duplicates(7, "v1") == 0
    assert not client(server).delete_prediction(2)


def test_backends_of_the_former_version_get_the_new_ones_name() -> None:
    sent: list[tuple[str, str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path, json.loads(request.content) if request.content else None))
        listed = [{"id": number, "url": "http://b:9090", "model_version": version} for number, version in ((1, "a"), (2, "b"), (3, "c"))]
        return httpx.Response(200, json=listed if request.method == "GET" else {})

    client = LabelStudio("http://ls:8080", "a" * 40, transport=httpx.MockTransport(answer))
    assert client.rename_backends(7, "a", "b") == 2
    client.drop_version(7, "a")
    named = {"title": "b", "url": "http://b:9090", "project": 7}
    assert sent[1:] == [
        ("PATCH", "/api/ml/1", named),
        ("PATCH", "/api/ml/2", named),
        ("DELETE", "/api/projects/7/model-versions/", {"model_version": "a"}),
    ]
