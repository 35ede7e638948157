"""What of a labelling config an export of masks needs, whether or not the config is fit for predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.errors import ConfigError, TaskError
from backend.label_studio.label_config import Label, _tags, read_label_config, salvage
from backend.label_studio.task_values import has_variable, resolve


@dataclass(frozen=True)
class Surfaces:
    """A config's pictures, its labels, and which rectangles are prompts.

    ``images`` are what the Image tags show by their names; ``any_image`` is the value of the picture where no config says which there
    are. ``labels`` are those of all controls, each value once, and ``prompts`` the names of rectangle controls with ``smart="true"`` beside
    the one that gets the masks.
    """

    images: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()
    prompts: frozenset[str] = frozenset()
    any_image: str = ""

    def label_of(self, name: str) -> str:
        """The value of the label that a region has, by its value or all of its aliases; itself if there is none such."""
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
