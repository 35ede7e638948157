"""The wheel, installed elsewhere and started from a folder that holds other people's ``backend`` and ``numpy``."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import httpx
import pytest

from backend.label_studio.config_template import DEMO_CONFIG
from tests.installed import POISON, Installed, add_package, hosting, install, serving

OWN = ("predict", "scenes", "data", "train", "adapters", "models", "evaluate", "ablate", "bench", "trial")
SERVER = ("serve", "demo", "doctor", "connect", "batch", "export")
COMMANDS = (*OWN, *SERVER)
ADAPTERS = ("list", "show", "add", "promote", "rollback", "export")
SUBCOMMANDS = ("data prepare", "data merge", "models convert", *(f"adapters {name}" for name in ADAPTERS))
CPU_SECONDS = 0.5
"""For help and wrong usage, at the pace of 1."""
TRIES = 3
HEAVY = ("numpy", "torch", "transformers", "PIL", "flask", "pydantic_settings", "httpx")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def pictures(installed: Installed) -> Path:
    """Two demo scenes, as a dataset."""
    folder = installed.folder / "scenes"
    done = installed.run(*installed.starts["python -m"], "scenes", folder, "--count", 2, "--seed", 880_011)
    assert done.code == 0, done.err
    return folder


def test_the_wheel_has_what_is_no_module(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    for name in (
        "backend/gunicorn.conf.py",
        "backend/web/pages/status.html",
        "backend/learning/pages/report.html",
        "sam4mllm/pages/style.css",
        "sam4mllm/py.typed",
        "sam4mllm/training/configs/paper.toml",
        "sam4mllm/demo/assets/mllm/model.safetensors",
        "sam4mllm/demo/assets/photos/brick.png",
    ):
        assert name in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"backend", "sam4mllm"}


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    code = "import backend, sam4mllm; print(sam4mllm.__file__, backend.__file__)"
    done = installed.run(installed.python, "-P", "-c", code)
    assert all(Path(path).is_relative_to(installed.python.parents[1]) for path in done.out.split()), done


@pytest.mark.parametrize("start", ["sam4mllm", "python -m"])
def test_both_ways_have_the_same_commands(installed: Installed, start: str) -> None:
    done = installed.run(*installed.starts[start], "--help")
    assert (done.code, done.err) == (0, "")
    assert sorted(re.findall(r"^  ([a-z]+) ", done.out.partition("Commands:")[2], re.MULTILINE)) == sorted(COMMANDS)
    assert re.fullmatch(r"sam4mllm \d+\.\d+\.\d+\n", installed.run(*installed.starts[start], "--version").out)


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_help_is_cheap(installed: Installed, command: str) -> None:
    done = installed.run(installed.python, "-X", "importtime", "-m", "sam4mllm", *command.split(), "--help")
    assert done.code == 0, done.err
    assert "--help" in done.out
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.err.splitlines()}
    assert imported.isdisjoint(HEAVY)
    assert done.cpu / max(1, installed.pace()) <= CPU_SECONDS
    assert installed.run(*installed.starts["sam4mllm"], *command.split(), "--help").code == 0


@pytest.mark.parametrize("arguments", [("--help",), ("predict", "a.png", "b", "--strategy", "magic"), ("serve", "--nonsense")], ids=str)
def test_help_and_wrong_usage_take_half_a_second(installed: Installed, arguments: tuple[str, ...]) -> None:
    times = []
    for _ in range(TRIES):
        done = installed.run(*installed.starts["python -m"], *arguments)
        assert done.code == (0 if arguments == ("--help",) else 2)
        times.append(done.cpu / max(1, installed.pace()))
    assert min(times) <= CPU_SECONDS


def test_the_users_own_path_counts_and_a_broken_package_is_one_line(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "broken_commands.py").write_text(POISON)
    add_package(tmp_path, "broken-commands", {"sam4mllm.commands": {"wave": "broken_commands:commands"}})
    for start in installed.starts.values():
        done = installed.run(*start, "bench", "--help", PYTHONPATH=str(tmp_path))
        assert (done.code, "Usage:" in done.out) == (0, True)
        assert done.err.count("\n") == 1
        assert done.err.startswith(
            "warning: the entry point sam4mllm.commands wave of the package broken-commands 1.2 cannot be imported (RuntimeError: "
        )


def test_the_demo_says_that_it_needs_label_studio(installed: Installed) -> None:
    for start in installed.starts.values():
        done = installed.run(*start, "demo", "demo-folder")
        assert done.code == 1
        assert done.err.startswith("error: Label Studio is not installed")
        assert done.err.count("\n") == 1


def test_predict(installed: Installed, pictures: Path) -> None:
    image = next((pictures / "images").iterdir())
    done = installed.run(*installed.starts["python -m"], "predict", image, "the cup", "--json", "--strategy", "box")
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["version"].startswith("demo-0-")


def test_a_server_answers(installed: Installed, pictures: Path) -> None:
    with hosting(pictures / "images") as host, serving(installed, "python -m", SAM4MLLM_ALLOW_HOSTS=host) as url:
        image = next((pictures / "images").iterdir()).name
        tasks = [{"id": 1, "data": {"image": f"{host}/{image}", "description": "the cup"}}]
        body = {"tasks": tasks, "project": "1.1", "label_config": DEMO_CONFIG}
        [answer] = httpx.post(f"{url}/predict", json=body, timeout=120, trust_env=False).raise_for_status().json()["results"]
        assert answer["model_version"].startswith("demo-0-")
        assert "<title>" in httpx.get(url, trust_env=False).text
