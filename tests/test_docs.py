"""README and model card against the tree: links lead somewhere, commands and options exist, nothing is left to fill in."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from backend.corrections.log import CorrectionLog
from backend.settings import Settings
from sam4mllm.cli.main import make_app
from tools.write_reference import PAGE, render

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "sam4mllm" / "demo" / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert re.findall(r"^[A-Z]{4,}$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_every_command_of_the_readme_exists_with_its_options() -> None:
    commands = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^\.venv/bin/sam4mllm (\S+)(.*)$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for name, rest in lines:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_reference_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "write it anew: python -m tools.write_reference"


def test_the_settings_that_connect_md_shows_are_read(tmp_path: Path) -> None:
    shown, _ = re.findall(r"^```ini\n(.*?)^```", (ROOT / "docs" / "connect.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "my.env").write_text(shown, encoding="utf-8")
    code = "from backend.settings import read_settings; print(read_settings().model_dump_json())"
    done = subprocess.run(
        ["bash", "-euc", 'set -a; . ./my.env; set +a; exec "$0" -c "$1"', sys.executable, code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(done.stdout)
    assert [read[name] for name in ("segmenter", "plan", "host", "url", "label_studio_url")] == [
        "vit_h:/home/me/sam_vit_h_4b8939.pth",
        "auto",
        "0.0.0.0",
        "http://192.168.1.20:9090",
        "http://localhost:8080",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = {f"SAM4MLLM_{name.upper()}" for name in Settings.model_fields} | {
        f"SAM4MLLM_{name}" for name in ("LABEL_STUDIO", "ADDRESS", "NAME")
    }
    assert set(re.findall(r"\bSAM4MLLM_[A-Z_]+[A-Z]\b", page.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_routes_that_a_page_names_exist(page: Path) -> None:
    known = set(re.findall(r"^\| `[A-Z]+` \| `([^`]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"`(?:GET|POST|DELETE) (/[^`]*)`", page.read_text(encoding="utf-8"))
    assert set(named) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_shell_blocks_where_the_guides_test_finds_them(page: Path) -> None:
    rest = re.sub(r"^```sh\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    program = r"(?:\.venv/bin/)?(?:sam4mllm|pip|accelerate|python3?|make|docker|curl|export) "
    fenced = "".join(re.findall(r"^```.*?^```$", rest, re.MULTILINE | re.DOTALL))
    assert re.findall(rf"^ {{4,}}{program}.*", rest, re.MULTILINE) + re.findall(rf"^{program}.*", fenced, re.MULTILINE) == []


KILLED = """
import os, pathlib, sys
from backend.corrections.log import CorrectionLog
log = CorrectionLog(pathlib.Path(sys.argv[1]))
for number in range(300):
    log.store({"action": "LATER", "number": number, "padding": "x" * 900})
os.kill(os.getpid(), 9)
"""


def test_a_back_up_is_restored_after_a_kill(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "upgrade.md").read_text(encoding="utf-8")
    back_up, restore = (
        re.findall(rf"^## {title}$.*?^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for title in ("Back up", "Restore")
    )
    home = tmp_path / ".local" / "share" / "sam4mllm"
    (home / "adapters").mkdir(parents=True)
    (home / "adapters" / "champion").write_text("former")
    log = CorrectionLog(home / "corrections.sqlite")
    for _ in range(3):
        log.store({"action": "EARLIER"})
    run(back_up[0], tmp_path)  # while the log is open
    log.close()
    copy = tmp_path / "backup" / "corrections.sqlite"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    subprocess.run([sys.executable, "-c", KILLED, str(home / "corrections.sqlite")], cwd=ROOT, check=False, timeout=60)
    assert (home / "corrections.sqlite-wal").stat().st_size
    (home / "adapters" / "champion").write_text("later")
    run(restore[0], tmp_path)
    log = CorrectionLog(home / "corrections.sqlite")
    assert [event.action for event in log.events()] == ["EARLIER"] * 3
    log.close()
    assert (home / "adapters" / "champion").read_text() == "former"


def run(block: str, folder: Path) -> None:
    """A guide's shell block with ``folder`` as the user's home and root."""
    script = re.sub(r"(?<=\s)/backup\b", f"{folder}/backup", block)
    subprocess.run(["bash", "-euc", script], env=os.environ | {"HOME": str(folder)}, check=True, timeout=60)
