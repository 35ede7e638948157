"""Requests byte by byte and at once: where each ends, and what is not waited for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.web.incoming import MAX_HEAD, Incoming

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"


@given(st.lists(st.sampled_from([GET, POST, CHUNKED]), min_size=1, max_size=4), st.lists(st.integers(1, 400), max_size=40))
def test_requests_end_where_they_end_however_they_arrive(requests: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(requests)
    found: list[bytes] = []
    incoming = Incoming(1000)
    while stream:
        size = cuts.pop() if cuts else len(stream)
        incoming.feed(stream[:size])
        stream = stream[size:]
        while incoming.whole:
            assert not incoming.last
            assert incoming.size == len(requests[len(found)])
            found.append(b"".join(incoming.take()))
            incoming = incoming.next()
    assert found == requests
    assert not incoming.begun


@pytest.mark.parametrize("request_bytes", [GET, POST, CHUNKED])
def test_nothing_is_whole_before_its_last_byte(request_bytes: bytes) -> None:
    incoming = Incoming(1000)
    for place in range(len(request_bytes)):
        assert not incoming.whole
        incoming.feed(request_bytes[place : place + 1])
    assert incoming.whole


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"Content-Length: 1001", id="longer than allowed"),
        pytest.param(b"Content-Length: 5\r\nContent-Length: 6", id="two lengths"),
        pytest.param(b"Content-Length: -5", id="negative"),
        pytest.param(b"Content-Length: 5\r\nTransfer-Encoding: chunked", id="a length and chunks"),
        pytest.param(b"Transfer-Encoding: gzip, chunked", id="another coding"),
    ],
)
def test_a_body_that_will_be_refused_is_not_waited_for(head: bytes) -> None:
    incoming = Incoming(1000)
    incoming.feed(b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\n")
    assert (incoming.whole, incoming.last) == (True, True)


@pytest.mark.parametrize("chunk", [b"x\r\n", b"-1\r\n", b"\r\n", b"5;" + b"a" * 300, b"0x5\r\n", b"7d0\r\n" + bytes(2001)])
def test_a_broken_or_endless_chunk_ends_the_waiting(chunk: bytes) -> None:
    incoming = Incoming(500)
    incoming.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
    assert (incoming.whole, incoming.last) == (True, True)


def test_a_head_without_end() -> None:
    incoming = Incoming(1000)
    incoming.feed(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEAD // 6))
    assert incoming.head_too_long
    assert not incoming.whole


@pytest.mark.parametrize(
    ("line", "health"), [(b"GET /health", True), (b"HEAD /health?x=1", True), (b"POST /health", False), (b"GET /healthy", False)]
)
def test_who_asks_for_health(line: bytes, health: bool) -> None:
    incoming = Incoming(1000)
    incoming.feed(line + b" HTTP/1.1\r\n\r\n")
    assert incoming.asks_for_health is health


def test_a_client_that_waits_to_be_let_on() -> None:
    incoming = Incoming(1000)
    incoming.feed(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert incoming.expects
    incoming.feed(b"ab")
    assert b"".join(incoming.take()) == b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"
