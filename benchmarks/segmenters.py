"""How segmenters of different kinds compare: each gets the same prompts, on scenes that no training has seen.

    python -m benchmarks.small_segmenters FOLDER
    python -m benchmarks.segmenters demo FOLDER/mask2former FOLDER/segformer true-classes [--scenes 120] [--seed 990093]

``true-classes`` is no model: it proposes the connected parts of the true classes, which is what a semantic model would propose if it were
right at every pixel. Printed are mean IoUs with 95 % intervals by a bootstrap over scenes, and the differences to the first segmenter on
the same scenes, in hundredths. The columns are, by prompt:

box and points  the true box of a thing and 30 points with their true labels
box             the true box alone
pqpp            the demo model's prompts for one phrase a scene: its boxes, and the points that it is sure of
best            only for segmenters that make proposals: the best proposal by the true mask, the upper bound for any prompt
any             only for such segmenters: the mean over all proposals, which is what choosing one at random gives
CPU s           CPU seconds for an image and the prompts with points of all its things

There are two parts: the usual scenes, and scenes in which two things share nearly one box. In these, only the two are measured, and no
phrase is asked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

import sam4mllm
from sam4mllm.demo.scenes import DemoScene, make_ambiguous, make_scene
from sam4mllm.evaluation.intervals import Difference, Sums, Term, differences, intervals, sum_by_image
from sam4mllm.grounding.remembering import RememberingGrounder
from sam4mllm.masks import lies_on, mask_iou, union
from sam4mllm.options import PATTERN_SIZE, Options
from sam4mllm.pipeline import Opened, Pipeline
from sam4mllm.points import spread
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.segmentation.proposals import Proposal, ProposalSegmenter, ProposalsEmbedding
from sam4mllm.segmentation.protocol import Embedding, Segmenter
from sam4mllm.segmentation.semantic import connected_parts
from sam4mllm.values import Prompt

TRUE_CLASSES = "true-classes"
FIGURES = ("box and points", "box", "pqpp", "best", "any")
KINDS = ("scenes", "ambiguous")


@dataclass(eq=False)
class Measured:
    """The results of a segmenter on one kind of scenes.

    ``scenes`` has the scene of each row, ``rows`` what the row adds to each figure, and ``seconds`` the CPU seconds of each scene.
    """

    scenes: list[str] = field(default_factory=list)
    rows: list[dict[str, Term]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, scene: int, **ious: float) -> None:
        """Add a row for a thing or a phrase, with the IoU for each figure that applies to it; figures not given do not count it."""
        named = {name.replace("_", " "): value for name, value in ious.items()}
        self.scenes.append(str(scene))
        self.rows.append({name: (named[name], 1.0) if name in named else (0.0, 0.0) for name in FIGURES})

    def sums(self) -> Sums:
        return sum_by_image(self.scenes, self.rows)


class TrueClasses(ProposalSegmenter):
    """A segmenter that knows the true class of every pixel of ``scene``: the noun of the thing there, as SegFormer is taught it.

    Things without a name are one class.
    """

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1), None, TRUE_CLASSES)
        self.scene: DemoScene | None = None

    def _propose(self, image: NDArray[np.uint8]) -> Iterator[Proposal]:
        assert self.scene is not None
        numbers = {noun: number for number, noun in enumerate(dict.fromkeys(thing.noun for thing in self.scene.things), 1)}
        classes = np.zeros(image.shape[:2], np.int64)
        for thing, mask in zip(self.scene.things, self.scene.masks, strict=True):
            classes[mask] = numbers[thing.noun]
        for part in connected_parts(classes, {0}):
            yield part.proposal(1.0, 1.0)


def measure(pipelines: Sequence[Pipeline], kind: str, seed: int, scenes: int) -> list[Measured]:
    """Measure each pipeline's segmenter on so many scenes of a kind. All pipelines share a grounder, which answers each question once."""
    found = [Measured() for _ in pipelines]
    for index in range(scenes):
        drawn = make_scene((seed, index)) if kind == "scenes" else make_ambiguous((seed, index))
        opened = pipelines[0].grounder.open(drawn.image) if drawn.expressions else None
        for pipeline, measured in zip(pipelines, found, strict=True):
            if isinstance(pipeline.segmenter, TrueClasses):
                pipeline.segmenter.scene = drawn
            began = time.process_time()
            embedding = pipeline.segmenter.encode(drawn.image)
            pipeline.segmenter.decode(embedding, list(true_prompts(drawn, points=True)))
            measured.seconds.append(time.process_time() - began)
            measure_things(measured, index, drawn, pipeline.segmenter, embedding)
            if opened is not None:
                measure_phrase(measured, index, drawn, pipeline, Opened(opened, embedding, drawn.image))
    return found


def asked_for(scene: DemoScene) -> list[int]:
    """Return the indices of the things that are measured: the pair of an ambiguous scene, or all things of another one."""
    return list(scene.pair or range(len(scene.masks)))


def true_prompts(scene: DemoScene, points: bool) -> Iterator[Prompt]:
    for thing in asked_for(scene):
        box_px = scene.boxes_px[thing]
        points_px = spread(box_px, PATTERN_SIZE) if points else np.zeros((0, 2), np.float32)
        yield Prompt(box_px, points_px, lies_on(scene.masks[thing], points_px).astype(np.int64))


def measure_things(measured: Measured, index: int, scene: DemoScene, segmenter: Segmenter, embedding: Embedding) -> None:
    drawn = [ious_of(segmenter, embedding, list(true_prompts(scene, points)), scene.masks[asked_for(scene)]) for points in (True, False)]
    for thing, pointed, boxed in zip(asked_for(scene), *drawn, strict=True):
        proposed = proposal_ious(embedding, scene.masks[thing])
        bounds = {} if proposed is None else {"best": max(proposed, default=0.0), "any": float(np.mean(proposed)) if proposed else 0.0}
        measured.add(index, box_and_points=pointed, box=boxed, **bounds)


def ious_of(segmenter: Segmenter, embedding: Embedding, prompts: Sequence[Prompt], truths: NDArray[np.bool_]) -> list[float]:
    """Return, for each prompt, the IoU with its true mask of the mask that the segmenter itself predicts to be best."""
    decoded = segmenter.decode(embedding, prompts)
    return [mask_iou(one.mask(one.best), truth) for one, truth in zip(decoded, truths, strict=True)]


def proposal_ious(embedding: Embedding, truth: NDArray[np.bool_]) -> list[float] | None:
    """Return the IoU of each proposal with the true mask (H, W); None for a segmenter that makes no proposals."""
    if not isinstance(embedding, ProposalsEmbedding):
        return None
    return [mask_iou(proposal.mask(embedding.width, embedding.height), truth) for proposal in embedding.proposals]


def measure_phrase(measured: Measured, index: int, scene: DemoScene, pipeline: Pipeline, opened: Opened) -> None:
    """Measure the scene's first phrase that means something. It is only one, because the demo model takes longer for a phrase than a
    segmenter for a scene.
    """
    for expression in [expression for expression in scene.expressions if expression.targets][:1]:
        [answer] = pipeline.segment(opened, [expression.phrase])
        measured.add(index, pqpp=mask_iou(answer.mask, union(scene.masks[list(expression.targets)])))


def as_markdown(names: Sequence[str], found: Sequence[Measured]) -> Iterator[str]:
    """A table of figures, and one of differences to the first segmenter."""
    sums = [one.sums() for one in found]
    yield f"| segmenter | {' | '.join(FIGURES)} | CPU s an image |\n|{'---|' * (len(FIGURES) + 2)}"
    for name, one, measured in zip(names, sums, found, strict=True):
        values, ends = one.figures(), intervals(one)
        cells = [_with_ends(values[figure], ends[figure]) for figure in FIGURES]
        yield f"| {name} | {' | '.join(cells)} | {np.median(measured.seconds):.2f} |"
    yield f"\n| against {names[0]}, × 100 | {' | '.join(FIGURES[:3])} |\n|{'---|' * 4}"
    for name, one in zip(names[1:], sums[1:], strict=True):
        gains = differences(one, sums[0])
        yield f"| {name} | {' | '.join(_gain(gains[figure]) for figure in FIGURES[:3])} |"


def _gain(gain: Difference | None) -> str:
    return "–" if gain is None else f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})".replace("-", "−")


def _with_ends(value: float | None, ends: tuple[float, float] | None) -> str:
    return "–" if value is None or ends is None else f"{value:.3f} ({ends[0]:.3f}–{ends[1]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "segmenters", nargs="+", help=f"as --segmenter names them, or {TRUE_CLASSES}; the others are compared with the first"
    )
    parser.add_argument("--scenes", type=int, default=120, help="of each kind")
    parser.add_argument("--seed", type=int, default=990_093)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    demo = sam4mllm.load("demo", "demo")
    grounder, options = RememberingGrounder(demo.grounder), Options("pqpp")
    segmenters = [TrueClasses() if name == TRUE_CLASSES else load_segmenter(name, device) for name in arguments.segmenters]
    pipelines = [Pipeline(grounder, segmenter, options) for segmenter in segmenters]
    for kind in arguments.kinds:
        found = measure(pipelines, kind, arguments.seed, arguments.scenes)
        print(f"\n{kind}: {arguments.scenes} scenes, {sum(row['box'][1] > 0 for row in found[0].rows)} things\n")
        print("\n".join(as_markdown(arguments.segmenters, found)), flush=True)


if __name__ == "__main__":
    main()
