"""How the two packages are laid out: one name means one thing, and files and functions are short enough to be read at once."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("sam4mllm", "backend")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_MODULES_IN_THE_HALL = 10
"""Directly in ``backend/``: all others have a room."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module by its path from the root."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100, "the packages are not where they are looked for"
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def defined_by(module: ast.Module) -> Iterator[str]:
    """The names of a module's public classes, nested ones too."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_no_two_public_classes_share_a_name() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path, module in modules().items():
        for name in defined_by(module):
            places[name].append(path)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_file_is_long() -> None:
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_long() -> None:
    lengths = {
        f"{path}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


def test_the_hall_holds_few_modules() -> None:
    names = {path.name for path in (ROOT / "backend").glob("*.py")} - {"__init__.py"}
    assert len(names) <= MOST_MODULES_IN_THE_HALL, sorted(names)


def test_no_group_of_a_pattern_is_possessive() -> None:
    """Python 3.11.2, which is Debian 12's, matches such groups wrongly (gh-106052), and the model's answers could not be read."""
    possessive = re.compile(r"\)(?:[?*+]|\{+[0-9,]+\}+)\+")
    assert [path for path in modules() if possessive.search((ROOT / path).read_text(encoding="utf-8"))] == []
