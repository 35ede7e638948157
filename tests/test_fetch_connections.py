"""Fetching over the network: redirects, slow and broken servers, names and addresses."""

from __future__ import annotations

import contextlib
import gzip
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import httpcore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import FetchError
from backend.images.fetch import Fetcher, StatusError, connect_tcp
from backend.support.addresses import is_public, parse_url
from tests.test_fetch import OK, PUBLIC, SMALL, Wire, fetcher, redirect

Answer = Callable[[str, socket.socket], None]


@contextlib.contextmanager
def serving(answer: Answer | bytes) -> Iterator[tuple[int, list[str]]]:
    """A server on loopback: its port, and the heads of the requests that it got."""
    heads: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            with contextlib.suppress(OSError):
                while b"\r\n\r\n" not in head:
                    part = self.request.recv(65536)
                    if not part:
                        return
                    head += part
                heads.append(head.decode())
                if isinstance(answer, bytes):
                    self.request.sendall(answer)
                else:
                    answer(head.split()[1].decode(), self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1], heads
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_relative_ones_understood(status: int) -> None:
    def answer(path: str, connection: socket.socket) -> None:
        connection.sendall(OK if path == "/final" else redirect("/final", status))

    with serving(answer) as (port, heads):
        origin = f"http://127.0.0.1:{port}"
        assert Fetcher((origin,)).get(f"{origin}/a/b", {"Authorization": "Token t"}) == b"body"
    assert ["Authorization: Token t" in head for head in heads] == [True, True]


def test_authorization_is_dropped_at_another_origin_and_stays_dropped() -> None:
    with serving(OK) as (last, last_heads):
        hops: dict[str, str] = {}
        with serving(lambda path, connection: connection.sendall(redirect(hops["there"]))) as (other, other_heads):

            def first(path: str, connection: socket.socket) -> None:
                connection.sendall(redirect(f"http://127.0.0.1:{other}/") if path == "/start" else OK)

            with serving(first) as (port, heads):
                hops["there"] = f"http://127.0.0.1:{port}/back"
                origins = [f"http://127.0.0.1:{number}" for number in (port, other, last)]
                assert Fetcher(origins).get(f"{origins[0]}/start", {"Authorization": "Token secret"}) == b"body"
    assert not last_heads
    assert ["secret" in head for head in (heads[0], other_heads[0], heads[1])] == [True, False, False]


def test_an_endless_redirect_ends() -> None:
    with serving(redirect("/again")) as (port, heads):
        origin = f"http://127.0.0.1:{port}"
        with pytest.raises(FetchError, match="more than 3 times"):
            Fetcher((origin,)).get(origin)
    assert len(heads) == 4


def test_an_allowed_host_cannot_redirect_to_loopback() -> None:
    def answer(path: str, connection: socket.socket) -> None:
        connection.sendall(redirect(f"http://127.0.0.1:{port}/private"))

    with serving(answer) as (port, heads):
        subject = Fetcher(
            (),
            ("allowed.example",),
            resolve=lambda *_: [PUBLIC],
            connect=lambda address, _, seconds: connect_tcp("127.0.0.1", port, seconds),
        )
        with pytest.raises(FetchError, match="private address"):
            subject.get("http://allowed.example/i.png")
    assert len(heads) == 1


@pytest.mark.parametrize(
    ("start", "location", "public", "outcome"),
    [
        pytest.param("http://ls:8080/p", "https://bucket.example/i?sig=s", True, "body", id="presigned to a public host"),
        pytest.param("http://ls:8080/p", "https://bucket.example/i?sig=s", False, "not fetched", id="only where asked for"),
        pytest.param("http://ls:8080/p", "https://inside.example/i", True, "private", id="a name that is private"),
        pytest.param("http://ls:8080/p", "https://bucket.example:8443/i", True, "not fetched", id="an odd port"),
        pytest.param("http://ls:8080/p", "http://minio:9000/i", True, "body", id="an allowed private origin"),
        pytest.param("https://a.example/p", "http://a.example/i", False, "https to http", id="down to http"),
        pytest.param("https://a.example/p", "https://b.example/i", False, "not fetched", id="an unnamed host"),
        pytest.param("https://a.example/p", "//b.example/i", False, "not fetched", id="an unnamed host without scheme"),
    ],
)
def test_where_redirects_may_lead(start: str, location: str, public: bool, outcome: str) -> None:
    names = {"ls": ["172.18.0.2"], "minio": ["172.18.0.3"], "inside.example": ["10.0.0.5"]}
    wire = Wire({"ls:8080": redirect(location), "bucket.example": OK, "minio:9000": OK, "a.example": redirect(location)}, names)
    subject = fetcher(wire, ("http://ls:8080",), ("http://minio:9000", "a.example"))
    if outcome == "body":
        assert subject.get(start, {"Authorization": "Token secret"}, public) == b"body"
        assert [b"secret" in sent for sent in wire.sent] == [True, False]
    else:
        with pytest.raises(FetchError, match=outcome) as caught:
            subject.get(start, redirects_public=public)
        assert "sig" not in str(caught.value)


# Limits and broken answers


def drip(connection: socket.socket, text: bytes) -> None:
    for byte in text:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def endless(connection: socket.socket, head: bytes) -> None:
    connection.sendall(head)
    while True:
        connection.sendall(b"400\r\n" + bytes(0x400) + b"\r\n")


def silent(connection: socket.socket) -> None:
    connection.recv(1)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ZIPPED = gzip.compress(bytes(1 << 20))
BAD_ANSWERS: list[object] = [
    pytest.param(lambda _, c: drip(c, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000), "took over 0.4 s", id="dripping header"),
    pytest.param(lambda _, c: (c.sendall(CHUNKED), drip(c, b"1\r\nx\r\n" * 100)), "took over 0.4 s", id="dripping body"),
    pytest.param(lambda _, c: silent(c), "took over 0.4 s", id="no answer"),
    pytest.param(lambda _, c: drip(c, b"HTTP/1.1 100 Continue\r\n\r\n" * 50), "took over 0.4 s", id="interim answers for ever"),
    pytest.param(lambda _, c: endless(c, CHUNKED), "over 1,000 bytes", id="endless body"),
    pytest.param(lambda _, c: endless(c, b"HTTP/1.0 200 OK\r\n\r\n"), "over 1,000 bytes", id="endless body without length"),
    pytest.param(lambda _, c: endless(c, b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 70_000), "broke off", id="endless header"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + bytes(1001), "over 1,000 bytes", id="one byte too many"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(ZIPPED), ZIPPED), "compresses", id="gzip bomb"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "broke off", id="gzip as transfer"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "broke off", id="cut short"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "broke off", id="negative length"),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "broke off", id="another protocol"),
    pytest.param(b"", "broke off", id="nothing"),
    pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404", id="not found"),
    pytest.param(b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", "answered 206", id="a part"),
    pytest.param(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answered 302", id="redirect to nowhere"),
]


@pytest.mark.parametrize(("answer", "message"), BAD_ANSWERS)
def test_a_bad_answer_ends_in_time_with_one_clear_line(answer: Answer | bytes, message: str) -> None:
    with serving(answer) as (port, _):
        origin = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        with pytest.raises(FetchError, match=message) as caught:
            Fetcher((origin,), (), SMALL).get(f"{origin}/i.png?signature=secret")
        assert time.monotonic() - began < 1
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_line_names_the_time_that_the_caller_had() -> None:
    with serving(lambda _, c: silent(c)) as (port, _):
        origin = f"http://127.0.0.1:{port}"
        with pytest.raises(FetchError, match=r"took over 0\.2 s"):
            Fetcher((origin,), (), SMALL).get(f"{origin}/i.png", seconds=0.2)


def test_the_status_is_kept() -> None:
    with pytest.raises(StatusError) as caught:
        fetcher(Wire(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), ("http://ls",)).get("http://ls/")
    assert caught.value.status == 403


def test_a_stalled_tls_handshake_ends_in_time() -> None:
    with serving(OK) as (port, _):
        origin = f"https://127.0.0.1:{port}"
        with pytest.raises(FetchError, match=r"0\.[34] s"):
            Fetcher((origin,), (), SMALL).get(origin)


def test_a_closed_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        origin = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(FetchError, match="cannot be connected to"):
        Fetcher((origin,)).get(origin)


def test_a_slow_look_up_ends_in_time() -> None:
    release = threading.Event()
    subject = Fetcher((), ("slow.example",), SMALL, resolve=lambda *_: [PUBLIC] if release.wait(5) else [])
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"slow\.example has no address"):
        subject.get("http://slow.example/i.png")
    assert time.monotonic() - began < 1
    release.set()


def test_a_name_that_does_not_exist_is_told() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchError, match="check its name"):
        Fetcher((), ("gone.example",), resolve=resolve).get("http://gone.example/i.png?secret")


def test_a_second_address_is_tried() -> None:
    wire = Wire(names={"two.example": ["2606:4700:4700::1111", PUBLIC]})

    def connect(address: str, port: int, seconds: float) -> httpcore.NetworkStream:
        if ":" in address:
            raise httpcore.ConnectError("unreachable")
        return wire.connect(address, port, seconds)

    subject = Fetcher((), ("two.example",), SMALL, resolve=wire.resolve, connect=connect)
    assert subject.get("http://two.example/i.png") == b"body"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(OK) as (port, _):
        assert Fetcher((f"http://127.0.0.1:{port}",)).get(f"http://127.0.0.1:{port}/") == b"body"


# Any text

PIECES = st.sampled_from(
    [*"/:@?#[]%.\\ \n0", "http", "https", "://", "allowed.example", "127.0.0.1", "[::1]", "%2e", "xn--", "ü", "。", ":80"]
)
TEXTS = st.text() | st.lists(PIECES).map("".join) | st.text().map("http://".__add__) | st.text().map("http://allowed.example/".__add__)


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_no_text_raises_anything_but_fetch_error(text: str) -> None:
    wire = Wire()
    with contextlib.suppress(FetchError):
        assert fetcher(wire, (), ("allowed.example",)).get(text) == b"body"
    assert set(wire.looked_up) <= {"allowed.example"}
    with contextlib.suppress(FetchError):
        parse_url(text, parse_url("https://allowed.example/a").url)


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_no_redirect_raises_anything_but_fetch_error(text: str) -> None:
    answer = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + text.encode("utf-8", "surrogatepass") + b"\r\n\r\n"
    wire = Wire(answer)
    with pytest.raises(FetchError):
        fetcher(wire, ("http://ls",)).get("http://ls/", redirects_public=True)
    assert all(is_public(address) for address, _ in wire.connected)
