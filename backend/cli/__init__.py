"""The commands that need the extra ``server``. :mod:`sam4mllm.cli` finds them by entry points and adds them to its own."""
