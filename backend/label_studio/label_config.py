"""A project's labelling config (XML): which controls it has, and which of its labels a phrase means.

The XML is foreign data: document types and entities are refused, size and depth are bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any
from xml.parsers import expat

from backend.errors import ConfigError, TaskError
from backend.label_studio.label_names import LabelNames, is_code
from backend.label_studio.task_values import find_pictures, has_variable, resolve
from backend.settings import ANSWER_NAME, PROMPT_NAME
from sam4mllm.identity import digest_of

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 64
MAX_LABELS = 10_000
MASK_TAGS = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels")
"""The controls with labels of their own that can show a mask, the most faithful first. Where a config has several, the answers are drawn
with the first of these; :func:`_masks` says where controls without labels of their own come.
"""
UNTYPED_TAGS = ("Brush", "Bitmask", "Polygon", "Rectangle", "KeyPoint")
"""Controls without labels of their own. The label from a ``Labels`` tag beside them comes in a second region with the same id."""
CONTROL_TAGS = (*MASK_TAGS, "KeyPointLabels", *UNTYPED_TAGS, "Labels", "TextArea")


@dataclass(frozen=True)
class Label:
    """A label's value, and its other names: those that its ``alias`` attribute lists, separated by commas."""

    value: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.value, *self.aliases)

    @property
    def phrase(self) -> str | None:
        """The phrase with which the model is asked for the label: the first name that is no code (``is_code``); None if all are codes."""
        return next((name for name in self.names if not is_code(name)), None)


@dataclass(frozen=True)
class Control:
    """A control tag and the object that it works on.

    ``label_value`` is where a task's data holds more labels, as ``$labels``, or empty. ``labelled_by`` is the name of the ``Labels`` tag
    whose labels these are; empty for a control with its own.
    """

    tag: str
    name: str
    to_name: str
    labels: tuple[Label, ...] = ()
    label_value: str = ""
    labelled_by: str = ""

    @property
    def type(self) -> str:
        """The ``type`` that its regions have."""
        return self.tag.lower()

    @property
    def drawing(self) -> str:
        """The tag that draws the same shape and has labels of its own: ``BrushLabels`` for a ``Brush``."""
        return f"{self.tag}Labels" if self.tag in UNTYPED_TAGS else self.tag

    def for_task(self, data: Mapping[str, Any]) -> Control:
        """Return the control with the labels that the task adds after those of the config. Raises TaskError if they are too many."""
        if not self.label_value:
            return self
        known = {label.value for label in self.labels}
        added = {label.value: label for label in task_labels(resolve(self.label_value, data)) if label.value not in known}
        return replace(self, labels=(*self.labels, *added.values()))


@dataclass(frozen=True)
class LabelConfig:
    """The tags of a config that work on one image. Of its controls only ``mask``, which gets the answers, is always there.

    ``image`` is the Image tag's name and ``image_value`` the value that it shows, as ``$image``. ``paged`` says that this is a list of
    pictures, each a page. ``prompt`` is the TextArea in which phrases are typed, and ``answer`` the one for a line to the annotator.
    ``keypoint`` and ``box`` are the controls with which annotators point. ``names`` are the names of all tags. ``former`` are labels of
    earlier or later configs: regions may have them, but no phrase gets them. ``prompts`` are the project's own phrases for labels, see
    :meth:`asked_by`.
    """

    image: str
    image_value: str
    mask: Control
    prompt: Control | None = None
    answer: Control | None = None
    keypoint: Control | None = None
    box: Control | None = None
    unread: tuple[str, ...] = ()
    """Names of TextAreas that are neither the prompt nor the answer: remarks, say."""
    paged: bool = False
    names: tuple[str, ...] = ()
    former: tuple[Label, ...] = ()
    tells: bool = False
    """Whether ``answer`` is shown and never saved, so that even a batch's predictions may hold a line in it that sums up what was found."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def label_values(self) -> frozenset[str]:
        return frozenset(label.value for label in self.mask.labels)

    @cached_property
    def digest(self) -> str:
        """The hash of all fields: of what was read from the XML, not of its text, and of ``former`` and ``prompts``."""
        parts = asdict(replace(self, prompts={}))
        later = {"tells": self.tells, "prompts": {label: [*some] for label, some in self.prompts.items()}}
        # newer fields count only where they say something, so that the hash, and the ids of regions, stay those of earlier releases
        return digest_of({name: value for name, value in (parts | later).items() if name not in later or value})

    @cached_property
    def _names(self) -> LabelNames:
        prompts = ((phrase, label.value) for label in self.mask.labels for phrase in self.prompts.get(label.value, ()))
        return LabelNames((*((name, label.value) for label in self.mask.labels for name in label.names), *prompts))

    def asked_by(self, prompts: Mapping[str, tuple[str, ...]]) -> LabelConfig:
        """Return the config with a project's own phrases for labels; ``prompts`` maps the values of labels to phrases.

        In a task without a phrase, the model is asked with these instead of the labels' names. A label with an empty tuple is not looked
        for there, and one that ``prompts`` lacks keeps its name. Without any ``prompts`` the config itself is returned.
        """
        return replace(self, prompts=dict(prompts)) if prompts else self

    def phrases_of(self, label: Label) -> tuple[str, ...]:
        """Return the phrases with which the model is asked for a label in a task without a phrase of its own; empty to leave it out."""
        return self.prompts.get(label.value, (label.phrase or label.value,))

    def pictures(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the references of a task's pictures, one unless it is paged. Raises TaskError as :func:`find_pictures` does."""
        return find_pictures(self.image_value, self.paged, data)

    def for_task(self, data: Mapping[str, Any]) -> LabelConfig:
        """Return the config with the labels that the task's data adds. Raises TaskError if they are too many."""
        mask = self.mask.for_task(data)
        return self if mask is self.mask else replace(self, mask=mask)

    def label_for(self, phrase: str) -> str | None:
        """Return the label that a phrase means.

        It is the label with the same name or alias, else the one that names the object which the phrase is about, else the only label of
        the config. None if there are several labels, or none, and none fits: the region then has no label, and the reviewer chooses one.
        """
        found = self._names.label_for(phrase)
        return found if found is not None or len(self.mask.labels) != 1 else self.mask.labels[0].value


@dataclass
class _Tag:
    """An element of the XML; ``labels`` are the labels of a control, at any depth inside of it."""

    name: str
    attributes: dict[str, str]
    """The attributes by name in lower case: Label Studio does not distinguish ``valueList`` from ``valuelist``."""
    repeated: bool = False
    """Whether it is inside of a ``<Repeater>``."""
    labels: list[Label] = field(default_factory=list)

    @property
    def target(self) -> str:
        return self.attributes.get("toname", "").split(",")[0].strip()

    @property
    def paged(self) -> bool:
        return bool(self.attributes.get("valuelist"))

    @property
    def picture(self) -> str:
        """What an Image tag shows: its list of pages before its value, as in Label Studio."""
        return self.attributes.get("valuelist") or self.attributes.get("value", "")

    @property
    def label_value(self) -> str:
        value = self.attributes.get("value", "")
        return value if has_variable(value) and self.name not in ("Image", "TextArea") else ""


def read_label_config(xml: str, prompt_control: str = PROMPT_NAME) -> LabelConfig:
    """Return the controls of a config.

    The TextArea called ``prompt_control`` is for phrases. Any other but the answer's is for remarks, and is not read.
    Raises ConfigError: one line that says what to change.
    """
    tags, names = _tags(xml)
    images = {name: tag for tag in tags if tag.name == "Image" and not tag.repeated and (name := tag.attributes.get("name"))}
    masks = _masks(tags, images)
    if any(tag.repeated for tag in tags) and not masks:
        raise ConfigError(
            "the labelling config has its image or its mask control inside of a <Repeater>, which is not supported; for several pictures a "
            'task write <Image name="image" valueList="$images"/>, without a <Repeater>'
        )
    if not images:
        raise ConfigError('the labelling config has no <Image name="image" value="$image"/>; add one')
    if not masks:
        raise ConfigError(f"the labelling config has none of {', '.join(MASK_TAGS)} for the image; add one to show masks")
    mask = masks[0]
    image = images[mask.to_name]
    if not has_variable(image.picture):
        raise ConfigError(f'the <Image> tag has value="{image.picture[:40]}"; it must name a key of the task\'s data, such as "$image"')
    beside = [tag for tag in tags if tag.target == mask.to_name and not tag.repeated]
    texts = [_control(tag, tags) for tag in beside if tag.name == "TextArea"]
    return LabelConfig(
        image=mask.to_name,
        image_value=image.picture,
        mask=mask,
        prompt=next((control for control in texts if control.name == prompt_control), None),
        answer=next((control for control in texts if control.name == ANSWER_NAME), None),
        tells=any(tag.attributes.get("name") == ANSWER_NAME and _is_never_saved(tag) for tag in beside),
        keypoint=_pointer(beside, tags, "KeyPoint", mask),
        box=_pointer(beside, tags, "Rectangle", mask),
        paged=image.paged,
        names=names,
        unread=tuple(control.name for control in texts if control.name not in (prompt_control, ANSWER_NAME)),
    )


def _is_never_saved(text: _Tag) -> bool:
    """Whether Label Studio shows a TextArea but leaves it out of what is submitted.

    It does so if the TextArea depends on a choice in itself, where none can be made.
    """
    waits = text.attributes.get("visiblewhen") == "choice-selected"
    return text.name == "TextArea" and waits and text.attributes.get("whentagname") == text.attributes.get("name")


def _masks(tags: list[_Tag], images: Mapping[str, _Tag]) -> list[Control]:
    """Return the controls that can show a mask, the best first.

    Controls with labels, their own or those of a ``Labels`` tag beside them, come before those without any. Within both groups MASK_TAGS
    says the order, and for the same shape a control with labels of its own comes before one beside a ``Labels`` tag.
    """
    shapes = [shape for tag in MASK_TAGS for shape in (tag, tag.removesuffix("Labels"))]
    fit = [tag for tag in tags if tag.name in shapes and tag.target in images and not tag.repeated]
    found = [_control(tag, tags) for tag in sorted(fit, key=lambda tag: shapes.index(tag.name))]
    return sorted(found, key=lambda control: control.tag in UNTYPED_TAGS and not control.labelled_by)


def _pointer(beside: list[_Tag], tags: list[_Tag], shape: str, mask: Control) -> Control | None:
    """Return the control for keypoints or rectangles (``shape``) that annotators point with, None if there is none.

    A control with labels of its own comes before one without. The mask control does not count.
    """
    found = [_control(tag, tags) for name in (f"{shape}Labels", shape) for tag in beside if tag.name == name]
    return next((control for control in found if control.name != mask.name), None)


@dataclass(frozen=True)
class Salvaged:
    """What a new config can keep of another one, even of an unfit one.

    ``labels`` has each value once. ``label_value`` says where tasks hold more labels, and ``image_value`` where they hold their pictures.
    """

    labels: tuple[Label, ...] = ()
    label_value: str = ""
    image_value: str = ""
    paged: bool = False


def salvage(xml: str) -> Salvaged:
    """Return what a new config can keep of this one. Raises ConfigError if it cannot be parsed or exceeds a bound of this module.

    Labels of the controls for clicks and boxes that only stand for another label (:func:`pointing_names`) are left out.
    """
    tags, _ = _tags(xml)
    found = [label for tag in tags for label in tag.labels]
    values = {label.value for label in found}
    labels: dict[str, Label] = {}
    for label in found:
        if not (len(label.aliases) == 1 and label.aliases[0] in values and label.value in pointing_names(label.aliases[0])):
            labels.setdefault(label.value, label)
    image = next((tag for tag in tags if tag.name == "Image" and not tag.repeated and has_variable(tag.picture)), None)
    source = next((tag.label_value for tag in tags if tag.label_value and not tag.repeated), "")
    return Salvaged(tuple(labels.values()), source, image.picture if image else "", image is not None and image.paged)


def pointing_names(label: str) -> tuple[str, str]:
    """Return the names that a label has in the controls for clicks and for boxes.

    There the label's own name is the alias, which Label Studio writes into the regions.
    """
    return f"{label}: point", f"{label}: box"


def task_labels(value: object) -> list[Label]:
    """The labels in a task's data: a list of texts, or of objects as the attributes of a ``<Label>``, which may have ``children``.

    Anything else is passed over, as Label Studio does. Raises TaskError for more than MAX_LABELS.
    """
    found: list[Label] = []
    waiting = deque([value])
    while waiting:
        entries = waiting.popleft()
        for entry in entries if isinstance(entries, list) else []:
            attributes = entry if isinstance(entry, dict) else {"value": entry}
            name, alias = attributes.get("value"), attributes.get("alias")
            if isinstance(name, str) and name.strip():
                found.append(_label(name, alias if isinstance(alias, str) else ""))
            if attributes.get("children"):
                waiting.append(attributes["children"])
            if len(found) > MAX_LABELS:
                raise TaskError(f"the task's data has more than {MAX_LABELS:,} labels")
    return found


def _label(value: str, alias: str) -> Label:
    return Label(value.strip(), tuple(part.strip() for part in alias.split(",") if part.strip()))


def _control(tag: _Tag, tags: list[_Tag]) -> Control:
    name = tag.attributes.get("name", "")
    if not name:
        raise ConfigError(f"a <{tag.name}> of the labelling config has no name; give it one")
    if tag.name not in UNTYPED_TAGS:
        return Control(tag.name, name, tag.target, tuple(tag.labels), tag.label_value)
    labels = next((one for one in tags if one.name == "Labels" and one.target == tag.target and one.attributes.get("name")), None)
    if labels is None:
        return Control(tag.name, name, tag.target)
    return Control(tag.name, name, tag.target, tuple(labels.labels), labels.label_value, labels.attributes["name"])


def _tags(xml: str) -> tuple[list[_Tag], tuple[str, ...]]:
    """Return the Image tags and the controls of CONTROL_TAGS, in document order, and the names of all tags.

    Controls that are about a single region (``perRegion="true"``) are left out; those inside of a ``<Repeater>`` are there. Raises
    ConfigError for malformed XML, for a DOCTYPE, and if a bound of this module is exceeded.
    """
    if len(xml) > MAX_CHARACTERS:
        raise ConfigError(f"the labelling config has {len(xml):,} characters; at most {MAX_CHARACTERS:,} are read")
    tags: list[_Tag] = []
    names: dict[str, None] = {}
    open_tags: list[_Tag] = []
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        if len(open_tags) >= MAX_DEPTH:
            raise ConfigError(f"the labelling config is nested deeper than {MAX_DEPTH} tags")
        tag = _Tag(name, {key.lower(): value for key, value in attributes.items()}, any(one.name == "Repeater" for one in open_tags))
        if tag.attributes.get("name"):
            names[tag.attributes["name"]] = None
        if name == "Image" or (name in CONTROL_TAGS and tag.attributes.get("perregion", "").lower() != "true"):
            tags.append(tag)
        if name == "Label" and (value := tag.attributes.get("value", "").strip()):
            count += 1
            if count > MAX_LABELS:
                raise ConfigError(f"the labelling config has more than {MAX_LABELS:,} labels")
            owner = next((one for one in reversed(open_tags) if one.name in CONTROL_TAGS), None)
            if owner is not None:
                owner.labels.append(_label(value, tag.attributes.get("alias", "")))
        open_tags.append(tag)

    def refuse(*_: object) -> None:
        raise ConfigError("the labelling config has a DOCTYPE; remove it, entities are not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_tags.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise ConfigError(f"the labelling config is no valid XML (line {error.lineno}): {expat.ErrorString(error.code)}") from error
    except UnicodeEncodeError as error:
        raise ConfigError("the labelling config is not valid text") from error
    return tags, tuple(names)
