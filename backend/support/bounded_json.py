"""Reads and writes foreign JSON within limits of time and memory (CWE-400).

``[[],[],…]`` takes twenty times its size in memory, and :func:`json.loads` holds the interpreter's lock (GIL) from its first byte to its
last, so that no other thread of the process runs. Therefore everything that takes much memory is counted before parsing. Long lists of
numbers, which are brush masks, are parsed piece by piece. If what remains is large, its numbers are converted by Python functions of ours,
between which other threads get the lock.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from backend.errors import WireError

MAX_DEPTH = 200
MAX_CONTAINERS = 1_000_000
"""Objects and lists: 64 to 184 bytes each. A region has six, a polygon's vertex one."""
MAX_TEXTS = 2_000_000
"""Keys and texts, some 60 bytes each. A region has about thirty."""
MAX_WORDS = 2_000_000
"""The most ``null``, ``true``, ``false`` and escapes in texts: they parse quickly, but no other thread runs meanwhile."""
MAX_NUMBERS = 4_000_000
"""The most fractions, and whole numbers outside of 0 to 255, of 32 bytes each. Numbers from 0 to 255, as in brush masks, take 8 bytes; only
the body's size limits them.
"""

_COUNTED: tuple[tuple[tuple[bytes, ...], int, str], ...] = (
    ((b"[", b"{"), MAX_CONTAINERS, "lists and objects"),
    ((b'"',), 2 * MAX_TEXTS, "texts"),
    ((b"null", b"true", b"false", b"\\"), MAX_WORDS, "words"),
)
_WINDOW = 1 << 20
_LARGE = 1 << 18
_PIECE = 1 << 16
_LONG = re.compile(rb'\[[0-9][0-9, \n]{4096}|"(?:data:[^",\s\\]{1,100},)?[A-Za-z0-9+/=]{4096,}"')
"""Long lists of whole numbers, and long base64 texts. In valid JSON neither can begin in the middle of another value, unless that is a
text.
"""


def read_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; an empty body counts as ``{}``.

    Raises WireError for anything else, for NaN and infinities, nesting deeper than MAX_DEPTH, and too many parts.
    """
    _check_counts(body)
    reader = _Reader()
    try:
        value = reader.read(body or b"{}")
    except RecursionError as error:
        raise WireError("the request's JSON is nested too deep") from error
    except ValueError as error:
        raise WireError("the request's body is no JSON") from error
    if not isinstance(value, dict):
        raise WireError("the request's body must be a JSON object")
    _check_depth(value, reader.flat)
    return value


def write_json(value: object, *, compact: bool = False, sort_keys: bool = False) -> str:
    """Return what :func:`json.dumps` returns, but write long lists piece by piece, so that the interpreter's lock is not held all along."""
    comma, colon = (",", ":") if compact else (", ", ": ")
    pieces: dict[str, list[object]] = {}
    stem = secrets.token_hex(16)

    def without_long_lists(part: object) -> object:
        if isinstance(part, dict):
            return {key: without_long_lists(child) for key, child in part.items()}
        if not isinstance(part, list):
            return part
        if len(part) <= _PIECE:
            return part if part and type(part[0]) is int else [without_long_lists(child) for child in part]
        name = f"{stem}{len(pieces)}"
        pieces[name] = part
        return name

    text = json.dumps(without_long_lists(value), separators=(comma, colon), sort_keys=sort_keys)
    if not pieces:
        return text
    written: list[str] = []
    for between in re.split(f'"({stem}[0-9]+)"', text):
        if between not in pieces:
            written.append(between)
            continue
        whole = pieces[between]
        parts = (whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE))
        written += ("[", comma.join(json.dumps(part, separators=(comma, colon), sort_keys=sort_keys)[1:-1] for part in parts), "]")
    return "".join(written)


def memory_of(body: bytes) -> int:
    """Bytes that reading a body takes at most, the body's own and its numbers' included."""
    brackets, braces, quotes = (_count(body, mark) for mark in (b"[", b"{", b'"'))
    return 4 * len(body) + 64 * brackets + 190 * braces + 30 * quotes


def _count(body: bytes, mark: bytes) -> int:
    return sum(body.count(mark, start, start + _WINDOW) for start in range(0, len(body), _WINDOW))


def _check_counts(body: bytes) -> None:
    for marks, limit, name in _COUNTED:
        found = 0
        for start in range(0, len(body), _WINDOW):  # in windows, so that a hostile body is not counted to its end
            found += sum(body.count(mark, start, start + _WINDOW) for mark in marks)
            if found > limit:
                raise WireError(f"the request's JSON has too many {name}; send fewer tasks at once")


class _Reader:
    """Parses one body. ``_lifted`` holds long values, which are parsed separately; in the remaining text a number that nobody can foresee
    stands in place of each.
    """

    def __init__(self) -> None:
        self._numbers = 0
        self._stem = f"0.{secrets.randbelow(10**20):020d}"
        self._lifted: dict[str, object] = {}
        self._met = 0

    @property
    def flat(self) -> frozenset[int]:
        """The identities of lists that are known to hold numbers alone."""
        return frozenset(map(id, self._lifted.values()))

    def read(self, body: bytes) -> Any:
        if len(body) < _LARGE:
            return self._loads(body, int)
        text = self._lift(body)
        try:
            value = self._loads(text, int if len(text) < _LARGE else self._whole)
            if self._met == len(self._lifted):
                return value
        except ValueError:
            if not self._lifted:
                raise
        self._lifted.clear()  # a lifted value was a key or part of a text: parse the body whole
        return self._loads(body, self._whole)

    def _loads(self, text: bytes, whole: Callable[[str], int]) -> Any:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=self._fraction, parse_int=whole)

    def _lift(self, body: bytes) -> bytes:
        kept: list[bytes] = []
        end = 0
        while (found := _LONG.search(body, end)) is not None:
            start, after = found.span()
            value: object = found[0][1:-1].decode("ascii")
            if found[0].startswith(b"["):
                after = body.find(b"]", after) + 1 or len(body)
                value = self._list(body[start:after])
            if value is not None:
                number = f"{self._stem}{len(self._lifted)}"
                self._lifted[number] = value
                kept += (body[end:start], number.encode())
            else:
                kept.append(body[end:after])
            end = after
        return b"".join((*kept, body[end:]))

    def _list(self, text: bytes) -> list[int] | None:
        """The numbers, or None if there is anything else among them."""
        cuts = [0]
        while (cut := text.find(b",", cuts[-1] + _PIECE)) > 0:
            cuts.append(cut)
        numbers: list[int] = []
        for start, stop in pairwise((*cuts, len(text) - 1)):
            part = text[start + 1 : stop]
            if part.translate(None, b"0123456789, \n") or not part.strip():
                return None
            piece: Sequence[int] = json.loads(b"[" + part + b"]")
            if max(piece) > 255:
                self._add(len(piece))
            numbers += piece
        return numbers

    def _fraction(self, text: str) -> object:
        if text in self._lifted:
            self._met += 1
            return self._lifted[text]
        self._add(1)
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("a number is out of range")
        return number

    def _whole(self, text: str) -> int:
        number = int(text)
        if not 0 <= number <= 255:
            self._add(1)
        return number

    def _add(self, count: int) -> None:
        self._numbers += count
        if self._numbers > MAX_NUMBERS:
            raise WireError("the request's JSON has too many numbers; send fewer tasks at once")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _check_depth(value: object, flat: frozenset[int]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if id(parent) not in flat
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise WireError("the request's JSON is nested too deep")
