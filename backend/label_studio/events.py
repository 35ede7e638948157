"""Label Studio's events, by the names that a webhook's ``action`` has, and the header that a webhook brings our secret in."""

from __future__ import annotations

SAVED = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")
"""Annotations were submitted, skipped or changed."""
ANNOTATIONS_DELETED = "ANNOTATIONS_DELETED"
TASKS_CREATED = "TASKS_CREATED"
"""Tasks were imported; some of them may have annotations."""
TASKS_DELETED = "TASKS_DELETED"
WEBHOOK_EVENTS = (*SAVED, ANNOTATIONS_DELETED, "PROJECT_UPDATED", TASKS_CREATED, TASKS_DELETED)
"""The events that a project's webhook has to send to the backend. Each holds the project and its labelling config."""
START_TRAINING = "START_TRAINING"
"""The event of the training button. No webhook sends it: Label Studio sends it to the address of the backend entry."""
SECRET_HEADER = "X-Webhook-Secret"


def counted_as(action: object) -> str:
    """Return the name to count an event under in metrics. Unknown names share "OTHER": else anyone could make new time series."""
    return action if isinstance(action, str) and action in (*WEBHOOK_EVENTS, START_TRAINING) else "OTHER"
