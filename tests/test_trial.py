"""``sam4mllm trial`` on fakes: what it prints and writes, from a dataset and from an export, and how it fails."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sam4mllm.cli import main as cli
from sam4mllm.trial import run as trial_run
from sam4mllm.trial import worker
from tests.public_sets import picture
from tests.test_cli import fail
from tests.test_exports import annotation, region, task
from tests.trial_doubles import load_fake, write_cups

CANDIDATES = '[box]\nstrategy = "box"\n[points]\nstrategy = "pqpp"\n[huge]\nmodel = "refused"\n'


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need no process of their own."""

    class Here(trial_run.TrialProcess):
        def __init__(self, job: worker.Job, command: Sequence[str], log: Path) -> None:
            self._job, self._said = job, ""

        def __exit__(self, *_: object) -> None:
            pass

        def pictures(self) -> Any:
            try:
                yield from worker.work(self._job, load_fake)
            except Exception as error:
                self._said = worker.describe(error)

        def failure(self) -> str:
            return self._said

    monkeypatch.setattr(trial_run, "TrialProcess", Here)


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.toml"
    path.write_text(CANDIDATES)
    return path


def run(*arguments: object) -> tuple[str, str]:
    result = CliRunner().invoke(cli.make_app(), ["trial", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_it_prints_a_table_and_ends_with_a_sentence(candidates: Path, tmp_path: Path) -> None:
    data, _ = write_cups(tmp_path / "data", 9)
    printed, errors = run(data, "--candidates", candidates, "--out", tmp_path / "out")
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:3]] in (["box", "points"], ["points", "box"])
    assert "18 phrases on 9 pictures" in printed
    assert re.fullmatch(r"\w+ is not told apart from \w+ \(.*\).*; 9 pictures are few, label 20 to 50", lines[-1])
    assert [line for line in errors.splitlines() if line.startswith("warning:")] == [
        "warning: huge: refused needs 140.0 GB for weights alone, and cpu has 8.0 GB free; set quantize"
    ]
    record = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert [one["name"] for one in record["candidates"]] == [line.split()[0] for line in lines[1:3]]
    assert set(record["failed"]) == {"huge"}
    assert len(record["by_phrase"]) == 18
    assert record["sentence"] == lines[-1]


def test_json_is_what_is_written(candidates: Path, tmp_path: Path) -> None:
    data, _ = write_cups(tmp_path / "data")
    printed, _ = run(data, "--candidates", candidates, "--out", tmp_path / "out", "--limit", 2, "--json")
    record = json.loads(printed)
    assert record == json.loads((tmp_path / "out" / "trial.json").read_text())
    assert record["pictures"] == 2


def test_an_export_is_read_and_goes_on_with_what_is_known(candidates: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    picture(export / "images" / "ab12-cup.png")
    tasks = [task(annotation(region()), description="the cup"), task(annotation(number=2), number=2, description="the dog")]
    (export / "export.json").write_text(json.dumps(tasks))
    for _ in range(2):
        _, errors = run(export / "export.json", "--candidates", candidates, "--out", tmp_path / "out")
        assert "warning: 1 left out: it has no mask" in errors
        assert len((tmp_path / "out" / worker.JOURNAL).read_text().splitlines()) == 2


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_whatever_a_phrase_says(candidates: Path, tmp_path: Path) -> None:
    data, _ = write_cups(tmp_path / "data")
    hostile = "<script>alert(1)</script>{{ 7 * 7 }}"
    lines = (data / "examples.jsonl").read_text().replace('"the dog"', json.dumps(hostile))
    (data / "examples.jsonl").write_text(lines)
    run(data, "--candidates", candidates, "--out", tmp_path / "out")
    page = Page()
    page.feed((tmp_path / "out" / "report.html").read_text())
    assert hostile in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    pictures = [found["src"] or "" for tag, found in page.tags if tag == "img"]
    assert len(pictures) == 4 * (2 + 2)  # four by chance, with picture, truth and two candidates; none is disputed
    assert all(address.startswith("data:image/jpeg;base64,") for address in pictures)
    assert not [found for tag, found in page.tags if tag in {"link", "iframe"} or "href" in found]
    assert "refused needs 140.0 GB" in page.text


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        pytest.param(lambda folder: (folder / "candidates.toml").write_text("[a]\nmodle = 1"), "a has the unknown key modle", id="a key"),
        pytest.param(
            lambda folder: (folder / "candidates.toml").write_text('[a]\nmodel = "refused"'), "no candidate could be tried", id="none"
        ),
        pytest.param(lambda folder: shutil.rmtree(folder / "data"), "data", id="no dataset"),
        pytest.param(lambda folder: (folder / "out").write_text(""), "cannot be made", id="no folder"),
    ],
)
def test_what_cannot_be_tried_is_one_line(
    prepare: Any, said: str, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cups(tmp_path / "data")
    prepare(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["sam4mllm", "trial", str(tmp_path / "data"), "--candidates", str(candidates), "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "Traceback"))]
    assert len(last) == 1
    assert said in last[0]


def test_ctrl_c_is_told_in_a_line(
    candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_cups(tmp_path / "data")
    monkeypatch.setattr(trial_run, "try_all", interrupt)
    line = fail(capsys, monkeypatch, "trial", tmp_path / "data", "--candidates", candidates, "--out", tmp_path / "out")
    assert "stopped; what is done is kept" in line
