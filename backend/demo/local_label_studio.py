"""A Label Studio of one's own: a child process on loopback that calls nobody, its login and all its data in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from backend.errors import LabelStudioError, SettingsError
from backend.support.child import HOST, Child, Progress, check_port
from sam4mllm.errors import first_line

START_TIMEOUT = 900.0
"""Seconds: the first start migrates a new database, a minute on an idle machine and several times that on a busy one."""
FIXED_ENVIRONMENT = {
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "USE_DEFAULT_BANNED_SUBNETS": "false",  # with these, Label Studio would refuse to call a backend on loopback
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    # Label Studio asks GitHub for tips, and no setting stops that: a proxy that does not exist does
    "HTTP_PROXY": f"http://{HOST}:9",
    "HTTPS_PROXY": f"http://{HOST}:9",
    "NO_PROXY": f"{HOST},localhost",
}


class LocalLabelStudio:
    """Label Studio with its data in a folder; a folder that was used before keeps its projects, its user and its login.

    ``user``, ``password`` and ``token`` (a legacy token) are made for a new folder, the latter two at random, and are kept in a file that
    only its owner can read.
    """

    def __init__(
        self,
        executable: Path,
        folder: Path,
        port: int = 0,
        local_files: Path | None = None,
        timeout: float = START_TIMEOUT,
        progress: Progress = lambda _: None,
    ) -> None:
        """Note what to start; ``start`` starts it.

        ``folder`` is for the database, uploads, login and log. ``port`` 0 takes a free one. Projects may serve the files in ``local_files``
        by a Local Files storage. The start may take ``timeout`` seconds, and ``progress`` gets a line every ten of them.
        """
        self.executable, self.folder, self.port, self.local_files = executable, folder.absolute(), port, local_files
        self.timeout, self.progress = timeout, progress
        self.url = self.user = self.password = self.token = ""
        self._child: Child | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until it answers. Raises LabelStudioError or SettingsError, and leaves nothing running then."""
        self.port = check_port(self.port)
        self.url = f"http://{HOST}:{self.port}"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read_login()
        command = [str(self.executable), "start", "--no-browser", "--internal-host", HOST, "--port", str(self.port)]
        self._child = Child("Label Studio", command, self._environment(), self.folder / "label-studio.log")
        try:
            self._child.wait_until(self._answers, self.timeout, self.progress)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End Label Studio and its children, in at most 20 seconds; a second call does nothing."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def check(self) -> None:
        """Raise LabelStudioError if it was not started, or has ended."""
        if self._child is None:
            raise LabelStudioError("Label Studio is not started; call start() first")
        self._child.check()

    def api(self, method: str, path: str, **options: Any) -> Any:
        """Call a route such as ``/api/projects/``, and return its JSON answer, or None for an empty one. ``options`` are those of
        ``httpx.request``.

        Raises LabelStudioError if Label Studio does not answer, refuses the request, or answers with something other than JSON.
        """
        options.setdefault("timeout", 150)  # seconds, above the 100 that Label Studio itself gives a backend
        try:
            # no proxy of the environment between us and loopback
            answer = httpx.request(
                method, f"{self.url}{path}", headers={"Authorization": f"Token {self.token}"}, trust_env=False, **options
            )
            answer.raise_for_status()
            return answer.json() if answer.content else None
        except httpx.HTTPStatusError as error:
            said = f"{error.response.status_code} {' '.join(error.response.text.split())[:300]}"
            raise LabelStudioError(f"{method} {self.url}{path}: {said}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise LabelStudioError(f"{method} {self.url}{path}: {first_line(error)}") from error

    def create_project(self, title: str, label_config: str) -> int:
        """Make a project, and return its id. Raises LabelStudioError."""
        return int(self.api("POST", "/api/projects/", json={"title": title, "label_config": label_config})["id"])

    def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> None:
        """Add tasks, each the dict of its data, in one request: all or none."""
        self.api("POST", f"/api/projects/{project}/import", json=[{"data": data} for data in tasks])

    def upload(self, project: int, files: Iterable[Path]) -> list[str]:
        """Upload files and make no tasks: their paths (``/data/upload/…``) for a task's data, in the order given."""
        paths = []
        for file in files:
            sent = {"file": (file.name, file.read_bytes())}
            answer = self.api("POST", f"/api/projects/{project}/import?commit_to_project=false", files=sent)
            paths.append("/data/" + self.api("GET", f"/api/import/file-upload/{answer['file_upload_ids'][0]}")["file"])
        return paths

    def connect(self, project: int, backend_url: str, title: str, interactive: bool = True) -> int:
        """Connect an ML backend, which must be running already, and return its id. If the project has a backend of this title, that one is
        set to the address, and so is the webhook that led to its former address.
        """
        body = {"url": backend_url, "project": project, "title": title, "is_interactive": interactive}
        known = next((one for one in self.api("GET", f"/api/ml?project={project}") if one["title"] == title), None)
        if known is None:
            return int(self.api("POST", "/api/ml/", json=body)["id"])
        if known["url"] != backend_url:
            self.api("PATCH", f"/api/ml/{known['id']}", json=body)
            # Label Studio leaves the webhook where it was
            for hook in self.api("GET", f"/api/webhooks/?project={project}"):
                if hook["url"] == f"{known['url']}/webhook":
                    self.api("PATCH", f"/api/webhooks/{hook['id']}/", json={"url": f"{backend_url}/webhook"})
        return int(known["id"])

    def retrieve_predictions(self, project: int) -> None:
        """Make Label Studio ask the project's backend about all tasks that have no prediction of the backend's version. Label Studio waits
        100 s for all of them together.
        """
        everything = {"selectedItems": {"all": True, "excluded": []}}
        self.api("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=everything)

    def _answers(self) -> bool:
        # asks with the random token, so that another server on this port is not taken for this one
        with contextlib.suppress(LabelStudioError):
            return bool(self.api("GET", "/api/current-user/whoami", timeout=30))
        return False

    def _read_login(self) -> None:
        path = self.folder / "login.json"
        if not path.exists():
            path.touch(0o600)  # for its owner only from the first moment
            login = {"user": "demo@example.com", "password": secrets.token_urlsafe(12), "token": secrets.token_hex(20)}
            path.write_text(json.dumps(login))
        try:
            login = json.loads(path.read_text())
            self.user, self.password, self.token = login["user"], login["password"], login["token"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path} cannot be read as a login; remove {self.folder} to start anew") from error

    def _environment(self) -> dict[str, str]:
        """Return the environment of Label Studio. It gets only a few of this process's variables, because it would take settings such as a
        database or a proxy from them.
        """
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ") if name in os.environ}
        own = {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder),
            "LABEL_STUDIO_HOST": self.url,
            "LABEL_STUDIO_USERNAME": self.user,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }
        files = {"LOCAL_FILES_SERVING_ENABLED": "true", "LOCAL_FILES_DOCUMENT_ROOT": str((self.local_files or self.folder).absolute())}
        return kept | FIXED_ENVIRONMENT | own | (files if self.local_files else {})
