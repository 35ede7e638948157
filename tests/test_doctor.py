"""Doctor's checks on recorded answers of Label Studio 1.23.2: each fault has its line, and a healthy set-up none."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections import namedtuple
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from backend.errors import SettingsError
from backend.finding import Finding
from backend.label_studio.backend_entry import (
    call_failure,
    carries_secret,
    hook_refusal,
    is_loopback,
    own_url,
    server_url,
)
from backend.setup.machine_checks import (
    Server,
    ask_server,
    check_adapters,
    check_disk,
    check_models,
    check_secrets,
    check_server,
    check_token,
    require_token,
    webhook_refused,
)
from tests.backend_fakes import settings

NOW = 1_795_000_000.0
DAY = 86_400
URL = "http://sam4mllm.internal:9090"
REFUSED = (
    "_SsrfGuardedHTTPConnectionPool(host='127.0.0.1', port=8790): Max retries exceeded with url: /versions (Caused by NewConnectionError("
    "\"_SsrfGuardedHTTPConnection(host='127.0.0.1', port=8790): Failed to establish a new connection: [Errno 111] Connection refused\"))"
)
Usage = namedtuple("Usage", "free")


def token(**claims: object) -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"token_type": "refresh", "exp": NOW + 3000 * DAY, **claims})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + ".c2lnbmVk"


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1
    assert found[0].problem
    assert found[0].cure
    assert "\n" not in found[0].line
    return found[0]


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        pytest.param("", "is not set", id="none"),
        pytest.param(f"Bearer {token()}", "personal access token used directly", id="personal with its header"),
        pytest.param(f"Token {token()}", "personal access token used directly", id="personal as a legacy one"),
        pytest.param("Token " + "a" * 40, "written as a header", id="legacy with its header"),
        pytest.param(token().rpartition(".")[0], "without its last part", id="cut short"),
        pytest.param(token(token_type="access"), "access token, which lasts five minutes", id="access token"),
        pytest.param(token(exp=NOW - 1), "expired on 2026-11-18", id="expired"),
        pytest.param(token(exp=NOW + 2 * DAY), "expires on 2026-11-20", id="expires soon"),
    ],
)
def test_tokens_that_will_not_do(key: str, problem: str) -> None:
    found = only(check_token(key, NOW))
    assert problem in found.problem
    assert found.passing is (problem.startswith("expires"))


@pytest.mark.parametrize("key", ["a" * 40, f" {token()}\n", token(exp=1e300), token(exp=None), "not.a.token", "ä.ö.ü", "a.!!.c", "." * 9])
def test_other_tokens_are_left_to_label_studio(key: str) -> None:
    assert check_token(key, NOW) == []


def test_connect_stops_where_the_token_cannot_work(tmp_path: Path) -> None:
    given = settings(tmp_path, label_studio_url="http://ls:8080")
    with pytest.raises(SettingsError, match="LABEL_STUDIO_API_KEY is not set; make"):
        require_token(given, NOW)
    with pytest.raises(SettingsError, match="LABEL_STUDIO_URL is not set; set it"):
        require_token(settings(tmp_path), NOW)
    require_token(given.model_copy(update={"label_studio_api_key": SecretStr(token(exp=NOW + DAY))}), NOW)


def test_a_disk_with_room_is_silent_and_holds_nothing_afterwards(tmp_path: Path) -> None:
    assert check_disk(tmp_path, lambda _: Usage(3e9)) == []
    assert list(tmp_path.iterdir()) == []
    assert check_disk(tmp_path / "not" / "yet", lambda _: Usage(3e9)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "cannot be written")],
)
def test_a_disk_that_does_not_take_a_file(code: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert problem in only(check_disk(tmp_path, lambda _: Usage(3e9))).problem


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    assert "has 1.2 GB free" in only(check_disk(tmp_path, lambda _: Usage(1.2e9))).problem


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        pytest.param(Server(), "no server of these settings answers at http://127.0.0.1:9090", id="none"),
        pytest.param(Server("failed", "there is no file x; give the path"), "there is no file x", id="failed"),
        pytest.param(Server("loading"), "not ready (loading)", id="loading"),
        pytest.param(Server("ready"), None, id="ready"),
    ],
)
def test_what_the_server_says_of_itself(server: Server, problem: str | None, tmp_path: Path) -> None:
    found = check_server(settings(tmp_path), server)
    assert (found == []) if problem is None else problem in only(found).problem


def test_the_server_is_asked_with_its_password_and_only_its_own_answers_count(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != "Basic c2FtNG1sbG06cHc=":
            return httpx.Response(401, json={"error": "no"})
        return httpx.Response(200, json={"state": "ready", "version": "v1", "error": None, "versions": ["v1", "v0"], "model": "qwen"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    assert ask_server(settings(tmp_path, auth_password="pw"), client) == Server("ready", "", "v1", ("v1", "v0"), {"model": "qwen"})
    assert ask_server(settings(tmp_path), client) == Server()
    for other in ("<html>", "[1]", '{"status": "UP"}'):
        stranger = httpx.Client(transport=httpx.MockTransport(lambda _, other=other: httpx.Response(200, text=other)))
        assert ask_server(settings(tmp_path), stranger) == Server()


def test_a_secret_without_a_password_stops_start_training(tmp_path: Path) -> None:
    assert "Start Training" in only(check_secrets(settings(tmp_path, webhook_secret="s"))).problem
    assert check_secrets(settings(tmp_path, webhook_secret="s", auth_password="p")) == check_secrets(settings(tmp_path)) == []


def test_the_secret_of_a_webhook(tmp_path: Path) -> None:
    given = settings(tmp_path, webhook_secret="s")
    assert carries_secret("s", {"x-webhook-SECRET": "s"}, "/webhook")
    assert carries_secret("s", {}, "/webhook/s")
    assert not carries_secret("s", {}, "/webhook/s/")  # which the server does not know
    assert not carries_secret("s", {"X-Webhook-Secret": "t"}, "/webhook")
    assert carries_secret("", {}, "/webhook")
    for status, refused in ((401, True), (400, False)):
        client = httpx.Client(transport=httpx.MockTransport(lambda _, status=status: httpx.Response(status)))
        assert webhook_refused(given, {}, "/webhook", client) is refused


def test_models_that_are_not_there(tmp_path: Path) -> None:
    assert check_models(settings(tmp_path), running=False) == []
    assert "no file /no/sam.pth" in only(check_models(settings(tmp_path, segmenter="vit_h:/no/sam.pth"), running=False)).problem
    (tmp_path / "empty").mkdir()
    assert only(check_models(settings(tmp_path, model=str(tmp_path / "empty")), running=False)).check == "model"


def test_adapters_that_are_damaged(tmp_path: Path) -> None:
    assert check_adapters(tmp_path) == []
    broken = tmp_path / "adapters" / "demo-1-0f3a9c12"
    broken.mkdir(parents=True)
    assert only(check_adapters(tmp_path)).problem.startswith("a version is damaged")
    (tmp_path / "adapters" / "champion").write_text("demo-1-0f3a9c12\n")
    assert only(check_adapters(tmp_path)).problem.startswith("the version that is to serve cannot be used")


@pytest.mark.parametrize(
    ("said", "url", "problem", "cure"),
    [
        pytest.param(REFUSED, "http://localhost:8790", "localhost is Label Studio's own machine", "--url", id="localhost"),
        pytest.param(REFUSED, URL, "(Connection refused)", "SAM4MLLM_HOST", id="refused"),
        pytest.param("Can't resolve hostname backend", URL, "finds no address", "Label Studio's machine", id="unknown name"),
        pytest.param("ProxyError('Unable to connect to proxy'", URL, "by way of a proxy", "NO_PROXY", id="proxy"),
        pytest.param("401 Client Error: Unauthorized for url", URL, "password", "sam4mllm connect", id="401"),
        pytest.param("403 Client Error: Forbidden for url", URL, "refuses that name", "SAM4MLLM_AUTH_PASSWORD", id="403"),
        pytest.param("503 Server Error: Service Unavailable", URL, "models are not loaded", "wait", id="503"),
        pytest.param("404 Client Error: Not Found", URL, "not this server", "--url|address", id="404"),
        pytest.param("Read timed out. (read timeout=3.0)", URL, "in time", "log", id="timeout"),
        pytest.param("", URL, "no reason given", "firewall", id="nothing said"),
    ],
)
def test_why_label_studio_cannot_call(said: str, url: str, problem: str, cure: str) -> None:
    found = only([call_failure("backend", said, url)])
    assert problem in found.problem
    assert any(part in found.cure for part in cure.split("|"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "10.0.0.7", "sam4mllm.internal", "a.b.example.com", "bäckend.intern"])
def test_hosts_that_webhooks_may_have(host: str) -> None:
    assert hook_refusal("webhook", f"http://{host}:9090") is None


@pytest.mark.parametrize("host", ["backend", "sam4mllm-backend", "sam4mllm_backend", "x."])
def test_hosts_that_label_studio_makes_no_webhooks_to(host: str) -> None:
    found = hook_refusal("webhook", f"http://{host}:9090")
    assert found is not None
    assert "alias" in found.cure


def test_this_servers_address(tmp_path: Path) -> None:
    assert server_url(settings(tmp_path), None) == "http://127.0.0.1:9090"
    assert server_url(settings(tmp_path, host="10.0.0.7", port=80), None) == "http://10.0.0.7:80"
    assert server_url(settings(tmp_path, host="0.0.0.0", url="http://a.b:1/"), None) == "http://a.b:1"
    assert server_url(settings(tmp_path, url="http://a.b:1"), "https://c.d/sub/") == "https://c.d/sub"
    assert own_url(settings(tmp_path, host="::")) == "http://[::1]:9090"
    with pytest.raises(SettingsError, match="give --url, or set SAM4MLLM_URL"):
        server_url(settings(tmp_path, host="0.0.0.0"), None)
    for odd in ("a.b:9090", "ftp://a.b", "http://", "http://a.b:port", "http://u:p@a.b"):
        with pytest.raises(SettingsError, match="--url is no address"):
            server_url(settings(tmp_path), odd)
    assert is_loopback("http://127.8.0.1:1")
    assert not is_loopback(URL)
