"""Writes a project's masks in the formats of other tools, and reports each mask that could not be written. ``sam4mllm export`` begins in
:mod:`backend.export.run`.
"""
