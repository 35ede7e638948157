"""Collects the bytes of an HTTP request and finds its end. It uses no socket, and leaves it to gunicorn's parser to refuse bad requests."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers; Label Studio sends less than one thousand."""
MAX_CHUNK_LINE = 256
HEALTH = re.compile(rb"(?:GET|HEAD) /health(?:\?[^ ]*)? HTTP/")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_LENGTH_NAME = re.compile(rb"\r\ncontent-length[ \t]*:", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*(?=\r\n)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class Incoming:
    """The request that a connection is sending.

    ``whole`` is true once its last byte has arrived, or once further bytes would change nothing: where the announced length of the body is
    malformed or above ``max_body``, the head is enough, and a chunked body is given up once it is malformed or takes, with its chunks' own
    lines, over twice ``max_body``. In these two cases ``last`` is true, too: the connection cannot carry another request. ``expects``: the
    client waits for status 100 before it sends the body.
    """

    def __init__(self, max_body: int, begun: bytes = b"") -> None:
        self._max_body = max_body
        self._head = bytearray()
        self._body: deque[bytes] = deque()
        self._wanted = -1
        """Bytes of the body that are still to come; -1 while the head is not whole."""
        self._chunks: _Chunks | None = None
        self._rest = b""
        self.whole = self.last = self.head_too_long = self.expects = False
        self.size = 0
        """Bytes of the request that have arrived, also those that ``take`` has yielded since."""
        self.length = 0
        """Bytes of the body: as announced, or those of a chunked body that have arrived so far, with its chunks' own lines."""
        if begun:
            self.feed(begun)

    @property
    def begun(self) -> bool:
        return self.size > 0

    @property
    def has_head(self) -> bool:
        return self._wanted >= 0

    @property
    def asks_for_health(self) -> bool:
        return HEALTH.match(self._head) is not None

    def feed(self, data: bytes) -> None:
        """Take what arrived; what follows the request is kept for the next one."""
        if self.whole:
            self._rest += data
            return
        self.size += len(data)
        if self.has_head:
            self._feed_body(data)
            return
        before = len(self._head)
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, before - 3))
        if end < 0:
            self.head_too_long = len(self._head) > MAX_HEAD
            return
        body = bytes(self._head[end + 4 :])
        del self._head[end + 4 :]
        self.head_too_long = len(self._head) > MAX_HEAD
        self._read_head()
        self._feed_body(body)

    def take(self) -> Iterator[bytes]:
        """Yield the request piece by piece; pieces of the body are not kept after that."""
        yield bytes(self._head)
        while self._body:
            yield self._body.popleft()

    def next(self) -> Incoming:
        """Return the connection's next request, with the bytes of it that have already arrived."""
        return Incoming(self._max_body, self._rest)

    def _read_head(self) -> None:
        head = bytes(self._head[:-2])
        self._wanted = 0
        if _CODING.search(head):
            chunked = len(_CHUNKED.findall(head)) == len(_CODING.findall(head)) == 1 and not _LENGTH_NAME.search(head)
            self.last, self._chunks = not chunked, _Chunks() if chunked else None
        elif names := _LENGTH_NAME.findall(head):
            lengths = _LENGTH.findall(head)
            if len(names) == len(lengths) == 1 and int(lengths[0]) <= self._max_body:
                self._wanted = self.length = int(lengths[0])
            else:
                self.last = True
        if _EXPECT.search(head) and not self.last:
            self.expects = True
            self._head = bytearray(_EXPECT.sub(b"", head) + b"\r\n")  # the worker answers it: gunicorn parses a request once it is whole

    def _feed_body(self, data: bytes) -> None:
        if self.last:
            self.whole = True  # nothing after the head is taken
        elif self._chunks is None:
            self._keep(data[: self._wanted])
            self._rest = data[self._wanted :]
            self._wanted -= min(self._wanted, len(data))
            self.whole = self._wanted == 0
        else:
            used = self._chunks.scan(data)
            self.length += used
            self._keep(data[:used])
            self._rest = data[used:]
            self.last = self._chunks.broken or self.length > 2 * self._max_body  # the chunks' own lines count too
            self.whole = self._chunks.ended or self.last
        self.size -= len(self._rest)

    def _keep(self, data: bytes) -> None:
        if data:
            self._body.append(data)


class _Chunks:
    """Where a chunked body ends (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self.ended = self.broken = False
        self._line = b""
        self._left = 0
        """Bytes of a chunk and the line break behind it that are still to come."""
        self._trailer = False

    def scan(self, data: bytes) -> int:
        """Take the bytes that arrived next, and return how many of them belong to the body."""
        position = 0
        while position < len(data) and not (self.ended or self.broken):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
                position += step
                continue
            end = data.find(b"\n", position)
            stop = len(data) if end < 0 else end + 1
            self._line += data[position:stop]
            position = stop
            if len(self._line) > MAX_CHUNK_LINE:
                self.broken = True
            elif end >= 0:
                self._end_line(self._line.removesuffix(b"\n").removesuffix(b"\r"))
                self._line = b""
        return position

    def _end_line(self, line: bytes) -> None:
        if self._trailer:
            self.ended = not line
            return
        size = _SIZE.fullmatch(line)
        if size is None:
            self.broken = True
        elif (length := int(size[1], 16)) == 0:
            self._trailer = True
        else:
            self._left = length + 2
