"""Addresses of images: one way to write them, and which of them belong to the public internet."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

import httpx

from backend.errors import FetchError

PORTS = {"http": 80, "https": 443}
_ODD = re.compile(r"[\s\x00-\x1f\x7f-\x9f\\]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?!.{{254}}){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# ranges of RFC 7526 and RFC 9637 that are not public, although ipaddress takes them for global
_SPECIAL = (ipaddress.ip_network("192.88.99.0/24"), ipaddress.ip_network("3fff::/20"))


@dataclass(frozen=True)
class ImageAddress:
    """An http(s) address as :func:`parse_url` returns it: without a user name, the host in its one spelling.

    It may be one that must not be fetched.
    """

    url: httpx.URL = field(repr=False)  # its query may be a secret
    host: str
    port: int

    @property
    def origin(self) -> str:
        """Scheme, host and port in one spelling, to be compared as a whole."""
        return f"{self.url.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_url(text: str, base: httpx.URL | None = None) -> ImageAddress:
    """Parse an http(s) address, or, with ``base``, the address of a redirect, which may be relative to it. Raises FetchError, whose text
    never shows the address.
    """
    if _ODD.search(text):
        raise FetchError("the image address holds white space, a control character or a backslash; write it percent-encoded")
    try:
        url = httpx.URL(text) if base is None else base.join(text)
    except (httpx.InvalidURL, ValueError):
        raise FetchError("the image address cannot be read as a URL; correct the task's data") from None
    if url.scheme not in PORTS or not url.host:
        raise FetchError("the image address does not begin with http:// or https:// and a host; correct the task's data")
    if url.userinfo:
        raise FetchError("the image address holds a user name; take it out, and serve the image without")
    port = PORTS[url.scheme] if url.port is None else url.port
    if not 0 < port < 1 << 16:
        raise FetchError("the image address has a port that does not exist; correct the task's data")
    return ImageAddress(url, _host(url.raw_host.decode("ascii")), port)


def _host(host: str) -> str:
    """Return a host name or an IP address in its one spelling. Raises FetchError for other spellings that C libraries take for an address
    (``127.1``, ``0x7f.1``).
    """
    try:
        if "%" not in host:
            return str(ipaddress.ip_address(host))
    except ValueError:
        if _NAME.fullmatch(host) and not _NUMBER.fullmatch(host.rpartition(".")[2]):
            return host
    raise FetchError("the image address has an odd host; write a plain host name, or an address as 192.0.2.1 or [2001:db8::1]")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; False for a host name. An IPv6 address that carries IPv4 addresses inside
    belongs to it if all of those do.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and ip not in _SPECIAL[0]
    inside = _carried(ip)
    if inside:
        return all(is_public(str(carried)) for carried in inside)
    return ip in _UNICAST and ip.is_global and ip not in _SPECIAL[1]


def _carried(ip: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries (NAT64, Teredo, IPv4-mapped or 6to4), if any. In a local NAT64 prefix
    (64:ff9b:1::/48) only its own network knows where they are: such an address counts as IPv6, and as not public.
    """
    if ip in _NAT64:
        return (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF),)
    return ip.teredo or tuple(carried for carried in (ip.ipv4_mapped, ip.sixtofour) if carried)


def is_address(host: str) -> bool:
    return ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
