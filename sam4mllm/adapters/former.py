"""The former names of versions, from releases in which they came from hashes of the ``repr`` of tuples and dataclasses, not of JSON.

Users still keep versions from those releases, and Label Studio keeps predictions under their names, so those versions keep their names. No
new version is named in this way. The fields that are hashed are listed here, so that a field that is added later cannot change an old
name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam4mllm import closeup
from sam4mllm.adapters.manifest import Manifest
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.options import Options
from sam4mllm.prompts.conversation import ChatMarkup
from sam4mllm.prompts.dialects import Dialect

_DIALECT = (
    *("name", "box_question", "prompt_question", "points_head", "box", "point", "frame", "points_view", "digits", "box_separator"),
    *("point_separator", "answer_separator", "yes", "no", "inside", "outside", "no_target"),
)
_MARKUP = ("opening", "to_answer", "to_question")


@dataclass(frozen=True)
class FormerManifest(Manifest):
    """The manifest of a version that has a former name: ``name`` is its name under the settings that have the hash ``identity`` today."""

    identity: str = ""
    name: str = ""

    def version_for(self, identity: str) -> str:
        return self.name if identity == self.identity else super().version_for(identity)


def keep_name(manifest: Manifest, identity: str, former_identity: str) -> FormerManifest:
    """Return the manifest with the former name that it has under some settings.

    The settings have the hash ``former_identity`` as computed then, and ``identity`` as computed today.
    """
    parts = (former_identity, manifest.base_sha256, manifest.template_sha256, sorted(manifest.files.items()))
    name = f"{manifest.version.rsplit('-', 2)[0]}-{manifest.number}-{_hash(repr(parts))[:8]}"
    return FormerManifest(**vars(manifest), identity=identity, name=name)


def former_template(dialect: Dialect, markup: ChatMarkup) -> str:
    """Return ``template_sha256`` as the former releases computed it."""
    return _hash(f"({_spell_dialect(dialect)}, {_spell('ChatMarkup', markup, _MARKUP)})")


def former_identity(checkpoint: Checkpoint, max_new_tokens: int, segmenter: str, options: Options) -> str:
    """Return ``Pipeline.identity`` as the former releases computed it; ``segmenter`` is the segmenter's identity."""
    parts = [repr(checkpoint.fingerprint), _spell_dialect(checkpoint.dialect), _spell("ChatMarkup", checkpoint.markup, _MARKUP)]
    parts += [str(checkpoint.model.dtype), str(max_new_tokens)]
    if checkpoint.precision.quantize != "none":
        parts.append(repr(checkpoint.precision.quantize))
    grounder = _hash(f"({', '.join(parts)})")[:8]
    if checkpoint.dialect.points_view == "close-up":
        grounder = _hash(repr((grounder, closeup.ZOOM, closeup.LEAST_GAIN, closeup.SIDE_PX)))[:8]
    return _hash(f"({grounder!r}, {segmenter!r}, {options.strategy!r}, {_spell_options(options)})")


def former_settings(model: str, segmenter: str, options: Options, points: str) -> str:
    """Return the hash of a server's settings that was part of the name of the file in which the server noted its version."""
    pattern = () if options.pattern == "spread" else (options.pattern,)
    return _hash(repr((model, segmenter, options.strategy, points, *pattern)))[:12]


def _spell_options(options: Options) -> str:
    thresholds = _spell("Thresholds", options.thresholds, ("positive", "negative"))
    parts = [f"joint={bool(options.joint)}", f"count={options.count!r}", f"thresholds={thresholds}"]
    # These two options came later. The former releases left each out of the repr at its first value, so that older versions kept their
    # names.
    later: Mapping[str, tuple[str, str]] = {"pattern": (options.pattern, "spread"), "choice": (options.choice, "predicted")}
    parts += [f"{name}={value!r}" for name, (value, first) in later.items() if value != first]
    return f"Options({', '.join(parts)})"


def _spell_dialect(dialect: Dialect) -> str:
    answer = () if dialect.answer == "{boxes}" else ("answer",)
    return _spell("Dialect", dialect, (*_DIALECT, *answer))


def _spell(kind: str, value: object, names: Sequence[str]) -> str:
    """Return the ``repr`` of a dataclass that has only the fields ``names``."""
    return f"{kind}({', '.join(f'{name}={getattr(value, name)!r}' for name in names)})"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
