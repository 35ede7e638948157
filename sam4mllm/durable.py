"""Write files and folders so that a kill or a power cut leaves either the old or the new one: write beside it, flush to the disk, rename.

An unfinished file or folder is named ``.<name>.partial``. A killed process leaves it behind, and the next writer of the
same path removes or overwrites it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = ".*.partial"
"""A glob pattern that matches the names that :func:`partial` gives."""

Step = Callable[[str], None]
"""A function that is called with the name of a step before the disk changes. A test passes one that stops the process there."""


def no_step(name: str) -> None:
    """Do nothing: the Step that is used where nobody watches the steps."""


def partial(path: Path) -> Path:
    """Where a file or folder is written before it has its name."""
    return path.with_name(f".{path.name}.partial")


def sync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush to the disk all that a folder holds, then the folder itself. A file may be given instead; it is flushed alone."""
    for path in sorted(folder.rglob("*")):
        sync_path(path)
    sync_path(folder)


def publish(temporary: Path, final: Path, step: Step = no_step, name: str = "") -> None:
    """Flush a finished file or folder to the disk and rename it to ``final``. At any moment a reader finds either the former one or the new
    one there. ``name`` stands in the names of the steps. Raises OSError on failure, also if a folder is to replace one that is not empty.
    """
    step(f"sync {name}")
    sync_tree(temporary)
    step(f"replace {name}")
    os.replace(temporary, final)
    step(f"settle {name}")
    sync_path(final.parent)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, data: bytes, step: Step = no_step) -> None:
    """Write ``data`` to a file, which is created or replaced; its folder must be there. Raises OSError on failure.

    At any moment a reader finds either the file's former content or all of the new one.
    """
    step(f"write {path.stem}")
    temporary = partial(path)
    temporary.write_bytes(data)
    publish(temporary, path, step, path.stem)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give the block a folder to fill, which is renamed to ``folder`` when the block ends, or removed if an error ends it.

    Only the renaming is flushed to the disk here. The block must flush the files that it writes (:func:`sync_tree`) if they are to be
    complete after a power cut. At the end of the block, raises OSError if there is anything at ``folder`` but an empty folder.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(folder)
    remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
        sync_path(folder.parent)
    except BaseException:
        remove(temporary)
        raise


def append_line(path: Path, line: bytes, step: Step = no_step) -> None:
    """Append ``line``, which is given without its line end, to a file and flush it to the disk. A missing file is created.

    If a killed process left the last line half written, the new one begins on a line of its own. Raises OSError on failure.
    """
    step(f"append {path.stem}")
    with path.open("a+b") as file:
        file.write(_line_end(file) + line + b"\n")
        file.flush()
        step(f"sync {path.stem}")
        os.fsync(file.fileno())
    step(f"settle {path.stem}")
    sync_path(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; the kernel also frees it when the process ends, however it ends.

    If another block or process holds the lock, this one waits for it, or, with ``wait`` False, raises BlockingIOError at once. The file is
    created if it is missing, and is not removed afterwards. Raises OSError if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _line_end(file: IO[bytes]) -> bytes:
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"
