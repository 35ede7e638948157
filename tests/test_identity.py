from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.service import _noted_version, version_file
from sam4mllm.adapters.former import former_identity, former_settings, former_template, keep_name
from sam4mllm.adapters.manifest import Manifest
from sam4mllm.identity import digest_of
from sam4mllm.loading import Variants, load_variants
from sam4mllm.options import Options
from tests.adapter_files import SHA
from tests.backend_fakes import settings


def test_equal_parts_have_one_digest_whatever_their_order() -> None:
    assert digest_of({"a": (1, 2), "b": {"c": None, "d": "é"}}) == digest_of({"b": {"d": "é", "c": None}, "a": [1, 2]})
    assert len(digest_of({})) == 64


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {}], ids=str)
def test_other_parts_have_another_digest(other: dict[str, object]) -> None:
    assert digest_of(other) != digest_of({"a": 1})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        pytest.param({1: "a"}, TypeError, id="key"),
        pytest.param([{None: 1}], TypeError, id="key inside"),
        pytest.param({1, 2}, TypeError, id="set"),
        pytest.param(Options(), TypeError, id="dataclass"),
        pytest.param(np.zeros(2), TypeError, id="array"),
        pytest.param(b"a", TypeError, id="bytes"),
        pytest.param(math.nan, ValueError, id="nan"),
        pytest.param(math.inf, ValueError, id="infinity"),
    ],
)
def test_what_json_does_not_hold_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        digest_of({"a": value})


# -- names that commit f2d9577 gave to the weights of then; the values are what its code printed -------------------------------------------

FINGERPRINT, SEGMENTER = "202a94c40200fe660df5b17c25b26ab2da64b8a4b67c0de86e8a4de36e675ecb", "5f4deca9"


@pytest.fixture(scope="module")
def demo() -> Variants:
    return load_variants("demo", "demo", "cpu", None)


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        pytest.param(Options("pqpp"), "63158861", id="default"),
        pytest.param(Options("box"), "5f02ac9c645a426ac4e324269c2e38fa3930dd3c538ab0ed0394829a6fcc92be", id="box"),
        pytest.param(
            Options("box", joint=True, count=7, pattern="unsure", choice="single"),
            "91726cb8e9ac518420d38fbe86de0293563cbe7c4ddd1e2958198005cfb4f5b5",
            id="all",
        ),
    ],
)
def test_the_former_identity_is_known(demo: Variants, options: Options, identity: str) -> None:
    of_then = replace(demo.checkpoint, fingerprint=FINGERPRINT)
    assert former_identity(of_then, 400, SEGMENTER, options).startswith(identity)


def test_the_former_hash_of_the_prompts_is_known(demo: Variants) -> None:
    known = "45ec2c0bec3ed1e4f5493be4857eeb55393c48b54c7fc139f978fc0aadea30a8"
    assert former_template(demo.checkpoint.dialect, demo.checkpoint.markup) == known


def test_a_former_version_has_its_name_at_its_identity_alone() -> None:
    given: dict[str, Any] = {"base_sha256": SHA, "template_sha256": SHA, "data_sha256": SHA, "created": "2025-01-01T00:00:00+00:00"}
    stored = Manifest(version="demo-3-00000000", base_model="demo", **given, metrics={}, parent=None, files=_FILES)
    kept = keep_name(stored, "today", "then")
    assert kept.version == stored.version
    assert kept.version_for("today") == kept.name != stored.version_for("today")
    assert kept.name.startswith("demo-3-")
    assert kept.version_for("other") == stored.version_for("other")


_FILES = {"adapter_config.json": SHA, "adapter_model.safetensors": SHA}


def test_the_version_that_an_earlier_release_noted_is_known_until_another_is(tmp_path: Path) -> None:
    given = settings(tmp_path, pattern="unsure")
    options = replace(given.options, strategy="pqpp")
    former = tmp_path / f"version-{former_settings(given.model, given.segmenter, options, 'packed')}.txt"
    assert former != version_file(given)
    assert _noted_version(given) == ""
    former.write_text("demo-2-0123abcd")
    assert _noted_version(given) == "demo-2-0123abcd"
    version_file(given).write_text("demo-3-0123abcd")
    assert _noted_version(given) == "demo-3-0123abcd"
