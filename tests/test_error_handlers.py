"""Which HTTP status an error of the project has."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from backend.corrections.log_faults import LogError
from backend.errors import DeadlineError, NotReadyError, QueueFullError, SettingsError, StrangerError
from backend.web.error_handlers import status_of
from sam4mllm.errors import PhraseError, Sam4mllmError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(QueueFullError("full"), HTTPStatus.SERVICE_UNAVAILABLE, id="queue full"),
        pytest.param(NotReadyError("loading"), HTTPStatus.SERVICE_UNAVAILABLE, id="models loading"),
        pytest.param(DeadlineError("late"), HTTPStatus.SERVICE_UNAVAILABLE, id="deadline passed"),
        pytest.param(LogError("locked", "busy"), HTTPStatus.SERVICE_UNAVAILABLE, id="log busy"),
        pytest.param(LogError("no room", "full"), HTTPStatus.INSUFFICIENT_STORAGE, id="disk full"),
        pytest.param(StrangerError("no"), HTTPStatus.FORBIDDEN, id="stranger"),
        pytest.param(PhraseError("empty"), HTTPStatus.BAD_REQUEST, id="phrase"),
        pytest.param(SettingsError("wrong"), HTTPStatus.BAD_REQUEST, id="settings"),
    ],
)
def test_what_may_be_asked_again_later_is_503(error: Sam4mllmError, status: HTTPStatus) -> None:
    assert status_of(error) == status
