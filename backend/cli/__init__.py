"""The commands that need a server: further commands of :mod:`sam4mllm.cli`, which finds them by entry points."""
