"""The WSGI app of a service on fakes whose versions can be swapped, for tests that kill its process."""

from __future__ import annotations

from backend.service import build
from backend.serving.leases import Roster
from backend.settings import read_settings
from backend.web.app import create_app
from tests.backend_fakes import FakeImages
from tests.learning_fakes import FakeWorkshop

workshop = FakeWorkshop()
app = create_app(build(read_settings(), lambda _: Roster(workshop.base, workshop), FakeImages()))
