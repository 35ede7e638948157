"""The instructions are one text: what `make demo` prints, the guide and the label config's header."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from backend.demo.launch import _invitation
from backend.label_studio.click_help import CORRECTING
from backend.label_studio.config_template import make_config
from backend.label_studio.label_config import Label, read_label_config

ROOT = Path(__file__).parents[1]


def headers(xml: str) -> list[str]:
    return [tag.attrib["value"] for tag in ElementTree.fromstring(xml).iter("Header")]


def test_the_guide_has_them() -> None:
    text = (ROOT / "docs" / "first-retraining.md").read_text(encoding="utf-8")
    assert [line[2:] for line in text.splitlines() if line.startswith("- ")][: len(CORRECTING)] == list(CORRECTING)


@pytest.mark.parametrize("xml", [(ROOT / "label_config.xml").read_text(encoding="utf-8"), make_config([Label("Cup"), Label("Dog")])])
def test_the_configs_header_has_them(xml: str) -> None:
    assert headers(xml)[1:] == list(CORRECTING)
    assert read_label_config(xml).keypoint is not None


def test_the_demo_prints_them() -> None:
    demo = SimpleNamespace(url="u", backend_url="b", label_studio=SimpleNamespace(user="me", password="it"))
    lines = _invitation(demo).splitlines()  # type: ignore[arg-type]
    first = lines.index(CORRECTING[0])
    assert lines[first : first + len(CORRECTING)] == list(CORRECTING)
