"""Label Studio's API as far as it is used here, and its two kinds of token.

A legacy token is sent as it is. A personal access token is a refresh token that is valid for 200 years. No route takes it as it is; it is
exchanged for access tokens that are valid for five minutes each.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from backend.errors import FetchError, LabelStudioError
from backend.support.addresses import parse_url

TIMEOUT = httpx.Timeout(10.0, connect=3.0)
"""Seconds to connect, and seconds without any byte from the server. There is no limit on the whole answer: the server is trusted not to
send it byte by byte."""
LIST_TIMEOUT = httpx.Timeout(120.0, connect=3.0)
"""Longer waits, in seconds, for lists: a page of tasks may hold all of their masks, and before it answers, Label Studio may ask a backend,
to which it gives 100 s."""
TASKS_A_PAGE = 50
PROJECTS_A_PAGE = 100
CUT_AT = 500
"""Characters after which the Data Manager cuts a text, in the middle of a number maybe (CHAR_LIMITS of its serializers)."""
ACCESS_SECONDS = 300.0
"""What Label Studio gives an access token to live."""
SPARE_SECONDS = 60.0
"""An access token is renewed when it has this long to live, so that it lasts through a slow download."""

_PERSONAL = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_TOKEN = re.compile(r"[!-~]*")
_NEW_TOKEN = "make a personal access token in Label Studio (Account & Settings) and set it as LABEL_STUDIO_API_KEY"
_REFUSALS = {
    403: "use the token of a user who is a member of the project",
    404: "what was asked for is deleted, or LABEL_STUDIO_URL is another server or lacks its sub-path",
}


class LabelStudio:
    """A client that threads may share; no error and no repr of it shows a token.

    Args:
        url: where Label Studio is reached from here, with its sub-path if it has one.
        token: legacy or personal; empty for none.
        clock: a monotonic clock, in seconds.
        transport: takes the place of the network in tests.

    Raises:
        LabelStudioError: ``url`` is no address of a server, or ``token`` has characters that no token has.
    """

    def __init__(
        self, url: str, token: str, *, clock: Callable[[], float] = time.monotonic, transport: httpx.BaseTransport | None = None
    ) -> None:
        try:
            parse_url(url)
        except FetchError:
            raise LabelStudioError("LABEL_STUDIO_URL is no address of a server; write it as http://label-studio:8080") from None
        token = token.strip()
        if not _TOKEN.fullmatch(token):
            raise LabelStudioError(f"LABEL_STUDIO_API_KEY is no token; {_NEW_TOKEN}")
        self.url = url.rstrip("/")
        self._token = token
        self._personal = _PERSONAL.fullmatch(token) is not None
        self._clock = clock
        self._lock = threading.Lock()
        self._access, self._renew_at = "", 0.0
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT, trust_env=False, transport=transport)

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    @property
    def has_token(self) -> bool:
        """Whether there is a key to ask with; Label Studio tells nobody without one of its projects."""
        return bool(self._token)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._client.close()

    def authorization(self) -> dict[str, str]:
        """Return the header that authorises a request; empty without a token.

        Raises LabelStudioError if a personal token cannot be exchanged for an access token.
        """
        if not self._token:
            return {}
        if not self._personal:
            return {"Authorization": f"Token {self._token}"}
        with self._lock:
            if not self._access or self._clock() >= self._renew_at:
                began = self._clock()
                self._access = self._buy_access()
                self._renew_at = began + ACCESS_SECONDS - SPARE_SECONDS
            return {"Authorization": f"Bearer {self._access}"}

    def forget(self, refused: Mapping[str, str]) -> bool:
        """Drop the access token in the header ``refused``, which got a 401.

        Return whether a retry with a new access token makes sense, which is so with a personal token.
        """
        with self._lock:
            if refused.get("Authorization") == f"Bearer {self._access}":
                self._access = ""
        return self._personal

    def request(self, method: str, path: str, json: object = None, timeout: httpx.Timeout = TIMEOUT) -> Any:
        """Return the JSON that a route answers, None if the answer is empty. ``path`` begins with a slash, relative to ``url``.

        If a personal token's access token is refused (401), the request is sent once more with a new one.

        Raises:
            LabelStudioError: there was no answer, or it was no success or no JSON; the text is one line that says what to do.
            ValueError: ``path`` does not begin with a slash.
        """
        return _content(self._send(method, path, json, timeout), path, self._personal)

    def open(self, path: str) -> Any:
        """Return the JSON that a route which needs no token answers to a GET; no token is sent. Raises LabelStudioError."""
        return _content(self._exchange("GET", path, None, {}), path, self._personal)

    def task(self, task_id: int) -> dict[str, Any]:
        """A task with its data and annotations. Raises LabelStudioError."""
        path = f"/api/tasks/{task_id:d}/"
        found = self.request("GET", path)
        if not isinstance(found, dict):
            raise _unexpected(path)
        return found

    def project(self, project_id: int) -> dict[str, Any]:
        """A project with its ``title`` and ``label_config``. Raises LabelStudioError."""
        path = f"/api/projects/{project_id:d}/"
        found = self.request("GET", path)
        if not isinstance(found, dict) or not isinstance(found.get("label_config"), str):
            raise _unexpected(path)
        return found

    def projects(self) -> list[int]:
        """The numbers of all projects that the token's user sees. Raises LabelStudioError."""
        return [entry["id"] for entry in self._entries("/api/projects/?include=id", "results", "count", PROJECTS_A_PAGE)]

    def tasks_with_annotations(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Yield all tasks of a project by number, also those without annotations. They are requested page by page.

        Each task comes with its ``annotations`` in full, skipped ones included.

        A task's data is as it was imported, without signed addresses. A task that is added or deleted meanwhile may be missed, or may
        move another task to a page that was already read. Raises LabelStudioError.
        """
        path = f"/api/tasks/?project={project_id:d}&fields=all&resolve_uri=false"
        yield from self._entries(path, "tasks", "total", TASKS_A_PAGE)

    def annotated_tasks(self, project_id: int, newest_first: bool) -> Iterator[dict[str, Any]]:
        """Yield a project's tasks that have annotations, skipped ones included, by number or with the last changed first.

        Each task comes with its data and with how many annotations it has, but without annotations and predictions. Raises
        LabelStudioError.
        """
        has_some = [_filter(f"{kind}_annotations", "greater", "Number", 0) for kind in ("total", "cancelled")]
        order = "-tasks:updated_at" if newest_first else "tasks:id"
        query = {"filters": {"conjunction": "or", "items": has_some}, "ordering": [order]}
        yield from self._entries(_tasks_path(project_id, query), "tasks", "total", TASKS_A_PAGE)

    def annotations(self, project_id: int, task_id: int, known: Iterable[int], skipped: bool) -> list[dict[str, Any]] | None:
        """Return all annotations of a task in full, None if there is no such task.

        Label Studio's list of a task's annotations leaves out skipped ones, so these are requested one by one: the numbers ``known`` to the
        caller that are not in the list and, if ``skipped`` is true, those that the Data Manager gives. Raises LabelStudioError.
        """
        path = f"/api/tasks/{task_id:d}/annotations/"
        found = self._present(path)
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(entry, dict) and isinstance(entry.get("id"), int) for entry in found):
            raise _unexpected(path)
        asked = {*known, *(self._annotation_ids(project_id, task_id) if skipped else ())} - {entry["id"] for entry in found}
        alone = [self._present(f"/api/annotations/{number:d}/") for number in sorted(asked)]
        return found + [entry for entry in alone if isinstance(entry, dict) and entry.get("task") == task_id]

    def _annotation_ids(self, project_id: int, task_id: int) -> list[int]:
        query = {
            "filters": {"conjunction": "and", "items": [_filter("annotations_ids", "empty", "String", "false")]},
            "selectedItems": {"all": False, "included": [task_id]},
        }
        path = _tasks_path(project_id, query)
        texts = [str(entry.get("annotations_ids") or "") for entry in self._entries(path, "tasks", "total", 1)]
        whole = [part for text in texts for part in (text.split(",") if len(text) < CUT_AT else text.split(",")[:-1]) if part]
        if not all(part.strip().isdecimal() for part in whole):
            raise _unexpected(path)
        return [int(part) for part in whole]

    def _present(self, path: str) -> Any:
        """Return what a route answers, None if Label Studio itself answers 404. Raises LabelStudioError for any other failure, also for a
        404 of another origin, such as a proxy.
        """
        response = self._send("GET", path, timeout=LIST_TIMEOUT)
        return None if _is_missing(response) else _content(response, path, self._personal)

    def _entries(self, path: str, name: str, total: str, size: int) -> Iterator[dict[str, Any]]:
        """Yield the entries on all pages of a list, each once. ``name`` and ``total`` are the answer's keys for entries and their count."""
        seen: set[int] = set()
        received = 0
        for page in itertools.count(1):
            response = self._send("GET", f"{path}&page={page}&page_size={size}", timeout=LIST_TIMEOUT)
            if page > 1 and _is_missing(response):
                return
            found = _content(response, path, self._personal)
            entries = found.get(name) if isinstance(found, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("id"), int) for entry in entries):
                raise _unexpected(path)
            new = [entry for entry in entries if entry["id"] not in seen]
            yield from new
            seen.update(entry["id"] for entry in new)
            received += len(entries)  # an entry that moved to the front pushes others back: a page of known ones is not the end
            end = found.get(total)
            if not entries or (received >= end if isinstance(end, int) else not new):
                return

    def predictions(self, task_id: int) -> list[dict[str, Any]]:
        """All predictions of a task, of whatever version. Raises LabelStudioError."""
        path = f"/api/predictions/?task={task_id:d}"
        found = self.request("GET", path)
        if not isinstance(found, list) or not all(isinstance(entry, dict) and isinstance(entry.get("id"), int) for entry in found):
            raise _unexpected(path)
        return found

    def delete_prediction(self, prediction_id: int) -> bool:
        """Delete a prediction; False if there was none. Raises LabelStudioError."""
        path = f"/api/predictions/{prediction_id:d}/"
        response = self._send("DELETE", path)
        if response.status_code == 404:
            return False
        _content(response, path, self._personal)
        return True

    def drop_duplicates(self, task_id: int, model_version: str) -> int:
        """Delete a task's repeated predictions: of those with this version and the same result, only the earliest is kept.

        Return how many were deleted. Label Studio stores the answer to each of its requests, even if it asked the same twice at once.
        Raises LabelStudioError.
        """
        kept: set[str] = set()
        dropped = 0
        for prediction in sorted(self.predictions(task_id), key=lambda entry: int(entry["id"])):
            if prediction.get("model_version") != model_version:
                continue
            result = json.dumps(prediction.get("result"), sort_keys=True)
            if result in kept:
                dropped += self.delete_prediction(prediction["id"])
            kept.add(result)
        return dropped

    def rename_backends(self, project: int, former: str, version: str) -> int:
        """Set the title of a project's backends that have the model version ``former`` to ``version``. At this change, Label Studio calls
        the backend's /setup and takes over its present version.

        Backends that have ``version`` already are set, too: Label Studio may have called /setup when the backends were listed. Return how
        many backends were set. Raises LabelStudioError.
        """
        listed = self.request("GET", f"/api/ml?project={project:d}")
        ours = (
            [one for one in listed if isinstance(one, dict) and one.get("model_version") in (former, version)]
            if isinstance(listed, list)
            else []
        )
        for one in ours:
            # Label Studio answers a PATCH of the title alone with an internal error
            self.request("PATCH", f"/api/ml/{one['id']:d}", {"title": version, "url": one["url"], "project": project})
        return len(ours)

    def drop_version(self, project: int, version: str) -> None:
        """Delete all predictions of a version in a project. Raises LabelStudioError."""
        self.request("DELETE", f"/api/projects/{project:d}/model-versions/", {"model_version": version})

    def _send(self, method: str, path: str, json: object = None, timeout: httpx.Timeout = TIMEOUT) -> httpx.Response:
        if not path.startswith("/"):
            raise ValueError("a path of Label Studio's API begins with a slash")
        headers = self.authorization()
        response = self._exchange(method, path, json, headers, timeout)
        if response.status_code == 401 and self.forget(headers):
            response = self._exchange(method, path, json, self.authorization(), timeout)
        return response

    def _exchange(
        self, method: str, path: str, json: object, headers: Mapping[str, str], timeout: httpx.Timeout = TIMEOUT
    ) -> httpx.Response:
        try:
            return self._client.request(method, path, json=json, headers=headers, timeout=timeout)
        except httpx.TimeoutException as error:
            raise LabelStudioError(
                f"Label Studio at {self.url} does not answer; check LABEL_STUDIO_URL, and that it runs", passing=True
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = " ".join(str(error).split())[:120]
            raise LabelStudioError(
                f"Label Studio at {self.url} cannot be reached ({reason}); check LABEL_STUDIO_URL", passing=True
            ) from error

    def _buy_access(self) -> str:
        path = "/api/token/refresh/"
        response = self._exchange("POST", path, {"refresh": self._token}, {})
        if response.status_code in (400, 401, 403):
            raise LabelStudioError(f"Label Studio does not take the personal access token, which may be revoked or another's; {_NEW_TOKEN}")
        answer = _content(response, path, True)
        access = answer.get("access") if isinstance(answer, dict) else None
        if not isinstance(access, str) or not access or not _TOKEN.fullmatch(access):
            raise _unexpected(path)
        return access


def _is_missing(response: httpx.Response) -> bool:
    """Whether the answer is a 404 of Label Studio itself: a JSON object with ``detail``, which the 404 of a proxy lacks."""
    try:
        return response.status_code == 404 and isinstance(response.json(), dict) and "detail" in response.json()
    except ValueError:
        return False


def _filter(column: str, operator: str, kind: str, value: object) -> dict[str, object]:
    """A filter of the Data Manager's."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _tasks_path(project_id: int, query: object) -> str:
    """Return the path of the list of a project's tasks that the Data Manager shows for a query, with their data as they were imported."""
    return f"/api/tasks/?project={project_id:d}&resolve_uri=false&query={quote(json.dumps(query, separators=(',', ':')))}"


def _content(response: httpx.Response, path: str, personal: bool) -> Any:
    """Return the JSON of a success, None if it is empty. Raises LabelStudioError for a failure and for a success that is no JSON."""
    if response.is_success:
        try:
            return response.json() if response.content else None
        except ValueError:
            raise _unexpected(path) from None
    status = response.status_code
    advice = _advice(response, path.partition("?")[0], personal)
    raise LabelStudioError(advice, status, response.is_server_error or status == 429, _said(response))


def _advice(response: httpx.Response, path: str, personal: bool) -> str:
    """What a failure means and what to do, in one line."""
    status, detail = response.status_code, _detail(response)
    if status == 401 and "legacy token" in detail.lower():
        return f"Label Studio has legacy tokens disabled for this organization (401); {_NEW_TOKEN}"
    if status == 401:
        return (
            f"Label Studio does not take the token (401): it is wrong{'' if personal else ', or legacy tokens are disabled'}; {_NEW_TOKEN}"
        )
    if response.is_redirect:
        return f"Label Studio redirects {path} ({status}); set LABEL_STUDIO_URL to its final address"
    if response.is_server_error:
        return f"Label Studio failed at {path} ({status}); see its log, and try again"
    advice = _REFUSALS.get(status, "check that its version is supported")
    return f"Label Studio refused {path} ({status}{': ' if detail else ''}{detail}); {advice}"


def _detail(response: httpx.Response) -> str:
    return _said(response)[:160]


def _said(response: httpx.Response) -> str:
    """What Label Studio says of a failure, in one line: the first thing that is wrong with a field, else the general reason."""
    try:
        answer = response.json()
    except ValueError:
        return ""
    if not isinstance(answer, dict):
        return ""
    said = _first_text(answer.get("validation_errors")) or answer.get("detail") or answer.get("error")
    return " ".join(said.split())[:1000] if isinstance(said, str) else ""


def _first_text(value: object) -> str:
    """Return the first text that is not empty in a text, or in lists and objects however nested; empty if there is none."""
    if isinstance(value, str):
        return value
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return next(filter(None, map(_first_text, children)), "")


def _unexpected(path: str) -> LabelStudioError:
    return LabelStudioError(f"what answers at {path.partition('?')[0]} is not Label Studio's API; check LABEL_STUDIO_URL")
