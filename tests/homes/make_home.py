"""Made ``f2d9577.tar.gz``: the home of a server of that commit, with what a team leaves in one. Run in a checkout of the commit itself:

    git worktree add ../old f2d9577 && cd ../old && PYTHONPATH=. python ../sam4mllm/tests/homes/make_home.py f2d9577.tar.gz

It uses that commit's own test doubles: a model without weights, and a training process that writes an adapter at once.
"""

# mypy: ignore-errors
from __future__ import annotations

import dataclasses
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

from backend.app import create_app
from backend.reviews import read_reviews

from tests.backend_fakes import CONFIG
from tests.learning_fakes import PHRASE, school
from tests.test_learning import FAKE_TRAINER, ManyImages, correct, ended, event, tell

RUNS = ({"FAKE_VALUE": "0.5"}, {"FAKE_VALUE": "0.25"}, {"FAKE_GAIN": "-0.01"}, {"FAKE_ERROR": "the disk is full"})
"""What each run's training process is told: two are promoted, one is kept out, one fails."""


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch("tests.learning_fakes.FakeImages", ManyImages):
        home = Path(folder) / "home"
        place = school(home, FAKE_TRAINER)
        correct(place.service, 60)
        for number, told in enumerate(RUNS, 1):
            with mock.patch.dict(os.environ, told):
                tell(place.service, {"action": "START_TRAINING", "project": {"id": 1}})
                print(ended(place.service, number).state, place.serving)
        review(place.service)
        said = read_reviews(place.service.corrections, "description")
        wanted = {
            "champion": place.serving,
            "history": place.service.versions.registry.before(),
            "runs": {run.id: run.state for run in place.service.learner.runs.all()},
            "reviews": [dataclasses.asdict(one) for one in said.reviews],
            "refused": [dataclasses.asdict(one) for one in said.refused],
        }
        place.service.close(5)
        (home / "wanted.json").write_text(json.dumps(wanted, sort_keys=True))
        with tarfile.open(target, "w:gz") as archive:
            archive.add(home, "home")


def review(service) -> None:
    """Tasks that were served and then accepted, redrawn, emptied, skipped, deleted."""
    client = create_app(service).test_client()
    for number in range(101, 106):
        task = {"id": number, "data": {"image": f"/data/upload/{number}-100x80.png", "description": PHRASE}}
        body = {"tasks": [task], "project": "1.1", "label_config": CONFIG}
        [answer] = client.post("/predict", json=body, base_url="http://127.0.0.1").json["results"]
        accepted = answer["result"]
        body = event(number)
        body["task"] = task
        match number:
            case 101:
                body["annotation"]["result"] = accepted
            case 102:
                [drawn] = body["annotation"]["result"]
                masks = [
                    {**one, "value": drawn["value"], "origin": "prediction-changed"} for one in accepted if one["type"] == "brushlabels"
                ]
                body["annotation"]["result"] = masks
            case 103:
                body["annotation"]["result"] = []
            case 104:
                body["annotation"]["was_cancelled"] = True
        body["annotation"]["updated_at"] = body["annotation"]["created_at"] = "2099-01-01T00:00:00Z"
        tell(service, body)
    tell(service, {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 105}], "project": {"id": 1}})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
