"""The pictures of docs/which.md: one demo scene, answered under each strategy.

    python -m benchmarks.which_pictures FOLDER [--scene 3] [--seed 990083]

The first phrase of the scene is asked, which names a position. The candidates are the true boxes of its noun, as in
``benchmarks/choose.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.choose import NounDetector
from sam4mllm.demo.scenes import make_scene
from sam4mllm.loading import load_pipeline
from sam4mllm.options import Options, Strategy
from sam4mllm.overlay import draw
from sam4mllm.pipeline import Pipeline
from sam4mllm.segmentation.detection import DetectingSegmenter

SEED, SCENE = 990_083, 0
STRATEGIES: tuple[Strategy, ...] = ("box", "pqpp", "concept", "choose")
WIDTH, COLOURS = 400, 128
"""Width in pixels and number of colours of a picture, which then takes less than 60 KB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--scene", type=int, default=SCENE)
    arguments = parser.parse_args()
    scene = make_scene((arguments.seed, arguments.scene), kinds=("position", "plural"))
    demo, detector = load_pipeline("demo", "demo", "cpu", Options()), NounDetector()
    detector.show(scene, (arguments.seed, arguments.scene), 0.0, 0.0)
    pipeline = Pipeline(demo.grounder, DetectingSegmenter(detector, demo.segmenter), Options("choose"), "demo")
    opened = pipeline.open(scene.image)
    phrase = scene.expressions[0].phrase
    print(phrase)
    for strategy in STRATEGIES:
        [answer] = pipeline.segment(opened, [phrase], strategy)
        sheet = draw(scene.image, [answer])
        small = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
        path = arguments.folder / f"which-{strategy}.png"
        small.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {len(answer.instances)} found, {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
