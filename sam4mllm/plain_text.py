"""Make foreign text safe to stand in one line of a log, a console or an error message."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, line and paragraph separators, characters that change the direction of text (Bidi_Control), and lone surrogates."""
LONGEST_NAME = 120
LONGEST_GLANCE = 120
"""Most characters of a text that has to be read at a glance, beside others in a line."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    r"""The text with each control character written out, as ``\n`` or ``\u202e``: it can neither begin a line nor reorder one."""
    return _CONTROLS.sub(lambda found: _written_out(found[0]), text)


def shortened(text: str, most: int = LONGEST_GLANCE) -> str:
    """The text's words in a line of at most ``most`` characters, … in place of those without room. A first word without room is cut."""
    line = one_line(" ".join(text.split()))
    if len(line) <= most:
        return line
    kept = line[:most]  # where it ends in a space, the word before that is whole
    return (kept.rsplit(" ", 1)[0] if " " in kept else kept[: most - 1]) + "…"


def listed(names: Iterable[str]) -> str:
    """Return foreign names in one line, sorted and separated by commas, each escaped to ASCII and cut to LONGEST_NAME characters."""
    return ", ".join(sorted(name.encode("unicode_escape").decode()[:LONGEST_NAME] for name in names))


class OneLine(logging.Formatter):
    """Writes the message of a log record alone, on one line: without time, level and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(record.getMessage())


def _written_out(character: str) -> str:
    number = ord(character)
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
