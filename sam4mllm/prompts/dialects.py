"""How a model family is spoken to: questions, and the spelling of boxes, points and answers. Templates are data.

A dialect is one of DIALECTS, or a JSON file with the fields of :class:`Dialect` (a checkpoint folder may carry one as ``dialect.json``).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sam4mllm.errors import TemplateError


@dataclass(frozen=True)
class Dialect:
    """The words of one family.

    ``box`` is spelled with {x1} {y1} {x2} {y2}, ``point`` with {x} {y}. ``frame`` says what the numbers are: ``milli``, thousandths
    of the image's sides from 0 to 999, or ``resized``, pixels of the image as the processor resized it. ``digits`` pads numbers
    with zeros. The questions hold {phrase}; ``points_head`` holds {box} and is followed by one or more points, of the whole image or, with
    the ``points_view`` "close-up", of a close-up of the box (:mod:`sam4mllm.closeup`).
    """

    name: str
    box_question: str
    prompt_question: str
    points_head: str
    box: str = "[{x1},{y1},{x2},{y2}]"
    point: str = "({x},{y})"
    frame: Literal["milli", "resized"] = "milli"
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
        }
        for name, slots in needed.items():
            missing = [slot for slot in slots if slot not in getattr(self, name)]
            if missing:
                raise TemplateError(f"dialect {self.name!r}: {name} lacks {' and '.join(missing)}")
        if self.frame not in ("milli", "resized"):
            raise TemplateError(f"dialect {self.name!r}: frame must be 'milli' or 'resized', not {self.frame!r}")
        if self.points_view not in ("image", "close-up"):
            raise TemplateError(f"dialect {self.name!r}: points_view must be 'image' or 'close-up', not {self.points_view!r}")

    def spell_number(self, value: int) -> str:
        return f"{value:0{self.digits}d}"

    def spell_box(self, box: tuple[int, int, int, int]) -> str:
        x1, y1, x2, y2 = map(self.spell_number, box)
        return self.box.replace("{x1}", x1).replace("{y1}", y1).replace("{x2}", x2).replace("{y2}", y2)

    def spell_point(self, point: tuple[int, int]) -> str:
        x, y = map(self.spell_number, point)
        return self.point.replace("{x}", x).replace("{y}", y)


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
DIALECTS = {dialect.name: dialect for dialect in (DEFAULT, DEMO)}


def load_dialect(source: str | Path) -> Dialect:
    """The dialect of that name, or of that JSON file. Raises TemplateError if there is none or it lacks a slot."""
    if str(source) in DIALECTS:
        return DIALECTS[str(source)]
    path = Path(source)
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Dialect(**fields)
    except OSError as error:
        raise TemplateError(f"no dialect {str(source)!r}: give one of {', '.join(DIALECTS)} or a JSON file") from error
    except (ValueError, TypeError, AttributeError, TemplateError) as error:
        raise TemplateError(f"{path} is not a dialect: {error}") from error


def dump_dialect(dialect: Dialect) -> str:
    """The dialect as the JSON that load_dialect reads."""
    return json.dumps(dataclasses.asdict(dialect), indent=1) + "\n"
