"""``python -m sam4mllm``: the same commands as ``sam4mllm``; also what ``accelerate launch -m sam4mllm train`` starts."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def leave_out_working_directory() -> None:
    """Look no modules up in the working directory, which ``python -m`` puts first: it may hold anybody's ``backend`` or ``numpy``."""
    with suppress(OSError):  # the working directory is gone
        if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
            del sys.path[0]


if __name__ == "__main__":
    leave_out_working_directory()
    from sam4mllm.cli.main import main

    main()
