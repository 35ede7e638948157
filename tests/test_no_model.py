"""``--model none``: a segmenter that takes phrases works alone, and what asks an MLLM is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import sam4mllm
from sam4mllm.cli.main import app
from sam4mllm.data.write_dataset import ExampleWriter
from sam4mllm.errors import ModelError
from sam4mllm.loading import Variants, load_variants
from sam4mllm.options import AskedStrategy, Options
from tests.fakes import FakeConceptSegmenter, FakeSegmenter, candidates
from tests.papers import PAPERS
