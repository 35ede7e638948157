"""Delete from installed packages what a container of this image cannot use, and print how much that is: ``python slim.py SITE_PACKAGES``.

Whatever might be loaded is kept. So is bytecode, because without it every start would compile all modules again.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NEVER = (
    "torch/include",  # needed only to compile extensions
    "torch/bin/protoc*",
    "pyarrow/include",
    "nvidia/*/lib/libcusolverMg.so*",  # solvers over several GPUs: torch is not linked with them
    "nvidia/*/lib/libnvrtc*.alt.so*",  # a second copy of the compiler, with another allocator
    "nvidia/nvshmem/lib/libnvshmem_device.*",  # needed only to link kernels
    "numpy/**/tests",
    "scipy/**/tests",
    "sympy/**/tests",
    "networkx/**/tests",
    "matplotlib/tests",
    "mpl_toolkits/**/tests",
    "pyarrow/tests",
)
NEEDS_A_COMPILER = ("triton",)
"""Packages to uninstall, because they compile C at run time and the image has no compiler; torch works without them."""


def unneeded(site: Path) -> Iterator[Path]:
    """Yield the paths that match :data:`NEVER`, and bitsandbytes' libraries for other versions of CUDA than torch's.

    The latter only if there is one for torch's version; the library for CPUs is always kept.
    """
    for pattern in NEVER:
        yield from site.glob(pattern)
    version = site / "torch/version.py"
    cuda = re.search(r"^cuda\b[^=]*= '([\d.]+)'", version.read_text(encoding="utf-8"), re.MULTILINE) if version.is_file() else None
    own = site / f"bitsandbytes/libbitsandbytes_cuda{cuda[1].replace('.', '')}.so" if cuda else None
    if own is not None and own.is_file():
        yield from (
            path for path in site.glob("bitsandbytes/libbitsandbytes_*.so") if path not in {own, own.with_name("libbitsandbytes_cpu.so")}
        )


def size(path: Path) -> int:
    """Return the bytes of a file, or of a folder with all that is in it."""
    return sum(one.lstat().st_size for one in ([path, *path.rglob("*")] if path.is_dir() else [path]))


def main() -> None:
    """Delete what is not needed from the folder of packages that the command line names."""
    site = Path(sys.argv[1])
    before = size(site)
    for path in sorted(unneeded(site)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in NEEDS_A_COMPILER:
        if any(importlib.metadata.distributions(name=name, path=[str(site)])):
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
    after = size(site)
    print(f"{(before - after) / 1e6:.0f} of {before / 1e6:.0f} MB deleted")


if __name__ == "__main__":
    main()
