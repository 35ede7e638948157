"""Adapter versions on disk: folders that never change once they have their name, and one small file that says which of them serves.

::

    <home>/adapters/
    ├── demo-1-0f3a9c12/      a version: adapter_config.json, adapter_model.safetensors, manifest.json
    ├── champion              the version that serves, or "none": the base model alone
    ├── history.jsonl         every promotion and rollback, one a line
    ├── highest               the highest number a version ever had
    └── .lock                 held by whoever writes

A version is written whole beside its place, flushed to the disk and renamed; the small files are replaced in the same way. So a process
may be killed at any moment, and what served before it serves after it. Readers take no lock and need no right to write.
Weights are read from safetensors only; a pickle is refused by its name or by its hash and header, never opened as one.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sam4mllm.errors import RegistryError, first_line
from sam4mllm.training.checkpoint import sync_path, sync_tree

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
FILES = (CONFIG, WEIGHTS)
"""What the caller brings; the manifest is the registry's own."""

STEPS = (
    "sweep",
    "make folder",
    f"write {CONFIG}",
    f"write {WEIGHTS}",
    f"write {MANIFEST}",
    "sync folder",
    *(f"{action} highest" for action in ("write", "sync", "replace", "settle")),
    "rename folder",
    "settle folder",
    "append history",
    "sync history",
    "settle history",
    *(f"{action} champion" for action in ("write", "sync", "replace", "settle")),
)
"""Each moment at which the disk changes, in the order of one ``add`` and one ``promote``."""


def _no_step(name: str) -> None:
    """Nothing happens between the steps."""


step: Callable[[str], None] = _no_step
"""Called with a name of STEPS before that step; a test puts another in its place, to stop the process there."""

_VERSION = re.compile(r"(?P<slug>[a-z0-9.-]{1,32})-(?P<number>[1-9][0-9]{0,17})-(?P<hash>[0-9a-f]{8})")
_SLUG = re.compile(r"[a-z0-9.-]{1,32}")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHAMPION, _HISTORY, _HIGHEST, _NOBODY = "champion", "history.jsonl", "highest", "none"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_TRANSFORMERS = re.compile(r"transformers(\.[a-z0-9_]+)*")
_MAX_TEXT = 1 << 20
"""Bytes of a JSON file; a LoRA configuration with its lists of modules has a few thousand."""
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


# -- values --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What an adapter is and where it comes from. Raises RegistryError if a field is not as it should be.

    ``created`` is an ISO 8601 time with its zone; ``metrics`` are finite; ``parent`` is the version that training set out from, or None;
    ``files`` gives the SHA-256 of each of FILES, in hex, as are the other hashes.
    """

    version: str
    created: str
    base_model: str
    base_sha256: str
    template_sha256: str
    data_sha256: str
    metrics: dict[str, float]
    parent: str | None
    files: dict[str, str]

    def __post_init__(self) -> None:
        _require(_matches(_VERSION, self.version), "version", self.version, "<slug>-<n>-<8 hex>")
        _require(_is_time(self.created), "created", self.created, "an ISO 8601 time with its zone")
        _require(isinstance(self.base_model, str) and self.base_model != "", "base_model", self.base_model, "a model's name")
        for name in ("base_sha256", "template_sha256", "data_sha256"):
            _require(_matches(_SHA256, getattr(self, name)), name, getattr(self, name), "64 hex digits")
        _require(isinstance(self.metrics, dict), "metrics", self.metrics, "an object of numbers")
        for name, value in self.metrics.items():
            _require(isinstance(name, str) and _is_number(value), f"metric {name}", value, "a finite number")
        _require(self.parent is None or _matches(_VERSION, self.parent), "parent", self.parent, "a version or null")
        hashed = (
            isinstance(self.files, dict) and set(self.files) == set(FILES) and all(_matches(_SHA256, sha) for sha in self.files.values())
        )
        _require(hashed, "files", self.files, f"the hashes of {_and(FILES)}")

    @property
    def number(self) -> int:
        """The ``n`` of the version."""
        return _number(self.version)

    def to_json(self) -> str:
        """As text for ``manifest.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of ``to_json``. Raises RegistryError for keys that are unknown or missing, or values that are wrong."""
        values = _object(text, MANIFEST)
        known = {field.name for field in fields(cls)}
        if values.keys() - known:
            raise RegistryError(f"{MANIFEST} has unknown keys: {_and(values.keys() - known)}; it was written by another version or by hand")
        if known - values.keys():
            raise RegistryError(f"{MANIFEST} lacks {_and(known - values.keys())}; add the adapter again")
        return cls(**values)


@dataclass(frozen=True)
class Promotion:
    """A line of the history: from ``time`` on ``version`` serves (None: the base model alone).

    ``former`` is the number of the line that a rollback goes back to, None if that is the base model. A line that was written by a process
    that was killed just then may never have come to serve; no later line goes back to it.
    """

    number: int
    version: str | None
    former: int | None
    time: str


@dataclass(frozen=True)
class Broken:
    """A folder among the versions that cannot be used, and why."""

    name: str
    reason: str


# -- the registry --------------------------------------------------------------------------------------------------------------------------


class Registry:
    """The adapters of one ``home``. Any number of processes and threads may use it at a time."""

    def __init__(self, home: Path) -> None:
        self.root = Path(home) / "adapters"

    def add(
        self,
        files: Mapping[str, Path | bytes],
        *,
        slug: str,
        identity: str,
        base_model: str,
        base_sha256: str,
        template_sha256: str,
        data_sha256: str,
        metrics: Mapping[str, float],
        parent: str | None = None,
    ) -> Manifest:
        """Store an adapter as a new version; it does not serve before it is promoted.

        Args:
            files: each of FILES, as a path or as its bytes.
            slug: first part of the version, ``[a-z0-9.-]{1,32}``.
            identity: what else shapes a prediction (segmenter, strategy, options); it enters the version's hash.
            base_model: the model that the adapter belongs to, by name.
            base_sha256: hash of that model.
            template_sha256: hash of the prompts that it was trained with.
            data_sha256: hash of the data that it was trained on.
            metrics: what was measured of it.
            parent: the version that training set out from.

        Raises:
            RegistryError: the adapter would not be verified, or the disk cannot be written; what serves is as before.
        """
        _check_names(set(files), set(FILES))
        _require(_matches(_SLUG, slug), "slug", slug, "up to 32 of a-z, 0-9, dot and hyphen")
        with self._writing():
            self._sweep()
            number = self._highest() + 1
            temporary = self.root / ".version.partial"
            try:
                hashes = _store_all(files, temporary)
                manifest = Manifest(
                    version=f"{slug}-{number}-{_digest(identity, base_sha256, template_sha256, sorted(hashes.items()))}",
                    created=_now(),
                    base_model=base_model,
                    base_sha256=base_sha256,
                    template_sha256=template_sha256,
                    data_sha256=data_sha256,
                    metrics=dict(metrics),
                    parent=parent,
                    files=hashes,
                )
                _store(manifest.to_json().encode(), temporary / MANIFEST)
                _check_folder(temporary, manifest)
                self._publish(temporary, manifest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return manifest

    def versions(self) -> list[Manifest]:
        """All versions whose manifest can be read, by number; of the others a line is logged, and ``broken`` lists them."""
        return self._survey()[0]

    def broken(self) -> list[Broken]:
        """The folders that ``versions`` leaves out."""
        return self._survey(quiet=True)[1]

    def path(self, version: str) -> Path:
        """The folder of a version; nothing in it is checked. Raises RegistryError if the name is no version, or there is none."""
        if not _matches(_VERSION, version):
            raise RegistryError(f"{_shown(version)} is no version; a version is <slug>-<n>-<8 hex>")
        folder = self.root / version
        try:
            inside = folder.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):
            inside = False
        if not inside:
            raise RegistryError(f"{version} leads out of {self.root}; remove that link")
        if not folder.is_dir():
            raise RegistryError(f"there is no version {version} in {self.root}")
        return folder

    def show(self, version: str) -> Manifest:
        """The manifest of a version. Raises RegistryError if there is none, or it cannot be read."""
        folder = self.path(version)
        with _about(version):
            return _manifest(folder)

    def verify(self, version: str) -> None:
        """See that a version is whole and safe to load: no other files, the hashes of its manifest, finite tensors, a plain LoRA.

        Raises:
            RegistryError: with the first thing that is wrong.
        """
        folder = self.path(version)
        with _about(version):
            _check_names({path.name for path in folder.iterdir()}, {*FILES, MANIFEST})
            _check_folder(folder, _manifest(folder))

    def champion(self) -> Manifest | None:
        """The version that serves, or None if the base model does. Raises RegistryError if it is named and cannot be read."""
        version = self._champion()
        return None if version is None else self.show(version)

    def history(self) -> list[Promotion]:
        """Promotions and rollbacks, oldest first; lines that are damaged are left out."""
        try:
            lines = (self.root / _HISTORY).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{self.root / _HISTORY} cannot be read ({error.strerror})") from error
        return [promotion for line in lines if (promotion := _promotion(line)) is not None]

    def promote(self, version: str) -> Manifest:
        """Let a version serve; nothing changes if it does already.

        Raises:
            RegistryError: it is not verified, or the disk cannot be written. The champion is the former one then, unless flushing the disk
                at the very end is what failed; ``champion`` says.
        """
        with self._writing():
            self.verify(version)
            current = self._champion_or_none()
            if current != version:
                line = _last(self.history(), current)
                self._appoint(version, line.number if line else None)
        return self.show(version)

    def rollback(self) -> Manifest | None:
        """Let serve what served before the champion was promoted, and return it; None is the base model alone.

        Rolled back again, it goes one further back, not forth.

        Raises:
            RegistryError: there is no champion, the one before it is not known or not whole, or the disk cannot be written.
        """
        with self._writing():
            current = self._champion()
            if current is None:
                raise RegistryError("no adapter serves, only the base model; there is nothing to roll back")
            former = self._former(current)
            if former is None or former.version is None:
                self._appoint(None, None)
                return None
            self.verify(former.version)
            self._appoint(former.version, former.former)
            return self.show(former.version)

    def export(self, version: str, folder: Path) -> None:
        """Copy a verified version into a new or empty folder, whole or not at all. Raises RegistryError."""
        self.verify(version)
        folder = Path(folder).resolve()
        temporary = folder.with_name(f".{folder.name}.partial")
        with _disk(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RegistryError(f"{folder} is not empty; choose another folder")
            _remove(temporary)
            temporary.mkdir(parents=True)
            try:
                for name in (*FILES, MANIFEST):
                    shutil.copyfile(self.path(version) / name, temporary / name)
                _check_folder(temporary, self.show(version))
                sync_tree(temporary)
                os.replace(temporary, folder)
                sync_path(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    # -- inside ----------------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock; the kernel frees it when the process ends, however it ends."""
        with _disk(self.root):
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                sync_path(self.root.parent)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what a killed process left. Under the lock no other process is writing any of it."""
        step("sweep")
        for leftover in self.root.glob(".*.partial"):
            _remove(leftover)

    def _publish(self, temporary: Path, manifest: Manifest) -> None:
        """Give a finished folder its name. Its number is taken before, so that no later version can have it, whatever happens."""
        step("sync folder")
        sync_tree(temporary)
        self._replace(_HIGHEST, str(manifest.number))
        step("rename folder")
        os.replace(temporary, self.root / manifest.version)
        step("settle folder")
        sync_path(self.root)

    def _highest(self) -> int:
        """The highest number that a version ever had, 0 if there was none."""
        names = [path.name for path in self.root.iterdir()] + [line.version for line in self.history() if line.version is not None]
        numbers = [_number(name) for name in names if _matches(_VERSION, name)]
        path = self.root / _HIGHEST
        if path.exists():
            text = _text(path).strip()
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise RegistryError(f"{path} is not a number; write the highest number that a version ever had into it")
            numbers.append(int(text))
        return max(numbers, default=0)

    def _survey(self, quiet: bool = False) -> tuple[list[Manifest], list[Broken]]:
        good: list[Manifest] = []
        bad: list[Broken] = []
        for name in self._folders():
            try:
                good.append(self.show(name))
            except RegistryError as error:
                bad.append(Broken(name, str(error)))
                if not quiet:
                    log.warning("left out of the versions: %s", error)
        return sorted(good, key=lambda manifest: manifest.number), bad

    def _folders(self) -> list[str]:
        """Names of all folders and links that are or should be versions; a slug may begin with a dot, a leftover always does."""
        try:
            paths = sorted(self.root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{self.root} cannot be read ({error.strerror})") from error
        return [path.name for path in paths if (path.is_symlink() or path.is_dir()) and not re.fullmatch(r"\..*\.partial", path.name)]

    def _champion(self) -> str | None:
        path = self.root / _CHAMPION
        if not os.path.lexists(path):
            return None
        version = _text(path).strip()
        if version == _NOBODY:
            return None
        if not _matches(_VERSION, version):
            raise RegistryError(f"{path} names no version but {_shown(version)}; promote one")
        return version

    def _champion_or_none(self) -> str | None:
        """So that a damaged file can be mended by promoting."""
        try:
            return self._champion()
        except RegistryError as error:
            log.warning("replaced: %s", error)
            return None

    def _former(self, current: str) -> Promotion | None:
        """The line that the champion's own goes back to; None for the base model."""
        lines = {line.number: line for line in self.history()}
        own = _last(list(lines.values()), current)
        if own is None or (own.former is not None and own.former not in lines):
            raise RegistryError(f"{self.root / _HISTORY} does not say what served before {current}; promote a version instead")
        return None if own.former is None else lines[own.former]

    def _appoint(self, version: str | None, former: int | None) -> None:
        """The history first: a champion without a line could not be rolled back, a line that never came to serve does no harm."""
        number = max((line.number for line in self.history()), default=0) + 1
        self._append(Promotion(number, version, former, _now()))
        self._replace(_CHAMPION, version or _NOBODY)

    def _append(self, promotion: Promotion) -> None:
        step("append history")
        with (self.root / _HISTORY).open("a+b") as file:
            file.write(_line_end(file) + json.dumps(asdict(promotion)).encode() + b"\n")
            file.flush()
            step("sync history")
            os.fsync(file.fileno())
        step("settle history")
        sync_path(self.root)

    def _replace(self, name: str, text: str) -> None:
        """Put ``text`` into a small file, so that a reader finds the old or the new at any moment."""
        temporary = self.root / f".{name}.partial"
        step(f"write {name}")
        temporary.write_text(text + "\n")
        step(f"sync {name}")
        sync_path(temporary)
        step(f"replace {name}")
        os.replace(temporary, self.root / name)
        step(f"settle {name}")
        sync_path(self.root)


# -- files ---------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """What the system refuses is said as a RegistryError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise RegistryError(f"{folder} cannot be written ({reason}); free space, or allow writing there") from error


@contextmanager
def _about(version: str) -> Iterator[None]:
    """Errors of reading a version begin with its name."""
    try:
        yield
    except RegistryError as error:
        raise RegistryError(f"{version}: {error}") from error
    except OSError as error:
        raise RegistryError(f"{version}: it cannot be read ({error.strerror}); restore it") from error


def _manifest(folder: Path) -> Manifest:
    manifest = Manifest.from_json(_text(folder / MANIFEST))
    if manifest.version != folder.name:
        raise RegistryError(f"its manifest is of {manifest.version}; a version cannot be renamed")
    return manifest


def _store_all(files: Mapping[str, Path | bytes], folder: Path) -> dict[str, str]:
    """Copy the files into a new folder; returns their hashes, taken of the copies, since a source may change meanwhile."""
    step("make folder")
    folder.mkdir()
    for name in FILES:
        _store(files[name], folder / name)
    return {name: _sha256(folder / name) for name in FILES}


def _store(source: Path | bytes, target: Path) -> None:
    step(f"write {target.name}")
    with _reader(source) as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _reader(source: Path | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise RegistryError(f"{source} cannot be read ({error.strerror}); name the adapter's folder") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(path: Path) -> str:
    """A small text file. Raises RegistryError; a link, a pipe or a device is not opened."""
    _check_plain(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT + 1)
        text = data.decode()
    except OSError as error:
        raise RegistryError(f"{path.name} cannot be read ({error.strerror}); restore it") from error
    except UnicodeDecodeError as error:
        raise RegistryError(f"{path.name} is not UTF-8 text; restore it") from error
    if len(data) > _MAX_TEXT:
        raise RegistryError(f"{path.name} is over {_MAX_TEXT:,} bytes; restore it")
    return text


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{name} is not valid JSON; restore it") from error
    if not isinstance(values, dict):
        raise RegistryError(f"{name} is not a JSON object; restore it")
    return values


def _remove(path: Path) -> None:
    """A file, a link or a folder, if it is there; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _line_end(file: IO[bytes]) -> bytes:
    """What ends the line that a killed process may have left half written."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _promotion(line: bytes) -> Promotion | None:
    try:
        values = json.loads(line)
        promotion = Promotion(**values)
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = _is_whole(promotion.number) and (promotion.former is None or _is_whole(promotion.former))
    named = promotion.version is None or _matches(_VERSION, promotion.version)
    return promotion if numbers and named and _is_time(promotion.time) else None


def _last(history: list[Promotion], version: str | None) -> Promotion | None:
    return next((line for line in reversed(history) if line.version == version), None)


# -- checks --------------------------------------------------------------------------------------------------------------------------------


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """All of a version but its name and that it has no other files. Raises RegistryError, OSError."""
    for name in FILES:
        _check_plain(folder / name)
        if _sha256(folder / name) != manifest.files[name]:
            raise RegistryError(f"{name} is not the file that its manifest names (SHA-256); restore it or add the adapter again")
    _check_weights(folder / WEIGHTS)
    _check_config(_object(_text(folder / CONFIG), CONFIG))


def _check_names(found: set[str], wanted: set[str]) -> None:
    pickles = [name for name in found if Path(name).suffix.lower() in _PICKLES]
    if pickles:
        raise RegistryError(f"{_and(pickles)} may run code when it is opened, and was not; save the adapter as safetensors")
    if found != wanted:
        wrong = [f"{_shown(name)} does not belong there" for name in sorted(found - wanted)]
        wrong += [f"{name} is missing" for name in sorted(wanted - found)]
        raise RegistryError(f"{'; '.join(wrong)}; an adapter is {_and(wanted)}")


def _check_plain(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise RegistryError(f"{path.name} is missing or not a plain file; restore it")


def _check_weights(path: Path) -> None:
    """safetensors checks a header's lengths and types itself, though not that a number is one."""
    try:
        with safe_open(path, framework="pt") as weights:
            names = weights.keys()
            if not names:
                raise RegistryError(f"{path.name} holds no tensors; save the adapter again")
            for name in names:
                _check_tensor(name, weights.get_tensor(name))
    except RegistryError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise RegistryError(f"{path.name} cannot be read as safetensors ({first_line(error)}); save the adapter again") from error


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise RegistryError(f"{WEIGHTS}: {_shown(name)} is {tensor.dtype}, but weights are 16, 32 or 64 bit floats")
    if not torch.isfinite(tensor).all():
        raise RegistryError(f"{WEIGHTS}: {_shown(name)} holds NaN or infinity; train again with a lower learning rate")


def _check_config(config: Mapping[str, Any]) -> None:
    """Only the settings of a plain LoRA with values that peft reads as data. Raises RegistryError.

    Others make peft import modules by name (``auto_mapping``, ``megatron_core``), read further files (``corda_config``), or change the base
    model's own weights (``init_lora_weights``).
    """
    unknown = config.keys() - _CONFIG.keys()
    if unknown:
        raise RegistryError(f"{CONFIG} has keys that no plain LoRA needs: {_and(unknown)}; remove them")
    if config.get("peft_type") != "LORA" or config.get("r") is None:
        raise RegistryError(f"{CONFIG}: peft_type must be LORA and r its rank")
    for name, value in config.items():
        if value is not None and not _CONFIG[name](value):
            raise RegistryError(f"{CONFIG}: {name} may not be {_shown(value)}")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_off(value: object) -> bool:
    return not value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 1_000


def _is_names(value: object) -> bool:
    """Names of modules: a list, or one pattern for all."""
    return _is_name(value) or (isinstance(value, list) and all(_is_name(name) for name in value))


def _is_wholes(value: object) -> bool:
    """Numbers of layers or tokens: one, a list, or a list for each module."""
    if isinstance(value, dict):
        return all(_is_wholes(some) for some in value.values())
    return _is_whole(value) or (isinstance(value, list) and all(_is_whole(number) for number in value))


def _is_pattern(value: object) -> bool:
    return isinstance(value, dict) and all(_is_number(number) for number in value.values())


def _is_transformers(value: object) -> bool:
    """peft writes where the base model's class is from, and imports it when asked for an automatic model."""
    if not isinstance(value, dict) or set(value) - {"base_model_class", "parent_library", "unsloth_fixed"}:
        return False
    library, model = value.get("parent_library"), value.get("base_model_class")
    named = isinstance(model, str) and model.isidentifier() and _matches(_TRANSFORMERS, library)
    return named and value.get("unsloth_fixed") in (None, True, False)


_CONFIG: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version", "task_type"), _is_name),
    **dict.fromkeys(("inference_mode", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), _is_flag),
    **dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters"), _is_names),
    **dict.fromkeys(("layers_to_transform", "trainable_token_indices"), _is_wholes),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), _is_pattern),
    **dict.fromkeys(("lora_alpha", "lora_dropout"), _is_number),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "corda_config",
            "eva_config",
            "kasa_config",
            "layer_replication",
            "loftq_config",
            "lora_ga_config",
            "megatron_config",
            "monteclora_config",
            "use_bdlora",
            "use_qalora",
            "velora_config",
        ),
        _is_off,
    ),
    "auto_mapping": _is_transformers,
    "bias": lambda value: value in ("none", "all", "lora_only"),
    "init_lora_weights": lambda value: _is_flag(value) or value == "gaussian",
    "megatron_core": lambda value: value == "megatron.core",
    "peft_type": lambda value: value == "LORA",
    "qalora_group_size": _is_whole,
    "r": lambda value: isinstance(value, int) and _is_whole(value) and 1 <= value <= 4_096,
}
"""What a configuration may say, and how a value is told to be harmless; null always is."""


# -- small ---------------------------------------------------------------------------------------------------------------------------------


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise RegistryError(f"{name} must be {wanted}, not {_shown(value)}")


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _number(version: str) -> int:
    return int(version.rsplit("-", 2)[1])


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _and(names: Iterable[object]) -> str:
    return ", ".join(sorted(str(name) if _matches(_PLAIN, name) else _shown(name) for name in names))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
