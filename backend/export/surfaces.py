"""The parts of a labelling config that an export of masks needs. The config need not be one that predictions can be made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.errors import ConfigError, TaskError
from backend.label_studio.label_config import Label, _tags, read_label_config, salvage
from backend.label_studio.task_values import has_variable, resolve


@dataclass(frozen=True)
class Surfaces:
    """A config's pictures, its labels, and its controls for prompts.

    ``images`` maps the names of Image tags to their values (such as ``$image``). ``any_image`` is the value for all regions if there is no
    config. ``labels`` are those of all controls, each value once. ``prompts`` are the names of the rectangle controls with
    ``smart="true"``, except the control that takes the masks.
    """

    images: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()
    prompts: frozenset[str] = frozenset()
    any_image: str = ""

    def label_of(self, name: str) -> str:
        """Return the value of the label that a region's ``name`` stands for, which may be the value itself or all of the label's aliases,
        separated by commas. If there is no such label, return ``name``.
        """
        aliases = tuple(part.strip() for part in name.split(",") if part.strip())
        return next((label.value for label in self.labels if name == label.value or (aliases and aliases == label.aliases)), name)

    def picture(self, region: Mapping[str, Any], data: Mapping[str, Any]) -> str:
        """The reference of the picture that a region was drawn on. Raises TaskError if the task's data does not hold it."""
        name = region.get("to_name")
        value = self.images.get(name, "") if isinstance(name, str) else ""
        found = _references(value or self.any_image or next(iter(self.images.values()), ""), data)
        page = region.get("item_index") or 0
        if not isinstance(page, int) or not 0 <= page < len(found):
            raise TaskError("the task's data has no picture for a region")
        return found[page]

    def pictures(self, data: Mapping[str, Any]) -> list[str]:
        """The references of all of a task's pictures. Raises TaskError if there is none."""
        found = [one for value in (self.any_image, *self.images.values()) if value for one in _references(value, data)]
        if not found:
            raise TaskError("the task's data has no picture")
        return found


def _references(value: str, data: Mapping[str, Any]) -> list[str]:
    held = resolve(value, data) if has_variable(value) else None
    return [one for one in (held if isinstance(held, list) else [held]) if isinstance(one, str) and one.strip()]


def read_surfaces(xml: str) -> Surfaces:
    """The surfaces of a config. Raises ConfigError if it is no XML."""
    tags, _ = _tags(xml)
    labels = salvage(xml).labels
    try:
        mask = read_label_config(xml).mask.name
    except ConfigError:
        mask = ""
    images = {tag.attributes.get("name", ""): tag.picture for tag in tags if tag.name == "Image"}
    smart = (tag for tag in tags if tag.name == "RectangleLabels" and tag.attributes.get("smart", "").lower() == "true")
    return Surfaces(images, labels, frozenset(tag.attributes.get("name", "") for tag in smart) - {mask})
