"""Adapters that a user names: a version in the registry, or any folder, with or without a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam4mllm.adapters.fields import MANIFEST
from sam4mllm.adapters.files import hash_files, read_text
from sam4mllm.adapters.home import find_home
from sam4mllm.adapters.manifest import Manifest, Papers, parse_papers
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import RegistryError
from sam4mllm.identity import digest_of


@dataclass(frozen=True)
class LooseAdapter:
    """An adapter in a folder outside the registry. ``version`` identifies it, as ``<slug>-0-<8 hex>``. Its ``papers`` may be None."""

    version: str
    papers: Papers | None = None

    def version_for(self, identity: str) -> str:
        slug, _, digest = self.version.rsplit("-", 2)
        return f"{slug}-0-{digest_of({'identity': identity, 'adapter': digest})[:8]}"


def find_adapter(name: str, home: Path | None = None) -> Path:
    """The folder of an adapter that is given as a path or, if there is no such folder, as a version in ``home`` (``find_home()`` if None).

    Raises RegistryError if there is none. Nothing in the folder is checked.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.name != name:
        raise RegistryError(f"there is no folder {name}; give an adapter's folder or a version")
    return Registry(find_home() if home is None else home).path(name)


def read_papers(folder: Path) -> Papers | None:
    """Return the papers of an adapter, what its ``manifest.json`` says of it; None if there is no such file. They are a Manifest if the
    adapter is a registered version or was exported from one.

    Raises RegistryError if they cannot be read or are not valid, if a file of the adapter is missing, or if a file's hash is not the one
    that they name. Whether the files are safe is checked when they are loaded.
    """
    try:
        hashes = hash_files(folder)
        papers = parse_papers(read_text(folder / MANIFEST)) if (folder / MANIFEST).exists() else None
    except OSError as error:
        raise RegistryError(f"{folder} cannot be read ({error.strerror})") from error
    except RegistryError as error:
        raise RegistryError(f"{folder}: {error}") from error
    if papers is not None and papers.files != hashes:
        raise RegistryError(f"{folder}: its files are not those that its {MANIFEST} names (SHA-256); restore them or export it again")
    return papers


def describe_adapter(folder: Path, slug: str, papers: Papers | None) -> Manifest | LooseAdapter:
    """Return an adapter's papers if they are a Manifest, or else a LooseAdapter that is identified by ``slug`` and the hash of its files.

    ``papers`` are what ``read_papers`` returned for the folder; with a Manifest, the folder's own name does not matter. Without papers the
    files are hashed: raises RegistryError if one is missing, OSError if one cannot be read.
    """
    if isinstance(papers, Manifest):
        return papers
    return LooseAdapter(f"{slug}-0-{digest_of(hash_files(folder) if papers is None else papers.files)[:8]}", papers)
