"""``sam4mllm doctor`` says what is wrong with a set-up, ``sam4mllm connect`` joins a project to it: their options, and what they print."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from backend.cli.server_extra import check_server_extra
from sam4mllm.cli.options import JsonOption
from sam4mllm.errors import RegistryError
from sam4mllm.plain_text import one_line

commands = typer.Typer()
UrlOption = Annotated[
    str | None,
    typer.Option("--url", "--backend-url", help="This server as Label Studio reaches it; SAM4MLLM_URL."),
]


@commands.command(epilog="Example: LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… sam4mllm doctor 1")
def doctor(
    project: Annotated[int | None, typer.Argument(min=1, help="A project's number, as in its page's address.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with this set-up and what to do: one line a finding, and exit status 1 if there is any. How the server answers
    and what its scores mean comes on standard error.

    It reads the settings that the server runs with, so run it where the server runs. It changes nothing.
    """
    check_server_extra()
    from backend.cli.adapter_option import follow_adapter
    from backend.settings import read_settings

    with suppress(RegistryError):  # the doctor reports this error as a finding
        follow_adapter(read_settings().home)
    settings = read_settings()
    from rich.console import Console

    errors = Console(stderr=True)
    with errors.status("looking") as status:
        from backend.setup.doctor import examine  # takes seconds to import

        report = examine(settings, project, url, lambda what: status.update(f"looking at {what}"))
    if as_json:
        found = [asdict(finding) for finding in report.findings]
        told = {"checks": list(dict.fromkeys(report.checks)), "findings": found, "notes": report.notes, "next": report.next}
        print(json.dumps({"ok": not found, **told}))
    elif report.findings:
        for finding in report.findings:
            print(one_line(finding.line))
    else:
        rest = "" if project is not None else "; give a project's number to look at its config, backend, webhook and pictures too"
        print(f"all is well: {', '.join(dict.fromkeys(report.checks))}{rest}")
    if not as_json:
        for note in (*report.notes, report.next):
            print(one_line(note), file=sys.stderr)
    if report.findings:
        sys.exit(1)


@commands.command(epilog="Example: sam4mllm connect 1 --url http://sam4mllm.internal:9090 --config default")
def connect(
    project: Annotated[int, typer.Argument(min=1, help="The project's number, as in its page's address.")],
    url: UrlOption = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Set a label config: a file, or default for one with the project's labels.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Set it although the project has annotations.")] = False,
    parameters: Annotated[
        str | None,
        typer.Option("--parameters", help="Set how this project is asked: JSON or its file, as in docs/connect.md; '{}' for nothing."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make or update a project's backend and webhook in Label Studio, with password, secret and events. Run it where the server runs."""
    check_server_extra()
    import httpx

    from backend.label_studio.backend_entry import server_url
    from backend.label_studio.client import LabelStudio
    from backend.settings import read_settings
    from backend.setup.connect import UnfitConfigError
    from backend.setup.connect import connect as join
    from backend.setup.machine_checks import SERVER_SECONDS, ask_server, require_token
    from backend.setup.next_step import after_connect

    settings = read_settings()
    require_token(settings, time.time())
    address = server_url(settings, url)
    text = config if config == "default" else _read("--config", config)
    told = parameters if parameters is None or parameters.lstrip().startswith("{") else _read("--parameters", parameters)
    with httpx.Client(timeout=SERVER_SECONDS, trust_env=False) as client:
        server = ask_server(settings, client)
    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
    try:
        steps = join(label_studio, server.known(settings), project, address, server.versions, text, force, told)
    except UnfitConfigError as error:
        if not as_json:
            print(error.offered)
        raise
    finally:
        label_studio.close()
    if as_json:
        changed = any(step.changed for step in steps)
        print(json.dumps({"changed": changed, "steps": [asdict(step) for step in steps], "next": after_connect(project)}))
        return
    for step in steps:
        print(one_line(step.line))
    print(after_connect(project))


def _read(option: str, given: str | None) -> str | None:
    """Return the text of the file that an option names, None if the option is not given. Raises SettingsError if it is no readable text."""
    from backend.errors import SettingsError

    if given is None:
        return None
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        kind = "a label config's file, or default" if option == "--config" else "JSON, or a file of it"
        raise SettingsError(f"{option} {given} cannot be read as a text file; give {kind}") from error
