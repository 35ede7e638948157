"""Parse a model's answer in its dialect's own grammar: the inverse of :mod:`sam4mllm.prompts.conversation`.

:mod:`sam4mllm.prompts.general` reads answers in any other spelling. Nothing here raises, whatever the model wrote: what cannot be read is
left out. An answer is first made plain: its numbers, words and single signs, each followed by one space, without commas. The dialect's
spellings are made plain in the same way, so spaces, padding and the kind of separator make no difference. Plain numbers are short, so each
comparison of a spelling covers a bounded stretch of the answer, and the time grows linearly with the answer's length.

Where a text could be read as a box or as points, it is a box; so a dialect should not spell two points like a box.
"""

from __future__ import annotations

import bisect
import enum
import functools
import itertools
import re
from collections.abc import Iterator

from sam4mllm.prompts.absence import says_none
from sam4mllm.prompts.answer_text import fold
from sam4mllm.prompts.conversation import BoxNumbers, PointNumbers, SpokenInstance
from sam4mllm.prompts.dialects import Dialect

MAX_INSTANCES = 100
"""Boxes read from one answer; a model that is stuck in a loop writes more."""
MAX_POINTS = 100
"""Points read from one answer, or from one side of one instance."""


class _Mark(enum.Enum):
    INSIDE = "inside"
    OUTSIDE = "outside"
    BROKEN = "broken"


def parse_boxes(dialect: Dialect, text: str, limit: int = 999) -> list[BoxNumbers]:
    """The boxes of an answer, in order and without repetitions, at most MAX_INSTANCES.

    A box may be spelled as the dialect spells it, or as a list of four numbers in brackets. The returned numbers are in the dialect's frame
    (a share is multiplied by ten to the power of ``dialect.decimals``), rounded down and clipped to 0..limit; each box has its lower x and
    y first. A box that breaks off is left out; one without area is kept.
    """
    boxes = dict.fromkeys(
        item for item in _read(dialect, _plain(text, dialect.decimals), limit) if not isinstance(item, _Mark) and len(item) == 4
    )
    return list(boxes)[:MAX_INSTANCES]


def spelled_boxes(dialect: Dialect, folded: str) -> list[tuple[tuple[str, str, str, str], int, int]]:
    """Find the boxes of a folded answer that are spelled just as the dialect spells them. Return for each its (x1, y1, x2, y2) as written,
    and where it starts and ends in the answer.
    """
    tokens = list(_TOKEN.finditer(folded))
    pieces = [f"{_in_plain(token, dialect.decimals)} " for token in tokens]
    ends = list(itertools.accumulate(map(len, pieces)))
    found = []
    for match in _grammar(dialect).finditer("".join(pieces)):
        if match.lastgroup == "box":
            x1, y1, x2, y2 = (tokens[bisect.bisect_right(ends, match.start(f"box_{name}"))][0] for name in ("x1", "y1", "x2", "y2"))
            first, last = bisect.bisect_right(ends, match.start()), bisect.bisect_left(ends, match.end())
            found.append(((x1, y1, x2, y2), tokens[first].start(), tokens[last].end()))
    return found


def parse_points(dialect: Dialect, text: str, limit: int = 999) -> list[PointNumbers]:
    """The points of an answer, in order, at most MAX_POINTS, with numbers as in :func:`parse_boxes`. A box's numbers are no points."""
    points = (item for item in _read(dialect, _plain(text, dialect.decimals), limit) if not isinstance(item, _Mark) and len(item) == 2)
    return list(itertools.islice(points, MAX_POINTS))


def parse_prompt(dialect: Dialect, text: str, limit: int = 999) -> list[SpokenInstance]:
    """The instances of a PPG answer: each box with the points after the words for inside and outside, either of which may be missing.

    The boxes are those of :func:`parse_boxes`, and at most MAX_POINTS points are read for each side. Points before the first box, after a
    box that breaks off, or after a box but before either word belong to no instance and are left out. So are the points after a repeated
    box, which a model that is stuck in a loop writes.
    """
    spoken: dict[BoxNumbers, dict[_Mark, list[PointNumbers]]] = {}
    sides: dict[_Mark, list[PointNumbers]] = {}
    side = _Mark.BROKEN  # as long as no word said which
    for item in _read(dialect, _plain(text, dialect.decimals), limit):
        if isinstance(item, _Mark):
            side = item
            sides = {} if item is _Mark.BROKEN else sides
        elif len(item) == 4:
            side, sides = _Mark.BROKEN, {_Mark.INSIDE: [], _Mark.OUTSIDE: []}
            spoken.setdefault(item, sides)
        elif side in sides and len(sides[side]) < MAX_POINTS:
            sides[side].append(item)
    instances = [SpokenInstance(box, tuple(points[_Mark.INSIDE]), tuple(points[_Mark.OUTSIDE])) for box, points in spoken.items()]
    return instances[:MAX_INSTANCES]


def parse_verdicts(dialect: Dialect, text: str, count: int) -> list[bool | None]:
    """Read ``count`` verdicts: True for the dialect's yes and False for its no, in upper or lower case; None where one is missing or
    unreadable.

    Verdicts may be run together ("YesNoNo") or stand in prose. Commas, semicolons and line breaks divide the answer into fields. A field
    with at most one verdict counts as one verdict, unreadable if it has none. In a field with several verdicts, other words between them
    count as one unreadable verdict, so that the later ones keep their places. If there are then more verdicts than ``count``, unreadable
    ones at the beginning are dropped as an introduction.
    """
    fields = re.split(r"[,;\n]++", fold(text))
    verdicts = [verdict for field in fields for verdict in _field(fold(dialect.yes).strip(), fold(dialect.no).strip(), field)]
    introduction = len(list(itertools.takewhile(lambda verdict: verdict is None, verdicts)))
    first = min(introduction, max(0, len(verdicts) - count))
    wanted = verdicts[first : first + max(0, count)]
    return wanted + [None] * (count - len(wanted))


def says_no_target(dialect: Dialect, text: str) -> bool:
    """Whether an answer says that nothing in the image fits: by the dialect's words, common ones (:mod:`sam4mllm.prompts.absence`), or an
    empty list or mapping.

    Never True beside a box. An empty answer and the mere beginning of a box say nothing, so they are False: a failure of the model,
    not a statement about the image.
    """
    plain = _plain(text, dialect.decimals)
    if any(not isinstance(item, _Mark) and len(item) == 4 for item in _read(dialect, plain)):
        return False
    told = any(words and f" {words}" in f" {plain}" for words in (_plain(dialect.no_target, dialect.decimals), "[ ] ", "{ } "))
    return told or says_none(" ".join(filter(str.isalpha, plain.split(" "))))


# no group here is possessive: Debian 12's Python 3.11.2 matches those wrongly (gh-106052)
_TOKEN = re.compile(r"(?P<number>(?:(?<![\w.])-)?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++))|[^\W\d_]++|[^\s,]")
_NUMBER = "[0-9]+ "
_DIGITS = 9
_SLOT = re.compile(r"(\{(?:x1|y1|x2|y2|x|y)\})")


def number_order(dialect: Dialect) -> tuple[str, ...]:
    """The names of a box's four numbers in the order in which the dialect says them: ``("x1", "y1", "x2", "y2")``, or y first."""
    return tuple(sorted(("x1", "y1", "x2", "y2"), key=lambda name: dialect.box.index(f"{{{name}}}")))


def _listed(dialect: Dialect) -> str:
    """Return the template of a box as a plain list of numbers, which families that answer in JSON write, and others when they forget their
    own spelling.
    """
    return "[" + ",".join(f"{{{name}}}" for name in number_order(dialect)) + "]"


def _plain(text: str, decimals: int = 0) -> str:
    """Numbers (whole, from 0 to 999,999,999), words in lower case and single signs, each with a space after it.

    With ``decimals``, numbers are taken times ten to the power of them.
    """
    return "".join(f"{_in_plain(match, decimals)} " for match in _TOKEN.finditer(fold(text)))


def _in_plain(match: re.Match[str], decimals: int) -> str:
    return whole_number(match["number"], decimals) if match["number"] else match[0]


def whole_number(number: str, decimals: int) -> str:
    """A number as written, times ten to the power of ``decimals``, rounded down and brought into 0 to 999,999,999.

    Not by int(), which refuses thousands of digits.
    """
    whole, _, rest = number.partition(".")
    whole = (whole + rest[:decimals].ljust(decimals, "0")).lstrip("0")
    if not whole or whole.startswith("-"):
        return "0"
    return whole if len(whole) <= _DIGITS else "9" * _DIGITS


def _spelling(template: str, decimals: int) -> list[str]:
    """A template's tokens as they stand in plain text, among them its slots as they are."""
    parts = enumerate(_SLOT.split(template))
    return [token for index, part in parts for token in ([part] if index % 2 else re.findall("[^ ]+ ", _plain(part, decimals)))]


def _expressions(spelling: list[str], kind: str = "") -> list[str]:
    """A regular expression for each token of a spelling; with a ``kind``, the number in a slot is the group ``<kind>_<slot>``."""
    expressions = []
    for index, token in enumerate(spelling):
        if not _SLOT.match(token):
            expressions.append(re.escape(token))
        elif kind and token not in spelling[:index]:
            expressions.append(f"(?P<{kind}_{token[1:-1]}>[0-9]+) ")
        else:
            expressions.append(_NUMBER)
    return expressions


def _beginning(spelling: list[str], boxes: str) -> str:
    """Return a regular expression for a box that breaks off: a spelling up to its first number or further, and any numbers after that.

    The match stops where a whole box begins, as the regular expression ``boxes`` matches it, which may be within the broken one. If the
    spelling begins with a number, the expression matches nothing, because any number would then begin a box.
    """
    tokens = _expressions(spelling)
    first = tokens.index(_NUMBER)
    needed, rest = "", ""
    for index, token in reversed(list(enumerate(tokens))):
        if index > first:
            rest = f"(?:(?!{boxes}){token}{rest})?"
        else:
            needed = f"(?!{boxes}){token}{needed}"
    return f"{needed}{rest}(?:{_NUMBER})*" if first else "(?!)"


@functools.lru_cache(maxsize=16)
def _grammar(dialect: Dialect) -> re.Pattern[str]:
    """Return a regular expression for what can stand at a place in plain text. Its named groups are a box in either spelling, the words for
    inside and outside, a point, and a box that breaks off; any other token matches without a group.
    """
    box, listed, point = (_spelling(template, dialect.decimals) for template in (dialect.box, _listed(dialect), dialect.point))
    boxes = "|".join("".join(_expressions(spelling)) for spelling in (box, listed))
    words = {"inside": _plain(dialect.inside, dialect.decimals), "outside": _plain(dialect.outside, dialect.decimals)}
    kinds = {
        "box": "".join(_expressions(box, "box")),
        "list": "".join(_expressions(listed, "list")),
        **{name: re.escape(word) for name, word in sorted(words.items(), key=lambda item: -len(item[1])) if word},
        "point": "".join(_expressions(point, "point")),
        "broken": f"{_beginning(box, boxes)}|{_beginning(listed, boxes)}",
    }
    return re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in kinds.items()) + "|[^ ]+ ")


def _read(dialect: Dialect, plain: str, limit: int = 0) -> Iterator[BoxNumbers | PointNumbers | _Mark]:
    """Yield what plain text holds, in order: boxes (four numbers), points (two), and marks for the words for inside and outside and for
    boxes that break off. Numbers above ``limit`` become ``limit``, so with the default the kinds of the items count, not their numbers.
    """
    for match in _grammar(dialect).finditer(plain):
        kind = match.lastgroup
        if kind in ("box", "list"):
            x1, y1, x2, y2 = (min(int(match[f"{kind}_{slot}"]), limit) for slot in ("x1", "y1", "x2", "y2"))
            yield min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        elif kind == "point":
            yield min(int(match["point_x"]), limit), min(int(match["point_y"]), limit)
        elif kind:
            yield _Mark(kind)


def _field(yes: str, no: str, field: str) -> list[bool | None]:
    """The verdicts of one field of an answer; one with text but no verdict is a single unreadable one."""
    either = "|".join(re.escape(word) for word in sorted((yes, no), key=len, reverse=True) if word)
    if not either or not field.strip():
        return []
    found: list[bool | None] = []
    for match in re.finditer(rf"(?P<run>(?:{either})+)(?P<rest>[^\W\d_]*+)|[^\W\d_]++", field):
        rest = match["rest"] or ""
        if match["run"] and (yes.startswith(rest) or no.startswith(rest)):  # the rest is empty, or a verdict cut off
            found += [piece == yes for piece in re.findall(either, match["run"])]
        if (rest or not match["run"]) and found[-1:] != [None]:
            found.append(None)
    readable = [verdict for verdict in found if verdict is not None]
    return found if len(readable) > 1 else [readable[0] if readable else None]
