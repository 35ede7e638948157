"""What is fetched, what is refused, and that every limit holds on the wire."""

from __future__ import annotations

import contextlib
import ssl

import httpcore
import pytest

from backend.errors import FetchError, SettingsError
from backend.images.fetch import Fetcher, FetchLimits
from backend.support.addresses import is_public

PUBLIC = "93.184.216.34"
SMALL = FetchLimits(connect=0.3, total=0.4, max_bytes=1000)
USUAL = FetchLimits(max_bytes=1000)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


class Wire:
    """A network in memory: each host's answers, and what was looked up, connected to and sent."""

    def __init__(self, answers: dict[str, bytes] | bytes = OK, names: dict[str, list[str]] | None = None) -> None:
        self.answers, self.names = answers, names or {}
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.tls: list[str | None] = []
        self.sent: list[bytes] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        return self.names.get(host, [PUBLIC])

    def connect(self, address: str, port: int, seconds: float) -> httpcore.NetworkStream:
        self.connected.append((address, port))
        return _Stream(self)

    def answer(self, head: bytes) -> bytes:
        host = next(line for line in head.decode().split("\r\n") if line.lower().startswith("host:"))[5:].strip()
        return self.answers if isinstance(self.answers, bytes) else self.answers[host]


class _Stream(httpcore.MockStream):
    def __init__(self, wire: Wire) -> None:
        super().__init__([])
        self.wire = wire

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self.wire.sent.append(buffer)
            self._buffer.append(self.wire.answer(buffer))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self.wire.tls.append(server_hostname)
        return self


def fetcher(wire: Wire, trusted: tuple[str, ...] = (), allow_hosts: tuple[str, ...] = (), limits: FetchLimits = USUAL) -> Fetcher:
    return Fetcher(trusted, allow_hosts, limits, resolve=wire.resolve, connect=wire.connect)


FORBIDDEN = [
    pytest.param("http://127.0.0.1/i.png", id="loopback"),
    pytest.param("http://0.0.0.0/i.png", id="this host"),
    pytest.param("http://10.0.0.5/i.png", id="private"),
    pytest.param("http://100.64.0.1/i.png", id="carrier NAT"),
    pytest.param("http://224.0.0.1/i.png", id="multicast"),
    pytest.param("http://192.88.99.1/i.png", id="6to4 relay"),
    pytest.param("http://[::1]/i.png", id="IPv6 loopback"),
    pytest.param("http://[::ffff:127.0.0.1]/i.png", id="v4-mapped loopback"),
    pytest.param("http://[64:ff9b::7f00:1]/i.png", id="NAT64 loopback"),
    pytest.param("http://[64:ff9b:1::808:808]/i.png", id="local NAT64"),
    pytest.param("http://[2002:7f00:1::]/i.png", id="6to4 loopback"),
    pytest.param("http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/i.png", id="Teredo loopback"),
    pytest.param("http://[fe80::1%25eth0]/i.png", id="zone"),
    pytest.param("http://[fec0::1]/i.png", id="site-local"),
    pytest.param("http://[::127.0.0.1]/i.png", id="v4-compatible loopback"),
    pytest.param("http://2130706433/i.png", id="decimal"),
    pytest.param("http://0177.0.0.1/i.png", id="octal"),
    pytest.param("http://0x7f.0.0.1/i.png", id="hexadecimal"),
    pytest.param("http://0x7f000001/i.png", id="hexadecimal in one"),
    pytest.param("http://127.1/i.png", id="short"),
    pytest.param("http://127.0.0.1./i.png", id="trailing dot of an address"),
    pytest.param("http://127。0。0。1/i.png", id="ideographic full stops"),
    pytest.param("http://①②⑦.0.0.1/i.png", id="circled digits"),
    pytest.param("http://127%2e0.0.1/i.png", id="percent-encoded host"),
    pytest.param("http://169.254.169.254/latest/meta-data", id="metadata address"),
    pytest.param("http://metadata.google.internal/i.png", id="metadata name"),
    pytest.param("http://metadata.google.internal./i.png", id="metadata name with trailing dot"),
    pytest.param("http://allowed.example@evil.example/i.png", id="user name"),
    pytest.param("http://allowed.example:80@127.0.0.1/i.png", id="password"),
    pytest.param("http://allowed.example\\@evil.example/i.png", id="backslash CVE-2026-24779"),
    pytest.param("http:\\\\127.0.0.1/i.png", id="backslashes"),
    pytest.param("http://allowed.example /i.png", id="space"),
    pytest.param("http://allowed.example\t/i.png", id="tab"),
    pytest.param("file:///etc/passwd", id="file CVE-2022-36551"),
    pytest.param("gopher://allowed.example/1", id="gopher"),
    pytest.param("ftp://allowed.example/i.png", id="ftp"),
    pytest.param("http://allowed.example:8080/i.png", id="other port"),
    pytest.param("http://allowed.example:22/i.png", id="ssh port"),
    pytest.param("http://allowed.example:0/i.png", id="port 0"),
    pytest.param("http://allowed.example:99999/i.png", id="port too large"),
    pytest.param("http://allowed.example./i.png", id="trailing dot"),
    pytest.param("http://a..example/i.png", id="empty label"),
]
AS_TEXT_ONLY = [
    pytest.param("http://allowed.example/\r\nHost: evil", id="header injection"),
    pytest.param("http:///i.png", id="no host"),
    pytest.param("/etc/passwd", id="path"),
    pytest.param("", id="nothing"),
]
"""In a redirect these are an end of the header, or relative to where it came from."""
NAMES = {"metadata.google.internal": ["169.254.169.254"], "mixed.example": [PUBLIC, "10.0.0.5"]}


@pytest.mark.parametrize("url", FORBIDDEN + AS_TEXT_ONLY)
def test_forbidden_addresses_are_never_connected_to(url: str) -> None:
    wire = Wire(names=NAMES)
    with pytest.raises(FetchError) as caught:
        fetcher(wire, (), ("allowed.example", "evil.example", "metadata.google.internal")).get(url)
    assert not wire.connected
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("url", FORBIDDEN)
def test_no_redirect_leads_to_a_forbidden_address(url: str) -> None:
    wire = Wire({"ls:8080": redirect(url)}, NAMES)
    with pytest.raises(FetchError):
        fetcher(wire, ("http://ls:8080",)).get("http://ls:8080/tasks/1/presign/", redirects_public=True)
    assert wire.connected == [(PUBLIC, 8080)]


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://other.example/i.png", id="another host"),
        pytest.param("http://allowed.example.evil.example/i.png", id="suffix"),
        pytest.param("http://notallowed.example/i.png", id="prefix"),
        pytest.param("http://sub.allowed.example/i.png", id="subdomain"),
        pytest.param("http://8.8.8.8/i.png", id="a public address"),
    ],
)
def test_hosts_that_nobody_named_are_refused(url: str) -> None:
    wire = Wire()
    with pytest.raises(FetchError, match="SAM4MLLM_ALLOW_HOSTS if you trust it"):
        fetcher(wire, (), ("allowed.example",)).get(url)
    assert not wire.looked_up
    assert not wire.connected


@pytest.mark.parametrize(
    ("url", "host"),
    [
        pytest.param("http://allowed.example/i.png", "allowed.example", id="plain"),
        pytest.param("HTTP://ALLOWED.example:80/i.png", "allowed.example", id="capitals and port"),
        pytest.param("http://allowed.example#@evil.example/", "allowed.example", id="fragment"),
        pytest.param("http://allowed.example?@evil.example/", "allowed.example", id="query"),
        pytest.param("http://bücher.example/i.png", "xn--bcher-kva.example", id="IDN"),
        pytest.param("http://xn--bcher-kva.example/i.png", "xn--bcher-kva.example", id="punycode"),
    ],
)
def test_allowed_hosts_are_looked_up_by_the_name_that_was_checked(url: str, host: str) -> None:
    wire = Wire()
    assert fetcher(wire, (), ("Allowed.Example", "bücher.example")).get(url) == b"body"
    assert wire.looked_up == [host]
    assert wire.connected == [(PUBLIC, 80)]


def test_all_addresses_of_a_host_must_be_public() -> None:
    wire = Wire(names=NAMES)
    with pytest.raises(FetchError, match=r"mixed\.example is a private address; add http://mixed\.example:80 to SAM4MLLM_ALLOW_HOSTS"):
        fetcher(wire, (), ("mixed.example",)).get("http://mixed.example/i.png")
    assert not wire.connected


def test_a_rebinding_name_is_looked_up_once_and_the_checked_address_is_used() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    wire = Wire()
    subject = Fetcher((), ("rebind.example",), SMALL, resolve=lambda host, port: next(answers), connect=wire.connect)
    assert subject.get("http://rebind.example/i.png") == b"body"
    assert wire.connected == [(PUBLIC, 80)]
    with pytest.raises(FetchError, match="private address"):
        subject.get("http://rebind.example/i.png")
    assert len(wire.connected) == 1


def test_tls_names_the_host_and_not_the_address() -> None:
    wire = Wire()
    fetcher(wire, (), ("allowed.example",)).get("https://allowed.example/a%20b.png?x=1#part")
    assert (wire.connected, wire.tls) == ([(PUBLIC, 443)], ["allowed.example"])
    head = b"".join(wire.sent).lower()
    assert head.startswith(b"get /a%20b.png?x=1 http/1.1\r\nhost: allowed.example\r\n")
    assert b"accept-encoding: identity" in head


@pytest.mark.parametrize(
    ("trusted", "allow", "url", "allowed"),
    [
        pytest.param("http://ls:8080/label-studio", "", "http://ls:8080/x", True, id="trusted with a sub-path"),
        pytest.param("http://ls:8080", "", "http://ls:8081/x", False, id="another port"),
        pytest.param("http://ls:8080", "", "https://ls:8080/x", False, id="another scheme"),
        pytest.param("http://ls", "", "http://ls:80/x", True, id="the usual port"),
        pytest.param("http://app.example", "", "http://app.example.evil/x", False, id="a longer name"),
        pytest.param("http://[::1]:8080", "", "http://[0:0::1]:8080/x", True, id="another spelling"),
        pytest.param("", "http://minio:9000", "http://minio:9000/x", True, id="an allowed origin"),
        pytest.param("", "http://minio:9000", "http://minio/x", False, id="an allowed origin's host"),
        pytest.param("", "minio", "http://minio/x", False, id="a host name that is private"),
    ],
)
def test_origins_are_compared_as_a_whole(trusted: str, allow: str, url: str, allowed: bool) -> None:
    wire = Wire(names={"ls": ["172.18.0.2"], "minio": ["172.18.0.3"]})
    subject = fetcher(wire, (trusted,) if trusted else (), (allow,) if allow else ())
    with contextlib.nullcontext() if allowed else pytest.raises(FetchError):
        assert subject.get(url) == b"body"
    assert bool(wire.connected) == allowed


@pytest.mark.parametrize(
    "entry", ["", "a b", "minio:9000", "http://minio:9000/bucket", "a/b", "http://u:secret@h", "ftp://h", "127.1", "*.com"]
)
def test_an_entry_of_another_kind_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="entry 2") as caught:
        Fetcher((), ("fine.example", entry))
    assert "secret" not in str(caught.value)


def test_a_label_studio_address_of_another_kind_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="LABEL_STUDIO_URL"):
        Fetcher(("ls:8080",))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        pytest.param(PUBLIC, True, id="v4"),
        pytest.param("2606:4700:4700::1111", True, id="v6"),
        pytest.param("::ffff:8.8.8.8", True, id="mapped public"),
        pytest.param("64:ff9b::808:808", True, id="NAT64 public"),
        pytest.param("2002:808:808::", True, id="6to4 public"),
        pytest.param("64:ff9b::a00:5", False, id="NAT64 private"),
        pytest.param("2002:a00:5::", False, id="6to4 private"),
        pytest.param("::ffff:224.0.0.1", False, id="mapped multicast"),
        pytest.param("ff0e::1", False, id="v6 multicast"),
        pytest.param("fc00::1", False, id="unique local"),
        pytest.param("fe80::1%eth0", False, id="link-local with zone"),
        pytest.param("2001:db8::1", False, id="documentation"),
        pytest.param("3fff::1", False, id="newer documentation"),
        pytest.param("255.255.255.255", False, id="broadcast"),
        pytest.param("198.18.0.1", False, id="benchmarks"),
        pytest.param("::", False, id="unspecified"),
        pytest.param("example.com", False, id="no address"),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


# Redirects
