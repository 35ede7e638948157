"""The package's dependencies, with some of its extras, one a line: ``python requirements.py pyproject.toml quant,segmenters``."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
extras = [name for name in sys.argv[2].split(",") if name]
unknown = sorted(set(extras) - project["optional-dependencies"].keys())
if unknown:
    sys.exit(f"error: no extra {', '.join(unknown)}; known are {', '.join(project['optional-dependencies'])}")
print("\n".join([*project["dependencies"], *(need for name in extras for need in project["optional-dependencies"][name])]))
