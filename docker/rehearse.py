"""Try out the image and, where a Docker engine can be started, the whole of compose.yaml, without fetching a published image.

    sudo python3 docker/rehearse.py [--chroot] [--keep FOLDER]

This needs root and debootstrap. If Debian's docker.io, iptables and docker-compose are installed too, a Docker engine of its own is
started; docker/rehearse_story.py says what is done with it (30 GB of disk, a quarter of an hour). If no engine can be started, one line
says why, and the Dockerfile's steps are followed under chroot instead (docker/rehearse_chroot.py; 8 GB, some minutes).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import rehearse_chroot
import rehearse_story
from rehearse_engine import NoEngine


def main() -> None:
    """Rehearse in the way that is possible here. Exits with 1 and a line that says what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chroot", action="store_true", help="start no engine")
    parser.add_argument(
        "--keep", type=Path, help="keep the system in this new folder, or the engine's images, which a later run takes over"
    )
    arguments = parser.parse_args()
    if os.geteuid() or shutil.which("debootstrap") is None:
        sys.exit("error: this needs root and debootstrap: sudo apt-get install debootstrap")
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit("error: stopped"))  # exit normally, so that what was started and mounted is removed
    with tempfile.TemporaryDirectory(prefix="rehearse-", ignore_cleanup_errors=True) as temporary:
        folder = arguments.keep.absolute() if arguments.keep is not None else Path(temporary, "system")
        if not arguments.chroot:
            try:
                rehearse_story.rehearse(folder, Path(temporary))
            except NoEngine as reason:
                print(f"no engine: {reason}; the Dockerfile is followed under chroot instead", flush=True)
            else:
                return
        rehearse_chroot.rehearse(folder)


if __name__ == "__main__":
    main()
