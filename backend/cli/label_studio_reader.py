"""``sam4mllm data prepare label-studio``: the reader that the entry point ``sam4mllm.readers`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.cli.server_extra import check_server_extra

if TYPE_CHECKING:
    from sam4mllm.data.readers import Reader


def label_studio_reader() -> Reader:
    """Return the reader of Label Studio's exports. Raises SettingsError if the extra ``server`` is not installed."""
    check_server_extra()
    from backend.learning.exports import label_studio_reader as make_reader

    return make_reader()
