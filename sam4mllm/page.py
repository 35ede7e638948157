"""What the HTML pages of this project have in common: one style, escaped text, and one way to write numbers.

A page is a Jinja template; ``{% include "style.css" %}`` gives it the style of ``pages/``.
"""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SHARED = Path(__file__).with_name("pages")


def render(template: Path, /, **values: object) -> str:
    """Render a template with its values. All text is escaped. Raises jinja2.UndefinedError if a value that the template uses is missing."""
    return _environment(template.parent).get_template(template.name).render(**values)


@cache
def _environment(folder: Path) -> Environment:
    """Return the Jinja environment for a folder's templates. It is cached, and with it the compiled templates."""
    environment = Environment(loader=FileSystemLoader([folder, SHARED]), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"share": write_share, "change": write_change, "duration": write_duration, "picture": embed_picture}
    environment.filters |= {"setting": write_setting, "moment": write_moment}
    return environment


def write_share(value: float | None) -> str:
    """Write a share with three decimal places, or a dash for what was not measured."""
    return "–" if value is None else f"{value:.3f}"


def write_change(value: float | None) -> str:
    """Write the change of a share with its sign and three decimal places, or a dash for what was not measured."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def write_duration(seconds: float) -> str:
    """Write a duration in whole seconds below a minute, in whole minutes below an hour, else in hours and minutes."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def write_moment(seconds: float) -> str:
    """Seconds since 1970 as a day and a time, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def write_setting(value: object) -> str:
    """Write a setting as text, or a dash if it is None or empty."""
    return "–" if value is None or value == "" else str(value)


def embed_picture(data: bytes) -> str:
    """Return a ``data:`` URL that holds ``data``, the bytes of a PNG or JPEG file."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def find_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``; ``low`` alone if there are none or ``high`` is not above it."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)] or [low]
