"""Commands and readers of other packages, the server's extra, and what ``import sam4mllm`` gives and costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sam4mllm
from backend.cli import label_studio_reader, serve, server_extra
from sam4mllm.cli import main as cli
from sam4mllm.cli.plugins import find_reader
from sam4mllm.errors import DatasetError, ExtensionError, Sam4mllmError
from tests.installed import add_package

ROOT = Path(__file__).parents[1]
GREETING = """
import typer
from sam4mllm.errors import DatasetError
commands = typer.Typer()
group = typer.Typer(name="greetings")

@commands.command()
def greet() -> None:
    print("hello")

@group.command()
def leave() -> None:
    print("goodbye")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages count as installed."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.make_app(), arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_another_packages_commands_and_groups_stand_beside_our_own(place: Path) -> None:
    (place / "polite.py").write_text(GREETING)
    add_package(place, "polite", {"sam4mllm.commands": {"one": "polite:commands", "two": "polite:group"}})
    assert "hello" in run("greet")
    assert "goodbye" in run("greetings", "leave")
    assert "predict" in run("--help")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        pytest.param("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'", id="import"),
        pytest.param("def", "SyntaxError", id="syntax"),
        pytest.param("commands = 3", "is no typer.Typer", id="another thing"),
        pytest.param("", "AttributeError", id="nothing"),
        pytest.param("raise RuntimeError('two\\nlines')", "RuntimeError: two", id="two lines"),
    ],
)
def test_a_broken_package_is_one_line_with_its_name(
    module: str, said: str, place: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    name = f"broken_{request.node.callspec.id.replace(' ', '_')}"
    (place / f"{name}.py").write_text(module)
    add_package(place, name, {"sam4mllm.commands": {"wave": f"{name}:commands"}})
    assert "predict" in run("--help")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"sam4mllm.commands wave of the package {name} 1.2" in line
    assert said in line
    assert f"the package {name} 1.2" in line


def test_a_reader_is_found_by_its_data_sets_name(place: Path) -> None:
    (place / "shelves.py").write_text("from sam4mllm.data.readers import Reader\ndef reader():\n    return Reader(len)\n")
    add_package(place, "shelves", {"sam4mllm.readers": {"books": "shelves:reader", "maps": "shelves:nowhere"}})
    assert find_reader("books").read is len
    with pytest.raises(ExtensionError, match=r"sam4mllm\.readers maps of the package shelves 1\.2 cannot be imported"):
        find_reader("maps")
    with pytest.raises(DatasetError, match=r"label-studio comes with sam4mllm\[server\]"):
        find_reader("a set that nobody reads")


def test_without_the_extra_a_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flask", None)
    for call in (serve.serve, label_studio_reader.label_studio_reader):
        with pytest.raises(Sam4mllmError, match=r"^this command needs flask; install .*pip install 'sam4mllm\[server\]'$"):
            call()


def test_the_extra_is_what_the_commands_ask_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {need.split(">=")[0].replace("-", "_") for need in extras["server"]} == set(server_extra.MODULES)
    assert "server" in extras["dev"][0]


def test_the_version_is_the_packages() -> None:
    assert run("--version") == f"sam4mllm {sam4mllm.__version__}\n"


def test_every_public_name_is_there() -> None:
    assert {name for name in sam4mllm.__all__ if getattr(sam4mllm, name, None) is None} == set()
    assert set(sam4mllm.__all__) <= set(dir(sam4mllm))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sam4mllm.nonsense


def test_options_and_errors_need_no_model() -> None:
    code = "import sys, sam4mllm; sam4mllm.Options(); sam4mllm.Sam4mllmError; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "torch", "transformers"}.isdisjoint(modules)


@pytest.mark.parametrize(
    ("module", "without"),
    [
        pytest.param("backend.setup.machine_checks", {"torch", "transformers"}, id="doctor and connect"),
        pytest.param("sam4mllm.adapters.registry", {"torch", "transformers"}, id="adapters"),
        pytest.param("tests.fake_trainer", {"torch", "transformers"}, id="a training process of the tests"),
        pytest.param("backend.service", {"peft", "matplotlib"}, id="the server before its models"),
    ],
)
def test_a_process_loads_what_it_needs(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert without.isdisjoint(modules)
