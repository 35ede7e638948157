"""How a command follows the papers of the adapter that it uses: options not given are taken from them, contrary ones are refused."""

from __future__ import annotations

from pathlib import Path

from sam4mllm.adapters.fields import CONFIG, MANIFEST, SEGMENTER_CONFIG, parse_object
from sam4mllm.adapters.files import read_text
from sam4mllm.adapters.former import former_template
from sam4mllm.adapters.manifest import Papers
from sam4mllm.errors import ModelError, RegistryError
from sam4mllm.grounding.checkpoint import Checkpoint
from sam4mllm.grounding.families import DEMO
from sam4mllm.prompts.dialects import BEFORE_NONE, Dialect, dialect_of
from sam4mllm.segmentation.names import HUB_ID, split_name


def choose_model(given: str | None, papers: Papers | None, folder: Path | None = None) -> str:
    """Return the name of the model to load: the given one, or the one in the papers, or else the demo model.

    For an adapter without papers that changes an MLLM, the name that peft wrote into its ``folder`` comes before the demo model, if it is a
    folder on this machine or a hub id. A given model may have another name than the one in the papers, because its folder may have moved:
    whether it is the adapter's model is checked by its hash once it is loaded. Raises RegistryError or OSError if the adapter's
    configuration cannot be read.
    """
    if given is not None or papers is not None or folder is None or not (folder / CONFIG).exists():
        return given or (DEMO if papers is None else papers.base_model)
    named = parse_object(read_text(folder / CONFIG), CONFIG).get("base_model_name_or_path")
    return named if isinstance(named, str) and (HUB_ID.fullmatch(named) or Path(named).is_dir()) else DEMO


def choose_segmenter(given: str | None, papers: Papers | None, folder: Path | None = None) -> str:
    """Return the name of the segmenter to load: the given one, or the one in the papers, or the one whose decoder the adapter in ``folder``
    changes, if that is on this machine or a hub id, or else the demo segmenter.

    Raises RegistryError if the given one is not the one in the papers, which chose the points of the adapter's answers. Only their kinds
    and file names are compared, because the file may have moved. If neither is there, also raises RegistryError or OSError if the
    configuration of the adapter's part for the segmenter cannot be read.
    """
    own = None if papers is None else papers.segmenter
    if given is not None and own is not None and _kind_and_file(given) != _kind_and_file(own):
        raise RegistryError(f"--segmenter {given} is not the one that the adapter was trained with, {own} by its {MANIFEST}; leave it out")
    return given or own or _adapted(folder) or DEMO


def _adapted(folder: Path | None) -> str | None:
    """Return the segmenter that the adapter in a folder says it changes, if its files are on this machine or it is a hub id; else None.

    A name with a checksum (``#``) is ignored: a checksum makes a file trusted, which only the user may do. Raises RegistryError or OSError
    if the adapter's configuration cannot be read.
    """
    if folder is None or not (folder / SEGMENTER_CONFIG).exists():
        return None
    named = parse_object(read_text(folder / SEGMENTER_CONFIG), SEGMENTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or "#" in named:
        return None
    detector, segmenter = split_name(named)
    there = [HUB_ID.fullmatch(one) or Path(_parts(one)[1]).exists() for one in (detector, segmenter) if one not in (None, DEMO)]
    return named if all(there) else None


def lasting_name(source: str) -> str:
    """Return a model's or segmenter's name so that it is valid in any working directory: paths in it that exist are made absolute, also
    those after a kind such as ``vit_h:`` and on both sides of a ``+``. ``demo`` and hub ids stay as they are.
    """
    detector, segmenter = split_name(source)
    if detector is not None:
        return f"{lasting_name(detector)}+{lasting_name(segmenter)}"
    kind, file, checksum = _parts(source)
    return source if source == DEMO or not Path(file).exists() else f"{kind}{Path(file).absolute()}{checksum}"


def _kind_and_file(source: str) -> tuple[str, str, str]:
    detector, segmenter = split_name(source)
    kind, file, _ = _parts(segmenter)
    return Path(detector or "").name, kind, Path(file).name


def _parts(source: str) -> tuple[str, str, str]:
    """Split a name into its kind (such as ``vit_h:``), its path or name, and ``#sha256=…``; the first and the last may be empty."""
    named, mark, checksum = source.partition("#")
    kind, colon, file = named.rpartition(":")
    return kind + colon, file, mark + checksum


def checkpoint_for(checkpoint: Checkpoint, papers: Papers | None, dialect: Dialect | None, name: str = "") -> Checkpoint:
    """Return the checkpoint with the dialect that an adapter with these papers was trained in.

    ``dialect`` is the one that the user asked for, or None. Without papers the checkpoint gets that dialect, or keeps its own for None.
    ``name`` is the adapter's, for messages. Raises ModelError if the adapter is for another model, or was trained in another dialect than
    the one asked for, or on other prompts; TemplateError if the papers' dialect is not valid.
    """
    if papers is None:
        return checkpoint if dialect is None else checkpoint.speaking(dialect)
    if papers.base_sha256 != checkpoint.base_sha256:
        own = f"another base model, {papers.base_model}"
        raise ModelError(f"the adapter {name} was trained on {own}; start with that one (--model, SAM4MLLM_MODEL), or train again")
    if papers.dialect is not None:
        checkpoint = checkpoint.speaking(dialect_of(papers.dialect))
    elif papers.template_sha256 != checkpoint.template_sha256:
        checkpoint = _as_before(checkpoint, papers)
    if dialect not in (None, checkpoint.dialect):
        raise ModelError(f"--dialect is not what the adapter {name} was trained in, {checkpoint.dialect.name!r}; leave it out")
    if papers.template_sha256 not in (checkpoint.template_sha256, former_template(checkpoint.dialect, checkpoint.markup)):
        raise ModelError(f"the adapter {name} was trained on another set of prompts; train again, or start with its own")
    return checkpoint


def _as_before(checkpoint: Checkpoint, papers: Papers) -> Checkpoint:
    """Return the checkpoint with the dialect that an earlier release gave its family, if the adapter was trained on the prompts of that
    dialect; else return it unchanged.
    """
    former = BEFORE_NONE.get(checkpoint.dialect.name)
    if former is None:
        return checkpoint
    known = (checkpoint.speaking(former).template_sha256, former_template(former, checkpoint.markup))
    return checkpoint.speaking(former) if papers.template_sha256 in known else checkpoint
