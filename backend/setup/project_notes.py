"""The notes of `sam4mllm doctor` on a project's tasks, which are no faults: what the model is asked for, and what else it could be."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.parameters import NO_PARAMETERS, Parameters
from backend.label_studio.phrases import has_phrase, wanted
from backend.label_studio.wire import read_task
from sam4mllm.errors import Sam4mllmError
from sam4mllm.values import MAX_PHRASE

NAMED = 3
"""Most phrases of a task that a note names."""
MOST = 0.5
"""The least share of the sampled tasks that must have words under a key for the key to be proposed."""


def tell_task(
    config: LabelConfig, tasks: Sequence[Mapping[str, Any]], phrase_field: str, project: int, parameters: Parameters = NO_PARAMETERS
) -> list[str]:
    """Say which phrases are asked for in the first task that can be read, under which labels, and where the phrases come from.

    If they are only the labels' names, also propose a key of the tasks' data to take phrases from, where there is one.
    """
    phrase_field = parameters.phrase_field(phrase_field)
    for raw in tasks:
        try:
            task = read_task(raw)
            asked = wanted(task, parameters.apply(config.for_task(task.data)), (), phrase_field)
            own = has_phrase(task.data, phrase_field)
        except Sam4mllmError:  # check_phrases reports it
            continue
        named = ", ".join(f"{one.phrase!r} ({f'label {one.label}' if one.label else 'no label'})" for one in asked[:NAMED])
        more = f" and {len(asked) - NAMED} more" if len(asked) > NAMED else ""
        labels = "the labels' prompts or names" if parameters.prompts else "the labels' names"
        source = f"its {phrase_field!r}" if own else f"{labels}, for it has no {phrase_field!r}"
        proposed = [] if own or parameters.prompts else _propose(config, tasks, phrase_field, project)
        silent = [f"prompts are for tasks without {phrase_field!r}, which this one has"] if own and parameters.prompts else []
        return [f"task {task.id} is asked for {named}{more}: {source}", *silent, *proposed]
    return []


def tell_typing(config: LabelConfig, prompt_control: str) -> list[str]:
    """Say that annotators cannot type descriptions, if the config has no TextArea at all for that.

    Where it has TextAreas that are not read, ``check_config`` reports that instead.
    """
    if config.prompt is not None or config.unread:
        return []
    return [f"annotators cannot type descriptions here, for the config has no TextArea called {prompt_control!r}; masks work all the same"]


def _propose(config: LabelConfig, tasks: Sequence[Mapping[str, Any]], phrase_field: str, project: int) -> list[str]:
    """Propose the key, other than ``phrase_field``, under which the most tasks have words, if at least the share MOST of the tasks has."""
    found = Counter[str]()
    for raw in tasks:
        data = raw.get("data")
        if isinstance(data, Mapping):
            pictures = _pictures(config, data)
            found.update(key for key, value in data.items() if key != phrase_field and _is_words(value) and value not in pictures)
    for key, count in found.most_common(1):
        if count >= MOST * len(tasks):
            command = f"sam4mllm connect {project} --parameters {shlex.quote(Parameters(field=key).to_json())}"
            told = f"{count} of {len(tasks)} tasks have a text under {key!r}"
            return [f"{told}; if it names what to mask, `{command}` asks for it in the place of the labels"]
    return []


def _pictures(config: LabelConfig, data: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return config.pictures(data)
    except Sam4mllmError:
        return ()


def _is_words(value: object) -> bool:
    """Whether a value may be a phrase: a short text of at least two words, and no address or path."""
    return isinstance(value, str) and len(value) <= MAX_PHRASE and len(value.split()) > 1 and "/" not in value
