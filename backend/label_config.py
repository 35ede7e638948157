"""A project's labelling config (XML): which controls it has, and which of its labels a phrase means.

The XML is foreign data: document types and entities are refused, size and depth are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from xml.parsers import expat

from backend.errors import ConfigError
from backend.label_names import LabelNames, is_code

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 64
MAX_LABELS = 10_000
MASK_TAGS = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels")
"""The controls that can show a mask, the most faithful first: a config with several gets the first of these."""
CONTROL_TAGS = (*MASK_TAGS, "KeyPointLabels", "TextArea")
PROMPT_NAME = "prompt"
"""The name of the TextArea in which annotators type what to find, if no setting names another one."""
ANSWER_NAME = "answer"
"""The name of a second TextArea, in which an annotator reads what a prompt found."""


@dataclass(frozen=True)
class Label:
    """A label's value, and other names that its ``alias`` attribute gives it, comma-separated."""

    value: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.value, *self.aliases)

    @property
    def phrase(self) -> str | None:
        """What the label is asked for by: the first of its names that is words and no code."""
        return next((name for name in self.names if not is_code(name)), None)


@dataclass(frozen=True)
class Control:
    """A control tag and the object that it works on. ``type`` is what its regions are called."""

    tag: str
    name: str
    to_name: str
    labels: tuple[Label, ...] = ()

    @property
    def type(self) -> str:
        return self.tag.lower()


@dataclass(frozen=True)
class LabelConfig:
    """``image`` is the Image tag's name and ``image_key`` where a task's data holds it; ``mask`` gets the answers; the rest may lack."""

    image: str
    image_key: str
    mask: Control
    prompt: Control | None = None
    answer: Control | None = None
    keypoint: Control | None = None
    box: Control | None = None
    unread: tuple[str, ...] = ()
    """Names of TextAreas that are neither the prompt nor the answer: remarks, say."""

    @cached_property
    def label_values(self) -> frozenset[str]:
        return frozenset(label.value for label in self.mask.labels)

    @cached_property
    def _names(self) -> LabelNames:
        return LabelNames((name, label.value) for label in self.mask.labels for name in label.names)

    def label_for(self, phrase: str) -> str | None:
        """The label that a phrase means: of the same name or alias, else of the thing that it is about, else the only one.

        None if several labels are left and none of them fits: the region then comes without, for the reviewer to choose.
        """
        found = self._names.label_for(phrase)
        return found if found is not None or len(self.mask.labels) != 1 else self.mask.labels[0].value


@dataclass
class _Tag:
    """An element that matters; ``labels`` are those anywhere inside of it."""

    name: str
    attributes: dict[str, str]
    labels: list[Label] = field(default_factory=list)

    @property
    def target(self) -> str:
        return self.attributes.get("toName", "").split(",")[0].strip()


def read_label_config(xml: str, prompt_control: str = PROMPT_NAME) -> LabelConfig:
    """The controls of a config, among them the TextArea called ``prompt_control``; any other is for remarks, and not read.

    Raises ConfigError: one line that says what to add.
    """
    tags = _tags(xml)
    images = {name: tag.attributes.get("value", "") for tag in tags if tag.name == "Image" and (name := tag.attributes.get("name"))}
    if not images:
        raise ConfigError('the labelling config has no <Image name="image" value="$image"/>; add one')
    masks = [_control(tag) for wanted in MASK_TAGS for tag in tags if tag.name == wanted and tag.target in images]
    if not masks:
        raise ConfigError(f"the labelling config has none of {', '.join(MASK_TAGS)} for the image; add one to show masks")
    mask = masks[0]
    value = images[mask.to_name]
    if not value.startswith("$") or len(value) == 1:
        raise ConfigError(f'the <Image> tag has value="{value[:40]}"; it must name a key of the task\'s data, such as "$image"')
    others = [_control(tag) for tag in tags if tag.target == mask.to_name and tag.name in ("TextArea", "KeyPointLabels", "RectangleLabels")]
    texts = [control for control in others if control.tag == "TextArea"]
    return LabelConfig(
        image=mask.to_name,
        image_key=value[1:],
        mask=mask,
        prompt=next((control for control in texts if control.name == prompt_control), None),
        answer=next((control for control in texts if control.name == ANSWER_NAME), None),
        keypoint=next((control for control in others if control.tag == "KeyPointLabels"), None),
        unread=tuple(control.name for control in texts if control.name not in (prompt_control, ANSWER_NAME)),
        box=next((control for control in others if control.tag == "RectangleLabels" and control != mask), None),
    )


def salvage(xml: str) -> tuple[list[Label], str]:
    """The labels of all controls of a config, each value once, and the key of its pictures, which may be empty. Raises ConfigError."""
    tags = _tags(xml)
    labels: dict[str, Label] = {}
    for tag in tags:
        for label in tag.labels:
            labels.setdefault(label.value, label)
    values = [tag.attributes.get("value", "") for tag in tags if tag.name == "Image"]
    return list(labels.values()), next((value[1:] for value in values if value.startswith("$")), "")


def _control(tag: _Tag) -> Control:
    name = tag.attributes.get("name", "")
    if not name:
        raise ConfigError(f"a <{tag.name}> of the labelling config has no name; give it one")
    return Control(tag.name, name, tag.target, tuple(tag.labels))


def _tags(xml: str) -> list[_Tag]:
    """The Image tags and the controls that can matter, in document order."""
    if len(xml) > MAX_CHARACTERS:
        raise ConfigError(f"the labelling config has {len(xml):,} characters; at most {MAX_CHARACTERS:,} are read")
    tags: list[_Tag] = []
    open_tags: list[_Tag] = []
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        if len(open_tags) >= MAX_DEPTH:
            raise ConfigError(f"the labelling config is nested deeper than {MAX_DEPTH} tags")
        tag = _Tag(name, attributes)
        if name == "Image" or (name in CONTROL_TAGS and attributes.get("perRegion", "").lower() != "true"):
            tags.append(tag)
        if name == "Label" and (value := attributes.get("value", "").strip()):
            count += 1
            if count > MAX_LABELS:
                raise ConfigError(f"the labelling config has more than {MAX_LABELS:,} labels")
            aliases = tuple(alias.strip() for alias in attributes.get("alias", "").split(",") if alias.strip())
            owner = next((one for one in reversed(open_tags) if one.name in CONTROL_TAGS), None)
            if owner is not None:
                owner.labels.append(Label(value, aliases))
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
    return tags
