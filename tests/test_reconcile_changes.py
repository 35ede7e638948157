"""Looks at Label Studio that ask for what changed: deletions, clocks, lists that move, what is refused."""

from __future__ import annotations

import time

import httpx
import pytest

from backend.corrections.log import CorrectionLog
from backend.corrections.reconcile import Reconciled, reconcile
from backend.errors import LabelStudioError
from tests.review_fakes import CONFIG, CREATED, PROJECT, FakeLabelStudio, annotation, as_json, created, when
from tests.review_fakes import client as client_of
from tests.test_corrections import state, task


def test_where_none_of_our_projects_is_seen_nothing_is_dropped(log: CorrectionLog) -> None:
    """It is another server, or another user's key."""
    log.store(created())
    server = FakeLabelStudio()
    server.add(99)
    found = reconcile(log, server.client(), [PROJECT])
    assert (found.projects, found.dropped) == (0, 0)
    assert "does not show it" in found.problem
    assert list(state(log)) == [1]


def test_a_project_that_shrinks_while_it_is_read_loses_nothing(log: CorrectionLog) -> None:
    """The third task slips to the first page, which was read already."""
    server = FakeLabelStudio()
    server.add(PROJECT, *[task(annotation(number=number, task=number), number=number) for number in (1, 2, 3, 4)])
    pages = []

    def shrink(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        if request.url.path == "/api/tasks/":
            pages.append(answer)
            if len(pages) == 1:
                del server.tasks[PROJECT][0]
        return answer

    log.store(created(number=3, task=3))
    client = client_of(shrink)
    assert reconcile(log, client, [PROJECT]) == Reconciled(projects=1, annotations=2, dropped=0)
    assert [one.id for one in log.annotations()] == [2, 3, 4]


# -- what a look costs ---------------------------------------------------------------------------------------------------------------------


def looked_at(log: CorrectionLog, count: int = 5) -> FakeLabelStudio:
    """Label Studio with tasks of an annotation each, a minute apart, once they were compared."""
    server = FakeLabelStudio(page_limit=50)
    made = [annotation(number=number, task=number) for number in range(1, count + 1)]
    server.add(PROJECT, *[{**task(one, number=one["task"]), "updated_at": when(CREATED + 60 * one["task"])} for one in made])
    assert reconcile(log, server.client(), [PROJECT]).annotations == count
    server.asked.clear()
    return server


def bodies(server: FakeLabelStudio) -> list[str]:
    """The tasks and annotations whose masks were asked for."""
    return [path for path in (line.partition("?")[0] for line in server.asked) if "annotations/" in path]


def test_where_nothing_changed_no_mask_is_asked_for(log: CorrectionLog) -> None:
    server = looked_at(log)
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(1, 0, 0)
    assert bodies(server) == []
    assert len(server.asked) == 4  # the projects, the project, the first tasks, the project


def test_of_what_changed_that_task_is_asked_for(log: CorrectionLog) -> None:
    server = looked_at(log)
    edited = server.tasks[PROJECT][2]
    edited["annotations"][0] |= {"result": [], "updated_at": when(CREATED + 900)}
    edited["updated_at"] = when(CREATED + 900)
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(1, 1, 0)
    assert bodies(server) == ["/api/tasks/3/annotations/"]


def test_a_task_that_was_predicted_is_asked_for_once_and_is_no_news(log: CorrectionLog) -> None:
    server = looked_at(log)
    server.tasks[PROJECT][1] |= {"updated_at": when(CREATED + 900), "predictions": [{"id": 9}]}
    for _ in range(2):
        assert reconcile(log, server.client(), [PROJECT]) == Reconciled(1, 0, 0)
    assert bodies(server) == ["/api/tasks/2/annotations/"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_deletion_that_leaves_no_time_behind_is_found_by_the_numbers(log: CorrectionLog, whole: bool) -> None:
    server = looked_at(log)
    if whole:
        del server.tasks[PROJECT][3]
    else:
        server.tasks[PROJECT][3]["annotations"] = []
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(1, 0, 1)
    assert bodies(server) == ["/api/tasks/4/annotations/", *([] if whole else ["/api/annotations/4/"])]
    assert [one.task for one in log.annotations()] == [1, 2, 3, 5]


def test_what_leaves_no_trace_is_found_once_a_day(log: CorrectionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    server = looked_at(log)
    server.tasks[PROJECT][0]["annotations"][0] |= {"result": [], "updated_at": when(CREATED + 900)}
    assert reconcile(log, server.client(), [PROJECT]).annotations == 0
    monkeypatch.setattr("backend.corrections.reconcile.DAY", 0.0)
    assert reconcile(log, server.client(), [PROJECT]).annotations == 1


def test_skipped_annotations_are_asked_for_by_number(log: CorrectionLog) -> None:
    server = FakeLabelStudio()
    both = [annotation(number=1, task=7), annotation(number=2, task=7, was_cancelled=True)]
    server.add(PROJECT, {**task(*both, number=7), "updated_at": when(CREATED)})
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(1, 2, 0)
    assert bodies(server) == ["/api/tasks/7/annotations/", "/api/annotations/2/"]
    assert {number: kind for number, (kind, _) in state(log).items()} == {1: "submitted", 2: "skipped"}


def test_a_skipped_annotation_that_no_list_shows_stays(log: CorrectionLog) -> None:
    """Label Studio's counters may be wrong, and its list of a task's annotations leaves skipped ones out."""
    server = looked_at(log)
    home = server.tasks[PROJECT][1]
    home["annotations"].append(annotation(number=77, task=2, was_cancelled=True))
    home["updated_at"] = when(CREATED + 900)
    assert reconcile(log, server.client(), [PROJECT]).annotations == 1

    def miscounting(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        body = answer.json()
        for one in body.get("tasks", ()) if isinstance(body, dict) else ():
            one["cancelled_annotations"] = 0
        return httpx.Response(answer.status_code, json=body)

    home["updated_at"] = when(CREATED + 1900)
    assert reconcile(log, client_of(miscounting), [PROJECT]) == Reconciled(1, 0, 0)
    assert 77 in state(log)
    home["annotations"].pop()
    home["updated_at"] = when(CREATED + 2900)
    assert reconcile(log, client_of(miscounting), [PROJECT]) == Reconciled(1, 0, 1)


def test_a_number_that_was_cut_is_no_number(log: CorrectionLog) -> None:
    """The Data Manager cuts the list of a task's annotations after so many characters."""
    numbers = [100, *range(1000, 1104)]  # of the hundred and first, "1" is left
    server = FakeLabelStudio(page_limit=50)
    many = [annotation(number=number, task=7, was_cancelled=True) for number in numbers]
    server.add(PROJECT, task(*many, number=7), task(annotation(number=1, task=8), number=8))
    assert reconcile(log, server.client(), [PROJECT]).problem == ""
    assert state(log).keys() == {1, *numbers[:100]}
    assert {one.id: one.task for one in log.annotations()}[1] == 8


@pytest.mark.parametrize("answer", [httpx.Response(404, text="404 page not found"), httpx.Response(404, json=None)])
def test_a_404_of_a_proxy_drops_nothing(log: CorrectionLog, answer: httpx.Response, monkeypatch: pytest.MonkeyPatch) -> None:
    server = looked_at(log)
    monkeypatch.setattr("backend.corrections.reconcile.DAY", -1.0)

    def proxy(request: httpx.Request) -> httpx.Response:
        return answer if request.url.path.endswith("/annotations/") else server(request)

    found = reconcile(log, client_of(proxy), [PROJECT])
    assert (found.projects, found.dropped) == (0, 0)
    assert "404" in found.problem
    assert len(state(log)) == 5


def test_one_task_that_is_refused_does_not_keep_the_others_from_it(log: CorrectionLog) -> None:
    server = FakeLabelStudio(page_limit=50, failing="/api/tasks/3/")
    server.add(PROJECT, *[task(annotation(number=number, task=number), number=number) for number in range(1, 6)])
    found = reconcile(log, server.client(), [PROJECT])
    assert "refused /api/tasks/3/" in found.problem
    assert sorted(state(log)) == [1, 2, 4, 5]


def test_what_was_refused_is_asked_for_again(log: CorrectionLog) -> None:
    """An edit, which no number tells of, and later ones beside it."""
    server = looked_at(log)
    for number, moment in ((2, 900), (4, 1900)):
        edited = server.tasks[PROJECT][number - 1]
        edited["annotations"][0] |= {"result": [], "updated_at": when(CREATED + moment)}
        edited["updated_at"] = when(CREATED + moment)
    server.failing = "/api/tasks/2/"
    assert "refused" in reconcile(log, server.client(), [PROJECT]).problem
    server.failing = ""
    server.asked.clear()
    assert reconcile(log, server.client(), [PROJECT]) == Reconciled(1, 1, 0)
    assert bodies(server) == ["/api/tasks/2/annotations/"]


def test_a_config_that_an_event_told_between_two_folds_stands(log: CorrectionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.corrections.reconcile.AT_ONCE", 1)
    server = FakeLabelStudio(page_limit=50)
    server.add(PROJECT, *[task(annotation(number=number, task=number), number=number) for number in range(1, 6)])
    later = {"id": PROJECT, "label_config": CONFIG.replace("Dog", "Cat"), "updated_at": when(CREATED + 60)}

    def meanwhile(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        if request.url.path == "/api/tasks/3/annotations/":
            server.projects[PROJECT] |= later
            log.store({"action": "PROJECT_UPDATED", "project": server.projects[PROJECT]})
        return answer

    assert reconcile(log, client_of(meanwhile), [PROJECT]).problem == ""
    assert log.config_texts(PROJECT)[-1] == later["label_config"]


@pytest.mark.parametrize("ours", [True, False])
def test_a_clock_that_was_ahead_keeps_no_change_from_being_found(log: CorrectionLog, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = looked_at(log)
    if ours:
        with monkeypatch.context() as ahead:
            ahead.setattr("backend.corrections.reconcile.time.time", lambda: time.time_ns() / 1e9 + 366 * 86_400)
            reconcile(log, server.client(), [PROJECT])
    else:
        server.tasks[PROJECT][0]["updated_at"] = when(time.time() + 366 * 86_400)
        reconcile(log, server.client(), [PROJECT])
    edited = server.tasks[PROJECT][2]
    edited["annotations"][0] |= {"result": [], "updated_at": when(time.time() + 1)}
    edited["updated_at"] = when(time.time() + 1)
    assert reconcile(log, server.client(), [PROJECT]).annotations == 1


def test_a_page_that_came_already_does_not_end_the_list(log: CorrectionLog) -> None:
    """Two tasks move to the front after the first page, so that the second page has the first one's tasks."""
    server = looked_at(log, 6)
    server.page_limit = 2
    late = time.time()
    for index in (5, 4, 1):
        server.tasks[PROJECT][index]["annotations"][0] |= {"result": [], "updated_at": when(late + index)}
        server.tasks[PROJECT][index]["updated_at"] = when(late + index)
    bumped: list[int] = []

    def bump(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        if request.url.path == "/api/tasks/" and not bumped:
            bumped.extend((0, 3))
            for index in bumped:
                server.tasks[PROJECT][index]["updated_at"] = when(late + 50 + index)
        return answer

    assert reconcile(log, client_of(bump), [PROJECT]).annotations == 3


# -- the client's lists --------------------------------------------------------------------------------------------------------------------


def test_tasks_come_page_by_page_with_skipped_annotations_and_raw_data() -> None:
    server = FakeLabelStudio()
    tasks = [task(annotation(number=number, was_cancelled=True), number=number) for number in range(5)]
    server.add(PROJECT, *tasks)
    assert list(server.client().tasks_with_annotations(PROJECT)) == as_json(tasks)
    assert server.asked == [f"/api/tasks/?project={PROJECT}&fields=all&resolve_uri=false&page={page}&page_size=50" for page in (1, 2, 3)]


def test_projects_come_page_by_page() -> None:
    server = FakeLabelStudio()
    for number in (4, 9, 2):
        server.add(number)
    assert server.client().projects() == [4, 9, 2]
    assert server.client().project(9)["label_config"] == CONFIG


def test_an_empty_project_has_no_tasks() -> None:
    server = FakeLabelStudio()
    server.add(PROJECT)
    assert list(server.client().tasks_with_annotations(PROJECT)) == []
    assert len(server.asked) == 1


@pytest.mark.parametrize("total", [None, 99])
def test_the_pages_end_where_there_is_no_further_one(total: int | None) -> None:
    server = FakeLabelStudio()
    server.add(PROJECT, task(number=1), task(number=2), task(number=3))

    def vague(request: httpx.Request) -> httpx.Response:
        answer = server(request)
        return httpx.Response(200, json={**answer.json(), "total": total}) if answer.is_success else answer

    client = client_of(vague)
    assert [one["id"] for one in client.tasks_with_annotations(PROJECT)] == [1, 2, 3]


def test_a_server_that_knows_no_pages_is_not_asked_forever() -> None:
    def same(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"tasks": [{"id": 1}, {"id": 2}], "total": 9})

    client = client_of(same)
    assert [one["id"] for one in client.tasks_with_annotations(PROJECT)] == [1, 2]


@pytest.mark.parametrize("answer", [[], {"tasks": {}}, {"tasks": [1], "total": 1}, {"tasks": [{"id": "1"}]}, None])
def test_lists_of_another_form_are_refused(answer: object) -> None:
    client = client_of(lambda _: httpx.Response(200, json=answer))
    with pytest.raises(LabelStudioError, match="not Label Studio's API"):
        list(client.tasks_with_annotations(PROJECT))
    with pytest.raises(LabelStudioError, match="not Label Studio's API"):
        client.projects()
    with pytest.raises(LabelStudioError, match="not Label Studio's API"):
        client.project(PROJECT)


def test_a_first_page_that_is_refused_is_told() -> None:
    client = client_of(lambda _: httpx.Response(404))
    with pytest.raises(LabelStudioError, match="404"):
        list(client.tasks_with_annotations(PROJECT))
