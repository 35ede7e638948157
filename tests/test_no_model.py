"""``--model none``: a segmenter that takes phrases works alone, and what asks an MLLM is refused in one line."""

from __future__ import annotations
