"""Label Studio's editor in headless Chromium, driven as an annotator drives it. Nothing but 127.0.0.1 is let through.

Places on the image are given in percent of its width and height, as in Label Studio's own regions, and are right at any zoom.
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Request, Route, sync_playwright

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHOTS = Path(__file__).parents[2] / "out" / "e2e"
"""Where screenshots are left, to be looked at."""
WIDTHS = (1280, 390)
"""Of a page in pixels: a desk's and a phone's."""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
"""By how many pixels a page is wider than its window."""
VIEWPORT = {"width": 1600, "height": 1400}
TIMEOUT = 120_000
"""Milliseconds for whatever the editor or the backend does: a model on a busy machine takes its time."""

_SELECTED = "Htx.annotationStore.selected"
_PREDICTIONS = "Htx.annotationStore.predictions"
_REGIONS = f"JSON.parse(JSON.stringify({_SELECTED}.serializeAnnotation()))"
_SUGGESTED = f"[...{_SELECTED}.suggestions.values()].flatMap(one => one.results)"
_SUGGESTIONS = f"JSON.parse(JSON.stringify({_SUGGESTED}.map(one => one.serialize())))"
_IMAGE = f"[...{_SELECTED}.names.values()].find(one => one.type === 'image')"
_LABELS = f"[...{_SELECTED}.names.values()].filter(one => one.type.endsWith('labels')).map(one => one.name)"
# where the image's corner lies on the canvas and how large it is drawn there, in CSS pixels
_FRAME = f"(image => [image.zoomingPositionX, image.zoomingPositionY, image.stageWidth * image.zoomScale, \
image.stageHeight * image.zoomScale])({_IMAGE})"
_DRAWN = f"""([left, top, width, height]) => {{
    const image = {_IMAGE};
    const flat = document.createElement('canvas');
    [flat.width, flat.height] = [image.naturalWidth, image.naturalHeight];
    const context = flat.getContext('2d');
    context.scale(flat.width / width, flat.height / height);
    context.translate(-left, -top);
    for (const layer of image.stageRef.getLayers().filter(one => one.findOne('.segmentation'))) {{
        const canvas = layer.getCanvas()._canvas;
        context.drawImage(canvas, 0, 0, canvas.clientWidth, canvas.clientHeight);
    }}
    return flat.toDataURL('image/png');
}}"""


def find_chromium() -> str | None:
    """The installed Chromium, None if there is none; Playwright's own is never downloaded."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _asks_something(request: Request) -> bool:
    """Whether it is an interactive request with a phrase or a click: at times the editor sends one with neither, too."""
    return "/interactive-annotating" in request.url and bool((request.post_data_json or {})["context"]["result"])


class Editor:
    """One browser page with a logged-in annotator.

    ``blocked`` are the addresses outside loopback that the page asked for, ``asked`` the bodies of its interactive requests.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.blocked: list[str] = []
        self.asked: list[dict[str, Any]] = []
        page.set_default_timeout(TIMEOUT)
        page.route("**/*", self._guard)
        page.on("request", self._record)

    @classmethod
    @contextlib.contextmanager
    def launch(cls, url: str) -> Iterator[Self]:
        """A new browser on the Label Studio at ``url``; it ends with the block."""
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
            try:
                yield cls(browser.new_page(viewport=VIEWPORT), url)  # type: ignore[arg-type]
            finally:
                browser.close()

    def log_in(self, user: str, password: str) -> None:
        """Fill in the login page."""
        self.page.goto(f"{self.url}/user/login/")
        self.page.fill("input[name=email]", user)
        self.page.fill("input[name=password]", password)
        self.page.press("input[name=password]", "Enter")
        self.page.wait_for_url(lambda address: "/user/login" not in address)

    def open_task(self, project: int, task: int, regions: int = 0) -> None:
        """Open a task in the data manager; wait for its image, and until at least so many regions are drawn.

        The list is opened first: a task's link alone, opened before any other page of a project, at times shows no pre-annotation. The
        editor shows the list's task until the task itself comes, predicted meanwhile; what was typed before is gone then.
        """
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.page.wait_for_load_state("networkidle")
        with self.page.expect_response(lambda answer: urlsplit(answer.url).path == f"/api/tasks/{task}") as got:
            self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        served = len(got.value.json()["predictions"])
        self.page.wait_for_function(f"window.Htx && {_SELECTED} && {_IMAGE}?.naturalWidth > 1")
        self.page.wait_for_function(f"served => {_PREDICTIONS}.length === served", arg=served)
        self.page.wait_for_selector(".konvajs-content canvas")
        self.wait_for_regions(regions)

    def wait_for_regions(self, count: int) -> None:
        """Wait until the region list shows at least so many."""
        self.page.wait_for_function("count => document.querySelectorAll('.lsf-outliner-item').length >= count", arg=count)
        # the masks are decoded and painted a moment after they are listed
        self.page.wait_for_timeout(500)

    def regions(self) -> list[dict[str, Any]]:
        """What would be submitted now: Label Studio's results, pending suggestions left out."""
        return list(self.page.evaluate(_REGIONS))

    def suggestions(self) -> list[dict[str, Any]]:
        """The suggestions that wait for acceptance, as results."""
        return list(self.page.evaluate(_SUGGESTIONS))

    def region_list(self) -> list[str]:
        """The lines of the region list, as they are read on the screen."""
        return self.page.locator(".lsf-outliner-item").all_inner_texts()

    def details(self) -> str:
        """Select the first region; what the panel says of it, as it is read on the screen."""
        self.page.locator(".lsf-outliner-item").first.click()
        panel = self.page.locator(".lsf-detailed-region")
        panel.wait_for()
        return panel.inner_text()

    def drawn(self) -> NDArray[np.uint8]:
        """The masks as painted over the image, suggestions too: (H, W, 4) uint8 RGBA at the image's own size, alpha 0 outside of masks.

        What is zoomed out of sight counts as not painted.
        """
        address = self.page.evaluate(_DRAWN, self._frame())
        with Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))) as picture:
            return np.asarray(picture.convert("RGBA"))

    def auto_annotate(self, on: bool = True) -> None:
        """The switch Auto-Annotation."""
        switch = self.page.get_by_test_id("bottombar-auto-annotation-toggle")
        switch.wait_for(state="attached")
        for _ in range(20):  # a page that still settles takes a click and forgets it
            if switch.is_checked() == on:
                return
            switch.click(force=True)
            self.page.wait_for_timeout(500)
        raise AssertionError("the switch Auto-Annotation does not move")

    def prompt(self, text: str, control: str = "prompt") -> dict[str, Any]:
        """Type a phrase into a TextArea and add it, in place of the one given before, if any; returns the server's answer.

        The phrase must be another one than before: the editor asks nothing when nothing changes.
        """
        field = self.page.locator(f"[data-testid=textarea-input][name={control}]")
        if not field.count():
            given = self.page.get_by_test_id("textarea-region").filter(has=self.page.locator(f"[name^='{control}:']"))
            given.get_by_test_id("htx-textbox-edit-button").click()
            field = self.page.get_by_test_id("htx-textbox-input")
        field.fill(text)
        return self._answer_to(lambda: field.press("Enter"))

    def texts(self) -> list[str]:
        """The texts under the image, as they are read on the screen."""
        return self.page.get_by_test_id("htx-textbox-content").all_inner_texts()

    def choose(self, control: str) -> None:
        """Select the first label of a control, by the control's name."""
        index = self.page.evaluate(_LABELS).index(control)
        label = self.page.locator(".lsf-labels").nth(index).locator(".lsf-label").first
        if "lsf-label_selected" not in (label.get_attribute("class") or ""):
            label.click()

    def click(self, x: float, y: float, positive: bool = True, control: str = "click") -> dict[str, Any]:
        """Click with the smart keypoint tool, with Alt held for a negative point; returns the server's answer."""
        self._take_tool(control, "key-point-tool", y)
        at_x, at_y = self._on_screen(x, y)

        def press() -> None:
            if not positive:
                self.page.keyboard.down("Alt")
            self.page.mouse.click(at_x, at_y)
            self.page.keyboard.up("Alt")

        return self._answer_to(press)

    def box(self, x: float, y: float, width: float, height: float, control: str = "box") -> dict[str, Any]:
        """Draw a rectangle with the smart tool; returns the server's answer."""
        self._take_tool(control, "rectangle-tool", y + height / 2)
        start, end = self._on_screen(x, y), self._on_screen(x + width, y + height)

        def drag() -> None:
            self.page.mouse.move(*start)
            self.page.mouse.down()
            self.page.mouse.move(*end, steps=8)
            self.page.mouse.up()

        return self._answer_to(drag)

    def pointed(self, action: Callable[[Callable[[float, float], tuple[float, float]]], None], held: Sequence[str] = ()) -> dict[str, Any]:
        """Do something with the mouse on the picture, with keys held; returns the server's answer. The action is given a function from
        places in percent to places on the screen.
        """
        self.page.locator(".konvajs-content").first.evaluate("canvas => canvas.scrollIntoView({block: 'center'})")
        self.page.mouse.move(*self._on_screen(50, 50))  # the toolbar's menu lies on the picture until the pointer has left it
        self.page.wait_for_timeout(500)

        def act() -> None:
            for key in held:
                self.page.keyboard.down(key)
            action(self._on_screen)
            for key in held:
                self.page.keyboard.up(key)

        return self._answer_to(act)

    def accept(self) -> None:
        """Accept all suggestions."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()
        self.page.wait_for_function(f"{_SELECTED}.suggestions.size === 0")

    def reject(self) -> None:
        """Reject all suggestions."""
        self.page.get_by_test_id("bottombar-reject-suggestions-button").click()
        self.page.wait_for_function(f"{_SELECTED}.suggestions.size === 0")

    def submit(self) -> dict[str, Any]:
        """Submit a new annotation, or update one; returns it as the server stored it."""
        button = self.page.locator("[data-testid=bottombar-submit-button], [data-testid=bottombar-update-button]").first
        with self.page.expect_response(lambda answer: "/annotations" in answer.url and answer.request.method in {"POST", "PATCH"}) as got:
            button.click()
        return dict(got.value.json())

    def screenshot(self, path: Path) -> None:
        """The whole window as PNG."""
        self.page.screenshot(path=path)

    def _answer_to(self, action: Callable[[], object]) -> dict[str, Any]:
        with self.page.expect_response(lambda answer: _asks_something(answer.request)) as got:
            action()
        answer = dict(got.value.json())
        self.page.wait_for_timeout(700)
        return answer

    def _take_tool(self, control: str, tool: str, y: float) -> None:
        """Label first, then the tool of Auto-Detect: without a label nothing is drawn, and drawing unselects it. ``y`` is scrolled to."""
        self.choose(control)
        self.page.locator(".lsf-toolbar__group > .lsf-tool_smart").hover()
        self.page.locator(f".lsf-toolbar__smart [aria-label={tool}]").click()
        self.page.locator(".konvajs-content").first.evaluate(
            "(canvas, block) => canvas.scrollIntoView({block})", "start" if y < 50 else "end"
        )
        self.page.wait_for_timeout(200)

    def _frame(self) -> list[float]:
        return [float(value) for value in self.page.evaluate(_FRAME)]

    def _on_screen(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self._frame()
        box = self.page.locator(".konvajs-content").first.bounding_box()
        assert box is not None
        return box["x"] + left + x / 100 * width, box["y"] + top + y / 100 * height

    def _guard(self, route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in {"data", "blob"} or address.hostname == "127.0.0.1":
            route.continue_()
            return
        self.blocked.append(route.request.url)
        route.abort()

    def _record(self, request: Request) -> None:
        if "/interactive-annotating" in request.url:
            self.asked.append(request.post_data_json or {})
