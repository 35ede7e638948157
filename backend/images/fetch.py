"""Downloads files from addresses that foreign data name, with protection against server-side request forgery (CWE-918).

A task's data is foreign: its image address may point into this server's own network. The same parser (:class:`httpx.URL`) serves the checks
and the request. A host name is resolved once, all of its addresses are checked, and the connection goes to one of these, so that a later
answer of its DNS changes nothing. Each redirect goes through all of the checks again. One deadline ends all waiting, however slowly a
server sends.
"""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpcore

from backend.errors import FetchError, SettingsError
from backend.support.addresses import PORTS, ImageAddress, is_address, is_public, parse_url

Resolve = Callable[[str, int], list[str]]
"""A function that returns the addresses of a host, given its name and a port. It raises OSError if it cannot."""
Connect = Callable[[str, int, float], httpcore.NetworkStream]
"""A function that connects to an address, given a port and a limit in seconds. It raises httpcore's ConnectError or ConnectTimeout."""

_REDIRECTS = (301, 302, 303, 307, 308)
_ALLOW = "SAM4MLLM_ALLOW_HOSTS"


@dataclass(frozen=True)
class FetchLimits:
    """What one fetch may take: seconds to connect to an address, seconds in all, bytes of the body, and redirects."""

    connect: float = 3.0
    total: float = 20.0
    max_bytes: int = 64 << 20
    redirects: int = 3


class StatusError(FetchError):
    """The server answered with a status that is neither 200 nor a redirect to an address."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver, in its order. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def connect_tcp(address: str, port: int, seconds: float) -> httpcore.NetworkStream:
    """A connection to a numeric address within ``seconds``. Raises httpcore's ConnectError and ConnectTimeout."""
    return httpcore.SyncBackend().connect_tcp(address, port, seconds)


@dataclass(frozen=True)
class _Deadline:
    """The end of a fetch: ``seconds`` after this object was made."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        seconds = self.began + self.seconds - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


@dataclass(frozen=True, eq=False)
class _Timed(httpcore.NetworkStream):
    """A connection on which each wait ends at the deadline; httpcore's own limits begin anew with each byte."""

    inner: httpcore.NetworkStream
    deadline: _Deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, self.deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, self.deadline.left())

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            return _Timed(self.inner.start_tls(ssl_context, server_hostname, self.deadline.left()), self.deadline)
        except BaseException:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


@dataclass(frozen=True, eq=False)
class _Pinned(httpcore.NetworkBackend):
    """Connects to the first of the checked addresses that answers, even if the host's name now leads to others."""

    addresses: Sequence[str]
    connect: Connect
    seconds: float
    deadline: _Deadline

    def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in self.addresses:
            try:
                return _Timed(self.connect(address, port, min(self.seconds, self.deadline.left())), self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _private(target: ImageAddress) -> FetchError:
    return FetchError(f"the image host {target.host} is a private address; add {target.origin} to {_ALLOW} if it is yours")


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


class Fetcher:
    """Downloads files by HTTP, from no hosts but those that the user named and those that :meth:`get` may be redirected to. Threads may
    share it.

    Args:
        trusted: URLs whose origins (scheme, host and port) are trusted, also at private addresses; what follows the origin does not matter.
        allow_hosts: host names, which may be asked at public addresses and on ports 80 and 443 only, or origins such as
            ``http://minio:9000``, which are trusted like those of ``trusted``.
        limits: of each fetch.
        resolve: looks up a host, once for each request.
        connect: makes the connection to an address that has been checked.

    Raises:
        SettingsError: an entry of ``trusted`` is no URL, or one of ``allow_hosts`` is neither a host name nor an origin.
    """

    def __init__(
        self,
        trusted: Sequence[str] = (),
        allow_hosts: Sequence[str] = (),
        limits: FetchLimits = FetchLimits(),
        *,
        resolve: Resolve = resolve_host,
        connect: Connect = connect_tcp,
    ) -> None:
        self.limits = limits
        self._resolve, self._connect = resolve, connect
        try:
            self._origins = {parse_url(url).origin for url in trusted}
        except FetchError:
            raise SettingsError("LABEL_STUDIO_URL is no address of a server; write it as http://label-studio:8080") from None
        self._hosts: set[str] = set()
        for number, entry in enumerate(allow_hosts, 1):
            self._allow(entry, number)

    def get(
        self, url: str, headers: Mapping[str, str] | None = None, redirects_public: bool = False, seconds: float = float("inf")
    ) -> bytes:
        """Return the body of the answer to a GET request.

        Args:
            url: an absolute http or https address.
            headers: sent to the origin of ``url`` only.
            redirects_public: whether redirects may lead to any public host on port 80 or 443, as Label Studio's redirects to cloud storage
                do.
            seconds: the time left to the caller; the shorter of this and ``limits.total`` counts.

        Raises:
            StatusError: the answer is neither 200 nor a redirect.
            FetchError: the address is refused, a limit is exceeded, or the transfer failed. Its one line does not show the address's path
                and query.
        """
        here, sent, deadline = parse_url(url), dict(headers or {}), _Deadline(min(seconds, self.limits.total))
        private = self._may_be_private(here, False)
        for _ in range(self.limits.redirects + 1):
            answer = self._ask(here, self._addresses(here, private, deadline), sent, deadline)
            if isinstance(answer, bytes):
                return answer
            there = parse_url(answer, here.url)
            if (here.url.scheme, there.url.scheme) == ("https", "http"):
                raise FetchError(f"{here.host} redirects an image from https to http; give an address that stays with https")
            private = self._may_be_private(there, redirects_public)
            here, sent = there, sent if there.origin == here.origin else {}
        raise FetchError(f"{here.host} redirects an image more than {self.limits.redirects} times; give its final address")

    def _allow(self, entry: str, number: int) -> None:
        try:
            target = parse_url(entry if "://" in entry else f"http://{entry}/")
        except FetchError:
            target = None
        if (
            target is None
            or target.url.raw_path != b"/"
            or ("://" not in entry and target.url.netloc.decode() != target.url.raw_host.decode())
        ):
            raise SettingsError(
                f"{_ALLOW}: entry {number} is neither a host name, as images.example.com, nor an origin, as http://minio:9000"
            )
        if "://" in entry:
            self._origins.add(target.origin)
        else:
            self._hosts.add(target.host)

    def _may_be_private(self, target: ImageAddress, anywhere: bool) -> bool:
        """Whether the target's origin is trusted, so that its addresses may be private ones. Raises FetchError if the target must not be
        asked at all. ``anywhere`` allows every host on port 80 or 443; that its addresses are public is checked once they are known.
        """
        if target.origin in self._origins:
            return True
        if is_address(target.host) and not is_public(target.host):
            raise _private(target)
        usual = target.port in PORTS.values()
        if not usual or not (anywhere or target.host in self._hosts):
            entry = target.host if usual else target.origin
            raise FetchError(f"images of {target.origin} are not fetched; add {entry} to {_ALLOW} if you trust it")
        return False

    def _addresses(self, target: ImageAddress, private: bool, deadline: _Deadline) -> list[str]:
        found = [target.host] if is_address(target.host) else self._look_up(target, deadline)
        if not private and not all(map(is_public, found)):
            raise _private(target)
        return found

    def _look_up(self, target: ImageAddress, deadline: _Deadline) -> list[str]:
        """Resolve the target's host, in a thread of its own because the system's resolver has no time limit. Raises FetchError if that
        fails or the deadline passes.
        """
        answer: Future[list[str]] = Future()

        def look_up() -> None:
            try:
                answer.set_result(self._resolve(target.host, target.port))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        try:
            return answer.result(deadline.left())
        except (OSError, UnicodeError) as error:
            raise FetchError(f"the image host {target.host} has no address that can be found; check its name and the DNS") from error

    def _ask(self, target: ImageAddress, addresses: list[str], headers: Mapping[str, str], deadline: _Deadline) -> bytes | str:
        """Return the body as bytes or, if the server redirects, the address in its Location header as text.

        Raises StatusError for any other status than 200. Raises FetchError if no answer comes, or if it is compressed or exceeds a limit.
        """
        url = httpcore.URL(scheme=target.url.raw_scheme, host=target.url.raw_host, port=target.url.port, target=target.url.raw_path)
        # an encoded body could unpack to any size
        fixed = {b"Host": target.url.netloc, b"Accept-Encoding": b"identity", b"User-Agent": b"sam4mllm"}
        network = _Pinned(addresses, self._connect, self.limits.connect, deadline)
        try:
            with (
                httpcore.ConnectionPool(_tls(), network_backend=network) as pool,
                pool.stream("GET", url, headers=[*fixed.items(), *_encode(headers)]) as response,
            ):
                return self._read(target, response)
        except (TimeoutError, httpcore.TimeoutException) as error:
            connecting = isinstance(error, httpcore.ConnectTimeout)
            limit = f"cannot be connected to within {self.limits.connect:g} s" if connecting else f"took over {deadline.seconds:.3g} s"
            raise FetchError(f"the image host {target.host} {limit}; check that it runs and can be reached from here") from error
        except httpcore.NetworkError as error:
            raise FetchError(
                f"{target.origin} cannot be connected to ({_brief(error)}); check that it runs and can be reached from here"
            ) from error
        except httpcore.ProtocolError as error:
            raise FetchError(f"{target.origin} broke off, or does not speak HTTP; check the address and try again") from error

    def _read(self, target: ImageAddress, response: httpcore.Response) -> bytes | str:
        fields = {name.lower(): value for name, value in response.headers}
        if response.status in _REDIRECTS and b"location" in fields:
            return fields[b"location"].decode("utf-8", "replace")
        if response.status != 200:
            raise StatusError(f"{target.origin} answered {response.status} instead of the image; check the address", response.status)
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise FetchError(f"{target.origin} compresses the image although asked not to; switch that off for images")
        body = bytearray()
        for part in response.iter_stream():
            body += part
            if len(body) > self.limits.max_bytes:
                raise FetchError(
                    f"the image at {target.host} is over {self.limits.max_bytes:,} bytes; make it smaller, or raise SAM4MLLM_MAX_IMAGE_MB"
                )
        return bytes(body)
