"""Instructions walked word by word: each clause is something that is done in the editor, and a clause that is not known fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e.editor import Editor

COLOURS = {"green": "rgb(24, 178, 107)", "blue": "rgb(46, 134, 255)"}


@dataclass
class Walk:
    """One walk through instructions; ``part`` and ``box`` are places in percent of the picture: (x, y) and (x, y, width, height)."""

    editor: Editor
    part: tuple[float, float] = (0.0, 0.0)
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    annotation: dict[str, Any] | None = None

    def follow(self, sentence: str) -> None:
        """Do what a sentence says, clause by clause."""
        for clause in clauses(sentence):
            self._actions()[clause]()

    def _actions(self) -> dict[str, Callable[[], object]]:
        page, editor = self.editor.page, self.editor
        return {
            "Switch on Auto-Annotation": editor.auto_annotate,
            "below the picture": lambda: None,
            "click the green label": lambda: self._label("green"),
            "click the blue label": lambda: self._label("blue"),
            "point at Auto-Detect (the toolbar's last icon)": page.locator(".lsf-toolbar__group > .lsf-tool").last.hover,
            "point at Auto-Detect": page.locator(".lsf-toolbar__group > .lsf-tool_smart").hover,
            "choose its points": lambda: page.locator(".lsf-toolbar__smart [aria-label=key-point-tool]").click(),
            "choose its rectangle": lambda: page.locator(".lsf-toolbar__smart [aria-label=rectangle-tool]").click(),
            "hold Ctrl and click the part": lambda: self._click("Control"),
            "hold Ctrl and Alt and click the part": lambda: self._click("Control", "Alt"),
            "hold Ctrl and drag around the object": lambda: self._drag("Control"),
            "Wait for the new mask": lambda: page.wait_for_function("Htx.annotationStore.selected.suggestions.size > 0"),
            "press the tick below the picture": editor.accept,
            "press Submit": self._submit,
        }

    def _label(self, colour: str) -> None:
        labels = self.editor.page.locator(".lsf-label")
        shades = [labels.nth(index).evaluate(_SHADE) for index in range(labels.count())]
        labels.nth(shades.index(COLOURS[colour])).click()

    def _click(self, *held: str) -> None:
        self.editor.pointed(lambda place: self.editor.page.mouse.click(*place(*self.part)), held)

    def _drag(self, *held: str) -> None:
        x, y, width, height = self.box
        mouse = self.editor.page.mouse

        def drag(place: Callable[[float, float], tuple[float, float]]) -> None:
            mouse.move(*place(x, y))
            mouse.down()
            mouse.move(*place(x + width, y + height), steps=8)
            mouse.up()

        self.editor.pointed(drag, held)

    def _submit(self) -> None:
        self.annotation = self.editor.submit()


_SHADE = """label => {
    const bar = getComputedStyle(label, '::before').backgroundColor, border = getComputedStyle(label).borderLeftColor;
    return [bar, border].find(colour => colour !== 'rgba(0, 0, 0, 0)') || border;
}"""


def clauses(sentence: str) -> Iterator[str]:
    """The clauses of a sentence, without what it is for ("To add a part:"); what is held belongs to what is done meanwhile."""
    rest = re.sub(r"^To [^:]*: ", "", sentence).removesuffix(".")
    for part in re.split(r",? and (?=press)|, ", rest):
        yield part.strip()
