"""The WSGI app of a service on fakes whose versions can be swapped, for tests that kill its process."""

from __future__ import annotations

from backend.service import build
from backend.serving.leases import Leases
from backend.settings import read_settings
from backend.web.app import create_app
from tests.backend_fakes import FakeImages
from tests.learning_fakes import FakeLoader

loader = FakeLoader()
app = create_app(build(read_settings(), lambda _: Leases(loader.base, loader), FakeImages()))
