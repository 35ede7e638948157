"""The packages that only the server needs are an extra, so that ``sam4mllm`` alone stays small."""

from __future__ import annotations

from importlib.util import find_spec

from backend.errors import SettingsError

MODULES = ("flask", "gunicorn", "httpcore", "prometheus_client", "pydantic_settings")
"""A module of each package that the extra ``server`` names; what these packages need in turn is not listed."""


def check_server_extra() -> None:
    """Raise SettingsError, which says what to install, if a package of the extra ``server`` is missing. Commands call this before they
    import modules that need the extra.
    """
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise SettingsError(f"this command needs {', '.join(missing)}; install them with: pip install 'sam4mllm[server]'")
