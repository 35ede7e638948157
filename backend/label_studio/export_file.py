"""Reads an export of Label Studio from disk: its tasks, the labelling config beside it if there is one, and the pictures that it names.

::

    FOLDER/export.json            JSON or JSON_MIN
    FOLDER/label_config.xml       the project's labelling config; where it is missing, one is derived from the regions
    FOLDER/images/NAME            uploads by their names, or FOLDER/upload/PROJECT/NAME or FOLDER/media/upload/…, as Label Studio keeps them
    FOLDER/PATH                   local files, by the path after ?d=, or FOLDER/images/PATH
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from backend.errors import TaskError
from sam4mllm.errors import DatasetError

CONFIG = "label_config.xml"
UPLOAD = "/data/upload/"
LOCAL_FILES = "/data/local-files/"


def export_file(source: Path) -> Path:
    """Return the export's file; ``source`` is that file or its folder. Anything but a folder is returned as it is, even if it is missing.

    Raises DatasetError for a folder that has not exactly one JSON file.
    """
    if not source.is_dir():
        return source
    found = sorted(source.glob("*.json"))
    if len(found) != 1:
        raise DatasetError(f"{source} holds {len(found)} JSON files; name the export's file")
    return found[0]


def read_export(path: Path) -> list[dict[str, Any]]:
    """The export's tasks, or its annotations where it is JSON_MIN. Raises DatasetError."""
    try:
        tasks = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); export the project as JSON") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON; export the project as JSON or JSON_MIN") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DatasetError(f"{path} is no list of tasks; export the project as JSON or JSON_MIN")
    return tasks


def read_config_text(path: Path) -> str | None:
    """Return the labelling config beside an export, as XML; None if there is none. Raises DatasetError if it cannot be read."""
    beside = path.with_name(CONFIG)
    if not beside.exists():
        return None
    try:
        return beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{beside} cannot be read; copy the labelling config there as UTF-8 text") from error


def find_picture(reference: str, folder: Path) -> Path:
    """Return the file of a task's picture. ``reference`` is its address in the task's data, and ``folder`` holds the export.

    Raises TaskError if the address is malformed or leads elsewhere, or if no such file is in the folder (the module says where). The
    error's text does not quote the reference, so that it is the same for all tasks with the same fault.
    """
    try:
        parts = urlsplit(reference)
        query = parse_qs(parts.query)
    except ValueError as error:
        raise TaskError("its picture's address is malformed") from error
    path = unquote(parts.path)
    if UPLOAD in path:
        tail = path.partition(UPLOAD)[2]
        name = PurePosixPath(tail).name
        places = [f"images/{name}", f"upload/{tail}", f"media/upload/{tail}", name]
    elif LOCAL_FILES in path and query.get("d"):
        places = [query["d"][0], f"images/{query['d'][0]}"]
    elif parts.scheme or parts.netloc or path.startswith("/"):
        raise TaskError("its picture is neither an upload nor a local file of Label Studio; fetch it and write its path into the export")
    else:
        places = [path, f"images/{path}"]
    for place in places:
        inside = PurePosixPath(place)
        if not inside.is_absolute() and ".." not in inside.parts and "\0" not in place and os.path.isfile(folder / inside):
            return folder / inside
    raise TaskError("its picture is not beside the export; put uploads into images/ there, local files where their paths say")
