"""Finds the label that a phrase means in a script without spaces.

The phrase's head, the noun for the object itself, comes last in Chinese and Japanese, and first in Thai, Lao and Khmer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_HEAD_LAST = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_HEAD_FIRST = re.compile("[\u0e00-\u0eff\u1780-\u17ff]")
_KANA = re.compile("[\u3040-\u30ff]")
_DIGITS = "[0-9一二三四五六七八九十]"
_TAIL = re.compile(f"(?:たち|達|ら|们|們|を|は|が|です|だ|(?<!{_DIGITS}){_DIGITS}++[台匹個本人枚頭羽隻つ]?)$")
"""What may follow a noun: plural endings, particles, and a number with its classifier."""
_PLACE = re.compile("[边邊面上下里裡旁侧側方间間中前后後]$")
_TAILS = 3
_AND = "と和与與及跟"
_KINDS = (re.compile("[\u3040-\u309f]"), re.compile("[\u30a0-\u30ff]"), re.compile("[\u3400-\u9fff\uf900-\ufaff]"), re.compile("[a-z0-9]"))
_BEFORE_NOUN = frozenset(
    "的之のないるたし小大红紅赤蓝藍青白黑黒黄黃绿綠緑灰紫棕橙旧舊新老左右前后後中上下高矮长長短胖瘦"
    "个個只隻辆輛头頭条條匹台本枚位名把张張座艘架朵棵两兩二三四五六七八九十这這那每该该"
)
"""Characters after which a noun may begin: particles, classifiers, numbers, and adjectives of one character. Any other character before a
noun of the same script is taken as part of a longer noun."""


def is_unspaced(text: str) -> bool:
    return _HEAD_LAST.search(text) is not None or _HEAD_FIRST.search(text) is not None


def label_of_unspaced(text: str, names: Mapping[str, str]) -> str | None:
    """Return the label of the longest name at the head's place in ``text``, None if there is none.

    ``text`` and the names, which map to labels, are in lower case and without punctuation marks.
    """
    if not _HEAD_LAST.search(text):
        return next((names[text[:end]] for end in range(len(text), 0, -1) if text[:end] in names), None)
    found = next((label for body in _without_tails(text) if (label := _last(body, names))), None)
    if found is None and not _KANA.search(text):
        before, _, where = text.partition("在")  # 狗在车旁边: the dog is beside the car
        return _last(before, names) if "的" not in where or _PLACE.search(where) else None
    return found


def _without_tails(text: str) -> Iterator[str]:
    for _ in range(_TAILS):
        yield text
        text = _TAIL.sub("", text)


def _last(text: str, names: Mapping[str, str]) -> str | None:
    begin = _noun(text, names)
    if begin is None:
        return None
    if text[begin - 1 : begin] in tuple(_AND) and (first := _noun(text[: begin - 1], names)) is not None:
        return names[text[first : begin - 1]]
    clause = "的" not in text and not _KANA.search(text) and any(text[:end] in names for end in range(1, begin))
    return (
        None if clause else names[text[begin:]]
    )  # 男人骑自行车 (the man rides a bicycle) is a sentence, and its last noun is not its subject


def _noun(text: str, names: Mapping[str, str]) -> int | None:
    """Return where the longest name begins that ends the text and is not merely part of a longer word; None if there is none."""
    for begin in range(len(text)):
        if text[begin:] in names and (_is_apart(text, begin) or any(text[at:begin] in names for at in range(begin))):
            return begin
    return None


def _is_apart(text: str, begin: int) -> bool:
    if begin == 0 or text[begin - 1] in _BEFORE_NOUN:
        return True
    return not any(kind.match(text[begin - 1]) and kind.match(text[begin]) for kind in _KINDS)
