"""Foreign text in lines of ours: it stays within its line, in the log, in errors, and on a console."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from backend.errors import LabelStudioError, TaskError
from backend.support.logs import JsonFormatter, TextFormatter
from sam4mllm.cli.main import main as command_line
from sam4mllm.errors import Sam4mllmError, first_line

FORGED = "2026-01-01 00:00:00,000 ERROR backend: the models are gone"
HOSTILE = {
    "line break": f"cup\n{FORGED}",
    "carriage return": f"cup\r{FORGED}",
    "escape sequence": "cup\x1b[2K\x1b[1A",
    "next line of C1": f"cup\x85{FORGED}",
    "line separator": f"cup\u2028{FORGED}",
    "paragraph separator": f"cup\u2029{FORGED}",
    "bidi override": "cup\u202epuc",
    "bidi isolate": "cup\u2066puc\u2069",
    "half a character": "cup\ud800",
}


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_foreign_text_stays_within_its_line_of_the_log(kind: str, text: str) -> None:
    formatter = TextFormatter() if kind == "text" else JsonFormatter()
    record = logging.LogRecord("backend", logging.WARNING, __file__, 1, "task 1: %s", (text,), None)
    line = formatter.format(record)
    assert len(line.splitlines()) == 1
    shown = json.loads(line)["message"] if kind == "json" else line
    assert shown.isprintable()
    assert "cup" in shown


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_an_errors_text_is_one_line_wherever_it_is_shown(text: str) -> None:
    for error in (Sam4mllmError(f"no {text}"), TaskError(f"no {text}"), LabelStudioError(f"no {text}", 500)):
        assert str(error).isprintable()
    assert first_line(ValueError(text)).isprintable()


def test_a_traceback_cannot_pass_for_a_line_of_the_log() -> None:
    try:
        raise ValueError(f"cup\n{FORGED}")
    except ValueError:
        record = logging.LogRecord("backend", logging.DEBUG, __file__, 1, "the traceback", (), sys.exc_info())
    first, *rest = TextFormatter().format(record).splitlines()
    assert first.endswith("DEBUG backend: the traceback")
    assert rest
    assert all(line.startswith("    | ") for line in rest)


def test_a_commands_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file's name is foreign text too."""
    monkeypatch.setattr(sys, "argv", ["sam4mllm", "predict", str(tmp_path / f"a\n{FORGED}\x1b[2K.png"), "the cup"])
    with pytest.raises(SystemExit):
        command_line()
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
