"""Adapters that are given by name: a version of the registry, or a folder anywhere, with a manifest or without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam4mllm.adapters.files import MANIFEST, Manifest, hash_files, read_text
from sam4mllm.adapters.home import find_home
from sam4mllm.adapters.registry import Registry
from sam4mllm.errors import RegistryError
from sam4mllm.identity import digest_of


@dataclass(frozen=True)
class LooseAdapter:
    """An adapter in a folder of its own, not in the registry: ``version`` says which it is."""

    version: str

    def version_for(self, identity: str) -> str:
        slug, _, digest = self.version.rsplit("-", 2)
        return f"{slug}-0-{digest_of({'identity': identity, 'adapter': digest})[:8]}"


def find_adapter(name: str, home: Path | None = None) -> Path:
    """The folder of an adapter that is given as a path or as a version in ``home``. Raises RegistryError if there is none."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.name != name:
        raise RegistryError(f"there is no folder {name}; give an adapter's folder or a version")
    return Registry(find_home() if home is None else home).path(name)


def describe_adapter(folder: Path, slug: str) -> Manifest | LooseAdapter:
    """What is known of an adapter: its manifest, whatever the folder is called, or the hash of its files. Raises RegistryError if the
    files are not those of the manifest; whether they are safe is seen when they are loaded.
    """
    try:
        hashes = hash_files(folder)
        if not (folder / MANIFEST).exists():
            return LooseAdapter(f"{slug}-0-{digest_of(hashes)[:8]}")
        manifest = Manifest.from_json(read_text(folder / MANIFEST))
    except OSError as error:
        raise RegistryError(f"{folder} cannot be read ({error.strerror})") from error
    except RegistryError as error:
        raise RegistryError(f"{folder}: {error}") from error
    if manifest.files != hashes:
        raise RegistryError(f"{folder}: its files are not those that its manifest names (SHA-256); restore them or export it again")
    return manifest
