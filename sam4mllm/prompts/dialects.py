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
    """The templates and words of one model family. Raises TemplateError if they are not consistent.

    ``box`` is a template with {x1} {y1} {x2} {y2}, ``point`` one with {x} {y}. ``frame`` says what the numbers are: ``milli``, thousandths
    of the image's sides from 0 to 999; ``resized``, pixels of the image as the processor resized it; ``unit``, shares of the image's sides
    from 0 to 1; ``square``, shares of the sides of a square that is as wide as the image's longer side and has the image in its middle.
    ``digits`` is the width to which whole numbers are padded with zeros, or the number of decimals of a share. The questions hold {phrase}.
    ``points_head`` holds {box} and is followed by one or more points, in coordinates of the whole image or, with the ``points_view``
    "close-up", of a close-up of the box (:mod:`sam4mllm.closeup`). ``answer`` is written around the boxes of an answer: it holds {boxes},
    and {phrase} where the family repeats it. For a family that answers with points alone (:mod:`sam4mllm.prompts.pointing`) it holds
    {points} instead, and the numbers must be thousandths of three digits.
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
            "answer": ("{points}" if self.answers_with_points else "{boxes}",),
        }
        for name, slots in needed.items():
            missing = [slot for slot in slots if slot not in getattr(self, name)]
            if missing:
                raise TemplateError(f"dialect {self.name!r}: {name} lacks {' and '.join(missing)}")
        if self.frame not in FRAMES:
            raise TemplateError(f"dialect {self.name!r}: frame must be {', '.join(FRAMES[:-1])} or {FRAMES[-1]}, not {self.frame!r}")
        if self.points_view not in ("image", "close-up"):
            raise TemplateError(f"dialect {self.name!r}: points_view must be 'image' or 'close-up', not {self.points_view!r}")

        if self.answers_with_points and (self.frame, self.digits) != ("milli", 3):
            raise TemplateError(f"dialect {self.name!r}: an answer of points has thousandths of three digits: frame 'milli', digits 3")

    @property
    def answers_with_points(self) -> bool:
        """Whether an answer is points, one on each object, in place of boxes."""
        return "{points}" in self.answer

    @property
    def decimals(self) -> int:
        """How many decimals a number is written with; 0 for whole numbers. In the frames ``unit`` and ``square``, a share is held as a
        whole number, multiplied by ten to the power of this.
        """
        return self.digits if self.frame in ("unit", "square") else 0

    def spell_number(self, value: int) -> str:
        return f"{value / 10**self.decimals:.{self.decimals}f}" if self.decimals else f"{value:0{self.digits}d}"

    def spell_box(self, box: tuple[int, int, int, int]) -> str:
        x1, y1, x2, y2 = map(self.spell_number, box)
        return self.box.replace("{x1}", x1).replace("{y1}", y1).replace("{x2}", x2).replace("{y2}", y2)

    def spell_point(self, point: tuple[int, int]) -> str:
        x, y = map(self.spell_number, point)
        return self.point.replace("{x}", x).replace("{y}", y)

    def spell_answer(self, phrase: str, found: str) -> str:
        """Return the answer with ``found``, the text of its boxes or points, which are already spelled and joined."""
        before, after = self.answer.split("{points}" if self.answers_with_points else "{boxes}", 1)
        return before.replace("{phrase}", phrase) + found + after.replace("{phrase}", phrase)


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
"""Added to the questions, so that the model may say that there is no such object. The families' own questions about boxes take one for
granted."""
_POINTS_HEAD = "For each point, say Yes if it lies on the object in {box} and No if not: "
_PROMPT = ' For each instance give its box, then the word "inside" with points on it and the word "outside" with points off it.'
"""Asks for boxes and points (PPG), in words of this project that a model learns in training: families have their own words only for boxes.
"""

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
"""Shares of the square to which the image is padded, with two decimals, as in the RefCOCO and Visual Genome part of LLaVA-1.5's training
data (its repository, issue 606). LLaVA-NeXT and LLaVA-OneVision keep this format.
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

_DETECT = "detect {phrase}, output only ```json"
GEMMA_4 = Dialect(
    name="gemma-4",
    box_question=f"{_DETECT}.{_NONE}",
    prompt_question=f"{_DETECT}.{_PROMPT}{_NONE}",
    points_head=_POINTS_HEAD,
    box='{"box_2d": [{y1}, {x1}, {y2}, {x2}]}',
    point='{"point": [{y}, {x}]}',
    digits=0,
    box_separator=", ",
    answer="[{boxes}]",
)
"""JSON with thousandths, y first (question as in the section on object detection of Gemma's documentation, "image understanding"; boxes as
the launch post on Hugging Face's blog shows an answer of Gemma 4; points as Gemini's documentation has them, which Gemma's does not).
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

_POINT_TO = 'Point to {phrase}. If nothing in the image fits, say "There are none."'
MOLMO2 = Dialect(
    name="molmo2",
    box_question=_POINT_TO,
    prompt_question=_POINT_TO,
    points_head=_POINTS_HEAD,
    no_target="There are none.",
    answer='<points coords="1 {points}">{phrase}</points>',
)
"""Points in thousandths, each after its running number, all after the number of the image (Molmo 2, arXiv 2601.10611; question and answer
are those of the examples in its model cards, the no-target words those of its training data). The boxes in questions about points have this
project's default spelling.
"""

BEFORE_NONE = {
    QWEN2_VL.name: replace(QWEN2_VL, box_question=_FIND.removesuffix("."), prompt_question=_FIND + _PROMPT),
    QWEN2_5_VL.name: replace(QWEN2_5_VL, box_question=_LOCATE_25, prompt_question=_LOCATE_25 + _PROMPT),
    QWEN3_VL.name: replace(QWEN3_VL, box_question=_LOCATE_3, prompt_question=_LOCATE_3 + _PROMPT),
    LLAVA.name: replace(LLAVA, box_question=_DESCRIBED + "{phrase}", prompt_question=_DESCRIBED + "{phrase}." + _PROMPT),
    INTERNVL.name: replace(
        INTERNVL, box_question=_DESCRIBED + "<ref>{phrase}</ref>", prompt_question=_DESCRIBED + "<ref>{phrase}</ref>." + _PROMPT
    ),
}
"""The dialects of an earlier release, whose questions did not offer "none". Adapters of that time were trained with them, but do not record
their dialect."""

_FAMILIES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, LLAVA, INTERNVL, GLM_V, GEMMA_4, QWEN_VL_CHAT, MOLMO2)
DIALECTS = {dialect.name: dialect for dialect in (DEFAULT, DEMO, *_FAMILIES)}


def dialect_of(fields: Mapping[str, object]) -> Dialect:
    """Return the dialect with these fields, as an adapter's manifest holds them. Raises TemplateError if they do not make a dialect."""
    try:
        return Dialect(**fields)  # type: ignore[arg-type] # it checks them
    except TypeError as error:
        raise TemplateError(f"the dialect in an adapter's manifest is none: {error}") from error


def load_dialect(source: str | Path) -> Dialect:
    """Return the dialect of DIALECTS with the name ``source``, or that of the JSON file ``source``. Raises TemplateError if there is
    neither, or the file is not a valid dialect.
    """
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
