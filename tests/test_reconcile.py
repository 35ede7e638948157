"""Whatever of Label Studio's events was lost, doubled or late: compared with it, the log says what it says."""

from __future__ import annotations

import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend import brush
from backend.corrections.log import CorrectionLog
from backend.corrections.log_records import Served
from backend.corrections.reconcile import NO_KEY, Reconciled, reconcile
from backend.corrections.reviews import Reviews, read_reviews
from sam4mllm.run_lengths import to_rle
from tests.review_fakes import CREATED, PROJECT, FakeLabelStudio, annotation, as_json, created, recorded, when
from tests.review_fakes import client as client_of
from tests.test_corrections import state, task, updated

# -- every loss, repetition and order ------------------------------------------------------------------------------------------------------

CORRECTED, UNCHANGED, TYPED, SKIPPED = (recorded(prefix) for prefix in ("46", "47", "08", "10"))
SIZES = {21: (480, 640), 1: (48, 64)}
Act = tuple[str, int, int]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Hundreds of logs are made, each of whose writes would wait for the disk."""


def mask(kind: int, height: int, width: int) -> dict[str, Any]:
    pixels = np.zeros((height, width), np.bool_)
    pixels[height // 4 : height // 2, : (kind + 1) * width // 4] = True
    return {"format": "rle", "rle": brush.encode(pixels)}


@dataclass
class World:
    """Two projects of Label Studio's, whose every change is an event; made of four recorded annotations."""

    server: FakeLabelStudio
    events: list[dict[str, Any]]
    now: float = CREATED
    gone: set[int] = field(default_factory=set)
    """Annotations that were deleted: Label Studio gives no number twice."""

    @classmethod
    def after(cls, acts: list[Act]) -> World:
        world = cls(FakeLabelStudio(), [])
        for body in (CORRECTED, TYPED):
            project = body["project"]
            world.server.projects[project["id"]] = as_json(project)
            world.server.tasks[project["id"]] = []
        for body in (CORRECTED, UNCHANGED, TYPED, SKIPPED):
            world.server.tasks[body["project"]["id"]].append({**as_json(body["task"]), "annotations": []})
        apply(world, acts)
        return world

    def _tell(self, action: str, project: int, **parts: Any) -> None:
        self.events.append(as_json({"action": action, "project": self.server.projects[project], **parts}))

    def _task(self, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        self.now += 90  # more than what a look goes back behind the one before
        project = body["project"]["id"]
        return project, next((one for one in self.server.tasks[project] if one["id"] == body["task"]["id"]), None)

    def _create(self, body: dict[str, Any], kind: int) -> None:
        """The recorded annotation itself, or a second and a third one like it."""
        project, home = self._task(body)
        number = body["annotation"]["id"] + 100 * (kind % 3)
        if home is None or any(one["id"] == number for one in home["annotations"]) or number in self.gone:
            return
        made = as_json(body["annotation"]) | {"id": number, "created_at": when(self.now), "updated_at": when(self.now)}
        home["annotations"].append(made)
        self._save("ANNOTATION_CREATED", project, home, made)

    def _update(self, body: dict[str, Any], kind: int) -> None:
        project, home = self._task(body)
        for made in home["annotations"][:1] if home else []:
            height, width = SIZES[project]
            regions = as_json(body["annotation"]["result"]) if kind else []
            for one in regions:
                if one["type"] == "brushlabels":
                    one["value"] |= mask(kind, height, width)
            made |= {"result": regions, "updated_at": when(self.now), "was_cancelled": kind == 3, "ground_truth": kind == 2}
            self._save("ANNOTATION_UPDATED", project, home, made)

    def _save(self, action: str, project: int, home: dict[str, Any], made: dict[str, Any]) -> None:
        home["updated_at"] = when(self.now)
        bare = {name: value for name, value in home.items() if name != "annotations"}
        self._tell(action, project, annotation=made, task=bare)

    def _delete(self, body: dict[str, Any], kind: int) -> None:
        project, home = self._task(body)
        gone = home["annotations"][-1:] if home else []
        if home and gone:
            home["annotations"] = home["annotations"][:-1]
            self.gone.update(one["id"] for one in gone)
            self._tell("ANNOTATIONS_DELETED", project, annotations=[{"id": one["id"]} for one in gone])

    def _drop(self, body: dict[str, Any], kind: int) -> None:
        project, home = self._task(body)
        if home:
            self.gone.update(one["id"] for one in home["annotations"])
            self.server.tasks[project].remove(home)
            self._tell("TASKS_DELETED", project, tasks=[{"id": home["id"]}])

    def _relabel(self, body: dict[str, Any], kind: int) -> None:
        project, _ = self._task(body)
        known = self.server.projects[project]
        known |= {"label_config": body["project"]["label_config"].replace("Other", f"Other {kind}"), "updated_at": when(self.now)}
        self._tell("PROJECT_UPDATED", project)


def served_records() -> list[Served]:
    """Some masks and a "none" that were served before all of it."""
    height, width = SIZES[21]
    empty = np.zeros((height, width), np.bool_)
    empty[120:240, :320] = True
    common: dict[str, Any] = {"time": CREATED - 60, "version": "demo-0-00000000", "label": None, "box_px": (), "features": {}, "score": 0.5}
    common |= {"interactive": False, "image_sha256": ""}
    large: dict[str, Any] = {"width": width, "height": height, "project": 21}
    small: dict[str, Any] = {"width": 64, "height": 48, "project": 1}
    return [
        Served(**common, **large, task=37, phrase="third", region="m37", mask=to_rle(empty)),
        Served(**common, **large, task=36, phrase="second", region="m36", mask=to_rle(empty)),
        Served(**common, **small, task=1, phrase="the red square", region="", mask=None),
    ]


def dataset(events: list[dict[str, Any]], server: FakeLabelStudio | None) -> Reviews:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        log = CorrectionLog(Path(folder) / "corrections.sqlite")
        log.serve(served_records())
        for event in events:
            log.store(event)
        if server is not None:
            assert reconcile(log, server.client(), [1, 21]).problem == ""
        found = read_reviews(log, "description")
        assert [kept.body for kept in log.events()] == events
        log.close()
    return found


ACTS = st.lists(
    st.tuples(
        st.sampled_from(("create", "create", "create", "update", "update", "delete", "drop", "relabel")),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_came_of_the_events_label_studio_mends_it(data: st.DataObject) -> None:
    world = World.after(data.draw(ACTS))
    came = data.draw(st.lists(st.sampled_from(world.events), max_size=20)) if world.events else []
    assert dataset(came, world.server) == dataset([], world.server)


def apply(world: World, acts: list[Act]) -> None:
    for act, which, kind in acts:
        getattr(world, f"_{act}")((CORRECTED, UNCHANGED, TYPED, SKIPPED)[which], kind)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_look_after_look_label_studio_mends_it(data: st.DataObject) -> None:
    """Only what changed is asked for, and it is all."""
    world = World.after([])
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        log = CorrectionLog(Path(folder) / "corrections.sqlite")
        log.serve(served_records())
        for _ in range(data.draw(st.integers(2, 4))):
            apply(world, data.draw(ACTS))
            for event in data.draw(st.lists(st.sampled_from(world.events), max_size=3)) if world.events else []:
                log.store(event)
            assert reconcile(log, world.server.client(), [1, 21]).problem == ""
        found = read_reviews(log, "description")
        log.close()
    assert found == dataset([], world.server)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_events_that_all_come_need_no_order_and_may_come_again(data: st.DataObject) -> None:
    world = World.after(data.draw(ACTS))
    again = data.draw(st.lists(st.sampled_from(world.events), max_size=5)) if world.events else []
    assert dataset(data.draw(st.permutations(world.events + again)), None) == dataset([], world.server)


def test_the_worlds_of_these_tests_teach_something() -> None:
    acts: list[Act] = [("create", which, 0) for which in range(4)] + [("create", 1, 1), ("update", 0, 0), ("update", 2, 1)]
    world = World.after(acts)
    found = dataset(world.events, None)
    assert [(one.annotation, one.outcome) for one in found.reviews] == [(1, "drawn"), (109, "edited"), (10, "none")]
    assert found == dataset([], world.server)


# -- what is asked, and what is said -------------------------------------------------------------------------------------------------------


def test_annotations_that_were_imported_are_found(log: CorrectionLog) -> None:
    server = FakeLabelStudio()
    server.add(PROJECT, *[task(annotation(number=number, task=number), number=number) for number in range(1, 6)])
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(projects=1, annotations=5, dropped=0)
    assert [one.task for one in log.annotations()] == [1, 2, 3, 4, 5]
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(projects=1, annotations=0, dropped=0)


def test_what_was_deleted_unseen_is_dropped(log: CorrectionLog) -> None:
    log.store(created(number=1))
    log.store(created(number=2))
    server = FakeLabelStudio()
    server.add(PROJECT, task(annotation(number=2)))
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(projects=1, annotations=0, dropped=1)
    assert list(state(log)) == [2]


def test_what_comes_while_it_is_asked_stands(log: CorrectionLog) -> None:
    log.store(created(number=1))
    server = FakeLabelStudio()
    server.add(PROJECT, task(annotation(number=1)))

    def meanwhile(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        if request.url.path == "/api/tasks/":
            log.store(updated(number=1))
            log.store(created(number=2))
        return answer

    assert reconcile(log, client_of(meanwhile), [PROJECT]) == Reconciled(projects=1, annotations=0, dropped=0)
    assert state(log) == {1: ("submitted", when(CREATED + 60)), 2: ("submitted", when(CREATED))}


@pytest.mark.parametrize("with_url", [True, False])
def test_without_a_key_it_says_what_it_cannot_see(log: CorrectionLog, with_url: bool) -> None:
    log.store(created())
    server = FakeLabelStudio()
    found = reconcile(log, server.client("") if with_url else None, [PROJECT])
    assert found == Reconciled(0, 0, 0, NO_KEY)
    assert "imported" in NO_KEY
    assert "LABEL_STUDIO_API_KEY" in NO_KEY
    assert server.asked == []
    assert list(state(log)) == [1]


def test_without_a_project_nothing_is_asked(log: CorrectionLog) -> None:
    server = FakeLabelStudio()
    assert reconcile(log, server.client(), []) == Reconciled(0, 0, 0)
    assert server.asked == []


def test_a_refusal_is_told_and_the_other_projects_are_compared(log: CorrectionLog) -> None:
    server = FakeLabelStudio()
    server.add(PROJECT, task(annotation()))
    server.add(PROJECT + 1)
    server.failing = f"/api/projects/{PROJECT + 1}/"
    found = reconcile(log, server.client(), [PROJECT + 1, PROJECT])
    assert (found.projects, found.annotations) == (1, 1)
    assert found.problem.startswith(f"project {PROJECT + 1}: Label Studio refused")
    assert "member of the project" in found.problem


def test_several_refusals_are_one_line(log: CorrectionLog) -> None:
    server = FakeLabelStudio(failing="/api/tasks/")
    server.add(1)
    server.add(2)
    found = reconcile(log, server.client(), [1, 2])
    assert found.projects == 0
    assert found.problem.endswith("(and 1 more)")
    assert len(found.problem.splitlines()) == 1


def test_no_answer_is_told_and_changes_nothing(log: CorrectionLog) -> None:
    log.store(created())
    server = FakeLabelStudio(failing="/api/projects/")
    assert "refused" in reconcile(log, server.client(), [PROJECT]).problem
    assert list(state(log)) == [1]


def test_a_log_that_fails_is_told(log: CorrectionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeLabelStudio()
    server.add(PROJECT, task(annotation()))

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("backend.corrections.log.apply_project", full)
    found = reconcile(log, server.client(), [PROJECT])
    assert "the disk is full; free space in" in found.problem


def test_a_project_that_was_deleted_is_dropped(log: CorrectionLog) -> None:
    log.store(created())
    server = FakeLabelStudio()
    server.add(99)
    assert reconcile(log, server.client(), [PROJECT, 99]) == Reconciled(projects=2, annotations=0, dropped=1)
    assert log.annotations() == []
