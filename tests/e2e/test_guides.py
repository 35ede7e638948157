"""Every command of the README and the guides is run: here, as it stands there, or by what is named beside it.

A page's commands run in their order. What a reader would fill in, or has, is filled in: a folder for FOLDER, a picture for kitchen.jpg,
small data sets laid out as the published ones. Counts are made small; nothing else is changed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from backend.demo.launch import READY_TIMEOUT, is_ready
from backend.demo.local_label_studio import LocalLabelStudio
from backend.label_studio.config_template import DEMO_CONFIG
from backend.service import build
from backend.settings import Settings
from backend.support.child import HOST, Child, check_port
from benchmarks.random_adapter import write_random_adapter
from benchmarks.waiting import wait_for
from sam4mllm.adapters.registry import Registry
from sam4mllm.data.pairs import write_pairs
from sam4mllm.data.readers import READERS
from sam4mllm.demo.dataset import write_scenes
from tests.e2e.conftest import serving
from tests.e2e.test_backend import save, scene
from tests.e2e.test_commands import COMMAND
from tests.family_models import KINDS, make_family
from tests.public_sets import picture, refer_root, reference
from tests.test_exports import annotation, region, task
from tests.tiny_segmenters import make_segmenter

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECONDS = 240

ELSEWHERE = {
    r"make (install|check|e2e|test)": ".ci/run: make install",
    r"pip install 'sam4mllm\[[\w,]+\]'": "pyproject.toml: sam4mllm[efficientvit,parquet,quant,ray,segmenters,server,track]",
    r"pip install --editable my-package": 'tests/e2e/test_extensions.py: "install", *offline',
    r"make (demo|bench)": "by hand on a clean clone",
    r"export LABEL_STUDIO_URL=.*": "the environment of this test",
    r"set -a; \. \./my\.env; set \+a": "tests/test_docs.py: test_the_settings_that_connect_md_shows_are_read",
    r"sam4mllm serve": 'tests/e2e/test_none.py: [COMMAND, "serve", ',
    r"sam4mllm serve --model FOLDER .*": "tests/e2e/test_guides.py: test_the_server_of_the_readme_starts",
    r"sam4mllm serve --adapter ADAPTER": 'tests/e2e/test_story.py: "serve", "--adapter"',
    r"SAM4MLLM_MODEL=\S+ SAM4MLLM_ENGINE=\S+ sam4mllm serve": "benchmarks/engine.py: load_vllm_variants(URL, home, ",
    r"sam4mllm models convert .*": 'tests/test_conversion.py: run("models", "convert", old, new)',
    r"sam4mllm data prepare reasonseg .*": 'tests/test_readers_reasonseg.py: READERS["reasonseg"].read',
    r"sam4mllm evaluate /data/prepared .*": "not run, for ReasonSeg's pictures were not at hand (docs/open-questions.md)",
    r"sam4mllm predict .* --model qwen-vl-chat .*": "tests/test_qwen_vl_chat.py: test_the_papers_plan_trains_it",
    r"sam4mllm predict .* --segmenter DETECTOR\+demo": "tests/test_no_model.py: test_a_detector_before_the_demo_segmenter_is_enough",
    r"sam4mllm connect 1 --parameters .*": 'tests/e2e/test_doctor.py: team.run("connect", number, "--parameters", ',
    r"sam4mllm batch 7 --ray": "tests/test_batch_commands.py: test_ray_gives_the_same",
    r"accelerate launch .*": "tests/test_processes.py: test_accelerate_launches_two_processes_with_the_losses_of_one",
    r"(rm|mv) .*|cp -a /backup/.*": "tests/test_docs.py: test_a_back_up_is_restored_after_a_kill",
    r"cd docker|cp \.env\.example .*|docker compose .*": 'docker/rehearse_story.py: compose("up", "--detach"',
    r"sudo apt-get install debootstrap .*": ".ci/run: apt-get install -y -q debootstrap",
    r"sudo python3 docker/rehearse\.py.*": ".ci/run: python3 docker/rehearse.py --chroot",
}
"""Commands that this test does not run, and what does: a file and a text in it, or why nothing does."""

FILLED_IN = {
    r"^\.venv/bin/": "",
    r"--model FOLDER\b": "--model {world}/model",
    r"--segmenter (vit_h:sam_vit_h_4b8939\.pth|FOLDER2)": "--segmenter {world}/segmenter",
    r"\bVERSION FOLDER\b": "VERSION exported",
    r"\bVERSION\b": "{version}",
    r"\bDATASET\b": "data/dataset",
    r"--out ADAPTER2?(?!\w)": "--out adapter-{turn}",
    r"\badapters add FOREIGN --model \S+": "adapters add {world}/random --model demo",
    r"(--adapter|adapters add) ADAPTER\b": r"\1 {world}/random",
    r"--steps \d+": "--steps 2",
    r"^(sam4mllm train .*)": r"\1 --steps 1",
    r"^(sam4mllm (?:connect|doctor|batch|export)) [17]\b": r"\1 {project}",
    r"(?<=\s)/(data|tmp|backup)\b": r"\1",
    r"~/\.local/share/sam4mllm": "{home}",
    r"http://127\.0\.0\.1:9090": "{url}",
    r"--count \d+": "--count 2",
    r"--scenes \d+": "--scenes 2",
    r"--values count=5,15,30": "--values count=3,5",
}
"""Patterns of what a reader fills in or makes smaller."""


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#\s.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run_by(line: str) -> str | None:
    """What else runs a command; None if this test does."""
    line = line.removeprefix(".venv/bin/")
    return next((by for pattern, by in ELSEWHERE.items() if re.fullmatch(pattern, line)), None)


@dataclass(frozen=True)
class World:
    """What a reader has: pictures, data, models, a project, a server with a version."""

    folder: Path
    home: Path
    url: str
    project: int
    version: str
    environment: dict[str, str]

    def fill_in(self, line: str, turn: int) -> str:
        for pattern, filling in FILLED_IN.items():
            line = re.sub(pattern, filling, line)
        known: dict[str, object] = {
            "world": self.folder,
            "home": self.home,
            "url": self.url,
            "project": self.project,
            "version": self.version,
        }
        known["turn"] = turn
        return re.sub(r"\{(\w+)\}", lambda found: str(known[found[1]]) if found[1] in known else found[0], line)

    def run(self, line: str, folder: Path) -> None:
        done = subprocess.run(
            ["bash", "-euc", line],
            cwd=folder,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def world(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("reader")
    home = folder / "home"
    make_family(KINDS["Qwen2.5-VL"], folder / "model")
    make_segmenter("sam", folder / "segmenter")
    version = make_version(home, folder / "random")
    with serving(home, label_studio) as url:
        own = {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "SAM4MLLM_HOME": str(home),
            "SAM4MLLM_PORT": url.rpartition(":")[2],
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token,
        }
        yield World(folder, home, url, make_project(label_studio, folder), version, own)


def make_version(home: Path, folder: Path) -> str:
    """An adapter of the demo model in the registry."""
    service = build(Settings(home=home))
    service.engine.start()
    wait_for("the models", lambda: service.engine.state != "loading", READY_TIMEOUT)
    write_random_adapter(folder, 3)
    added = service.versions.add(folder, "00" * 32, {})
    service.close(5)
    return added.version


def make_project(label_studio: LocalLabelStudio, folder: Path) -> int:
    """Two described pictures."""
    number = label_studio.create_project("the reader's", DEMO_CONFIG)
    pictures = [save(scene(index).image, folder / f"{index}.png") for index in range(2)]
    uploads = label_studio.upload(number, pictures)
    label_studio.import_tasks(number, [{"image": upload, "description": "the horse"} for upload in uploads])
    return number


def make_data(folder: Path) -> None:
    """REFER's sets in small, two of them prepared, a dataset with two splits, photos, an export of Label Studio, and candidates."""
    data = folder / "data"
    Image.fromarray(scene(5).image).save(folder / "kitchen.jpg")
    (data / "photos").mkdir(parents=True)
    shutil.copy(folder / "kitchen.jpg", data / "photos")
    refer_root(data / "refer")
    references = [reference(1, 1, ["the left cup"]), reference(2, 2, ["right cup"], "testA", 2)]
    for name in ("refcoco", "refcoco+"):
        (data / "refer" / name / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    absent = {**reference(5, [-1], ["the dog"], "testA", 2), "category_id": [-1], "no_target": True}
    several = [reference(4, [1, 2], ["both cups"]), absent]  # what one set tests on is trained on in none: the first picture stays
    (data / "refer" / "grefcoco" / "grefs(unc).json").write_text(json.dumps(several))
    for name in ("refcoco+", "grefcoco"):
        write_pairs(READERS[name].read(data / "refer"), data / name)
    write_scenes(data / "dataset", 2, 880_001)
    lines = [json.loads(line) for line in (data / "dataset" / "examples.jsonl").read_text().splitlines()]
    first = lines[0]["image"]
    told = [{**line, "split": "train" if line["image"] == first else "testA"} for line in lines]
    (data / "dataset" / "examples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in told))
    tasks = []
    for number in range(1, 7):  # of so few about a fifth are held out
        name = picture(data / "export" / "images" / f"ab1{number}-cup.png", 40 * number).name
        tasks.append(
            task(annotation(region()), number=number, image=f"/data/upload/3/{name}", description="the cup") | {"file_upload": name}
        )
    (folder / "candidates.toml").write_text('[box]\nstrategy = "box"\n[points]\nstrategy = "pqpp"\n')
    (data / "export" / "export.json").write_text(json.dumps(tasks))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_run_elsewhere_is_there(page: Path) -> None:
    for line in commands(page):
        path, colon, text = (run_by(line) or "").partition(": ")
        assert not colon or text in (ROOT / path).read_text(encoding="utf-8"), line


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(run_by(line) is None for line in commands(page))], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run_in_their_order(world: World, page: Path, tmp_path: Path) -> None:
    make_data(tmp_path)
    Registry(world.home).promote(world.version)
    for turn, line in enumerate(commands(page)):
        if run_by(line) is None:
            world.run(world.fill_in(line, turn), tmp_path)


def test_the_server_of_the_readme_starts(world: World, tmp_path: Path) -> None:
    [line] = [line for line in commands(PAGES[0]) if " serve " in line]
    port = check_port(0)
    own = {"SAM4MLLM_HOME": str(tmp_path), "SAM4MLLM_PORT": str(port)}
    command = ["bash", "-c", f"exec {world.fill_in(line, 0)}"]
    server = Child("the server", command, os.environ | world.environment | own, tmp_path / "log")
    try:
        server.wait_until(lambda: is_ready(f"http://{HOST}:{port}"), READY_TIMEOUT, lambda _: None)
        assert str(world.folder / "model") in server.log.read_text()
    finally:
        server.stop()


def test_pythons_example_in_the_readme_runs(tmp_path: Path) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    Image.fromarray(scene(5).image).save(tmp_path / "kitchen.jpg")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.stdout.startswith("the left cup"), done.stderr
