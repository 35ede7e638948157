"""The labelling config that an annotation is read with: a project's config is edited while its annotations stay as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from backend.corrections.log_records import StoredAnnotation
from backend.errors import TaskError
from backend.label_studio.label_config import MASK_TAGS, LabelConfig, read_label_config
from backend.label_studio.region_parts import join_labels
from backend.label_studio.wire import Region
from backend.settings import PROMPT_NAME
from sam4mllm.errors import Sam4mllmError

read_config = lru_cache(maxsize=64)(read_label_config)

_MASKS = frozenset(tag.lower() for tag in MASK_TAGS)


def choose_config(stored: StoredAnnotation, prompt_control: str = PROMPT_NAME) -> LabelConfig:
    """Return the config to read an annotation with, together with the labels that the task's data adds.

    It is the first of the annotation's possible configs that has all controls and labels of the annotation. If none has, it is the first
    that has all controls, or else the first that can be read; the labels of all readable configs are then accepted as its former labels.

    Raises:
        ConfigError, TaskError: no config is known, or none can be used.
    """
    if not stored.label_configs:
        raise TaskError("the project's labelling config is not known")
    result = stored.body.get("result")
    regions = [region for region in result if isinstance(region, dict)] if isinstance(result, list) else []
    readable: list[LabelConfig] = []
    problem: Sam4mllmError | None = None
    for xml in stored.label_configs:
        try:
            config = read_config(xml, prompt_control).for_task(stored.data)
        except Sam4mllmError as error:
            problem = problem or error
            continue
        if _has_controls(config, regions) and _has_labels(config, regions):
            return config
        readable.append(config)
    if problem is not None and not readable:
        raise problem
    best = next((config for config in readable if _has_controls(config, regions)), readable[0])
    return replace(best, former=tuple(label for config in readable for label in config.mask.labels))


def _has_controls(config: LabelConfig, regions: Sequence[Region]) -> bool:
    return all(region.get("from_name") in config.names for region in regions)


def _has_labels(config: LabelConfig, regions: Sequence[Region]) -> bool:
    own = [region for region in join_labels(regions, config) if region.get("from_name") == config.mask.name]
    return all(known_label(name, config) is not None for region in own for name in region_labels(region, config))


def check_controls(regions: Sequence[Region], config: LabelConfig) -> None:
    """Raise TaskError for a mask of a control that the config lacks: if the mask were ignored, it would look as if it had been deleted.

    ``regions`` come from :func:`~backend.label_studio.region_parts.join_labels`.
    """
    for region in regions:
        kind = region.get("type")
        if isinstance(kind, str) and kind in _MASKS and region.get("from_name") not in config.names:
            raise TaskError(f"a region was drawn with {ascii(region.get('from_name'))[:60]}, which the labelling config does not have")


def region_labels(region: Region, config: LabelConfig) -> list[object]:
    """Return the labels that a region of the mask control names. They are foreign values, which may be of any type."""
    value = region.get("value")
    names = (value.get(config.mask.type) or value.get("labels") or []) if isinstance(value, dict) else []
    return names if isinstance(names, list) else [names]


def known_label(name: object, config: LabelConfig) -> str | None:
    """Return the value of the label that Label Studio wrote as ``name``, None if neither the config's labels nor its former ones fit.

    For a label with aliases, Label Studio writes these, separated by commas, in place of the value.
    """
    aliases = tuple(part.strip() for part in name.split(",") if part.strip()) if isinstance(name, str) else ()
    labels = (*config.mask.labels, *config.former)
    found = next((label for label in labels if name == label.value or (aliases and aliases == label.aliases)), None)
    return None if found is None else found.value
