"""gunicorn's threaded worker, changed so that a request takes a thread only once it has arrived in full.

In gunicorn's own worker a thread waits for the rest of a request's head or body, so that a few dozen slow connections occupy all threads
(CWE-400, slowloris). Here the loop that accepts connections collects their bytes. Head and body each have a deadline, and the bytes of all
requests together have a limit. Where there are too many connections the oldest is closed: first one that is already answered, else one
whose request is not complete or has not begun. ``/health`` has threads of its own.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.http import RequestParser
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from backend.web.incoming import Incoming

HEAD_SECONDS = 10.0
"""Seconds from a request's first byte to the end of its head; a new connection has as long to send that byte."""
BODY_SECONDS = 30.0
BODY_RATE = 1 << 20
"""Bytes a second. A request must be complete BODY_SECONDS after its first byte, plus the time that its body takes at this rate."""
SEND_SECONDS = 30.0
"""Seconds that a client has to receive each piece of an answer."""
LINGER_SECONDS = 2.0
"""Seconds that a client has to close the connection after the server has ended its side, so that it can still read the answer (RFC 9112,
section 9.6).
"""
MAX_CONNECTIONS = 400
"""Connections that may be open at once; a process may usually have 1,024 files open."""
HEALTH_THREADS = 2
PIECE = 256 * 1024
SWEEP_SECONDS = 0.2


class Connection(TConn):  # type: ignore[misc] # gunicorn has no types
    """A client's connection. ``incoming`` is the request that it is sending, which must be complete at ``deadline`` (monotonic clock)."""

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any, max_body: int) -> None:
        super().__init__(cfg, sock, client, server)
        self.data_ready = self.initialized = True
        self.incoming = Incoming(max_body)
        self.began = time.monotonic()
        self.deadline = self.began + HEAD_SECONDS
        self.held = 0
        """Bytes of the request that is being answered."""

    def init(self) -> None:
        """Set the time-out for sending; gunicorn calls this on the thread that answers."""
        self.sock.settimeout(SEND_SECONDS)

    def begin(self) -> None:
        """Give the request to the parser."""
        self.held = self.incoming.size
        self.parser = RequestParser(self.cfg, self.incoming.take(), self.client)

    def wait_for_next(self, keepalive: float) -> None:
        self.incoming, self.held, self.parser = self.incoming.next(), 0, None
        self.began = time.monotonic()
        self.deadline = self.began + (HEAD_SECONDS if self.incoming.begun else keepalive)


class Worker(ThreadWorker):  # type: ignore[misc]
    """The worker process.

    A body of an announced length has at most ``max_body`` bytes; a chunked one, with its chunks' own lines, at most twice as many. Of a
    longer one no more is taken, and a route that reads it refuses it. All requests that are not answered yet have at most twice
    ``max_body`` bytes together, complete or not; beyond that the slowest incomplete one is refused.
    """

    max_body = 64 << 20
    """Bytes; ``gunicorn.conf.py`` sets it to SAM4MLLM_MAX_BODY_MB."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._reading: dict[Connection, None] = {}
        """Connections that are sending, or may begin to."""
        self._leaving: dict[Connection, None] = {}
        """Connections of which the server has ended its side, answered or not, and which the client has to close."""
        self._held = 0
        self._swept = 0.0

    def init_process(self) -> None:
        self._health = ThreadPoolExecutor(HEALTH_THREADS, "health")
        super().init_process()

    # -- what gunicorn's loop calls --------------------------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Take a connection, and close the oldest if MAX_CONNECTIONS are open already; no thread is needed yet."""
        if self.nr_conns >= MAX_CONNECTIONS:
            self._make_room()
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        self._wait(Connection(self.cfg, client, address, listener.getsockname(), self.max_body))

    def finish_request(self, connection: Connection, answered: Future[Any]) -> None:
        """Keep or end the connection, now that its answer has been written or has failed; called on the loop's thread."""
        self._held -= connection.held
        keep = not answered.cancelled() and answered.exception() is None and answered.result() is True and not connection.incoming.last
        if not keep:
            self._leave(connection)
            return
        connection.wait_for_next(self.cfg.keepalive)
        self._held += connection.incoming.size
        if connection.incoming.whole:
            self._submit(connection)
        else:
            self._wait(connection)

    def murder_keepalived(self, force: bool = False) -> None:
        """End the connections that have passed their deadline, or all with ``force``; those that are being answered are left alone.

        Once the worker stops, connections on which no request has begun get at most STOP_KEEPALIVE_LINGER seconds more.
        """
        now = time.monotonic()
        if now - self._swept < SWEEP_SECONDS and not force:
            return
        self._swept = now
        for connection in [one for one in self._leaving if one.deadline <= now or force]:
            self._close(connection)
        for connection in [*self._reading]:
            if not self.alive and not connection.incoming.begun:
                connection.deadline = min(connection.deadline, now + STOP_KEEPALIVE_LINGER)
            if connection.deadline <= now or force:
                self._refuse(connection, HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")

    def murder_pending(self) -> None:
        """Do nothing: gunicorn ends here connections that wait for their first byte, and this worker keeps those in ``_reading``."""

    # -- a connection's way ----------------------------------------------------------------------------------------------------------------

    def _wait(self, connection: Connection) -> None:
        connection.sock.setblocking(False)
        self._reading[connection] = None
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._read, connection))

    def _read(self, connection: Connection, _: Any) -> None:
        data = self._receive(connection)
        if data is None:
            return
        if not data:
            self._close(connection)
            return
        incoming = connection.incoming
        had_head, before = incoming.has_head, incoming.size
        if not incoming.begun:
            connection.began = time.monotonic()
            connection.deadline = connection.began + HEAD_SECONDS
        incoming.feed(data)
        self._held += incoming.size - before
        if incoming.head_too_long:
            self._refuse(connection, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too long")
        elif incoming.whole:
            self._forget(connection)
            self._submit(connection)
        elif incoming.has_head:
            if not had_head and incoming.expects:
                with suppress(OSError):
                    connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.deadline = connection.began + BODY_SECONDS + incoming.length / BODY_RATE
        if self._held > 2 * self.max_body:
            self._drop_slowest()

    def _receive(self, connection: Connection) -> bytes | None:
        """Return the bytes that have arrived; ``b""`` if the connection has ended or failed, None if there is nothing to read after all."""
        try:
            data: bytes = connection.sock.recv(PIECE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""
        return data

    def _submit(self, connection: Connection) -> None:
        connection.begin()
        pool = self._health if connection.incoming.asks_for_health else self.tpool
        answer = pool.submit(self.handle, connection)
        answer.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, connection, done))

    def _refuse(self, connection: Connection, status: HTTPStatus, line: str) -> None:
        """Answer with an error, from the loop's own thread, and end the connection. If no request has begun, it is ended without an
        answer.
        """
        self._forget(connection)
        self._held -= connection.incoming.size
        if connection.incoming.begun:
            body = json.dumps({"error": line}).encode()
            head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            with suppress(OSError):
                connection.sock.send(head.encode() + b"Retry-After: 5\r\nConnection: close\r\n\r\n" + body)
        self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        """End the server's side of the connection and let the client close it. gunicorn's own way would wait for that on this thread."""
        connection.incoming, connection.parser = Incoming(0), None  # this frees what was not read of the body
        try:
            connection.sock.setblocking(False)
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        connection.deadline = time.monotonic() + LINGER_SECONDS
        self._leaving[connection] = None
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._drain, connection))

    def _drain(self, connection: Connection, _: Any) -> None:
        if self._receive(connection) == b"":
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection in self._reading:
            self._held -= connection.incoming.size
        self._forget(connection)
        self.nr_conns -= 1
        connection.close()

    def _forget(self, connection: Connection) -> None:
        known = connection in self._reading or connection in self._leaving
        self._reading.pop(connection, None)
        self._leaving.pop(connection, None)
        if known:
            with suppress(OSError, KeyError, ValueError):
                self.poller.unregister(connection.sock)

    # -- too much --------------------------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Close the oldest connection in ``_leaving``, or if there is none the oldest in ``_reading``, by ``began``. Those that are being
        answered are left alone.
        """
        for waiting in (self._leaving, self._reading):
            if waiting:
                self._close(min(waiting, key=lambda one: one.began))
                return

    def _drop_slowest(self) -> None:
        """Refuse the slowest (in bytes a second) of the incomplete requests of which at least PIECE bytes have arrived, or if there is none
        the slowest of all incomplete ones that have begun.
        """
        now = time.monotonic()
        large = [one for one in self._reading if one.incoming.size >= PIECE] or [one for one in self._reading if one.incoming.begun]
        if large:
            slowest = min(large, key=lambda one: one.incoming.size / (now - one.began + 0.01))
            self._refuse(slowest, HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests arrive at once; send it again in a few seconds")
