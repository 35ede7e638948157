"""Where a team draws edges: moved as it says, fitted only if it holds, offered with pictures, adopted and taken back by a press."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.corrections.reviews import Review
from backend.errors import LearningError
from backend.learning.edge_offers import LEAST_PICTURES, MOST_PICTURES, EdgeOffer, find_offer, fit_guarded, groups
from backend.serving.edges import Edges
from backend.web.app import create_app
from sam4mllm.edges import AS_DRAWN, EDGES, MAX_OFFSET_PX, Edge, Outline, draw_edge, fit_edge, try_edges
from sam4mllm.masks import mask_iou
from sam4mllm.run_lengths import to_rle
from tests.backend_fakes import CONFIG, task
from tests.learning_fakes import School, school
from tests.test_snapshot import review
from tests.test_status import BASE_URL, Forms

HEIGHT, WIDTH = 60, 70
MASKS = st.integers(0, 2**32 - 1).map(lambda seed: blobs(np.random.default_rng(seed)))


def blobs(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Some discs, with holes, also at the border and empty now and then."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value in (1, 1, 0)[: rng.integers(0, 4)]:
        cv2.circle(canvas, (int(rng.integers(0, WIDTH)), int(rng.integers(0, HEIGHT))), int(rng.integers(1, 20)), value, -1)
    return canvas > 0


def brute(mask: np.ndarray[Any, Any], offset: int) -> np.ndarray[Any, Any]:
    """The slow reference: every pixel within so many of the mask, or farther than so many from what is not of it."""
    kernel = np.hypot(*np.mgrid[-offset : offset + 1, -offset : offset + 1]) <= offset + 1e-6
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel.astype(np.uint8)) > 0)


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(0, MAX_OFFSET_PX))
def test_an_edge_is_moved_by_as_many_pixels_as_it_says(mask: np.ndarray[Any, Any], offset: int) -> None:
    assert (draw_edge(mask, Edge(offset)) == brute(mask, offset)).all()
    inner = ~brute(~np.pad(mask, MAX_OFFSET_PX, mode="edge"), offset)[MAX_OFFSET_PX:-MAX_OFFSET_PX, MAX_OFFSET_PX:-MAX_OFFSET_PX]
    narrower = draw_edge(mask, Edge(-offset))
    middle = (slice(1 + offset, -1 - offset),) * 2  # outside of the picture nothing is known: there the mask is not cut
    if inner.any():
        assert (narrower[middle] == inner[middle]).all()
    assert (narrower <= mask).all()
    assert not mask.any() or narrower.any(), "something is left of it in any case"


def test_holes_are_filled_and_what_is_beside_is_not() -> None:
    ring = np.zeros((40, 40), np.uint8)
    cv2.circle(ring, (20, 20), 12, 1, 4)
    filled = draw_edge(ring > 0, Edge(0, True))
    assert filled[20, 20]
    assert filled.sum() > ring.sum()
    assert not filled[0, 0]
    assert (draw_edge(filled, Edge(0, True)) == filled).all()


def test_an_edge_beyond_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 8 pixels, not 9"):
        Edge(9)
    assert [str(edge) for edge in (Edge(3), Edge(-2, True), Edge(0, True), AS_DRAWN)] == [
        "3 px wider",
        "2 px narrower and without holes",
        "without holes",
        "as they are",
    ]


def disc(radius: int, x: int = 35) -> np.ndarray[Any, Any]:
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(canvas, (x, 30), radius, 1, -1)
    return canvas > 0


def test_the_edge_that_fits_is_found_and_what_others_say_is_what_it_gains() -> None:
    tables = [try_edges(disc(radius), draw_edge(disc(radius), Edge(3))) for radius in range(8, 18)]
    assert tables[0].shape == (len(EDGES),)
    fitted = fit_edge(tables)
    assert fitted.edge == Edge(3)
    assert (fitted.gains > 0.1).all()
    assert fit_guarded(tables) is not None
    assert fit_guarded(tables, Edge(3)) is None, "it is there already"
    assert fit_guarded([try_edges(disc(radius), disc(radius)) for radius in range(8, 18)]) is None


def test_one_picture_that_is_far_off_moves_no_edge() -> None:
    tables = [try_edges(disc(radius), disc(radius)) for radius in range(8, 15)]
    assert fit_guarded([*tables, try_edges(disc(5), draw_edge(disc(5), Edge(8)))]) is None


def test_what_was_served_with_an_edge_is_counted_from_there() -> None:
    """Served 2 pixels wider already, and still 1 too narrow: 3 in all."""
    tables = [try_edges(disc(radius + 2), draw_edge(disc(radius), Edge(3)), Edge(2)) for radius in range(8, 18)]
    assert fit_edge(tables, Edge(2)).edge == Edge(3)


def edited(number: int, edge: Edge, version: str = "demo-0-base", **changes: Any) -> Review:
    served = disc(8 + number % 10)
    final = draw_edge(served, edge)
    given = {"outcome": "edited", "iou": mask_iou(served, final), "version": version, "width": WIDTH, "height": HEIGHT}
    masks = {"instances": (to_rle(final),), "served": (to_rle(served),)}
    label = changes.get("label", "Cup")
    return replace(review(number, f"{number}"), **{**given, **masks, "served_label": label, "updated": float(number), **changes})


def find_offers(reviews: list[Review], edges: Edges) -> list[EdgeOffer]:
    found = [find_offer(some, edges) for some in groups(reviews, edges).values()]
    return [offer for offer in found if offer is not None]


def test_an_offer_is_of_a_label_with_enough_pictures(tmp_path: Path) -> None:
    edges = Edges(tmp_path)
    few = [edited(number, Edge(3), label="Dog") for number in range(LEAST_PICTURES - 1)]
    enough = [edited(number, Edge(3)) for number in range(10)]
    exact = [edited(number, AS_DRAWN, label="Bowl", iou=0.99) for number in range(10)]
    none = [edited(number, Edge(3), label="Far", outcome="accepted") for number in range(10)]
    [offer] = find_offers([*few, *enough, *exact, *none], edges)
    assert (offer.project, offer.label, offer.edge, offer.present, offer.pictures) == (1, "Cup", Edge(3), AS_DRAWN, 10)
    assert offer.gain > 0.1
    assert offer.p <= 0.05
    assert all(one.startswith("data:image/png;base64,iVBOR") for one in offer.examples)
    edges.adopt(1, "Cup", Edge(3))
    assert find_offers(enough, edges) == [], "it is adopted"


def test_of_very_many_the_last_pictures_are_fitted_each_once(tmp_path: Path) -> None:
    many = [edited(number, Edge(3 if number >= MOST_PICTURES else -2), image=f"{number // 2}") for number in range(4 * MOST_PICTURES)]
    [found] = groups(many, Edges(tmp_path)).values()
    assert len(found) == 2 * MOST_PICTURES
    offer = find_offer(found, Edges(tmp_path))
    assert offer is not None
    assert (offer.edge, offer.pictures) == (Edge(3), MOST_PICTURES)


def test_what_was_served_under_another_label_says_nothing_of_this_one(tmp_path: Path) -> None:
    assert not groups([edited(number, Edge(3), served_label=None) for number in range(20)], Edges(tmp_path))


def test_an_edge_that_fills_holes_is_not_undone_by_masks_that_were_served_filled() -> None:
    known = Edge(0, True)
    tables = [try_edges(disc(radius), draw_edge(disc(radius), Edge(2)), known) for radius in range(8, 18)]
    assert fit_edge(tables, known).edge == Edge(2, True)
    assert fit_edge(tables).edge == Edge(2), "the control: where none was filled"


def test_a_line_can_be_shown(tmp_path: Path) -> None:
    """A power line, say, of which a picture on the page would have no height."""
    line = np.zeros((40, 4_000), np.bool_)
    line[20:22, 5:3_990] = True
    masks = {"served": (to_rle(line),), "instances": (to_rle(draw_edge(line, Edge(3))),), "width": 4_000, "height": 40}
    offer = find_offer([edited(number, Edge(3), **masks) for number in range(10)], Edges(tmp_path))
    assert offer is not None
    assert len(offer.examples) == 3


def test_masks_that_cannot_be_read_any_more_are_no_offer(tmp_path: Path) -> None:
    assert find_offer([edited(number, Edge(3)) for number in range(LEAST_PICTURES - 1)], Edges(tmp_path)) is None


def test_edges_are_kept_and_taken_back(tmp_path: Path) -> None:
    edges = Edges(tmp_path)
    assert (edges.digest_of(""), edges.adopted) == ("", [])
    edges.adopt(3, "Cup", Edge(2, True))
    edges.note("demo-0-aaaa")
    first = edges.digest_of("")
    edges.adopt(4, "Cup", Edge(-1))
    again = Edges(tmp_path)
    assert again.digest_of("") == edges.digest_of("") != first
    assert (again.of(3, "Cup"), again.of(4, "Cup"), again.of(5, "Cup"), again.of(None, None)) == (
        Edge(2, True),
        Edge(-1),
        AS_DRAWN,
        AS_DRAWN,
    )
    assert (again.at("demo-0-aaaa", 3, "Cup"), again.at("demo-0-bbbb", 3, "Cup")) == (Edge(2, True), AS_DRAWN)
    again.adopt(4, "Cup", AS_DRAWN)
    assert again.digest_of("") == first
    again.adopt(3, "Cup", AS_DRAWN)
    assert (again.digest_of(""), Edges(tmp_path).adopted) == ("", [])


FAR = '{"": {"3": {"Cup": {"offset_px": 99, "filled": false}}}}'


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"adopted": {"": {"x": {}}}, "served": {}}', f'{{"adopted": {FAR}, "served": {{}}}}'])
def test_with_a_damaged_file_masks_are_as_they_are(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "edges.json").write_text(text)
    edges = Edges(tmp_path)
    [line] = [record.getMessage() for record in caplog.records]
    assert "is damaged" in line
    assert "\n" not in line
    assert (edges.of(3, "Cup"), edges.digest_of("")) == (AS_DRAWN, "")
    with pytest.raises(LearningError, match="is damaged"):
        edges.adopt(3, "Cup", Edge(1))
    assert (tmp_path / "edges.json").read_text() == text, "what is there may be mended"


def test_on_a_full_disk_edges_are_drawn_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = Edges(tmp_path)
    edges.adopt(3, "Cup", Edge(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("backend.serving.edges.replace_file", full)
    edges.note("demo-0-aaaa")
    with pytest.raises(LearningError, match="No space left"):
        edges.adopt(3, "Cup", Edge(2))
    assert edges.of(3, "Cup") == Edge(1)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(("adopted", "served", "3", "Cup", "offset_px", "filled"))
RECORDS = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8)


@given(RECORDS)
def test_whatever_the_file_holds_it_is_read_or_refused(record: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "edges.json").write_text(json.dumps(record))
        assert isinstance(Edges(Path(folder)).of(3, "Cup"), Edge)


# -- on the server -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], School]]:
    made: list[School] = []

    def make() -> School:
        made.append(school(tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.service.close(5)


def width_of(place: School, project: int = 3) -> tuple[int, str]:
    """How wide the mask of a task is, and its version."""
    from backend.label_studio.wire import PredictRequest  # noqa: PLC0415
    from tests.test_predictor import mask  # noqa: PLC0415

    [answer] = place.service.predictor.predict(PredictRequest([task(description="the left cup")], project, CONFIG, None))
    found = json.loads(answer)
    return int(mask(found["result"][0]).any(0).sum()), found["model_version"]


def press(page: Any, action: str) -> Any:
    fields = next(fields for address, fields in Forms(page.get("/", base_url=BASE_URL).text).found if address == f"/actions/{action}")
    return page.post(f"/actions/{action}", data=fields, base_url=BASE_URL)


def test_an_edge_is_adopted_and_taken_back_on_the_page(start: Callable[[], School]) -> None:
    place = start()
    page, learner = create_app(place.service).test_client(), place.service.learner
    before, version = width_of(place)
    reviews = [replace(edited(number, Edge(3), version), project=3) for number in range(10)]
    learner.offers = tuple(find_offers(reviews, learner.edges))
    assert "draw it 3 px wider" in page.get("/").text
    assert press(page, "adopt-edge").status_code == 303
    wide, named = width_of(place)
    assert wide == before + 6
    assert named != version
    assert named.rsplit("-", 1)[0] == version.rsplit("-", 1)[0], "the adapter's number stays"
    assert width_of(place, 4)[0] == before, "of another project nothing changes"
    assert learner.edges.at(named, 3, "Cup") == Edge(3)
    text = page.get("/").text
    assert "is drawn 3 px wider" in text
    assert "Adopt" not in text
    assert press(page, "drop-edge").status_code == 303
    assert width_of(place) == (before, version)


def test_a_version_with_edges_serves_after_a_restart_and_after_a_promotion(start: Callable[[], School]) -> None:
    place = start()
    place.service.learner.adopt_edge(3, "Cup", Edge(2))
    before, version = width_of(place)
    place.service.close(5)
    again = start()
    assert width_of(again) == (before, version)
    promoted = again.add(0.7)
    again.service.versions.promote(promoted)
    wide, named = width_of(again)
    assert named.split("-")[1] == promoted.split("-")[1]
    assert named != promoted, "the edges are part of it"
    assert again.service.learner.edges.at(named, 3, "Cup") == Edge(2)
    assert again.service.versions.serving == promoted
    again.service.learner.adopt_edge(3, "Cup", AS_DRAWN)
    assert width_of(again) == (wide - 4, promoted)


def test_the_server_finds_offers_by_itself(start: Callable[[], School], monkeypatch: pytest.MonkeyPatch) -> None:
    learner = start().service.learner
    reviews = [edited(number, Edge(3)) for number in range(12)]
    monkeypatch.setattr(learner._book, "with_masks", list)
    fitted: list[int] = []

    def counted(some: list[Review], edges: Edges) -> Any:
        fitted.append(len(some))
        return find_offer(some, edges)

    monkeypatch.setattr("backend.learning.scheduler.find_offer", counted)
    for count in (7, 10, 11, 12):
        learner._look_at_edges(reviews[:count])
        learner._fit_next_edge()
    assert fitted == [10, 12]
    [offer] = learner.edge_offers
    assert (offer.edge, offer.pictures) == (Edge(3), 12)
    learner.adopt_edge(offer.project, offer.label, offer.edge)
    learner._look_at_edges(reviews)
    learner._fit_next_edge()
    assert fitted == [10, 12, 12], "the edge is another one"
    assert learner.edge_offers == ()


def test_an_offer_waits_while_another_decoder_serves(start: Callable[[], School], monkeypatch: pytest.MonkeyPatch) -> None:
    learner = start().service.learner
    reviews = [edited(number, Edge(3)) for number in range(10)]

    def fit(found: Callable[[list[Review]], list[Review]] = list) -> None:
        monkeypatch.setattr(learner._book, "with_masks", found)
        learner._look_at_edges(reviews)
        learner._fit_next_edge()

    fit()
    [offer] = learner.edge_offers
    learner.edges.note("demo-2-00000000", "abc")
    assert learner.edge_offers == (), "it was fitted on other masks"
    learner.adopt_edge(offer.project, offer.label, offer.edge, offer.decoder)  # pressed on a page that was open
    assert (learner.edges.of(1, "Cup", "abc"), learner.edges.of(1, "Cup", "")) == (AS_DRAWN, Edge(3))
    learner.adopt_edge(1, "Cup", AS_DRAWN)
    learner.offers = (offer,)
    learner.edges.note("demo-2-00000000", "abc")
    fit()
    learner.edges.note("demo-1-00000000")
    assert learner.edge_offers == (offer,), "after a rollback it is there again"

    def while_it_is_fitted(some: list[Review]) -> list[Review]:
        learner.edges.note("demo-2-00000000", "abc")
        return some

    learner.offers, learner._edges_seen = (), {}
    fit(while_it_is_fitted)
    assert learner.offers == ()


def test_an_offer_that_is_gone_is_said(start: Callable[[], School]) -> None:
    place = start()
    page, learner = create_app(place.service).test_client(), place.service.learner
    learner.offers = tuple(find_offers([replace(edited(number, Edge(3)), project=3) for number in range(10)], learner.edges))
    forms = Forms(page.get("/", base_url=BASE_URL).text).found
    learner.offers = ()
    fields = next(fields for address, fields in forms if address == "/actions/adopt-edge")
    assert "no such offer any more" in page.post("/actions/adopt-edge", data=fields, base_url=BASE_URL).text
    gone = page.post("/actions/drop-edge", data={**fields, "subject": "3:Cup"}, base_url=BASE_URL)
    assert "no such edge" in gone.text


def test_an_outline_is_measured_once() -> None:
    outline = Outline(disc(10))
    assert outline._plain is outline._plain
    assert (outline.at(AS_DRAWN) == disc(10)).all()
