"""An answer's text made ready for reading: in one case and width, and without the thoughts that come before the answer proper."""

from __future__ import annotations

import re

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Maps full-width characters to their ASCII forms; East Asian models now and then write full-width digits, commas and brackets."""

_THINKING = "think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|rationale"
_THOUGHT = re.compile(rf"<(?P<end>/)?(?:{_THINKING})>|◁(?P<other>/)?think▷|<\|channel>thought\b|<channel(?P<channel>\|)>", re.IGNORECASE)
"""A tag that opens or closes a thought. Qwen, GLM and DeepSeek write ``<think>``, Kimi-VL ``◁think▷``, Gemma 4 ``<|channel>thought`` and
``<channel|>``; the other names are those that prompts for reasoning commonly ask for.
"""
_ANSWER = re.compile(r"<(?P<end>/)?answer>")
_FINAL = re.compile(r"\bfinal answer\b|^[*#>\s]{0,8}answer\b(?=[*\s]{0,4}:)", re.MULTILINE)


def fold(text: str) -> str:
    """The text in lower case, with full-width signs as plain ones. Its length may differ."""
    return text.translate(_FULL_WIDTH).casefold()


def without_thoughts(folded: str) -> str:
    """Return a folded answer with its thoughts replaced by blanks, so that all else keeps its place.

    A thought without a closing tag reaches to the end of the text. A closing tag without an opening one (which the chat template may have
    written) closes a thought that began with the text; so does a later such tag, unless the text ends there.

    Where a model marks its answer, the rest is blanked too: all that is outside of its ``<answer>`` tags, if there is text in them; and all
    up to the last words "final answer", or "answer:" at the beginning of a line, if a digit follows them.
    """
    text = _keep_answers(_blank(folded, _thoughts(folded)))
    final = list(_FINAL.finditer(text))
    if final and any(sign.isdigit() for sign in text[final[-1].end() :]):
        return _blank(text, [(0, final[-1].end())])
    return text


def thoughts_of(text: str) -> str:
    """Return the text of an answer's thoughts, in its original spelling, without tags and surrounding white space, each on a new line."""
    plain = text.translate(_FULL_WIDTH)  # has the same length as the text, so that places in it are places in the text
    told = []
    for start, end in _thoughts(plain):
        kept, at = "", start
        for mark in _THOUGHT.finditer(plain, start, end):
            kept += text[at : mark.start()]
            at = mark.end()
        told.append((kept + text[at:end]).strip())
    return "\n".join(filter(None, told))


def ends_inside_thought(folded: str) -> bool:
    """Whether a folded answer breaks off in a thought."""
    return _depth(folded) > 0


def end_of_thought(text: str) -> int | None:
    """Where the first closing tag of a thought ends in a text, None if there is none."""
    marks = _THOUGHT.finditer(text.translate(_FULL_WIDTH))
    return next((mark.end() for mark in marks if _closes(mark)), None)


def has_thought_tag(text: str) -> bool:
    """Whether a text holds a tag that begins or ends a thought."""
    return _THOUGHT.search(text.translate(_FULL_WIDTH)) is not None


def _closes(tag: re.Match[str]) -> bool:
    return tag.lastgroup is not None  # only closing tags match a named group


def _depth(folded: str) -> int:
    depth = 0
    for mark in _THOUGHT.finditer(folded):
        depth = max(0, depth - 1) if _closes(mark) else depth + 1
    return depth


def _thoughts(folded: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    depth, start, last = 0, 0, len(folded.rstrip())
    for mark in _THOUGHT.finditer(folded):
        if not _closes(mark):
            start = start if depth else mark.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                spans.append((start, mark.end()))
        elif not spans or mark.end() < last:
            spans = [(0, mark.end())]
    return [*spans, (start, len(folded))] if depth else spans


def _keep_answers(text: str) -> str:
    """The text with what is outside of its marked answers blanked, if there is anything in them."""
    outside: list[tuple[int, int]] = []
    kept, since = "", 0
    inside = False
    for mark in _ANSWER.finditer(text):
        if mark["end"] and inside:
            kept += text[since : mark.start()]
            since, inside = mark.start(), False
        elif not mark["end"] and not inside:
            outside.append((since, mark.end()))
            since, inside = mark.end(), True
    if inside:
        kept += text[since:]
    else:
        outside.append((since, len(text)))
    return _blank(text, outside) if kept.strip() else text


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], " " * (end - start)]
        at = end
    return "".join([*parts, text[at:]])
