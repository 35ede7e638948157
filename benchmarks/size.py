"""What learning costs in a large project: a look at the log for one new correction among many, and the preparation of a run.

    python -m benchmarks.size [--corrections 20000] [--folder FOLDER]

The log is filled with edited masks of 640 x 480 pixels, each of a picture of its own, as Label Studio's events bring them. The server that
uses it has fake models, which do nothing. Measured are CPU seconds of this process; the pictures come from memory. Ends with 1 if a bar is
missed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend import brush
from backend.corrections.log import CorrectionLog
from backend.corrections.log_records import Served
from backend.corrections.review_book import ReviewBook
from backend.learning.holdout import Holdout
from backend.learning.snapshot import newest, write_snapshot
from benchmarks.waiting import wait_for
from sam4mllm.run_lengths import to_rle
from tests.learning_fakes import school

HEIGHT, WIDTH = 480, 640
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Cup"/><Label value="Dog"/>'
    "</BrushLabels></View>"
)
LOOK_SECONDS, PREPARATION_SECONDS = 0.1, 60.0
"""The bars: most CPU seconds of a look at one new correction, and of a run's preparation."""
MASKS = 100
"""Number of different masks, which the corrections use in turn."""
FEATURES = {"stability": 0.9}


class Pictures:
    """A source of pictures in which each reference has its own file: the same JPEG of photo-like noise with other trailing bytes."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
        self._file = file.getvalue()

    def read(self, reference: object, task_id: int | None) -> bytes:
        return self._file + str(reference).encode()  # decoders stop at the JPEG's end and do not see the reference


def ellipse(rng: np.random.Generator) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    y, x, height, width = rng.uniform((100, 100, 40, 40), (HEIGHT - 100, WIDTH - 100, 90, 90))
    return np.asarray(((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1)


class Annotators:
    """Annotators who correct one task after the other; their corrections are written to the log."""

    def __init__(self, log: CorrectionLog) -> None:
        rng = np.random.default_rng(1)
        self._log = log
        self._masks = [ellipse(rng) for _ in range(MASKS)]
        self._encoded = [brush.encode(mask) for mask in self._masks]
        self._shown = [to_rle(mask) for mask in self._masks]

    def correct(self, task: int) -> None:
        """Log what was served for the task, and the event of the annotation that corrects it."""
        mask, region = task % MASKS, f"r{task}"
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        value = {"format": "rle", "rle": self._encoded[(mask + 1) % MASKS], "brushlabels": ["Cup"]}
        names = {"id": region, "type": "brushlabels", "from_name": "mask", "to_name": "image", "origin": "prediction-changed"}
        when = f"2026-11-{1 + task % 28:02d}T08:00:00Z"
        shown, box, size_px = self._shown[mask], (1.0, 1.0, 9.0, 9.0), (WIDTH, HEIGHT)
        served = Served(1.0, 1, task, "demo-0-base", "the cup", "Cup", region, shown, box, FEATURES, 0.8, False, *size_px, "0" * 64)
        self._log.serve([served])
        annotation: dict[str, Any] = {"id": task, "task": task, "project": 1, "result": [{**names, **size, "value": value}]}
        annotation |= {"lead_time": 9.0, "completed_by": task % 5, "updated_at": when, "created_at": when}
        data = {"image": f"/data/upload/1/{task}.png", "description": "the cup"}
        self._log.store(
            {
                "action": "ANNOTATION_CREATED",
                "project": {"id": 1, "label_config": CONFIG, "updated_at": "2026-11-01T08:00:00Z"},
                "task": {"id": task, "project": 1, "data": data, "updated_at": when},
                "annotation": annotation,
            }
        )


def cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def look_once(home: Path, corrections: int) -> tuple[float, float]:
    """Return the CPU seconds of the server's first look at the log, and the median of five looks at a single new correction each.

    ``corrections`` is the number of corrections that the log in ``home`` already holds.
    """
    place = school(home)
    learner, log = place.service.learner, place.service.corrections

    def wait(pictures: int) -> None:
        wait_for("a look", lambda: learner.corrected == pictures, 300, 0.01)

    first = cpu(lambda: wait(corrections))
    annotators = Annotators(log)
    seconds = []
    for pictures in range(corrections + 1, corrections + 6):
        annotators.correct(pictures)
        learner._next_look = 0.0  # look at once and not after the usual twenty seconds
        learner.wake()
        seconds.append(cpu(partial(wait, pictures)))
    place.service.close(5.0)
    return first, float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corrections", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the log and the run are written; a temporary one if it is not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        home = Path(folder)
        log = CorrectionLog(home / "corrections.sqlite")
        annotators = Annotators(log)
        for task in range(1, arguments.corrections + 1):
            annotators.correct(task)
        log.close()
        first, look = look_once(home, arguments.corrections)
        print(f"the first look of a start: {first:.1f} s")
        print(f"a look at one new correction of {arguments.corrections:,}: {look:.3f} s (bar: {LOOK_SECONDS})")
        log = CorrectionLog(home / "corrections.sqlite")
        book = ReviewBook(log, "description")
        reviews = book.read().reviews
        data = home / "data"
        preparation = cpu(lambda: write_snapshot(book.with_masks(newest(reviews)), Pictures(), data, Holdout(home)))
        size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        print(f"a run's preparation: {preparation:.1f} s (bar: {PREPARATION_SECONDS:.0f}), {size / 2**20:.0f} MB until it is decided")
        log.close()
    if look > LOOK_SECONDS or preparation > PREPARATION_SECONDS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
