"""The labelling config of this release, which label_config.xml shows, with a project's own labels and keys."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from backend.errors import ConfigError
from backend.label_studio.click_help import CORRECTING
from backend.label_studio.label_config import Label, Salvaged, pointing_names, salvage
from backend.settings import PROMPT_NAME

COLOURS = {
    "mask": ("#ff5c38", "#e0a100", "#8e44ad", "#00796b", "#c2185b", "#5d4037"),
    "click": ("#18b26b",),
    "box": ("#2e86ff",),
}
"""The colours of each control's labels, used in turn. Clicks and boxes have one colour each, which sets them apart from masks."""

PLACEHOLDER = "Another description, or several: the left cup; the spoon"
NEVER_SAVED = 'visibleWhen="choice-selected" whenTagName="answer"'
"""Attributes of a TextArea that is shown but never submitted: for Label Studio 1.23.2 it depends on a choice that nobody can make."""


def offer_config(xml: str, phrase_field: str = "description", prompt_control: str = PROMPT_NAME) -> str:
    """Return a config with all controls that this release uses, for the labels and pictures of the config ``xml``.

    If ``xml`` cannot be parsed, or has no label and names no key at which tasks hold labels, the only label is ``Object``.
    """
    try:
        kept = salvage(xml)
    except ConfigError:
        kept = Salvaged()
    labels = kept.labels or (() if kept.label_value else (Label("Object"),))
    return make_config(labels, kept.image_value or "$image", phrase_field, prompt_control, kept.label_value, kept.paged)


def make_config(
    labels: Sequence[Label],
    image_value: str = "$image",
    phrase_field: str = "description",
    prompt_control: str = PROMPT_NAME,
    label_value: str = "",
    paged: bool = False,
) -> str:
    """Return the config for these labels.

    A task's data holds its phrase under the key ``phrase_field``, its picture (if ``paged``, its list of pages) at ``image_value``, as
    ``$image``, and further labels at ``label_value``, if that is given. ``prompt_control`` is the name of the TextArea for phrases.
    """
    prompt = f"name={quoteattr(prompt_control)}"
    picture = f"{'valueList' if paged else 'value'}={quoteattr(image_value)}"
    source = f" value={quoteattr(label_value)}" if label_value else ""
    return f"""<View>
  <Header value={quoteattr(f"${phrase_field}")}/>
  <TextArea {prompt} toName="image" placeholder="{PLACEHOLDER}" maxSubmissions="1" editable="true"/>
  <TextArea name="answer" toName="image" smart="false" editable="false" maxSubmissions="0" {NEVER_SAVED}/>
  <View style="display: flex; flex-wrap: wrap; column-gap: 16px">
    <BrushLabels name="mask" toName="image"{source} smart="false">
{_labels(labels, "mask")}
    </BrushLabels>
    <KeyPointLabels name="click" toName="image"{source} smart="true">
{_labels(labels, "click")}
    </KeyPointLabels>
    <RectangleLabels name="box" toName="image"{source} smart="true">
{_labels(labels, "box")}
    </RectangleLabels>
  </View>
  <Image name="image" {picture} zoomControl="true"/>
{_instructions()}
</View>
"""


def _instructions() -> str:
    """Return Header tags with the steps by which a mask is corrected, to be shown below the picture and all controls."""
    return "\n".join(f'  <Header size="6" value={quoteattr(line)}/>' for line in CORRECTING)


def _labels(labels: Sequence[Label], control: str) -> str:
    colours = COLOURS[control]
    rows = [(_names(label, control), colours[index % len(colours)]) for index, label in enumerate(labels)]
    return "\n".join(f"      <Label {names} background={quoteattr(colour)}/>" for names, colour in rows)


def _names(label: Label, control: str) -> str:
    """Return a label's attributes: the ``value`` that is shown, and the ``alias`` that Label Studio writes in its place, if any."""
    point, box = pointing_names(label.value)
    shown, written = {"click": (point, label.value), "box": (box, label.value)}.get(control, (label.value, ", ".join(label.aliases)))
    return f"value={quoteattr(shown)}" + (f" alias={quoteattr(written)}" if written else "")


DEMO_CONFIG = make_config([Label("Object")])
"""The demo's config, from code so that the installed package has it; the repository shows it as label_config.xml."""
