"""The texts of an answer that an annotator reads: the line about the whole answer, and the notes on its regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.label_studio.region_ids import MARK, stands_alone
from backend.label_studio.wire import Region
from sam4mllm.options import Options
from sam4mllm.plain_text import shortened
from sam4mllm.values import Instance, Segmentation

MAX_THOUGHT = 1_000
"""The most characters of a thought in a region's notes: it has to fit beside the picture, and each region of a phrase stores it."""


def told(region_id: str, phrase: str, note: str = "", thought: str = "", asked: str = "") -> dict[str, Any]:
    """Return the notes on a region as fields of its ``meta``, which the editor shows with the region's details; empty without notes.

    ``region_id`` tells whether clicks alone made the region; the notes then say only that. Otherwise they say the region's phrase, whether
    the region takes the place of an older one (also by its id), the ``note`` and the ``thought`` (foreign text, cut to MAX_THOUGHT) of the
    phrase's answer, and ``asked``, the project's parameters that shaped it.
    """
    lines = []
    if stands_alone(region_id):
        lines += [f"made by clicks alone, not learned as: {phrase}"] if phrase else []
    else:
        lines += [f"for: {phrase}"] if phrase else []
        lines += ["takes the place of the mask that was here; that one may be deleted"] if MARK in region_id else []
        lines += [note] if note else []
        lines += [f"by the project's parameters: {asked}"] if asked else []
        lines += [f"thought: {shortened(thought, MAX_THOUGHT)}"] if thought else []
    # Label Studio 1.23.2 shows several texts without anything between them
    return {"text": ["; ".join(lines)]} if lines else {}


def summary(found: Sequence[Segmentation], options: Options) -> str:
    """Return a line on what was found for phrases with these options. Without it, the line of the last answer would stay in place.

    Phrases without a find share one part, at the end, if the reason is the same: of thirty labels, few are in a picture.
    """
    by = " by the segmenter" if options.strategy == "concept" else ""
    lines: list[str] = []
    absent: dict[str, list[str]] = {}
    for one in found:
        thought = f"; thought: {shortened(one.thought)}" if one.thought else ""
        if one.instances:
            note = f" ({one.note})" if one.note else ""
            lines.append(f"{one.phrase or 'click'}: {len(one.instances)} found{by}{note}{thought}")
        else:
            absent.setdefault(f"{one.note or _absence(one, options)}{thought}", []).append(one.phrase or "click")
    return "; ".join([*lines, *(f"{', '.join(phrases)}: {why}" for why, phrases in absent.items())])


def _absence(one: Segmentation, options: Options) -> str:
    """Return what an empty answer says. A segmenter that takes the phrase may see the object in the picture, but give no single instance a
    high enough score.
    """
    if options.strategy == "concept" and one.no_target_probability < 0.5:
        return f"nothing with a score of {options.threshold:g} or more, though the segmenter sees some; SAM4MLLM_THRESHOLD sets it"
    return "no such object"


def summary_of_clicks(found: Sequence[Segmentation], kept: Sequence[Sequence[Instance]], regions: Sequence[Region]) -> str:
    """Return a line on what the clicks came to.

    ``found`` are the answers, one for each phrase; ``kept`` are, for each of them, the instances that the clicks had a part in. ``regions``
    are all regions of the reply: their ids say whether a refined mask stands beside the old one.
    """
    lines = []
    for one, instances in zip(found, kept, strict=True):
        refined = sum(instance.pointed == "refined" for instance in instances)
        alone = len(instances) - refined
        if refined:
            beside = any(MARK in region["id"] and not stands_alone(region["id"]) for region in regions)
            then = "only the new mask is learned, so you may delete the old one" if beside else "accept it, and it replaces the old mask"
            lines.append(f"{one.phrase}: {refined} refined; {then}")
        if alone:
            lines.append(f"click: {alone} found" + (f", which stands alone and is not learned as: {one.phrase}" if one.phrase else ""))
        if not instances:
            lines.append(f"{one.phrase or 'click'}: {one.note or 'there is no mask here to take away from'}")
    return "; ".join(lines)
