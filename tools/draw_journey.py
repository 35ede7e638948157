"""Draw docs/journey.png, the README's picture of how corrections improve the model.

It shows a task, its first mask and the reviewer's correction, and another picture before and after a version was trained on such
corrections. Both versions of the run, the base model and the trained one, answer anew for it:

python -m tools.draw_journey SAM4MLLM_HOME/runs/RUN [--out docs/journey.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from backend.learning.compare import Compared, answer_all, score
from backend.learning.job import TrainingJob
from backend.learning.run_folder import RunFolder
from backend.learning.snapshot import HOLDOUT, TRAIN
from sam4mllm.adapters.loose import LooseAdapter, read_papers
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import read_examples
from sam4mllm.loading import load_variants
from sam4mllm.overlay import INK, PAPER, TINTS
from sam4mllm.pipeline import Pipeline

SIDE, GAP, LINE = 330, 18, 46
"""Pixels: a panel's sides, the gaps between panels, and the height of the texts above and below them."""
WRONG, RIGHT = 0.1, 0.8
"""IoU up to which the first version's mask is shown as wrong, and from which the better version's is shown as right."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/journey.png"))
    arguments = parser.parse_args()
    corrected, unseen = _find(RunFolder(arguments.run))
    task = _phrase(corrected)
    panels = [
        _panel("1  the task", f"“{task}”", _tinted(corrected.image, None)),
        _panel("2  the first mask", "wrong" if corrected.answers[0].mask.any() else "nothing found", _tinted(*_drawn(corrected, 0))),
        _panel("3  the correction", "mended in the editor", _tinted(corrected.image, corrected.example.union())),
        _panel("4  a picture nobody saw", f"“{_phrase(unseen)}”, as before", _tinted(*_drawn(unseen, 0))),
        _panel("5  the better version", f"after {_count(arguments.run)} corrections", _tinted(*_drawn(unseen, 1))),
    ]
    sheet = Image.new("RGB", (sum(panel.width + GAP for panel in panels) + GAP, panels[0].height + 2 * GAP), PAPER)
    for index, panel in enumerate(panels):
        sheet.paste(panel, (GAP + index * (panel.width + GAP), GAP))
    sheet.quantize(128).save(arguments.out, optimize=True)


def _find(run: RunFolder) -> tuple[Compared, Compared]:
    """Return a corrected picture whose first mask is wrong, and a held-out one that only the trained version gets right.

    If possible, both phrases end with the same word. Exits with an error if the run has no such pictures.
    """
    job = TrainingJob.read(run)
    variants = load_variants(job.model, job.segmenter, job.device, job.options, job.precision)
    both = [variants.base, variants.load(run.adapter, LooseAdapter("after-1-00000000", read_papers(run.adapter)))]
    examples = [one for one in read_examples(Path(job.dataset)) if one.has_target and len(one.instances) == 1]
    found = {split: [*_wrong_at_first(both, Path(job.dataset), examples, split)] for split in (TRAIN, HOLDOUT)}
    unseen = max(found[HOLDOUT], key=lambda one: score(one.answers[1], one.example))
    alike = [one for one in found[TRAIN] if _phrase(one).split()[-1] == _phrase(unseen).split()[-1]]
    if score(unseen.answers[1], unseen.example) < RIGHT or not found[TRAIN]:
        raise SystemExit("error: this run has no picture that shows the journey; take another")
    return (alike or found[TRAIN])[0], unseen


def _wrong_at_first(both: Sequence[Pipeline], folder: Path, examples: Sequence[Example], split: str) -> Iterator[Compared]:
    some = [one for one in examples if one.split == split]
    return (one for one in answer_all(both, folder, some) if score(one.answers[0], one.example) <= WRONG)


def _count(run: Path) -> int:
    return len({one.image for one in read_examples(RunFolder(run).data)})


def _phrase(one: Compared) -> str:
    return one.example.phrase


def _drawn(one: Compared, version: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return one.image, one.answers[version].mask


def _tinted(image: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> Image.Image:
    shown = image.astype(np.float32)
    if mask is not None:
        shown[mask] = 0.4 * shown[mask] + 0.6 * np.array(TINTS[0], np.float32)
    return ImageOps.contain(Image.fromarray(shown.round().astype(np.uint8)), (SIDE, SIDE))


def _panel(head: str, text: str, picture: Image.Image) -> Image.Image:
    panel = Image.new("RGB", (SIDE, SIDE + 2 * LINE), PAPER)
    pen = ImageDraw.Draw(panel)
    pen.text((0, 8), head, INK, ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), 22))
    panel.paste(picture, ((SIDE - picture.width) // 2, LINE + (SIDE - picture.height) // 2))
    pen.text((0, SIDE + LINE + 8), text, INK, ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 19))
    return panel


if __name__ == "__main__":
    main()
