"""An adapter's papers: what it was trained on and how it is to be asked; and the manifest of one that is a version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Self, get_args

from sam4mllm.adapters.fields import (
    FILES,
    MANIFEST,
    SEGMENTER_FILES,
    SHA256,
    VERSION,
    WEIGHTS,
    is_number,
    is_time,
    matches,
    parse_object,
    require,
)
from sam4mllm.errors import RegistryError
from sam4mllm.identity import digest_of
from sam4mllm.options import LearnedStrategy, Options, PointsName
from sam4mllm.plain_text import listed


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What ``sam4mllm train`` writes beside an adapter. Raises RegistryError if a field is not as it should be.

    ``base_model`` is the folder or hub id of the model that it changes; the hashes are SHA-256 in hex: of that model, of what is said to
    it, of the training data (None if nobody knows), and of each file of the adapter. ``metrics`` are finite.

    How it is to be asked: ``strategy`` and ``points``, which a setting may override, and ``dialect``, the fields of a
    :class:`~sam4mllm.prompts.dialects.Dialect`. ``segmenter`` chose the points of its PPG answers. ``plan`` is what it was trained by. Of
    these, None is what an adapter from elsewhere, or from an earlier release, does not say.
    """

    base_model: str
    base_sha256: str
    template_sha256: str
    data_sha256: str | None
    metrics: dict[str, float]
    files: dict[str, str]
    strategy: LearnedStrategy | None = None
    points: PointsName | None = None
    dialect: dict[str, str | int] | None = None
    segmenter: str | None = None
    plan: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.base_model, str) and self.base_model != "", "base_model", self.base_model, "a model's name")
        for name in ("base_sha256", "template_sha256", "data_sha256"):
            known = matches(SHA256, getattr(self, name)) or (name == "data_sha256" and self.data_sha256 is None)
            require(known, name, getattr(self, name), "64 hex digits")
        numbers = isinstance(self.metrics, dict) and all(is_number(value) for value in self.metrics.values())
        require(numbers, "metrics", self.metrics, "an object of finite numbers")
        parts = [set(FILES), set(SEGMENTER_FILES), {*FILES, *SEGMENTER_FILES}]
        hashed = isinstance(self.files, dict) and self.files.keys() in parts
        hashed = hashed and all(matches(SHA256, sha256) for sha256 in self.files.values())
        require(hashed, "files", self.files, f"the hashes of {listed(FILES)}, of {listed(SEGMENTER_FILES)}, or of all")
        learned = get_args(LearnedStrategy)
        require(self.strategy in (None, *learned), "strategy", self.strategy, f"{', '.join(learned)} or null")
        require(self.points in (None, *get_args(PointsName)), "points", self.points, "packed, joint or null")
        spelled = isinstance(self.dialect, dict) and all(isinstance(value, str | int) for value in self.dialect.values())
        require(self.dialect is None or spelled, "dialect", self.dialect, "an object of texts, or null")
        require(self.segmenter is None or isinstance(self.segmenter, str), "segmenter", self.segmenter, "a segmenter's name or null")
        require(self.plan is None or isinstance(self.plan, dict), "plan", self.plan, "an object or null")

    @property
    def changes_mllm(self) -> bool:
        """Whether it has a part for the MLLM; one that trains the segmenter alone has none."""
        return WEIGHTS in self.files

    def asked(self, given: Options) -> Options:
        """How the adapter is asked, where it is not given."""
        strategy = self.strategy if given.strategy == "auto" and self.strategy is not None else given.strategy
        joint = self.points == "joint" if given.joint is None and self.points is not None else given.joint
        return replace(given, strategy=strategy, joint=joint)

    def to_json(self) -> str:
        """As text for ``manifest.json``."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``. Raises RegistryError for keys that are unknown or missing, or values that are wrong."""
        values = parse_object(text, MANIFEST)
        own = fields(cls)
        needed = {field.name for field in own if field.default is MISSING}
        wrong = (values.keys() - {field.name for field in own}) | (needed - values.keys())
        if wrong:
            raise RegistryError(f"{MANIFEST} lacks these keys or should not have them: {listed(wrong)}; add the adapter again")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Manifest(Papers):
    """The papers of a version in a registry. Raises RegistryError if a field is not as it should be.

    ``created`` is an ISO 8601 time with its zone; ``parent`` is the version that training set out from, or whose other part was
    kept, or None.
    """

    version: str
    created: str
    parent: str | None

    def __post_init__(self) -> None:
        require(matches(VERSION, self.version), "version", self.version, "<slug>-<n>-<8 hex>")
        require(is_time(self.created), "created", self.created, "an ISO 8601 time with its zone")
        require(self.parent is None or matches(VERSION, self.parent), "parent", self.parent, "a version or null")
        super().__post_init__()

    @property
    def number(self) -> int:
        """The ``n`` of the version."""
        return number_of(self.version)

    def version_for(self, identity: str) -> str:
        """The version's name where something else shapes its predictions, too: its own under the settings that it was added with."""
        slug = self.version.rsplit("-", 2)[0]
        digest = version_digest(identity, self.base_sha256, self.template_sha256, self.files)
        return f"{slug}-{self.number}-{digest}"


def parse_papers(text: str) -> Papers:
    """The papers in a ``manifest.json``; a Manifest if the adapter is, or was exported as, a version. Raises RegistryError."""
    return (Manifest if "version" in parse_object(text, MANIFEST) else Papers).from_json(text)


def number_of(version: str) -> int:
    """The ``n`` of a version, 0 of the base model; in one home it names an adapter whatever else shapes the version's predictions."""
    return int(version.rsplit("-", 2)[1])


def is_same_adapter(one: str, other: str) -> bool:
    """Whether two versions of a home are of one adapter, or both of the base model, whatever else shapes their predictions."""
    try:
        return number_of(one) == number_of(other)
    except (IndexError, ValueError):  # from a file: no version at all
        return one == other


def version_digest(identity: str, base_sha256: str, template_sha256: str, files: Mapping[str, str]) -> str:
    """The last part of a version: eight hexadecimal digits that follow from all that shapes its predictions."""
    return digest_of({"identity": identity, "base": base_sha256, "template": template_sha256, "files": dict(files)})[:8]
