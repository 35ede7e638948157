"""Whether an MLLM tells apart two things in nearly the same box, and how well it does on default scenes.

    python -m benchmarks.pairs [--count 100] [--seed 990301] [--model demo] [--state STEP] [--default 120] [--json FILE]

On ambiguous scenes each phrase for one of the pair is asked. It counts as found if the MLLM gives a box, and as right if one of its boxes
has an IoU of at least 0.5 with that of the thing. Answers about the published 30 points in the thing's true box are judged at
P(inside) = 0.5, in close-ups as in serving: for all points, and for those on the thing, on the other thing and on neither. Phrases that
mean nothing should find nothing. On default scenes the figures are those of ``sam4mllm evaluate --oracle`` with the strategy pqpp.
Intervals are 95 % intervals over images. ``--state`` takes the weights of a saved training state of the recipe's language stage, or of the
newest in a folder of such states.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import sam4mllm
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.demo.pretrain.export import export_mllm, read_trainee
from sam4mllm.demo.scenes import DemoScene, make_ambiguous
from sam4mllm.demo.wording import Expression
from sam4mllm.evaluation.intervals import Term, intervals, sum_by_image
from sam4mllm.evaluation.run import evaluate, intervals_of
from sam4mllm.geometry import box_iou
from sam4mllm.grounding.protocol import Grounder, Inquiry
from sam4mllm.masks import lies_on
from sam4mllm.options import PATTERN_SIZE, Options
from sam4mllm.pipeline import Pipeline
from sam4mllm.points import spread
from sam4mllm.values import Grounding

RIGHT_BOX = 0.5
DEFAULT_FIGURES = ("gIoU", "mIoU", "oracle_mIoU", "T-acc", "N-acc", "point_accuracy")
COLUMNS = ("found", "box right", "points right", "on the target", "on the other thing", "on neither", "none kept")


def with_state(state: Path, folder: Path) -> str:
    """Export a training state, or the newest in a folder of states, as a model folder in ``folder``, and return its path."""
    newest = state if (state / "model.safetensors").exists() else sorted(state.glob("step-*"))[-1]
    print(f"the weights of {newest.name}")
    export_mllm(read_trainee(newest), folder / "model")
    return str(folder / "model")


def measure(grounder: Grounder, scene: DemoScene) -> list[dict[str, Term]]:
    """Return what each phrase about the pair, or about nothing, adds to the figures of COLUMNS: the numbers of right and of all answers."""
    assert scene.pair is not None
    said = [one for one in scene.expressions if not one.targets or one.targets[0] in scene.pair]
    opened = grounder.open(scene.image)
    answers = grounder.ground(opened, [one.phrase for one in said])
    rows = []
    for one, answer in zip(said, answers, strict=True):
        row = dict.fromkeys(COLUMNS, (0.0, 0.0))
        if one.targets:
            best = box_iou(answer.boxes_px, scene.boxes_px[list(one.targets)]).max(initial=0.0)
            row |= {"found": (float(len(answer.boxes_px) > 0), 1.0), "box right": (float(best >= RIGHT_BOX), 1.0)}
            row |= judge_points(grounder, opened, scene, one)
        else:
            row["none kept"] = (float(not len(answer.boxes_px)), 1.0)
        rows.append(row)
    return rows


def judge_points(grounder: Grounder, opened: object, scene: DemoScene, one: Expression) -> dict[str, Term]:
    """Return what the points of a phrase for one of the pair add to the figures: the numbers of right and of all answers of each kind."""
    assert scene.pair is not None
    index = one.targets[0]
    box_px = scene.boxes_px[index]
    points_px = spread(box_px, PATTERN_SIZE)
    known = Grounding(one.phrase, box_px[None], np.ones(1), 0.0)
    [replies] = grounder.ask(opened, [Inquiry(known, 0, points_px)])  # type: ignore[arg-type]
    on, rival = lies_on(scene.masks[index], points_px), lies_on(scene.masks[sum(scene.pair) - index], points_px)
    right = (replies.inside >= 0.5) == on
    kinds = {"points right": np.ones_like(on), "on the target": on, "on the other thing": rival & ~on, "on neither": ~rival & ~on}
    return {name: (float((right & kind).sum()), float(kind.sum())) for name, kind in kinds.items()}


def report(title: str, images: Sequence[str], rows: Sequence[dict[str, Term]]) -> dict[str, object]:
    """Print and return each figure with its interval; ``images`` has the image of each row."""
    sums = sum_by_image(images, rows)
    ends, found = intervals(sums), dict[str, object]()
    print(f"\n{title}: {len(set(images))} images, {len(rows)} phrases")
    for name, value in sums.figures().items():
        line = ends[name]
        if value is not None and line is not None:
            print(f"  {name:20} {value:.3f} ({line[0]:.3f} to {line[1]:.3f})")
            found[name] = [value, *line]
    return found


def ambiguous(grounder: Grounder, count: int, seed: int) -> dict[str, object]:
    """Print and return the figures on so many ambiguous scenes, for all of them and by the kind of the pair."""
    images: list[str] = []
    rows: list[dict[str, Term]] = []
    kinds: list[str] = []
    for index in range(count):
        scene = make_ambiguous((seed, index), told=True)
        new = measure(grounder, scene)
        rows += new
        images += [str(index)] * len(new)
        kinds += [scene.pair_kind] * len(new)
    found: dict[str, object] = {"all": report("ambiguous", images, rows)}
    for kind in sorted(set(kinds)):
        own = [at for at, other in enumerate(kinds) if other == kind]
        found[kind] = report(f"ambiguous, {kind}", [images[at] for at in own], [rows[at] for at in own])
    return found


def default(pipeline: Pipeline, count: int, seed: int) -> dict[str, object]:
    """Print and return the figures on so many default scenes."""
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", count, seed)
        figures, judged = evaluate(pipeline, Path(folder) / "scenes", oracle=True)
    ends = intervals_of(judged)
    print(f"\ndefault: {count} images, {len(judged)} phrases")
    found: dict[str, object] = {}
    for name in DEFAULT_FIGURES:
        value, line = figures[name], ends[name]
        if value is not None and line is not None:
            print(f"  {name:20} {value:.3f} ({line[0]:.3f} to {line[1]:.3f})")
            found[name] = [value, *line]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="ambiguous scenes")
    parser.add_argument("--default", type=int, default=120, help="default scenes of five phrases")
    parser.add_argument("--seed", type=int, default=990_301)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--segmenter", default="demo")
    parser.add_argument("--state", type=Path, help="a saved state of the recipe's language stage")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = with_state(arguments.state, Path(folder)) if arguments.state else arguments.model
        pipeline = sam4mllm.load(model, arguments.segmenter, options=Options("pqpp"))
        parts: dict[str, tuple[int, Callable[[], dict[str, object]]]] = {
            "ambiguous": (arguments.count, lambda: ambiguous(pipeline.grounder, arguments.count, arguments.seed)),
            "default": (arguments.default, lambda: default(pipeline, arguments.default, arguments.seed)),
        }
        found = {name: measure_part() for name, (count, measure_part) in parts.items() if count}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
