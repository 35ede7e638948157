"""What the ``$…`` values of a labelling config stand for in a task's data, as Label Studio's editor resolves them.

::

    $image          the key "image"
    $image.url      the key "url" of the object at "image", or the key "image.url" itself
    $pages[0].file  the first entry of a list; $pages.0.file is the same
    $folder/$name   text with variables: each becomes its text
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from backend.errors import TaskError

MAX_PAGES = 100
"""The most pictures that a task may have, because every phrase is looked for in each of them."""
SHOWN = 60
"""The most characters of a config's value that an error shows."""

# what the editor takes for a variable: ASCII letters, digits and underscores, dots, brackets and the braces of <Repeater>
_VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)
_STEP = re.compile(r"[^.\[\]]+")


def has_variable(template: str) -> bool:
    """Whether a value of a config refers to the task's data, so that it may differ between tasks."""
    return _VARIABLE.search(template) is not None or (template.startswith("$") and len(template) > 1)


def find(data: Mapping[str, Any], path: str) -> Any:
    """Return what is at a path such as ``image.url`` or ``pages[0]``; None if there is nothing.

    If the data has the whole path as a key, the value of that key is returned.
    """
    if path in data:
        return data[path]
    here: Any = data
    steps = _STEP.findall(path)
    for step in steps:
        if isinstance(here, Mapping):
            here = here.get(step)
        elif isinstance(here, list) and step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(here):
            here = here[int(step)]
        else:
            return None
    return here if steps else None


def resolve(template: str, data: Mapping[str, Any]) -> Any:
    """Return what a value of a config stands for in a task's data.

    If the value is one variable, this is whatever the variable stands for. Else it is a text in which each variable is replaced, or None if
    one of them does not stand for a text or a number.
    """
    if _VARIABLE.fullmatch(template) or template[1:] in data:
        return find(data, template[1:])
    found = [find(data, name[1:]) for name in _VARIABLE.findall(template)]
    if not all(isinstance(value, str | int | float) for value in found):
        return None
    texts = iter(found)
    return _VARIABLE.sub(lambda _: _text(next(texts)), template)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_pictures(template: str, paged: bool, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the references of a task's pictures: a single one, or one for each page.

    Args:
        template: the Image tag's ``value`` or, if it is ``paged``, its ``valueList``.
        paged: whether all entries of a list are pages.
        data: the task's data.

    Raises:
        TaskError: a picture is missing or is no text, or there are too many; one line that says where.
    """
    shown = template[:SHOWN]
    value = resolve(template, data)
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if len(entries) > MAX_PAGES and paged:
        raise TaskError(f"the task has {len(entries):,} pages at {shown!r}; at most {MAX_PAGES} are answered, so split it")
    if len(entries) > 1 and not paged:
        # without pages Label Studio does not say on which picture a region is
        raise TaskError(
            f'the task\'s data has {len(entries):,} pictures at {shown!r}; for pages write valueList="{shown}" in the <Image> tag'
        )
    for page, entry in enumerate(entries, 1):
        where = f"entry {page} of {shown!r}" if isinstance(value, list) else f"{shown!r}"
        if isinstance(entry, Mapping):
            raise TaskError(
                f"the task's data has an object at {where}, and the <Image> tag needs an address; write the key inside too, as '$image.url'"
            )
        if not isinstance(entry, str):
            raise TaskError(f"the task's data has {type(entry).__name__} at {where}, and the <Image> tag needs an address as text")
    found = tuple(entry for entry in entries if entry.strip())
    if not found or len(found) != len(entries):
        lacks = f"the task's data has no image address at {shown!r}, which the <Image> tag names"
        raise TaskError(f"{lacks}; correct the data, or the tag's {'valueList' if paged else 'value'}")
    return found
