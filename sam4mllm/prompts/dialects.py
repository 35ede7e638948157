"""How a model family is spoken to: questions, and the spelling of boxes, points and answers. Templates are data.

A dialect is one of DIALECTS, or a JSON file with the fields of :class:`Dialect` (a checkpoint folder may carry one as ``dialect.json``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sam4mllm.checkpoints import read_json
from sam4mllm.errors import TemplateError

FRAMES = ("milli", "resized", "unit", "square")


@dataclass(frozen=True)
class Dialect:
    """The words of one family.

    ``box`` is spelled with {x1} {y1} {x2} {y2}, ``point`` with {x} {y}. ``frame`` says what the numbers are: ``milli``, thousandths
    of the image's sides from 0 to 999; ``resized``, pixels of the image as the processor resized it; ``unit``, shares of the sides from 0
    to 1; or ``square``, shares of the square that the image stands in the middle of, with its longer side as side. ``digits`` pads whole
    numbers with zeros, and is how many decimals a share has. The questions hold {phrase}; ``points_head`` holds {box} and is followed by
    one or more points, of the whole image or, with the ``points_view`` "close-up", of a close-up of the box (:mod:`sam4mllm.closeup`).
    ``answer`` stands around the boxes of an answer: it holds {boxes}, and {phrase} where the family repeats it.
    """

    name: str
    box_question: str
    prompt_question: str
    points_head: str
    box: str = "[{x1},{y1},{x2},{y2}]"
    point: str = "({x},{y})"
    frame: Literal["milli", "resized", "unit", "square"] = "milli"
    points_view: Literal["image", "close-up"] = "image"
    digits: int = 3
    box_separator: str = " "
    point_separator: str = " "
    answer_separator: str = ""
    yes: str = "Yes"
    no: str = "No"
    inside: str = "inside"
    outside: str = "outside"
    no_target: str = "none"
    answer: str = "{boxes}"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "digits" and not isinstance(getattr(self, field.name), str):
                raise TemplateError(f"dialect {self.name!r}: {field.name} must be text, not {getattr(self, field.name)!r}")
        if not isinstance(self.digits, int) or not 0 <= self.digits <= 9:
            raise TemplateError(f"dialect {self.name!r}: digits must be a number from 0 to 9, not {self.digits!r}")
        if not self.no_target.strip():
            raise TemplateError(f"dialect {self.name!r}: no_target must be a word")
        if not self.yes.strip() or not self.no.strip() or self.yes.strip().lower() == self.no.strip().lower():
            raise TemplateError(f"dialect {self.name!r}: yes and no must be two different words")
        needed = {
            "box_question": ("{phrase}",),
            "prompt_question": ("{phrase}",),
            "points_head": ("{box}",),
            "box": ("{x1}", "{y1}", "{x2}", "{y2}"),
            "point": ("{x}", "{y}"),
            "answer": ("{boxes}",),
        }
        for name, slots in needed.items():
            missing = [slot for slot in slots if slot not in getattr(self, name)]
            if missing:
                raise TemplateError(f"dialect {self.name!r}: {name} lacks {' and '.join(missing)}")
        if self.frame not in FRAMES:
            raise TemplateError(f"dialect {self.name!r}: frame must be {', '.join(FRAMES[:-1])} or {FRAMES[-1]}, not {self.frame!r}")
        if self.points_view not in ("image", "close-up"):
            raise TemplateError(f"dialect {self.name!r}: points_view must be 'image' or 'close-up', not {self.points_view!r}")

    @property
    def decimals(self) -> int:
        """Digits after the point: a number of the frames ``unit`` and ``square`` is a share times ten to the power of them."""
        return self.digits if self.frame in ("unit", "square") else 0

    def spell_number(self, value: int) -> str:
        return f"{value / 10**self.decimals:.{self.decimals}f}" if self.decimals else f"{value:0{self.digits}d}"

    def spell_box(self, box: tuple[int, int, int, int]) -> str:
        x1, y1, x2, y2 = map(self.spell_number, box)
        return self.box.replace("{x1}", x1).replace("{y1}", y1).replace("{x2}", x2).replace("{y2}", y2)

    def spell_point(self, point: tuple[int, int]) -> str:
        x, y = map(self.spell_number, point)
        return self.point.replace("{x}", x).replace("{y}", y)

    def spell_answer(self, phrase: str, boxes: str) -> str:
        """The answer that gives boxes, each spelled and all joined."""
        before, after = self.answer.split("{boxes}", 1)
        return before.replace("{phrase}", phrase) + boxes + after.replace("{phrase}", phrase)


DEFAULT = Dialect(
    name="default",
    box_question='Where in the image is this? Give the box of each instance as [x1,y1,x2,y2], or "none" if it is not there: {phrase}',
    prompt_question='Mark this in the image. For each instance give its box, then points inside and outside of it, or "none": {phrase}',
    points_head="For each point, say Yes if it lies on the object in {box} and No if not: ",
)
DEMO = Dialect(
    name="demo",
    box_question="find {phrase}",
    prompt_question="mark {phrase}",
    points_head="in {box} ",
    box="[{x1} {y1} {x2} {y2}]",
    point="{x} {y}",
    points_view="close-up",
    answer_separator=" ",
    yes="yes",
    no="no",
)

_NONE = ' If nothing in the image fits, say "none".'
"""A model says that there is no such object where the question offers it; the families' own questions about boxes take one for granted."""
_POINTS_HEAD = "For each point, say Yes if it lies on the object in {box} and No if not: "
_PROMPT = ' For each instance give its box, then the word "inside" with points on it and the word "outside" with points off it.'
"""Families have words of their own for boxes only; for points they get ours, and learn them."""

_FIND = "Find <|object_ref_start|>{phrase}<|object_ref_end|>."
QWEN2_VL = Dialect(
    name="qwen2-vl",
    box_question=_FIND + _NONE,
    prompt_question=_FIND + _PROMPT + _NONE,
    points_head=_POINTS_HEAD,
    box="<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
    digits=0,
    box_separator="",
)
"""Thousandths between the family's own tokens (Qwen2-VL, arXiv 2409.12191, section 2.3; question as in ms-swift's guide to Qwen2-VL)."""

_LOCATE_25 = "Locate {phrase} in this image and output the bbox coordinates in JSON format."
QWEN2_5_VL = Dialect(
    name="qwen2.5-vl",
    box_question=_LOCATE_25 + _NONE,
    prompt_question=_LOCATE_25 + _PROMPT + _NONE,
    points_head=_POINTS_HEAD,
    box='{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}',
    point='{"point_2d": [{x}, {y}]}',
    frame="resized",
    digits=0,
    box_separator=", ",
    answer="[{boxes}]",
)
"""JSON with pixels of the resized image (Qwen2.5-VL, arXiv 2502.13923; question and box as in the grounding example of its repository's
``qwen-vl-finetune``).
"""

_LOCATE_3 = 'Locate every object that matches the description "{phrase}" in the image. Report bbox coordinates in JSON format.'
QWEN3_VL = replace(QWEN2_5_VL, name="qwen3-vl", box_question=_LOCATE_3 + _NONE, prompt_question=_LOCATE_3 + _PROMPT + _NONE, frame="milli")
"""JSON with thousandths (Qwen3-VL's report, appendix B.5, and the notebook ``2d_grounding`` of its repository)."""

_DESCRIBED = "Please provide the bounding box coordinate of the region this sentence describes: "
LLAVA = Dialect(
    name="llava",
    box_question=_DESCRIBED + "{phrase}." + _NONE,
    prompt_question=_DESCRIBED + "{phrase}." + _PROMPT + _NONE,
    points_head=_POINTS_HEAD,
    box="[{x1}, {y1}, {x2}, {y2}]",
    point="({x}, {y})",
    frame="square",
    digits=2,
    box_separator=", ",
)
"""Shares with two decimals of the image padded to a square, as in the RefCOCO and Visual Genome part of LLaVA-1.5's data mixture (its
repository, issue 606), which LLaVA-NeXT and LLaVA-OneVision go on with.
"""

INTERNVL = Dialect(
    name="internvl",
    box_question=_DESCRIBED + "<ref>{phrase}</ref>." + _NONE,
    prompt_question=_DESCRIBED + "<ref>{phrase}</ref>." + _PROMPT + _NONE,
    points_head=_POINTS_HEAD.replace("{box}", "<box>[{box}]</box>"),
    box="[{x1}, {y1}, {x2}, {y2}]",
    digits=0,
    box_separator=", ",
    answer="<ref>{phrase}</ref><box>[{boxes}]</box>",
)
"""Thousandths in a list between tags (InternVL's documentation, "chat data format", grounding)."""

_PINPOINT = "Please pinpoint the bounding box [[x1,y1,x2,y2], …] in the image as per the given description. {phrase}"
GLM_V = Dialect(
    name="glm-v",
    box_question=f"{_PINPOINT}.{_NONE}",
    prompt_question=f"{_PINPOINT}.{_PROMPT}{_NONE}",
    points_head=_POINTS_HEAD,
    box="[{x1},{y1},{x2},{y2}]",
    point="({x},{y})",
    digits=0,
    box_separator=",",
    answer="<|begin_of_box|>[{boxes}]<|end_of_box|>",
)
"""Thousandths in a list between the family's own tokens (GLM-4.1V-Thinking and GLM-4.5V, arXiv 2507.01006; question as in the section on
grounding of their repository's README).
"""

_GENERATE = "Generate the bounding box of <ref>{phrase}</ref>"
QWEN_VL_CHAT = Dialect(
    name="qwen-vl-chat",
    box_question=f"{_GENERATE}.{_NONE}",
    prompt_question=f"{_GENERATE}.{_PROMPT}{_NONE}",
    points_head=_POINTS_HEAD,
    box="<box>({x1},{y1}),({x2},{y2})</box>",
    digits=0,
    box_separator="",
    answer="<ref>{phrase}</ref>{boxes}",
)
"""Thousandths, 0 to 999, between tags (Qwen-VL, arXiv 2308.12966, section 2.2; the words of its demo)."""

BEFORE_NONE = {
    QWEN2_VL.name: replace(QWEN2_VL, box_question=_FIND.removesuffix("."), prompt_question=_FIND + _PROMPT),
    QWEN2_5_VL.name: replace(QWEN2_5_VL, box_question=_LOCATE_25, prompt_question=_LOCATE_25 + _PROMPT),
    QWEN3_VL.name: replace(QWEN3_VL, box_question=_LOCATE_3, prompt_question=_LOCATE_3 + _PROMPT),
    LLAVA.name: replace(LLAVA, box_question=_DESCRIBED + "{phrase}", prompt_question=_DESCRIBED + "{phrase}." + _PROMPT),
    INTERNVL.name: replace(
        INTERNVL, box_question=_DESCRIBED + "<ref>{phrase}</ref>", prompt_question=_DESCRIBED + "<ref>{phrase}</ref>." + _PROMPT
    ),
}
"""The words of an earlier release, which did not offer "none": adapters of that time have learned them, and do not say so."""

DIALECTS = {dialect.name: dialect for dialect in (DEFAULT, DEMO, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, LLAVA, INTERNVL, GLM_V, QWEN_VL_CHAT)}


def dialect_of(fields: Mapping[str, object]) -> Dialect:
    """The dialect with these fields, as an adapter's papers hold them. Raises TemplateError."""
    try:
        return Dialect(**fields)  # type: ignore[arg-type] # it checks them
    except TypeError as error:
        raise TemplateError(f"the dialect in an adapter's manifest is none: {error}") from error


def load_dialect(source: str | Path) -> Dialect:
    """The dialect of that name, or of that JSON file. Raises TemplateError if there is none or it lacks a slot."""
    if str(source) in DIALECTS:
        return DIALECTS[str(source)]
    path = Path(source)
    try:
        return Dialect(**read_json(path))
    except OSError as error:
        raise TemplateError(f"no dialect {str(source)!r}: give one of {', '.join(DIALECTS)} or a JSON file") from error
    except (ValueError, TypeError, AttributeError, TemplateError) as error:
        raise TemplateError(f"{path} is not a dialect: {error}") from error


def dump_dialect(dialect: Dialect) -> str:
    """The dialect as the JSON that load_dialect reads."""
    return json.dumps(dataclasses.asdict(dialect), indent=1) + "\n"
