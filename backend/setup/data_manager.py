"""The column *Prediction score* in a project's Data Manager, by which a team orders its tasks: Label Studio hides it at first."""

from __future__ import annotations

from typing import Any

from backend.errors import LabelStudioError
from backend.label_studio.client import LIST_TIMEOUT, LabelStudio

SCORE = "tasks:predictions_score"


def show_score(label_studio: LabelStudio, project: int) -> bool:
    """Show the column in the project's first tab if all tabs hide it; a project without tabs gets one that shows it.

    Return whether anything was changed. Raises LabelStudioError.
    """
    views = label_studio.request("GET", f"/api/dm/views/?project={project:d}", timeout=LIST_TIMEOUT)
    if not isinstance(views, list):
        raise LabelStudioError("its list of tabs is none")
    if not views:
        body = {"project": project, "data": {"title": "Default", "hiddenColumns": _hidden(label_studio, project)}}
        label_studio.request("POST", "/api/dm/views/", body)
        return True
    if not all(SCORE in _explore(view) for view in views):
        return False
    first, data = views[0]["id"], views[0]["data"]
    shown = {**data["hiddenColumns"], "explore": [name for name in _explore(views[0]) if name != SCORE]}
    label_studio.request("PATCH", f"/api/dm/views/{first}/", {"data": {**data, "hiddenColumns": shown}})
    return True


def _explore(view: Any) -> list[Any]:
    """The columns that a tab hides in its table; none if it does not say."""
    data = view.get("data") if isinstance(view, dict) and isinstance(view.get("id"), int) else None
    columns = data.get("hiddenColumns") if isinstance(data, dict) else None
    explore = columns.get("explore") if isinstance(columns, dict) else None
    return explore if isinstance(explore, list) else []


def _hidden(label_studio: LabelStudio, project: int) -> dict[str, list[str]]:
    """Return the columns that a new tab hides by default, in the table (``explore``, here without the score) and beside the editor
    (``labeling``). Raises LabelStudioError.
    """
    found = label_studio.request("GET", f"/api/dm/columns/?project={project:d}", timeout=LIST_TIMEOUT)
    columns = found.get("columns") if isinstance(found, dict) else None
    if not isinstance(columns, list):
        raise LabelStudioError("its list of columns is none")
    shown: dict[str, Any] = {_name(one): one.get("visibility_defaults") or {} for one in columns if isinstance(one, dict)}
    hidden = {place: [name for name, at in shown.items() if at.get(place) is False] for place in ("explore", "labeling")}
    return {**hidden, "explore": [name for name in hidden["explore"] if name != SCORE]}


def _name(column: dict[str, Any]) -> str:
    """Return the name that tabs have for a column: ``tasks:data.image`` for a key of the tasks' data."""
    parent = f"{column['parent']}." if column.get("parent") else ""
    return f"{column.get('target')}:{parent}{column.get('id')}"
