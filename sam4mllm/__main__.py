"""``python -m sam4mllm``: the commands that need no server; also what ``accelerate launch -m sam4mllm train`` starts."""

from __future__ import annotations

from sam4mllm.cli.main import main

if __name__ == "__main__":
    main()
