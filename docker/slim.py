"""Delete from installed packages what a container of this image cannot use, and say how much that is: ``python slim.py SITE_PACKAGES``.

Kept is whatever might be loaded. Bytecode, too: without it every start would compile everything again.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NEVER = (
    "torch/include",  # to compile extensions with
    "torch/bin/protoc*",
    "pyarrow/include",
    "nvidia/*/lib/libcusolverMg.so*",  # solvers over several GPUs: torch is not linked with them
    "nvidia/*/lib/libnvrtc*.alt.so*",  # a second copy of the compiler, with another allocator
    "nvidia/nvshmem/lib/libnvshmem_device.*",  # to link kernels with
    "numpy/**/tests",
    "scipy/**/tests",
    "sympy/**/tests",
    "networkx/**/tests",
    "matplotlib/tests",
    "mpl_toolkits/**/tests",
    "pyarrow/tests",
)
NEEDS_A_COMPILER = ("triton",)
"""It compiles C as it runs, and the image has no compiler; torch does without it."""


def unneeded(site: Path) -> Iterator[Path]:
    """What is there of :data:`NEVER`, and bitsandbytes' builds for other CUDAs than torch's."""
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
    """Bytes, its folders' files included."""
    return sum(one.lstat().st_size for one in ([path, *path.rglob("*")] if path.is_dir() else [path]))


def main() -> None:
    """Slim one folder of packages."""
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
