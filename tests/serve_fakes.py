"""The WSGI app of a service on fakes, for tests that need a process."""

from __future__ import annotations

import os
import time
from typing import Any

from backend.service import build
from backend.serving.leases import Leases
from backend.settings import read_settings
from backend.web.app import create_app
from sam4mllm.pipeline import Pipeline
from tests.backend_fakes import KNOWN, FakeImages
from tests.fakes import FakeGrounder, FakeSegmenter


class SlowSegmenter(FakeSegmenter):
    """Takes its time over each image."""

    def encode(self, image: Any) -> Any:
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        return super().encode(image)


app = create_app(build(read_settings(), lambda _: Leases(Pipeline(FakeGrounder(KNOWN), SlowSegmenter(), slug="fake")), FakeImages()))
