"""What both rehearsals need: a Debian system in place of a base image, the files that git tracks, and timing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STAND_INS = {"python:3.11-slim-bookworm": ("bookworm", ("python3", "python3-venv", "ca-certificates"))}
"""For each base image, the Debian release that takes its place and the packages to install in it; bookworm's Python is 3.11, too."""


def base(image: str, root: Path) -> None:
    """Install a fresh system in the folder ``root``, in place of a base image. Exits if there is no stand-in for the image."""
    if image not in STAND_INS:
        sys.exit(f"error: nothing stands in for {image}; add it to STAND_INS")
    release, packages = STAND_INS[image]
    targets = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=True).stdout
    mirror = next(iter(targets.split()), "")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", release, str(root), *([mirror] if mirror else [])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for packed in (root / "var/cache/apt/archives").glob("*.deb"):
        packed.unlink()
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):  # to reach what this machine reaches
        if Path("/", name).is_file():
            shutil.copyfile(Path("/", name), root / name)


def tracked(source: str = ".") -> list[str]:
    """Return the files under a path that git tracks. A rehearsal uses no others, so that it cannot work only thanks to an untracked file,
    such as somebody's ``.env``.
    """
    listed = subprocess.run(["git", "ls-files", "-z", "--", source], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def timed(step: Callable[..., object], *given: Any, name: str = "") -> None:
    """Call ``step`` with the arguments given, and print how long it took, with its ``name`` or its arguments."""
    began = time.monotonic()
    step(*given)
    said = name or " ".join(part for part in given if isinstance(part, str))
    print(f"{time.monotonic() - began:6.1f} s  {said[:110]}", flush=True)
