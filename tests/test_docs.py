"""README and model card against the tree: links lead somewhere, commands and options exist, nothing is left to fill in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from backend.cli import app
from backend.settings import Settings
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
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
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
