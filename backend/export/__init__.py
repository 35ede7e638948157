"""A project's masks in the formats of other tools, with nothing lost: ``sam4mllm export`` begins in :mod:`backend.export.run`."""
