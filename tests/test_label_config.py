"""What is read from a labelling config, and which label a phrase means."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ConfigError
from backend.label_studio.label_config import MAX_CHARACTERS, read_label_config

SHIPPED = (Path(__file__).parents[1] / "label_config.xml").read_text(encoding="utf-8")


def config(body: str, image: str = '<Image name="image" value="$image"/>') -> str:
    return f"<View>{image}{body}</View>"


def brush(labels: str) -> str:
    return config(f'<BrushLabels name="mask" toName="image">{labels}</BrushLabels>')


def test_the_shipped_config_has_every_control() -> None:
    found = read_label_config(SHIPPED)
    assert (found.image, found.image_value, found.mask.name) == ("image", "$image", "mask")
    assert found.prompt is not None
    assert found.keypoint is not None
    assert found.box is not None
    assert found.answer is not None


@pytest.mark.parametrize(
    ("tags", "mask"),
    [
        pytest.param(("RectangleLabels", "BrushLabels"), "BrushLabels", id="brush before rectangle"),
        pytest.param(("PolygonLabels", "BitmaskLabels"), "BitmaskLabels", id="bitmask before polygon"),
        pytest.param(("KeyPointLabels", "PolygonLabels"), "PolygonLabels", id="a keypoint shows no mask"),
        pytest.param(("RectangleLabels",), "RectangleLabels", id="rectangle alone"),
    ],
)
def test_masks_go_to_the_most_faithful_control(tags: tuple[str, ...], mask: str) -> None:
    body = "".join(f'<{tag} name="c{index}" toName="image"><Label value="A"/></{tag}>' for index, tag in enumerate(tags))
    found = read_label_config(config(body))
    assert found.mask.tag == mask
    assert found.box is None or found.box != found.mask


@pytest.mark.parametrize(
    ("phrase", "label"),
    [
        pytest.param("cup", "Cup", id="exact, whatever the case"),
        pytest.param("mug", "Cup", id="alias"),
        pytest.param("coffee  mug", "Cup", id="alias of two words"),
        pytest.param("the left cup", "Cup", id="a word of the phrase"),
        pytest.param("the paper cup", "Paper cup", id="the longest name wins"),
        pytest.param("all cups", "Cup", id="plural"),
        pytest.param("the cup, on the left.", "Cup", id="punctuation"),
        pytest.param("the cupboard", None, id="part of a word is no word"),
        pytest.param("a dog", None, id="none fits"),
    ],
)
def test_label_of_a_phrase(phrase: str, label: str | None) -> None:
    found = read_label_config(brush('<Label value="Cup" alias="mug, coffee mug"/><Label value="Paper cup"/><Label value="Tree"/>'))
    assert found.label_for(phrase) == label


def test_a_single_label_fits_every_phrase() -> None:
    assert read_label_config(brush('<Label value="Object"/>')).label_for("a dog") == "Object"


def test_labels_may_be_nested_in_other_tags() -> None:
    found = read_label_config(brush('<View><Label value="A"/></View><Label value="B"/>'))
    assert [label.value for label in found.mask.labels] == ["A", "B"]


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        pytest.param("", "no valid XML", id="empty"),
        pytest.param(config('<BrushLabels toName="image"/>'), "no name", id="a control without a name"),
        pytest.param("<View>" + "<Label value='a'/>" * 10_001 + "</View>", "labels", id="too many labels"),
        pytest.param("<View>", "no valid XML", id="cut off"),
        pytest.param("\ud800", "not valid text", id="half a character"),
        pytest.param(config("", image=""), "<Image", id="no image"),
        pytest.param(config('<Choices name="c" toName="image"/>'), "BrushLabels", id="no mask control"),
        pytest.param(config('<BrushLabels name="m" toName="text"/>'), "BrushLabels", id="mask of something else"),
        pytest.param(
            config('<BrushLabels name="m" toName="image"/>', '<Image name="image" value="a.png"/>'), "key of the", id="fixed image"
        ),
        pytest.param('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "DOCTYPE", id="entity"),
        pytest.param('<!DOCTYPE a SYSTEM "file:///etc/passwd"><View/>', "DOCTYPE", id="external document type"),
        pytest.param("<a>" * 100, "nested", id="deep"),
        pytest.param("<a/>" + " " * MAX_CHARACTERS, "at most", id="long"),
    ],
)
def test_refused(xml: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_label_config(xml)
    assert "\n" not in str(caught.value)


def test_controls_of_another_image_and_of_regions_are_left_alone() -> None:
    found = read_label_config(
        '<View><Image name="other" value="$other"/><Image name="image" value="$image"/>'
        '<KeyPointLabels name="k" toName="other"/><TextArea name="ocr" toName="image" perRegion="true"/>'
        '<Header name="m" value="x"/><BrushLabels name="m" toName="image"/><TextArea name="prompt" toName="image"/></View>'
    )
    assert (found.image_value, found.keypoint) == ("$image", None)
    assert found.prompt is not None
    assert found.prompt.name == "prompt"


def test_a_large_config_is_read_in_no_time() -> None:
    labels = "".join(f'<Label value="label {number}"/>' for number in range(9000))
    many = "".join(f'<Choices name="c{number}" toName="image"/>' for number in range(3000))
    began = time.monotonic()
    assert len(read_label_config(config(many + f'<BrushLabels name="m" toName="image">{labels}</BrushLabels>')).mask.labels) == 9000
    assert time.monotonic() - began < 2.0


def test_billion_laughs_are_refused_before_they_grow() -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(9))
    with pytest.raises(ConfigError, match="DOCTYPE"):
        read_label_config(f"<!DOCTYPE a [{entities}]><View>&a8;</View>")


@given(st.text(max_size=200))
def test_no_text_raises_anything_else(text: str) -> None:
    for xml in (text, f"<View>{text}</View>", brush(text)):
        with contextlib.suppress(ConfigError):
            read_label_config(xml)
