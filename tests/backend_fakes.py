"""A service without weights or network: fake models, and pictures that are made up by their name."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import SecretStr

from backend.errors import FetchError
from backend.images.store import LoadedImage
from backend.service import Service, build
from backend.serving.leases import Leases
from backend.settings import Settings
from backend.support.demo_project import note_demo
from benchmarks.waiting import wait_for
from sam4mllm.pipeline import Pipeline
from tests.fakes import FakeGrounder, FakeSegmenter, grounding

CONFIG = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/><TextArea name="answer" toName="image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="Cup"/><Label value="Dog"/></BrushLabels>'
    '<KeyPointLabels name="click" toName="image"><Label value="Cup"/><Label value="Dog"/></KeyPointLabels>'
    '<RectangleLabels name="box" toName="image"><Label value="Cup"/><Label value="Dog"/></RectangleLabels></View>'
)
PROJECT = 3
"""The one that counts as the demo's."""
KNOWN = {
    "the left cup": grounding("the left cup", [[10, 10, 30, 30]]),
    "all cups": grounding("all cups", [[10, 10, 30, 30], [60, 10, 80, 30]]),
    "the dog": grounding("the dog", [[40, 40, 60, 60]]),
    "Cup": grounding("Cup", [[10, 10, 30, 30]]),
}


@dataclass
class FakeImages:
    """``<width>x<height>`` anywhere in a reference is a picture of that size; anything with ``dead`` in it cannot be had."""

    loads: int = 0
    delay: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, reference: object, task_id: int | None, seconds: float = 60.0) -> LoadedImage:
        with self.lock:
            self.loads += 1
        time.sleep(max(0.0, min(self.delay, seconds)))
        if self.delay > seconds:
            raise FetchError("the image host took too long")
        size = re.search(r"(\d+)x(\d+)", str(reference))
        if size is None or "dead" in str(reference):
            raise FetchError("the image host does not answer")
        width, height = map(int, size.groups())
        return LoadedImage(np.zeros((height, width, 3), np.uint8), hashlib.sha256(str(reference).encode()).hexdigest())

    def read(self, reference: object, task_id: int | None) -> bytes:
        packed, notes = io.BytesIO(), PngInfo()
        notes.add_text("of", str(reference))  # no two have the same file
        Image.fromarray(self.load(reference, task_id).pixels).save(packed, "PNG", pnginfo=notes)
        return packed.getvalue()


@dataclass
class House:
    """A running service and what it is made of."""

    service: Service
    grounder: FakeGrounder
    segmenter: FakeSegmenter
    images: FakeImages


def settings(home: Path, **given: Any) -> Settings:
    secrets = {name: SecretStr(given.pop(name)) for name in ("auth_password", "webhook_secret") if name in given}
    return Settings(**{"home": home, "cache_mb": 8, **secrets, **given})


def house(home: Path, **given: Any) -> House:
    """A started service; its model is there when this returns."""
    note_demo(home, PROJECT)
    grounder, segmenter, images = FakeGrounder(KNOWN), FakeSegmenter(), FakeImages()
    service = build(settings(home, **given), lambda _: Leases(Pipeline(grounder, segmenter, slug="fake")), images)
    service.start()
    wait_for("the models", lambda: service.engine.state != "loading", 30, 0.002)
    return House(service, grounder, segmenter, images)


def task(number: int = 1, size: str = "100x80", **data: Any) -> dict[str, Any]:
    return {"id": number, "data": {"image": f"/data/upload/{number}-{size}.png", **data}}
