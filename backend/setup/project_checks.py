"""What doctor looks at in a project of Label Studio: its config and phrases, its pictures, its backend entry and its webhook."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from backend.errors import ConfigError, DeadlineError, FetchError, LabelStudioError, ParametersError, TaskError
from backend.finding import Finding, as_finding
from backend.images.store import ImageStore
from backend.label_studio.backend_entry import (
    Entry,
    Hook,
    call_failure,
    gate_finding,
    hook_refusal,
    is_gate,
    path_below,
    pick_entry,
    pick_hook,
    read_entries,
    read_hooks,
    tidy,
)
from backend.label_studio.client import LIST_TIMEOUT, LabelStudio
from backend.label_studio.events import SECRET_HEADER
from backend.label_studio.label_config import Label, LabelConfig, read_label_config
from backend.label_studio.parameters import NO_PARAMETERS, Parameters, check_parameters, read_parameters, without_effect
from backend.label_studio.phrases import Wanted, wanted
from backend.label_studio.wire import read_task
from backend.settings import Settings
from backend.setup.machine_checks import Server, check_possible
from backend.setup.machine_notes import serving_strategy
from sam4mllm.errors import ImageError, ModelError, PhraseError, Sam4mllmError

SAMPLE = 50
"""How many of a project's first tasks are looked at."""
SOURCES = 8
"""The most places of pictures (hosts, storages) from which one picture each is fetched."""
NAMED = 5
IMAGE_SECONDS = 10.0

_CONNECT = "run `sam4mllm connect {project}`"


@dataclass(frozen=True)
class Link:
    """How Label Studio is connected to this server in a project: ``entry`` is this server's backend entry, None if there is none,
    ``others`` are the project's other entries, and ``hooks`` its webhooks.
    """

    project: int
    entry: Entry | None
    others: Sequence[Entry]
    hooks: Sequence[Hook]

    @property
    def connect(self) -> str:
        return _CONNECT.format(project=self.project)


def read_link(label_studio: LabelStudio, project: int, url: str, server: Server) -> Link:
    """Read a project's backend entries and webhooks. This server's entry is known by ``url``, or by a version that the server has.

    Raises LabelStudioError.
    """
    entries = read_entries(label_studio, project)
    own = pick_entry(entries, url, server.versions)
    return Link(project, own, [one for one in entries if one is not own], read_hooks(label_studio, project))


def sample_tasks(label_studio: LabelStudio, project: int, count: int = SAMPLE) -> list[dict[str, Any]]:
    """Return a project's first tasks, at most ``count``, annotated or not, with their data as it was imported.

    Their annotations are not fetched. Raises LabelStudioError.
    """
    path = f"/api/tasks/?project={project:d}&page=1&page_size={count:d}&resolve_uri=false"
    found = label_studio.request("GET", path, timeout=LIST_TIMEOUT)
    tasks = found.get("tasks") if isinstance(found, dict) else None
    return [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []


def check_config(xml: str, interactive: bool, prompt_control: str) -> tuple[LabelConfig | None, list[Finding]]:
    """Check that a labelling config has what is needed; return the config, None if it cannot be read, and the findings.

    ``interactive``: annotators' prompts are answered, so that the config should have a TextArea for them.
    """
    try:
        config = read_label_config(xml, prompt_control)
    except ConfigError as error:
        return None, [as_finding("config", error, "correct it in Settings → Labeling Interface")]
    if interactive and config.prompt is None and config.unread:
        return config, [_no_prompt(config, prompt_control)]
    return config, []


def _no_prompt(config: LabelConfig, prompt_control: str) -> Finding:
    """Return the finding that the config has TextAreas, but not the one that is read: what is typed into another may be meant as a prompt.

    A config without any TextArea is no fault, for its team does not type.
    """
    named = ", ".join(map(repr, config.unread[:NAMED]))
    problem = (
        f"the labelling config has no TextArea called {prompt_control!r} in which annotators could type a description; "
        f"what is typed into {named} is not read"
    )
    one = f"set SAM4MLLM_PROMPT_CONTROL to the name of yours, if {config.unread[0]!r} is for descriptions, or "
    cure = f'{one}add <TextArea name="{prompt_control}" toName="{config.image}"/>, or switch Interactive preannotations off'
    return Finding("config", problem, cure)


def check_extra_parameters(link: Link, config: LabelConfig, settings: Settings) -> tuple[Parameters, list[Finding]]:
    """Return the extra parameters of this server's entry, and the findings on them; NO_PARAMETERS if they cannot be used."""
    cure = f"correct them: `sam4mllm connect {link.project} --parameters '{{…}}'` (docs/connect.md, A project's parameters)"
    try:
        parameters = read_parameters(link.entry.parameters if link.entry else None)
        check_parameters(parameters, config)
        if parameters.strategy is not None:
            check_possible(parameters.strategy, settings)
    except (ParametersError, ModelError) as error:
        return NO_PARAMETERS, [Finding("parameters", f"the project's extra parameters are not used: {error}", cure)]
    idle = without_effect(parameters, serving_strategy(settings)[0])
    return parameters, [Finding("parameters", f"of the project's extra parameters, {idle}", cure)] if idle else []


def check_phrases(
    config: LabelConfig, tasks: Sequence[Mapping[str, Any]], phrase_field: str, parameters: Parameters = NO_PARAMETERS
) -> list[Finding]:
    """Check that each label has a phrase by which the model can be asked for it, and that each phrase of the sampled tasks fits a label.

    Of the tasks whose data or phrase cannot be used, the first is a finding too.
    """
    phrase_field = parameters.phrase_field(phrase_field)
    asked: list[tuple[int | None, Wanted]] = []
    labels: dict[str, Label] = {label.value: label for label in config.mask.labels}
    errors: list[Finding] = []
    for raw in tasks:
        try:
            task = read_task(raw)
            own = parameters.apply(config.for_task(task.data))
            labels |= {label.value: label for label in own.mask.labels}
            asked += [(task.id, one) for one in wanted(task, own, (), phrase_field)]
        except (TaskError, PhraseError) as error:
            problem, _, cure = str(error).partition(": ")
            errors.append(Finding("phrases", f"task {raw.get('id')}: {problem}", cure or f"correct {phrase_field!r} in the task's data"))
    return [*_mute_labels(labels.values(), [one for _, one in asked], parameters.prompts), *_homeless(asked), *errors[:1]]


def _mute_labels(labels: Iterable[Label], asked: Sequence[Wanted], prompted: Collection[str]) -> list[Finding]:
    """Labels that no phrase leads to: their name is a code, they have no alias or prompt, and no sampled task asks for them."""
    reached = {one.label for one in asked if one.phrase != one.label}
    mute = [label.value for label in labels if label.phrase is None and label.value not in reached and label.value not in prompted]
    if not mute:
        return []
    names = ", ".join(map(repr, mute[:NAMED])) + (f" and {len(mute) - NAMED} more" if len(mute) > NAMED else "")
    what = "the label {} has" if len(mute) == 1 else "the labels {} have"
    return [
        Finding(
            "phrases",
            f"{what.format(names)} no phrase: a model cannot know what the name stands for",
            f"say what it looks like, by a prompt in the project's parameters (docs/connect.md), {json.dumps({mute[0]: 'the dent'})}, "
            f'or by an alias, as <Label value="{mute[0]}" alias="dent"/>',
        )
    ]


def _homeless(asked: Sequence[tuple[int | None, Wanted]]) -> list[Finding]:
    lost = [(task, one.phrase) for task, one in asked if one.label is None]
    if not lost:
        return []
    task, phrase = lost[0]
    many = f", and {len(lost) - 1} more of the first tasks' phrases fit none" if len(lost) > 1 else ""
    cure = (
        'give the label that is meant an alias with a word of the phrase, as <Label value="Cup" alias="mug"/>; else masks come without one'
    )
    return [Finding("phrases", f"the phrase {phrase[:60]!r} of task {task} fits no label of the config{many}", cure)]


def check_images(config: LabelConfig, tasks: Sequence[Mapping[str, Any]], store: ImageStore) -> list[Finding]:
    """Fetch and decode one picture from each place of the tasks' pictures, of at most SOURCES places, with one finding for each that fails.

    The first task that lacks its picture is a finding too. Raises DeadlineError if a picture is fetched but not decoded in IMAGE_SECONDS.
    """
    places: dict[str, tuple[int | None, str]] = {}
    lacking: list[tuple[int | None, TaskError]] = []
    for raw in tasks:
        data, number = raw.get("data"), raw.get("id")
        task = number if isinstance(number, int) else None
        try:
            for reference in config.pictures(data if isinstance(data, Mapping) else {}):
                places.setdefault(_place(reference), (task, reference))
        except TaskError as error:
            lacking.append((task, error))
    found: list[Finding] = []
    for task, reference in list(places.values())[:SOURCES]:
        try:
            store.load(reference, task, IMAGE_SECONDS)
        except (FetchError, ImageError, DeadlineError) as error:
            found.append(_image_finding(task, error))
    return [*found, *(_image_finding(task, error) for task, error in lacking[:1])]


def _image_finding(task: int | None, error: Sam4mllmError) -> Finding:
    finding = as_finding("images", error, "open the task in Label Studio to see whether its picture shows")
    return Finding(finding.check, f"task {task}: {finding.problem}", finding.cure)


def _place(reference: str) -> str:
    """Return the place of a picture, which is the same for all that are fetched in the same way: the scheme, the host or bucket, and for
    paths of Label Studio's own their beginning.
    """
    try:
        parts = urlsplit(reference.strip())
    except ValueError:
        return reference
    kind = "/".join(parts.path.split("/")[:3]) if parts.path.startswith(("/data/", "/storage-data/")) else ""
    return f"{parts.scheme}://{parts.netloc}{kind}"


def check_gate(label_studio: LabelStudio, project: int, url: str) -> list[Finding]:
    """Check that Label Studio's protection of private addresses lets it call ``url``.

    Label Studio is asked to make an entry and a webhook. Both requests are incomplete, so that neither is made, but it refuses a forbidden
    address first.
    """
    attempts = (("/api/ml/", {"url": url}), ("/api/webhooks/", {"url": f"{url}/webhook", "project": project, "actions": ["NONE"]}))
    refused = []
    for path, body in attempts:
        try:
            label_studio.request("POST", path, body)
        except LabelStudioError as error:
            refused.append(is_gate(error.detail))
    return [gate_finding("gate", webhooks_only=not refused[0])] if any(refused) else []


def check_entry(label_studio: LabelStudio, link: Link, settings: Settings, server: Server) -> list[Finding]:
    """Check that the project has this server as a backend with its password, that Label Studio reaches it, and that annotators are answered
    by this server and no other.
    """
    entry = link.entry
    if entry is None:
        others = f" (it has {', '.join(one.url for one in link.others)})" if link.others else ""
        return [Finding("backend", f"project {link.project} does not have this server as a backend{others}", link.connect)]
    password = settings.auth_password.get_secret_value()
    if password and (entry.user != settings.auth_user or not entry.has_password):
        return [Finding("backend", "Label Studio's entry of this server lacks its user name and password", link.connect)]
    if not entry.connected:
        return [call_failure("backend", _reason(label_studio, entry), entry.url)]
    if server.version and entry.version != server.version:
        problem = f"{entry.url} leads to another server: it serves {entry.version or 'nothing'}, and this one {server.version}"
        return [Finding("backend", problem, f"{link.connect} --url with the address of this server")]
    first = next((one for one in sorted([entry, *link.others], key=lambda one: one.id) if one.interactive), None)
    if first is not None and first is not entry:
        problem = f"annotators are answered by {first.url}: Label Studio asks only the first backend with Interactive preannotations"
        return [Finding("backend", problem, f"switch that off for {first.title!r} in Settings → Model")]
    return []


def _reason(label_studio: LabelStudio, entry: Entry) -> str:
    """Return why Label Studio cannot call a server.

    Its entry tells only why ``/setup`` failed. For any other reason Label Studio is made to ask the server for its versions; that error
    tells.
    """
    if entry.state == "ER":
        return entry.error
    try:
        label_studio.request("GET", f"/api/ml/{entry.id:d}/versions", timeout=LIST_TIMEOUT)
    except LabelStudioError as error:
        return error.detail
    return "its health check takes over 1 s: Read timed out"


def check_hook(link: Link, refuses: bool) -> list[Finding]:
    """Check that the project's webhook leads to this server and carries what is needed. ``refuses``: the webhook lacks the server's secret,
    or the running server refuses it.
    """
    if link.entry is None:
        return []
    url = link.entry.url
    hook = pick_hook(link.hooks, url)
    if hook is None:
        impossible = hook_refusal("webhook", url)
        return [impossible or Finding("webhook", f"project {link.project} has no webhook to {tidy(url)}/webhook", link.connect)]
    faults = (
        (not hook.active, "the webhook is switched off"),
        (refuses, f"the webhook comes without this server's secret (header {SECRET_HEADER}) and is refused"),
        (not hook.payload, "the webhook sends no payload, so corrections do not come"),
        (bool(hook.missing), f"the webhook lacks the events {', '.join(hook.missing)}"),
    )
    return [Finding("webhook", problem, link.connect) for wrong, problem in faults if wrong][:1]


def hook_path(link: Link) -> tuple[dict[str, str], str] | None:
    """The headers and the path with which the project's webhook comes here; None if there is none."""
    hook = pick_hook(link.hooks, link.entry.url) if link.entry else None
    if hook is None or link.entry is None:
        return None
    return dict(hook.headers), path_below(hook, link.entry.url)
