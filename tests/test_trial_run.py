"""Trials on fakes in processes of their own: what is kept, what is not done twice, and that one candidate's end is not the others'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.examples import Example
from sam4mllm.durable import locked
from sam4mllm.errors import EvaluationError
from sam4mllm.evaluation.clicking import Correction
from sam4mllm.evaluation.run import by_image
from sam4mllm.trial import worker
from sam4mllm.trial.candidates import Contender
from sam4mllm.trial.run import ONE_TRIAL, try_all
from sam4mllm.trial.tried import TrialJournal, keys_of
from sam4mllm.trial.worker import JOURNAL, Job, describe, work
from tests.trial_doubles import DOUBLE, load_fake, write_cups

Cups = tuple[Path, list[Example]]
A, B = Contender("a", strategy="box"), Contender("b", strategy="pqpp")


@pytest.fixture
def cups(tmp_path: Path) -> Cups:
    return write_cups(tmp_path / "data")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def a_job(cups: Cups, out: Path, candidate: Contender = A) -> Job:
    return Job(asdict(candidate), str(cups[0]), None, str(out), keys_of(candidate, by_image(cups[1])))


def kept(out: Path) -> list[str]:
    path = out / JOURNAL
    return [json.loads(line)["candidate"] for line in path.read_text().splitlines()] if path.exists() else []


def test_each_picture_is_kept_with_what_came_of_it(cups: Cups, out: Path) -> None:
    job = a_job(cups, out)
    assert list(work(job, load_fake)) == [group[0].image for group in by_image(cups[1])]
    journal = TrialJournal(out / JOURNAL)
    found = [journal.find(key) for key in job.missing.values()]
    for group, picture in zip(by_image(cups[1]), found, strict=True):
        assert picture is not None
        cup, dog = picture.phrases
        shift = next(at for at in range(3) if group[0].union()[20, 20 + at])
        assert cup.sample.iou == pytest.approx((40 - shift) / (40 + shift))
        assert (cup.bound, cup.correction) == (1.0, Correction(0, True))
        assert (dog.sample.predicted_empty, dog.bound, dog.correction) == (True, None, None)
        assert picture.seconds > 0
        assert picture.memory > 10**7


def test_what_is_in_the_journal_is_not_done_again(cups: Cups, out: Path) -> None:
    stopped: Any = work(a_job(cups, out), load_fake)
    first = [next(stopped), next(stopped)]
    stopped.close()
    with (out / JOURNAL).open("a") as file:
        file.write('{"key": "half')
    assert list(work(a_job(cups, out), load_fake))[:2] == first
    assert len(TrialJournal(out / JOURNAL)) == 3
    assert len((out / JOURNAL).read_text().splitlines()) == 4  # and the half line


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param(lambda one: replace(one, name="another"), True, id="another name"),
        pytest.param(lambda one: replace(one, strategy="ppg"), False, id="another strategy"),
        pytest.param(lambda one: replace(one, quantize="4bit"), False, id="other numbers"),
        pytest.param(lambda one: replace(one, model="other"), False, id="another model"),
    ],
)
def test_the_key_is_of_all_that_shapes_an_answer(cups: Cups, change: Callable[[Contender], Contender], same: bool) -> None:
    images = by_image(cups[1])
    assert (keys_of(change(A), images) == keys_of(A, images)) == same


@pytest.mark.parametrize("which", ["detector", "segmenter"])
def test_the_key_changes_with_a_detectors_files_and_with_its_segmenters(cups: Cups, which: str, tmp_path: Path) -> None:
    images = by_image(cups[1])
    detector, weights = tmp_path / "detector" / "model.safetensors", tmp_path / "segmenter.safetensors"
    detector.parent.mkdir()
    detector.write_bytes(b"1")
    weights.write_bytes(b"1")
    named = replace(A, segmenter=f"{detector.parent}+vit_h:{weights}")
    before = keys_of(named, images)
    os.utime(detector if which == "detector" else weights, ns=(1, 1))
    assert keys_of(named, images) != before


def test_the_key_changes_with_a_models_files_and_with_the_truth(cups: Cups, tmp_path: Path) -> None:
    images = by_image(cups[1])
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    named = replace(A, segmenter=f"vit_h:{weights}#sha256=00")
    before = keys_of(named, images)
    assert keys_of(named, images) == before
    os.utime(weights, ns=(1, 1))
    assert not set(before.values()) & set(keys_of(named, images).values())
    other = [[replace(group[0], phrase="another"), *group[1:]] for group in images]
    assert not set(keys_of(A, images).values()) & set(keys_of(A, other).values())


def test_each_candidate_is_tried_once_and_then_known(cups: Cups, out: Path) -> None:
    data, examples = cups
    first = try_all([A, B], data, examples, out, command=DOUBLE)
    assert kept(out) == ["a"] * 3 + ["b"] * 3
    assert [(one.failure, len(one.pictures)) for one in first] == [("", 3)] * 2
    again = try_all([B, A], data, examples, out, command=("false",))  # no process is needed
    assert [one.pictures for one in again] == [first[1].pictures, first[0].pictures]


FAILURES = {
    "refused": "refused needs 140.0 GB for weights alone",
    "too large": "it does not fit into memory (MemoryError); set quantize",
    "broken": "KeyError: 'of ours'",
    "killed": "its process was killed, as the system does when memory runs out; set quantize",
    "crashed": "its process was ended by SIGABRT; ",
}


def test_a_candidate_that_fails_has_a_line_and_the_others_go_on(cups: Cups, out: Path) -> None:
    failing = [Contender(name.replace(" ", "-"), model=name) for name in FAILURES]
    lost = Contender("lost", adapter="nowhere/adapter")
    *failed, no_adapter, chatty, last = try_all([*failing, lost, Contender("chatty", model="chatty"), A], *cups, out, command=DOUBLE)
    for one, said in zip(failed, FAILURES.values(), strict=True):
        assert one.failure.startswith(said)
        assert "\n" not in one.failure
        assert one.pictures == {}
    assert "there is no folder nowhere/adapter" in no_adapter.failure
    assert (chatty.failure, len(chatty.pictures)) == ("", 3)
    assert (last.failure, len(last.pictures)) == ("", 3)
    assert "KeyError" in (out / "broken.log").read_text()


def test_a_worker_ends_when_its_trial_is_gone(cups: Cups, out: Path) -> None:
    process = subprocess.Popen(DOUBLE, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8")
    assert process.stdin is not None
    process.stdin.write(a_job(cups, out, replace(A, model="slow")).to_line())
    process.stdin.close()
    assert process.wait(50) == 1  # the model alone takes 60 seconds
    assert kept(out) == []


def test_ctrl_c_ends_the_worker(cups: Cups, out: Path) -> None:
    def interrupt(pictures: Iterable[str], total: int, what: str) -> Iterable[str]:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        try_all([replace(A, model="slow")], *cups, out, track=interrupt, command=DOUBLE)
    assert time.monotonic() - began < 30
    with locked(out / worker.LOCK, wait=False):  # nobody works on
        pass


def test_two_trials_do_not_share_a_folder(cups: Cups, out: Path) -> None:
    with locked(out / ONE_TRIAL), pytest.raises(EvaluationError, match="another trial is at work"):
        try_all([A], *cups, out, command=DOUBLE)


MEASURED = """
import pathlib, sys
import numpy as np
from sam4mllm.trial import worker
worker.STATUS = pathlib.Path(sys.argv[1])
before = worker.peak_memory()
block = np.ones(25_000_000)
print(before, worker.peak_memory())
"""


@pytest.mark.parametrize("status", [worker.STATUS, Path("/nowhere")], ids=["of the kernel", "of the resource limits"])
def test_the_peak_is_in_bytes(status: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED, str(status)], capture_output=True, text=True, check=True, timeout=120)
    before, after = map(int, done.stdout.split())
    assert 10**8 < before < 8 * 10**9
    assert status != worker.STATUS or 190_000_000 < after - before < 250_000_000


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "it does not fit into memory", id="a CPU's"),
        pytest.param(
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "it does not fit into memory (CUDA", id="a GPU's"
        ),
        pytest.param(EvaluationError("ours"), "ours", id="ours"),
        pytest.param(ValueError("one\ntwo"), "ValueError: one", id="another's"),
    ],
)
def test_errors_are_told_in_a_line(error: Exception, said: str) -> None:
    assert describe(error).startswith(said)
    assert "\n" not in describe(error)
