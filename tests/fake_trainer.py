"""Stands in for ``python -m backend.learning.trainer``: writes an adapter and an evaluation at once, as its environment says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from backend.learning.run_folder import PICTURE_SIDES, RunFolder
from tests.adapter_files import adapter

STOPPED = 3


def main() -> int:
    *mode, folder = sys.argv[1:]
    run = RunFolder(Path(folder))
    if mode == ["smoke"]:
        return int(os.environ.get("FAKE_SMOKE", "0"))
    with (run.path / "starts").open("a", encoding="utf-8") as file:
        file.write("start\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    run.write_progress("training", 1, 2)
    run.curve.write_text("".join(f"[{step}, {2.0 / step:.5f}]\n" for step in range(1, 41)))
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if os.environ.get("FAKE_EXIT_ONCE") and len((run.path / "starts").read_text().splitlines()) == 1:
        return int(os.environ["FAKE_EXIT_ONCE"])
    if os.environ.get("FAKE_ERROR"):
        print(f"error: {os.environ['FAKE_ERROR']}", file=sys.stderr)
        return 1
    run.adapter.mkdir(exist_ok=True)
    for name, data in adapter(float(os.environ.get("FAKE_VALUE", "0.5"))).items():
        assert isinstance(data, bytes)
        (run.adapter / name).write_bytes(data)
    gain = float(os.environ.get("FAKE_GAIN", "0.2"))
    pairs = [
        {"label": "Cup", "champion": 0.5, "challenger": 0.5 + gain, "phrase": f"cup {index}", "image": f"images/{index}.png"}
        for index in range(10)
    ]
    pictures = [0, 3]
    run.pictures.mkdir(exist_ok=True)
    for index in pictures:
        for side, grey in zip(PICTURE_SIDES, (90, 200), strict=True):
            Image.new("RGB", (100, 80), (grey, grey, 90)).save(run.picture(index, side))
    run.evaluation.write_text(json.dumps({"pairs": pairs, "golden_champion": 0.8, "golden_challenger": 0.8, "pictures": pictures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
