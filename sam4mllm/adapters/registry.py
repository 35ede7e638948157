"""Adapter versions on disk: folders that never change once they have their name, and one small file that says which of them serves.

::

    <home>/adapters/
    ├── demo-1-0f3a9c12/      a version: adapter_config.json, adapter_model.safetensors, manifest.json;
    │                         for the segmenter: segmenter_config.json, segmenter_model.safetensors beside the first two or instead
    ├── champion              the version that serves, or "none": the base model alone
    ├── history.jsonl         every promotion and rollback, one a line
    ├── highest               the highest number a version ever had
    └── .lock                 held by whoever writes

A process may be killed at any moment: the champion is then either the former one or the new one, and is complete. Readers take no lock and
need no permission to write.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from sam4mllm.adapters import files as adapters
from sam4mllm.adapters.fields import (
    CONFIG,
    FILES,
    MANIFEST,
    SEGMENTER_FILES,
    SLUG,
    VERSION,
    WEIGHTS,
    is_time,
    is_whole,
    matches,
    require,
    shown,
)
from sam4mllm.adapters.manifest import Manifest, Papers, number_of, version_digest
from sam4mllm.durable import PARTIAL, Step, append_line, locked, no_step, partial, publish, remove, replace_file, sync_path
from sam4mllm.errors import RegistryError, first_line

__all__ = ["STEPS", "Broken", "Manifest", "Promotion", "Registry", "Tenure", "step"]

log = logging.getLogger(__name__)

STEPS = (
    "sweep",
    "make folder",
    f"write {CONFIG}",
    f"write {WEIGHTS}",
    f"write {MANIFEST}",
    *(f"{action} highest" for action in ("write", "sync", "replace", "settle")),
    *(f"{action} folder" for action in ("sync", "replace", "settle")),
    *(f"{action} history" for action in ("append", "sync", "settle")),
    *(f"{action} champion" for action in ("write", "sync", "replace", "settle")),
)
"""The names of all steps that change the disk, in the order in which an ``add`` of an MLLM's adapter and then a ``promote`` take them."""

step: Step = no_step
"""A hook that is called before each step with its name in STEPS. Tests replace it, to stop the process at that step."""

_NOBODY = "none"


@dataclass(frozen=True)
class Promotion:
    """A line of the history: from ``time`` on, ``version`` serves (None: the base model alone).

    ``number`` is the number of the line. ``former`` is the number of the line that a rollback goes back to, None if it goes back to the
    base model. If a process was killed just after it wrote a line, its version may never have served; no later line goes back to it.
    """

    number: int
    version: str | None
    former: int | None
    time: str


@dataclass(frozen=True)
class Tenure:
    """The version that serves, and since when, in seconds since 1970.

    ``former`` is the number of the version that a rollback goes back to, 0 for the base model.
    """

    version: str
    since: float
    former: int

    @property
    def number(self) -> int:
        return number_of(self.version)


@dataclass(frozen=True)
class Broken:
    """A folder among the versions that cannot be used, and why."""

    name: str
    reason: str


class Registry:
    """The adapters of one ``home``. Any number of processes and threads may use it at a time.

    Any method may raise RegistryError: what it needs is missing, damaged or refused, or the disk cannot be read or written.
    """

    def __init__(self, home: Path) -> None:
        self.root = Path(home) / "adapters"
        self._champion, self._history, self._highest = (self.root / name for name in ("champion", "history.jsonl", "highest"))

    def add(self, files: Mapping[str, Path | bytes], papers: Papers, *, slug: str, identity: str, parent: str | None = None) -> Manifest:
        """Store an adapter as a new version, and return its manifest. The version does not serve before it is promoted.

        Args:
            files: the files of the part for the MLLM, of the part for the segmenter, or of both, by name; as paths or as bytes.
            papers: the adapter's papers. The hashes of its files are computed anew from the copies, because a source may change meanwhile.
            slug: the first part of the version's name, ``[a-z0-9.-]{1,32}``.
            identity: a hash of all else that shapes a prediction (segmenter, options); it enters the last part of the name.
            parent: the version that the training went on from, or whose other part is kept; None if there is none.
        """
        parts = [name for part in (FILES, SEGMENTER_FILES) if not set(part).isdisjoint(files) for name in part]
        adapters.check_names(set(files), set(parts or FILES))
        require(matches(SLUG, slug), "slug", slug, "up to 32 of a-z, 0-9, dot and hyphen")
        temporary = partial(self.root / "version")
        with self._writing():
            step("sweep")
            for leftover in self.root.glob(PARTIAL):
                remove(leftover)
            number = self._last_number() + 1
            try:
                step("make folder")
                temporary.mkdir()
                for name in parts:
                    _store(files[name], temporary / name)
                hashes = adapters.hash_files(temporary)
                digest = version_digest(identity, papers.base_sha256, papers.template_sha256, hashes)
                own = {field.name: getattr(papers, field.name) for field in fields(Papers)} | {"files": hashes}
                manifest = Manifest(**own, version=f"{slug}-{number}-{digest}", created=_now(), parent=parent)
                _store(manifest.to_json().encode(), temporary / MANIFEST)
                adapters.check_parts(temporary)
                replace_file(self._highest, f"{number}\n".encode(), step)  # before the folder: no other version may get its number
                publish(temporary, self.root / manifest.version, step, "folder")
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return manifest

    def versions(self) -> list[Manifest]:
        """Return the manifests that can be read, by number. For any other folder a warning is logged; ``broken`` lists those."""
        good, bad = self.survey()
        for broken in bad:
            log.warning("left out of the versions: %s", broken.reason)
        return good

    def broken(self) -> list[Broken]:
        """The folders that ``versions`` leaves out."""
        return self.survey()[1]

    def survey(self) -> tuple[list[Manifest], list[Broken]]:
        """Return the manifests that can be read, by number, and every other folder as a Broken.

        A link counts as such a folder; a folder that is still being written is left out.
        """
        with _reading(self.root):
            paths = sorted(self.root.iterdir()) if self.root.exists() else []
        good: list[Manifest] = []
        bad: list[Broken] = []
        for path in paths:
            if (path.is_symlink() or path.is_dir()) and not fnmatchcase(path.name, PARTIAL):
                try:
                    good.append(self.show(path.name))
                except RegistryError as error:
                    bad.append(Broken(path.name, str(error)))
        return sorted(good, key=lambda manifest: manifest.number), bad

    def path(self, version: str) -> Path:
        """The folder of a version; nothing in it is checked."""
        if not matches(VERSION, version):
            raise RegistryError(f"{shown(version)} is no version; a version is <slug>-<n>-<8 hex>")
        folder = self.root / version
        if folder.is_symlink():
            raise RegistryError(f"{version} is a link, and a version is a folder of its own; remove it from {self.root}")
        if not folder.is_dir():
            raise RegistryError(f"there is no version {version} in {self.root}")
        return folder

    def show(self, version: str) -> Manifest:
        """The manifest of a version."""
        folder = self.path(version)
        with _reading(version):
            return adapters.read_manifest(folder)

    def verify(self, version: str) -> Manifest:
        """Check that a version is whole and safe to load (no other files, the hashes of its manifest, finite tensors, a plain LoRA), and
        return its manifest.
        """
        folder = self.path(version)
        with _reading(version):
            return adapters.check_folder(folder)

    def serving(self) -> str | None:
        """The name of the version that serves, whether it can be used or not; None if the base model serves."""
        if not os.path.lexists(self._champion):
            return None
        with _reading(self._champion):
            version = adapters.read_text(self._champion).strip()
        if version == _NOBODY:
            return None
        if not matches(VERSION, version):
            raise RegistryError(f"{self._champion} names no version but {shown(version)}; promote one")
        return version

    def champion(self) -> Manifest | None:
        """The manifest of the version that serves, or None if the base model serves."""
        version = self.serving()
        return None if version is None else self.show(version)

    def history(self) -> list[Promotion]:
        """Promotions and rollbacks, oldest first; lines that are damaged are left out."""
        with _reading(self._history):
            lines = self._history.read_bytes().splitlines() if self._history.exists() else []
        return [promotion for line in lines if (promotion := _promotion(line)) is not None]

    def tenure(self) -> Tenure | None:
        """Return since when the champion serves, and what served before it; None if the base model serves or the history does not say."""
        version = self.serving()
        history = self.history()
        own = _last(history, version)
        if version is None or own is None:
            return None
        former = _line(history, own.former)
        number = number_of(former.version) if former and former.version else 0
        return Tenure(version, datetime.fromisoformat(own.time).timestamp(), number)

    def before(self) -> list[str | None]:
        """Return the versions that rollbacks would go back to, one after another.

        The list always ends with None, the base model, also if no version serves, or where the history does not say what comes next.
        """
        history = self.history()
        line = _last(history, self.serving())
        found: list[str | None] = []
        while line is not None and (line := _line(history, line.former)) is not None and line.version is not None:
            found.append(line.version)
        return [*found, None]

    def promote(self, version: str) -> Manifest:
        """Verify a version and make it the champion; nothing changes if it is that already. Return its manifest.

        After an error in writing, the former champion still serves, unless only the last sync of the disk failed; ``champion`` tells.
        """
        with self._writing():
            manifest = self.verify(version)
            try:
                current = self.serving()
            except RegistryError as error:  # promoting replaces a damaged champion file
                log.warning("replaced: %s", error)
                current = None
            if current != version:
                own = _last(self.history(), current)
                self._appoint(version, own.number if own else None)
        return manifest

    def rollback(self) -> Manifest | None:
        """Make the version that served before the champion the new champion, and return its manifest; None stands for the base model alone.

        A second rollback goes one version further back; it does not return to the first champion. Raises RegistryError if only the base
        model serves, the history does not say what served before, or that version is damaged.
        """
        with self._writing():
            current = self.serving()
            if current is None:
                raise RegistryError("no adapter serves, only the base model; there is nothing to roll back")
            history = self.history()
            own = _last(history, current)
            former = own and _line(history, own.former)
            if own is None or (former is None and own.former is not None):
                raise RegistryError(f"{self._history} does not say what served before {current}; promote a version instead")
            if former is None or former.version is None:
                self._appoint(None, None)
                return None
            manifest = self.verify(former.version)
            self._appoint(former.version, former.former)
            return manifest

    def export(self, version: str, folder: Path) -> None:
        """Copy a verified version into a new or empty folder, whole or not at all."""
        manifest = self.verify(version)
        folder = Path(folder).resolve()
        temporary = partial(folder)
        with _disk(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RegistryError(f"{folder} is not empty; choose another folder")
            remove(temporary)
            temporary.mkdir(parents=True)
            try:
                for name in (*manifest.files, MANIFEST):
                    shutil.copyfile(self.path(version) / name, temporary / name)
                publish(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    # -- inside ----------------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _disk(self.root):
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                sync_path(self.root.parent)
            with locked(self.root / ".lock"):
                yield

    def _last_number(self) -> int:
        """The highest number that a version ever had, 0 if there was none."""
        numbers = [int(found["number"]) for path in self.root.iterdir() if (found := VERSION.fullmatch(path.name))]
        if self._highest.exists():
            text = adapters.read_text(self._highest).strip()
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise RegistryError(f"{self._highest} is not a number; write the highest number that a version ever had into it")
            numbers.append(int(text))
        return max(numbers, default=0)

    def _appoint(self, version: str | None, former: int | None) -> None:
        """Make a version the champion; ``former`` is the number of the line that a rollback goes back to.

        The history is written first: a champion without a line could not be rolled back, while a line whose version never served does no
        harm.
        """
        number = max((line.number for line in self.history()), default=0) + 1
        append_line(self._history, json.dumps(asdict(Promotion(number, version, former, _now()))).encode(), step)
        replace_file(self._champion, f"{version or _NOBODY}\n".encode(), step)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise RegistryError(f"{folder} cannot be written ({reason}); free space, or allow writing there") from error


@contextmanager
def _reading(what: object) -> Iterator[None]:
    """Turn a RegistryError or an OSError of the block into a RegistryError that says ``what`` was being read."""
    try:
        yield
    except RegistryError as error:
        raise RegistryError(f"{what}: {error}") from error
    except OSError as error:
        raise RegistryError(f"{what} cannot be read ({error.strerror})") from error


def _store(source: Path | bytes, target: Path) -> None:
    step(f"write {target.name}")
    if isinstance(source, bytes):
        reader: io.BufferedIOBase = io.BytesIO(source)
    else:
        with _reading(source):
            reader = source.open("rb")
    with reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _promotion(line: bytes) -> Promotion | None:
    try:
        promotion = Promotion(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = is_whole(promotion.number) and (promotion.former is None or is_whole(promotion.former))
    if numbers and promotion.former is not None and promotion.former >= promotion.number:  # following such a line back would never end
        return None
    named = promotion.version is None or matches(VERSION, promotion.version)
    return promotion if numbers and named and is_time(promotion.time) else None


def _line(history: list[Promotion], number: int | None) -> Promotion | None:
    return next((line for line in history if line.number == number), None)


def _last(history: list[Promotion], version: str | None) -> Promotion | None:
    return next((line for line in reversed(history) if line.version == version), None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
