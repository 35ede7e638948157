"""Whether the MLLM chooses well among the candidates that the segmenter finds: ``choose`` against ``concept``, ``pqpp``, ``box``, chance.

    python -m benchmarks.choose [--first 0] [--scenes 120] [--seed 990081] [--fits 0.5] [--keep FILE] [--json]

The scenes are demo scenes with five phrases each. A simulated detector takes the place of one that finds everything that a noun names. It
reduces a phrase to its head noun and returns the true boxes of the things with that noun; SAM 3 and Grounding DINO behave much like that,
because they were trained on nouns and know little of where things stand. ``perfect`` returns all these boxes. ``patchy`` leaves out a fifth
of the things and adds a fifth of wrong boxes, around other things or around nothing. All masks are drawn by the demo segmenter.

``chance`` draws at random as many candidates as the MLLM chose. ``chosen right`` is the share of phrases for which exactly the things that
are meant were chosen; it counts only phrases that mean something and for which the detector found all that they mean. ``--keep`` writes the
results of each scene to a file when they are there: a later call with the same file goes on from there, and several processes can each
work on a part of the scenes with the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sam4mllm import candidates
from sam4mllm.confidence import score
from sam4mllm.demo.scenes import DemoScene, make_scene
from sam4mllm.demo.wording import plural
from sam4mllm.durable import append_line
from sam4mllm.evaluation.intervals import Difference, Term, differences, intervals, sum_by_image, terms
from sam4mllm.evaluation.metrics import Sample, compare
from sam4mllm.geometry import box_iou
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.head_noun import head_noun
from sam4mllm.loading import load_pipeline
from sam4mllm.masks import union
from sam4mllm.options import BY_CONCEPT, Options, Strategy
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.detection import DetectingSegmenter, Detections
from sam4mllm.segmentation.protocol import Embedding
from sam4mllm.values import Segmentation

SEED = 990_081
KINDS = ("noun", "attribute", "position", "plural", "none")
BY_MODEL: tuple[Strategy, ...] = ("box", "pqpp")
STRATEGIES = (*BY_MODEL, *BY_CONCEPT)
DETECTORS = {"perfect": (0.0, 0.0), "patchy": (0.2, 0.2)}
"""For each detector, the share of the things that it misses and the share of wrong boxes that it adds."""
MARGIN = 0.005
"""By how much the gIoU of ``choose`` on all phrases may be below that of ``pqpp``."""
ERROR_IOU = 0.5


@dataclass
class NounDetector:
    """A simulated detector. It returns boxes of the scene that :meth:`show` was last given: without a share of the things, which it misses,
    and with a share of wrong boxes.

    ``known`` has the boxes (N, 4) for each noun.
    """

    identity: str = "true boxes"
    nbytes: int = 0
    known: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def show(self, scene: DemoScene, seed: tuple[int, int], missing: float, extra: float) -> None:
        rng = np.random.default_rng([*seed, 7])
        height, width = scene.image.shape[:2]
        found = rng.uniform(size=len(scene.things)) >= missing
        self.known = {}
        for noun in sorted({thing.noun for thing in scene.things if thing.noun}):
            own = [index for index, thing in enumerate(scene.things) if thing.noun == noun]
            boxes = [scene.boxes_px[index] for index in own if found[index]]
            others = [box for index, box in enumerate(scene.boxes_px) if index not in own]
            for _ in range(int(rng.binomial(len(own), extra))):
                boxes.append(_extra(rng, others, width, height))
            self.known[noun] = np.array(boxes, np.float32).reshape(-1, 4)

    def to(self, device: torch.device) -> None:
        del device

    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        return Embedding(image.shape[1], image.shape[0], 0)

    def find_boxes(self, embedding: Embedding, phrases: Sequence[str], threshold: float) -> list[Detections]:
        del embedding, threshold
        return [self._find(head_noun(phrase).noun) for phrase in phrases]

    def _find(self, noun: str) -> Detections:
        boxes = next((boxes for known, boxes in self.known.items() if noun in (known, plural(known))), np.zeros((0, 4), np.float32))
        return Detections(boxes, np.full(len(boxes), 0.8), 0.9 if len(boxes) else 0.1)


def _extra(rng: np.random.Generator, others: Sequence[NDArray[np.float32]], width: int, height: int) -> NDArray[np.float32]:
    """Draw a wrong box (4,): in about half of the cases that of another thing, else one at a random place."""
    if others and rng.uniform() < 0.5:
        return others[int(rng.integers(len(others)))]
    sides = rng.uniform(0.1, 0.35, 2) * [width, height]
    corner = rng.uniform(0, 1, 2) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Measured:
    """The results of a phrase with one detector, for each strategy and for ``chance``.

    ``right``: whether exactly the things that are meant were chosen, or None if that was impossible. ``scores`` has, for each chosen
    instance, the score without and with the feature ``support``, and whether the answer of ``choose`` has an IoU of at least ERROR_IOU.
    """

    detector: str
    scene: int
    kind: str
    samples: dict[str, Sample]
    right: bool | None
    scores: list[tuple[float, float, bool]]


def measure(pipeline: Pipeline, detector: NounDetector, seed: int, scenes: range, keep: Path | None) -> list[Measured]:
    """Measure every phrase of the scenes with each of the DETECTORS, after reading what the file ``keep`` already holds.

    Answers that do not depend on the detector are computed once.
    """
    measured = _read(keep) if keep is not None and keep.exists() else []
    done = {one.scene for one in measured}
    for index in [index for index in scenes if index not in done]:
        scene = make_scene((seed, index))
        opened = pipeline.open(scene.image)
        phrases = [expression.phrase for expression in scene.expressions]
        answers = {strategy: pipeline.segment(opened, phrases, strategy) for strategy in BY_MODEL}
        new: list[Measured] = []
        for name, shares in DETECTORS.items():
            detector.show(scene, (seed, index), *shares)
            answers |= {strategy: pipeline.segment(opened, phrases, strategy) for strategy in BY_CONCEPT}
            for at in range(len(phrases)):
                some = {strategy: given[at] for strategy, given in answers.items()}
                new.append(_judge(name, scene, index, at, some, np.random.default_rng([seed, index, at, 8])))
        measured += new
        if keep is not None:
            append_line(keep, json.dumps([asdict(one) for one in new]).encode())
    return measured


def _read(path: Path) -> list[Measured]:
    """Read the kept results, of which each line holds those of one scene."""
    rows = [row for line in path.read_text(encoding="utf-8").splitlines() for row in json.loads(line)]
    return [Measured(**{**row, "samples": {name: Sample(**one) for name, one in row["samples"].items()}}) for row in rows]


def _judge(
    name: str, scene: DemoScene, index: int, at: int, answers: Mapping[Strategy, Segmentation], rng: np.random.Generator
) -> Measured:
    expression, found, chosen = scene.expressions[at], answers["concept"], answers["choose"]
    truth = union(scene.masks[list(expression.targets)])
    masks: dict[str, NDArray[np.bool_]] = {strategy: given.mask for strategy, given in answers.items()}
    masks["chance"] = _by_chance(rng, found, chosen)
    samples = {way: compare(mask, truth, bool(expression.targets)) for way, mask in masks.items()}
    good = samples["choose"].iou >= ERROR_IOU
    scores = [(score(replace(one.features, support=1.0)), score(one.features), good) for one in chosen.instances]
    return Measured(name, index, expression.kind, samples, _is_right(scene.boxes_px[list(expression.targets)], found, chosen), scores)


def _by_chance(rng: np.random.Generator, found: Segmentation, chosen: Segmentation) -> NDArray[np.bool_]:
    count = min(len(chosen.instances), len(found.instances))
    which = rng.permutation(len(found.instances))[:count]
    return union(np.array([found.instances[index].mask for index in which], np.bool_).reshape(-1, *found.size))


def _is_right(meant: NDArray[np.float32], found: Segmentation, chosen: Segmentation) -> bool | None:
    """Whether the chosen boxes are exactly those that are ``meant`` (N, 4).

    None if the phrase means nothing, or if not all that it means is among the candidates.
    """
    there = np.array([one.box_px for one in found.instances], np.float32).reshape(-1, 4)
    if not len(meant) or not len(there) or (box_iou(meant, there).max(1) < 0.99).any():
        return None
    taken = np.array([one.box_px for one in chosen.instances], np.float32).reshape(-1, 4)
    if len(taken) != len(meant):
        return False
    return bool((box_iou(meant, taken).max(1) >= 0.99).all())


# -- what came of it -----------------------------------------------------------------------------------------------------------------------


def figures(measured: Sequence[Measured], kinds: Sequence[str]) -> dict[str, object]:
    """Return the figures for the phrases of these kinds: the gIoU of each strategy with its interval, by how much the gIoU of ``choose`` is
    above each other one, and the share of phrases chosen right.
    """
    some = [one for one in measured if one.kind in kinds]
    scenes = [str(one.scene) for one in some]
    sums = {name: sum_by_image(scenes, [_giou(one.samples[name]) for one in some]) for name in some[0].samples}
    judged = [one.right for one in some if one.right is not None]
    return {
        "phrases": len(some),
        "gIoU": {name: one.figures()["gIoU"] for name, one in sums.items()},
        "ends": {name: intervals(one)["gIoU"] for name, one in sums.items()},
        "choose above": {name: differences(sums["choose"], one)["gIoU"] for name, one in sums.items() if name != "choose"},
        "chosen right": float(np.mean(judged)) if judged else None,
        "judged": len(judged),
    }


def _giou(sample: Sample) -> dict[str, Term]:
    return {"gIoU": terms(sample)["gIoU"]}


def auroc(measured: Sequence[Measured], which: int) -> float:
    """Return the AUROC with which the score of the chosen instances tells right answers from errors.

    ``which`` selects the score: 0 without the feature ``support``, 1 with it.
    """
    rows = [row for one in measured for row in one.scores]
    good, bad = ([row[which] for row in rows if row[2] == right] for right in (True, False))
    higher = np.array(good)[:, None] - np.array(bad)[None]
    return float((np.sign(higher).mean() + 1) / 2)


def bars(name: str, every: dict[str, object], position: dict[str, object]) -> list[str]:
    """Return one line for each bar that is missed, from the figures on ``every`` phrase and on those of the kind ``position``."""
    above, on_all = position["choose above"], every["choose above"]
    assert isinstance(above, dict)
    assert isinstance(on_all, dict)
    missed = [f"{name}: not above {other} on positions" for other in ("concept", "chance") if _of(above[other]).low <= 0]
    return missed + ([f"{name}: {MARGIN} or more below pqpp"] if _of(on_all["pqpp"]).value < -MARGIN else [])


def _of(difference: object) -> Difference:
    assert isinstance(difference, Difference)
    return difference


def print_table(name: str, rows: dict[str, dict[str, object]]) -> None:
    names = (*STRATEGIES, "chance")
    print(f"\n{name}\n\n| phrases | count | {' | '.join(names)} | choose − pqpp | choose − concept | choose − chance | chosen right |")
    print(f"|---|---|{'---|' * (len(names) + 4)}")
    for kind, row in rows.items():
        values, ends, above = row["gIoU"], row["ends"], row["choose above"]
        assert isinstance(values, dict)
        assert isinstance(ends, dict)
        assert isinstance(above, dict)
        cells = [f"{values[one]:.3f} ({ends[one][0]:.3f}–{ends[one][1]:.3f})" for one in names]
        gains = [
            f"{_of(above[one]).value:+.3f} ({_of(above[one]).low:+.3f} to {_of(above[one]).high:+.3f})"
            for one in ("pqpp", "concept", "chance")
        ]
        right = "–" if row["chosen right"] is None else f"{row['chosen right']:.3f} of {row['judged']}"
        print(f"| {kind} | {row['phrases']} | {' | '.join(cells)} | {' | '.join(gains)} | {right} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the scene to begin with")
    parser.add_argument("--scenes", type=int, default=120, help="the scene to end before")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--fits", type=float, default=candidates.FITS, help="IoU from which a box means a candidate")
    parser.add_argument("--keep", type=Path, help="a file of results, to go on from")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.first >= arguments.scenes:
        parser.error("--scenes is the scene to end before: give one beyond --first")
    candidates.FITS = arguments.fits
    demo, detector = load_pipeline("demo", "demo", "cpu", Options()), NounDetector()
    pipeline = Pipeline(RememberingGrounder(demo.grounder), DetectingSegmenter(detector, demo.segmenter), Options("choose"), "demo")
    tables, missed = {}, []
    every = measure(pipeline, detector, arguments.seed, range(arguments.first, arguments.scenes), arguments.keep)
    for name in DETECTORS:
        measured = [one for one in every if one.detector == name]
        asked = {one.kind for one in measured}
        tables[name] = {kind: figures(measured, [kind]) for kind in KINDS if kind in asked} | {"all": figures(measured, KINDS)}
        if "position" in asked:
            missed += bars(name, tables[name]["all"], tables[name]["position"])
        if not arguments.json:
            print_table(name, tables[name])
            print(f"\nscore of what was chosen, AUROC: {auroc(measured, 0):.3f} without support, {auroc(measured, 1):.3f} with it")
    print(json.dumps(tables, default=vars) if arguments.json else "\n" + ("; ".join(missed) or "every bar is met"))


if __name__ == "__main__":
    main()
