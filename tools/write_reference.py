"""Write docs/reference.md from the code: settings, routes and commands. ``tests/test_docs.py`` checks that the page is up to date.

python -m tools.write_reference
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from flask import Flask

from backend.service import build
from backend.serving.leases import Leases
from backend.settings import Settings
from backend.web.app import create_app
from backend.web.password_guard import OPEN_ENDPOINTS
from sam4mllm.cli.main import make_app

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
METHODS = ("GET", "POST", "DELETE")


def render() -> str:
    """Return the text of the page."""
    return "\n".join(
        [
            "# Reference",
            "",
            "Written by `python -m tools.write_reference` from the code; a test compares them.",
            "",
            "## Settings",
            "",
            "Environment variables of `serve`, `batch`, `export`, `connect` and `doctor`.",
            "",
            "| variable | default | |",
            "|---|---|---|",
            *settings(),
            "",
            "## Routes",
            "",
            "With `SAM4MLLM_AUTH_PASSWORD` set, all but those marked ask for it (HTTP Basic).",
            "What changes something takes `application/json`.",
            "",
            "| | route | |",
            "|---|---|---|",
            *routes(),
            "",
            "## Commands",
            "",
            "Each exits with 0, with 1 and one line that says what is wrong, or with 2 on wrong usage.",
            "",
            *described(typer.main.get_command(make_app()), "sam4mllm"),
        ]
    )


def settings() -> Iterator[str]:
    """A row for each setting."""
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"SAM4MLLM_{name.upper()}"
        shown = "" if field.default in (None, "", ()) or "Secret" in repr(field.default) else f"`{field.default}`"
        about = (field.description or "").replace("|", "\\|").replace("](docs/", "](")
        yield f"| `{variable}` | {shown} | {about} |"


def routes() -> Iterator[str]:
    """Yield a table row for each route and method, with the first line of its view's docstring."""
    with tempfile.TemporaryDirectory() as home:
        service = build(Settings(home=Path(home)), _no_models)
        flask = create_app(service)
        service.corrections.close()
    rules = [rule for rule in flask.url_map.iter_rules() if rule.endpoint != "static"]
    for rule in sorted(rules, key=lambda rule: rule.rule):
        for method in METHODS:
            if method in (rule.methods or ()):
                yield f"| `{method}` | `{rule.rule}` | {_about(flask, rule.endpoint)} |"


def _no_models(_: Settings) -> Leases:
    raise AssertionError("nothing is started here")


def _about(flask: Flask, endpoint: str) -> str:
    text = inspect.getdoc(flask.view_functions[endpoint]) or ""
    assert text, f"{endpoint} has no docstring"
    return text.splitlines()[0] + (" No password." if endpoint in OPEN_ENDPOINTS else "")


def described(command: Any, name: str) -> Iterator[str]:
    """Yield the lines for each command in ``command``, which may be a group: a heading, its help, and its options; ``name`` is its name."""
    if hasattr(command, "commands"):
        for sub, one in command.commands.items():
            yield from described(one, f"{name} {sub}")
        return
    places = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    yield f"### {name} {' '.join(parameter.metavar or parameter.name.upper() for parameter in places)}".rstrip()
    yield ""
    yield " ".join((command.help or "").split("\n\n")[0].split())
    yield ""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    if options:
        yield from ("| option | default | |", "|---|---|---|")
        yield from (_option(parameter) for parameter in options)
        yield ""


def _option(parameter: Any) -> str:
    default = "" if parameter.default is None or parameter.default is False or parameter.default == () else f"`{parameter.default}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    return f"| {names} | {default} | {(parameter.help or '').replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
