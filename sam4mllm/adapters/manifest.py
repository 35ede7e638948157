"""An adapter's papers, which say what it was trained on and how the MLLM is to be asked with it; and a version's manifest, which adds its
name, time and parent."""

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
    """What ``sam4mllm train`` records about an adapter, beside its files. Raises RegistryError if a field is wrong.

    ``base_model`` is the folder or hub id of the model that the adapter changes. The hashes are SHA-256 in hex: ``base_sha256`` of that
    model, ``template_sha256`` of the prompts, ``data_sha256`` of the training data (None if unknown), and in ``files`` of each of the
    adapter's files. ``metrics`` are finite numbers.

    ``strategy`` and ``points`` say how the adapter is to be asked, which a setting may override; ``dialect`` has the fields of a
    :class:`~sam4mllm.prompts.dialects.Dialect`. ``segmenter`` is the one that chose the points of its PPG answers. ``plan`` has the numbers
    of its training. These five are None if the papers do not say, as with adapters from elsewhere or from earlier releases.
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
        """Whether the adapter has a part for the MLLM; an adapter of the segmenter alone has none."""
        return WEIGHTS in self.files

    def asked(self, given: Options) -> Options:
        """Return the options with the adapter's strategy and way of asking about points filled in where ``given`` leaves them open."""
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
    """The papers of a version in a registry. Raises RegistryError if a field is wrong.

    ``version`` is the version's name, ``<slug>-<n>-<8 hex>``. ``created`` is an ISO 8601 time with its zone. ``parent`` is the version that
    the training went on from, or whose other part (for the MLLM or for the segmenter) was kept; None if there is none.
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
        """The number ``n`` in the version's name, ``<slug>-<n>-<8 hex>``."""
        return number_of(self.version)

    def version_for(self, identity: str) -> str:
        """Return the version's name for predictions that are also shaped by settings with the hash ``identity``.

        Under the settings that the version was added with, this is ``version`` itself.
        """
        slug = self.version.rsplit("-", 2)[0]
        digest = version_digest(identity, self.base_sha256, self.template_sha256, self.files)
        return f"{slug}-{self.number}-{digest}"


def parse_papers(text: str) -> Papers:
    """Return the papers in the text of a ``manifest.json``: a Manifest if the adapter is a version or was exported as one.

    Raises RegistryError if the text is not valid.
    """
    return (Manifest if "version" in parse_object(text, MANIFEST) else Papers).from_json(text)


def number_of(version: str) -> int:
    """Return the number ``n`` in a version's name; it is 0 for the base model and for an adapter outside a registry.

    Within one home it identifies the adapter, whatever settings the rest of the name depends on. Raises ValueError or IndexError for a name
    that is no version.
    """
    return int(version.rsplit("-", 2)[1])


def is_same_adapter(one: str, other: str) -> bool:
    """Whether two versions in one home are of the same adapter, or both of the base model, even under different settings."""
    try:
        return number_of(one) == number_of(other)
    except (IndexError, ValueError):  # one was read from a file and is no version; compare the texts
        return one == other


def version_digest(identity: str, base_sha256: str, template_sha256: str, files: Mapping[str, str]) -> str:
    """The last part of a version: eight hexadecimal digits that follow from all that shapes its predictions."""
    return digest_of({"identity": identity, "base": base_sha256, "template": template_sha256, "files": dict(files)})[:8]
