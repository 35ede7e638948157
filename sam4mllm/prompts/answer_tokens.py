"""An answer as tokens, whatever it is written in: prose, JSON, tags, a table. Linear in the text's length, and nothing here raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "word", "key", "text", "tag", "point_tag", "open", "close", "line", "sign"]
Unit = Literal["", "%", "px"]

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# No group here is possessive, because Debian 12's Python 3.11.2 matches possessive groups wrongly (gh-106052). Instead, an optional part
# that must not be given up in backtracking has a second alternative, which matches only where the part is absent.
_FIGURE = r"(?:[0-9]++(?:\.[0-9]*+|(?!\.))|\.[0-9]++)"
_UNIT = r"\s?(?:%|px\b|pixels?\b|percent\b)"
_TOKEN = re.compile(
    rf"""
    (?P<line>\n)
    |(?P<point_tag><(?:points?|click)\b[^<>]{{0,4000}}+>)
    |<(?:\|?(?P<ends>/))?\|?(?P<tag>[a-z_][\w-]{{0,60}}+)/?\|?>
    |"(?P<quoted>(?:[^"\\\n]|\\.){{0,200}})"
    |(?<!\w)'(?P<single>[^'\n]{{0,200}}+)'(?=\s{{0,4}}[:,}}\])])
    |(?P<size>[0-9]++(?:\.[0-9]++)?\s?[x×]\s?[0-9]++|[0-9]++(?:\.[0-9]++){{2,}}|[0-9]++(?:[:/][0-9]++)+|[0-9]{{4}}(?:-[0-9]{{2}}){{2}}(?![0-9]))
    |(?P<number>(?:(?<![\w)\].])[-+])?{_FIGURE}(?:e-[0-9]{{1,2}}+|(?!e-[0-9])))(?:(?P<unit>{_UNIT})|(?!{_UNIT}))(?![^\W{_CJK}])
    |(?P<word>[{_CJK}]++|(?:(?![{_CJK}])\w)+(?:['-](?:(?![{_CJK}])[^\W\d])(?:(?![{_CJK}])\w)*)*)
    |(?P<open>[\[({{])
    |(?P<close>[\])}}])
    |(?P<sign>\S)
    """,
    re.VERBOSE,
)
_CURLY = str.maketrans("“”„‘’", '"""\'\'')
_LABELS = frozenset(
    (
        *("label", "labels", "name", "names", "description", "desc", "text", "phrase", "caption", "object", "category", "class", "title"),
        *("reason", "reasoning", "thought", "thoughts", "thinking", "rationale", "explanation", "analysis", "comment", "note", "question"),
    )
)
"""Keys of JSON whose value is a text that describes or explains something; numbers in such a text are not coordinates of the answer."""


@dataclass(frozen=True)
class AnswerToken:
    """A piece of an answer, which stands in it from ``start`` to ``end``.

    ``text`` is, by ``kind``, the digits of a number, a word, the inside of a quoted text that is not read further, the name of a tag (with
    a slash before it if it is a closing tag), or a sign. A ``key`` is a quoted text with a colon after it.
    """

    kind: Kind
    text: str
    start: int
    end: int
    unit: Unit = ""


def answer_tokens(folded: str) -> Iterator[AnswerToken]:
    """Yield the tokens of a folded answer. Quoted text is read as if it were not quoted, except after a key of ``_LABELS``."""
    text = folded.translate(_CURLY)
    if '\\":' in text:  # JSON in a string of JSON
        text = text.replace('\\"', ' "').replace("\\n", "  ").replace("\\t", "  ")
    key = ""
    end = len(text)
    stack = [(0, end)]
    while stack:
        at, end = stack.pop()
        match = _TOKEN.search(text, at, end) if at < end else None
        if match is None:
            continue
        stack.append((match.end(), end))
        inner = "quoted" if match["quoted"] is not None else "single" if match["single"] is not None else ""
        if not inner:
            yield _token(match)
        elif _is_key(text, match.end(), end):
            key = match[inner].strip()
            yield AnswerToken("key", key, *match.span())
        elif key in _LABELS:
            yield AnswerToken("text", match[inner], *match.span())
        else:
            stack.append(match.span(inner))


def _is_key(text: str, at: int, end: int) -> bool:
    return text[at : min(at + 4, end)].lstrip()[:1] == ":"


def _token(match: re.Match[str]) -> AnswerToken:
    span = match.span()
    if match["number"] is not None:
        unit: Unit = "" if not match["unit"] else "px" if "x" in match["unit"] else "%"
        return AnswerToken("number", match["number"], span[0], match.end("number"), unit)
    if match["tag"] is not None:
        return AnswerToken("tag", ("/" if match["ends"] else "") + match["tag"], *span)
    if match["size"] is not None:  # 640x480, 16:9, a date, a version
        return AnswerToken("word", match[0], *span)
    kinds: tuple[Kind, ...] = ("line", "point_tag", "word", "open", "close")
    kind: Kind = next((kind for kind in kinds if match[kind] is not None), "sign")
    return AnswerToken(kind, match[0], *span)
