"""The model card's table: the figures of each strategy on scenes that no training has seen.

    python benchmarks/strategies.py [--count 120] [--seed 990003] [--model demo] [--segmenter demo]

Prints a Markdown table; ``--json`` prints the figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import sam4mllm
from sam4mllm.demo.dataset import write_scenes
from sam4mllm.evaluation.metrics import Figures
from sam4mllm.evaluation.run import evaluate
from sam4mllm.options import Options, Strategy

SEED = 990_003
ROWS: tuple[tuple[str, Strategy, bool], ...] = (
    ("box", "box", False),
    ("ppg", "ppg", False),
    ("pqpp packed", "pqpp", False),
    ("pqpp joint", "pqpp", True),
)
ORACLE_ROW = "pqpp packed"
"""The row for which the upper bound (``oracle_mIoU``) is computed. It depends on the segmenter alone, so one row has it for all."""
COLUMNS = ("gIoU", "cIoU", "mIoU", "T-acc", "N-acc", "Pr@0.5", "Pr@0.9", "point_accuracy", "point_ece", "oracle_mIoU", "seconds_per_phrase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120, help="images of five phrases each")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--segmenter", default="demo")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    loaded = sam4mllm.load(arguments.model, arguments.segmenter)
    table: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "scenes"
        write_scenes(dataset, arguments.count, arguments.seed)
        for name, strategy, joint in ROWS:
            pipeline = loaded.through(loaded.grounder, Options(strategy, joint))
            table[name], _ = evaluate(pipeline, dataset, oracle=name == ORACLE_ROW)
    if arguments.json:
        print(json.dumps(table))
        return
    print(f"| strategy | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, figures in table.items():
        print(f"| {name} | {' | '.join('–' if figures[column] is None else f'{figures[column]:.3f}' for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
