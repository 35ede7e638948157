"""A project's labelling config (XML): which controls it has, and which of its labels a phrase means.

The XML is foreign data: document types and entities are refused, size and depth are bounded.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from xml.parsers import expat

from backend.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 64
MAX_LABELS = 10_000
MASK_TAGS = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels")
"""The controls that can show a mask, the most faithful first: a config with several gets the first of these."""
CONTROL_TAGS = (*MASK_TAGS, "KeyPointLabels", "TextArea")
ANSWER_NAME = "answer"
"""The name of a second TextArea, in which an annotator reads what a prompt found."""

_CODE = re.compile(r"\S*_\S*|[A-Za-z]*[-.]?[0-9]+|[A-Za-z]|[^\w]*")


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
        """What the label is asked for by: the first of its names that is words and no code, as ``cls_03``, ``7`` and ``A`` are."""
        return next((name for name in self.names if not _CODE.fullmatch(name.strip())), None)


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

    def label_for(self, phrase: str) -> str | None:
        """The label that a phrase means: the same name, an alias, the longest name whose words the phrase holds, or the only one.

        None if several labels are left and none of them fits: the region then comes without, for the reviewer to choose.
        """
        words = _words(phrase)
        for label in self.mask.labels:
            if any(words == _words(name) for name in label.names):
                return label.value
        held = [(len(name), label.value) for label in self.mask.labels for name in label.names if _holds(words, _words(name))]
        if held:
            return max(held)[1]
        return self.mask.labels[0].value if len(self.mask.labels) == 1 else None


def _words(text: str) -> list[str]:
    return [word for part in text.casefold().split() if (word := part.strip(string.punctuation))]


def _holds(words: list[str], name: list[str]) -> bool:
    """Whether the name's words stand in the phrase, one after the other; the last may be a plural."""
    if not name:
        return False
    last = {name[-1], name[-1] + "s", name[-1] + "es", name[-1].removesuffix("y") + "ies"}
    starts = range(len(words) - len(name) + 1)
    return any(words[start : start + len(name) - 1] == name[:-1] and words[start + len(name) - 1] in last for start in starts)


@dataclass
class _Tag:
    """An element that matters; ``labels`` are those anywhere inside of it."""

    name: str
    attributes: dict[str, str]
    labels: list[Label] = field(default_factory=list)

    @property
    def target(self) -> str:
        return self.attributes.get("toName", "").split(",")[0].strip()


def read_label_config(xml: str) -> LabelConfig:
    """The controls of a config. Raises ConfigError: one line that says what to add."""
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
        prompt=next((control for control in texts if control.name != ANSWER_NAME), None),
        answer=next((control for control in texts if control.name == ANSWER_NAME), None),
        keypoint=next((control for control in others if control.tag == "KeyPointLabels"), None),
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
