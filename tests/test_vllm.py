"""A vLLM server as the MLLM: the answers of the same model here, and one line for whatever is amiss there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import sam4mllm
from backend.batch import steps
from backend.batch.steps import local_stages
from backend.batch.work import BatchTask
from backend.errors import SettingsError
from backend.settings import read_settings
from sam4mllm.demo.scenes import make_scene
from sam4mllm.errors import EngineAwayError, ModelError, PhraseError
from sam4mllm.grounding.closer import CloserGrounder
from sam4mllm.grounding.families import load_checkpoint
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Question
from sam4mllm.pipeline import Asked, Pipeline
from sam4mllm.vllm import client as calls
from sam4mllm.vllm.client import VllmClient
from sam4mllm.vllm.grounder import VllmGrounder
from sam4mllm.vllm.probe import check_merger, write_probe
from sam4mllm.vllm.variants import VllmVariants, find_model
from tests.bulk_fakes import PlainWork, fake_pipeline
from tests.fakes import FakeSegmenter
from tests.family_models import KINDS, PHRASES, make_family
from tests.test_mllm import assert_same, inquiry, picture
from tests.test_steps import Source, loaded
from tests.vllm_double import Refuse, VllmDouble, refusal

URL = "http://vllm:8000"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(calls, "PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def demo() -> MllmGrounder:
    closer = sam4mllm.load().grounder
    assert isinstance(closer, CloserGrounder)
    assert isinstance(closer.whole, MllmGrounder)
    return closer.whole


@pytest.fixture(scope="module", params=["Qwen2.5-VL", "Qwen3-VL"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MllmGrounder:
    folder = make_family(KINDS[request.param], tmp_path_factory.mktemp("tiny"))
    return MllmGrounder(load_checkpoint(str(folder), torch.device("cpu")), max_new_tokens=9, thought_tokens=5)


def remote(here: MllmGrounder, double: VllmDouble) -> VllmGrounder:
    made = VllmGrounder(here.checkpoint, VllmClient(URL, double.transport()), double.base, here._thinking.budget)
    made.max_new_tokens = here.max_new_tokens
    return made


def assert_alike(here: MllmGrounder, there: VllmGrounder, image: Any, phrases: list[str], question: Question) -> None:
    found = zip(here.ground(here.open(image), phrases, question), there.ground(there.open(image), phrases, question), strict=True)
    for one, other in found:
        np.testing.assert_array_equal(one.boxes_px, other.boxes_px)
        np.testing.assert_allclose(one.box_probabilities, other.box_probabilities, rtol=0, atol=1e-5)
        assert one.no_target_probability == pytest.approx(other.no_target_probability, abs=1e-5)
        assert (one.phrase, one.note, one.thought) == (other.phrase, other.note, other.thought)


@pytest.mark.parametrize("question", ["box", "prompt"])
def test_the_demo_answers_phrases_as_here(demo: MllmGrounder, question: Question) -> None:
    scene = make_scene((990_102, 1))
    assert_alike(demo, remote(demo, VllmDouble({"demo": demo})), scene.image, [one.phrase for one in scene.expressions], question)


@pytest.mark.parametrize("question", ["box", "reason"])
def test_real_architectures_answer_phrases_as_here(tiny: MllmGrounder, question: Question) -> None:
    assert_alike(tiny, remote(tiny, VllmDouble({"base": tiny})), picture(3), list(PHRASES), question)


@pytest.mark.parametrize("joint", [False, True], ids=["packed", "joint"])
def test_points_are_answered_as_here(tiny: MllmGrounder, joint: bool) -> None:
    there = remote(tiny, VllmDouble({"base": tiny}))
    asked = [inquiry(PHRASES[0], [[5, 5, 60, 80], [20, 30, 85, 110]], 1, 6), inquiry(PHRASES[1], [[8, 9, 40, 44]], 0, 3)]
    image = picture(4)
    for one, other in zip(tiny.ask(tiny.open(image), asked, joint), there.ask(there.open(image), asked, joint), strict=True):
        assert one.inside.std() > 1e-5
        assert_same(one, other, 1e-4)


def test_looks_back_and_names_are_those_of_here(tiny: MllmGrounder) -> None:
    there = remote(tiny, VllmDouble({"base": tiny}))
    image = picture(4)
    assert_same(tiny.confirm(tiny.open(image), list(PHRASES)), there.confirm(there.open(image), list(PHRASES)), 1e-5)
    assert tiny.name(tiny.open(image), list(PHRASES)) == there.name(there.open(image), list(PHRASES))


def test_an_image_is_sent_once_and_again_when_it_was_forgotten(demo: MllmGrounder) -> None:
    double = VllmDouble({"demo": demo}, kept=1)
    there = remote(demo, double)
    first, second = there.open(picture(1)), there.open(picture(2))
    there.ground(second, ["the cup"])
    assert double.sent == 2
    assert there.ground(first, ["the cup"])
    assert double.sent == 3


def test_a_control_word_is_refused_here(demo: MllmGrounder) -> None:
    double = VllmDouble({"demo": demo})
    there = remote(demo, double)
    scene, before = there.open(picture(1)), len(double.asked)
    with pytest.raises(PhraseError):
        there.ground(scene, [f"a {demo.checkpoint.tokenizer.all_special_tokens[0]}"])
    assert len(double.asked) == before


# -- what is amiss there -------------------------------------------------------------------------------------------------------------------


def once(answer: httpx.Response | Exception) -> Refuse:
    """This answer to the first question."""
    left = [answer]

    def refuse(asked: str, body: dict[str, Any]) -> httpx.Response | None:
        del body
        if asked != "/inference/v1/generate" or not left:
            return None
        found = left.pop()
        if isinstance(found, Exception):
            raise found
        return found

    return refuse


PASSING = [
    pytest.param(httpx.ConnectError("Connection refused"), id="away for a moment"),
    pytest.param(httpx.ReadTimeout("timed out"), id="slow"),
    pytest.param(refusal(503, "busy"), id="busy"),
    pytest.param(refusal(500, "Internal server error"), id="its caches disagree"),
]


@pytest.mark.parametrize("answer", PASSING)
def test_what_passes_is_asked_again(demo: MllmGrounder, answer: Any) -> None:
    double = VllmDouble({"demo": demo})
    there = remote(demo, double)
    scene = there.open(picture(1))
    double.refuse = once(answer)
    [found] = there.ground(scene, ["the cup"])
    assert found.no_target_probability == pytest.approx(demo.ground(demo.open(picture(1)), ["the cup"])[0].no_target_probability, abs=1e-5)


AMISS = [
    pytest.param(refusal(404, "Not Found"), "--enable-scale-out", id="no tokens in"),
    pytest.param(refusal(404, "The model `demo` does not exist."), "does not exist", id="another model by now"),
    pytest.param(refusal(400, "max_model_len is 10"), "max_model_len is 10", id="a reason of its own"),
    pytest.param(httpx.Response(200, json={"choices": []}), "another form", id="another form"),
    pytest.param(httpx.Response(200, text="<html>"), "another form", id="no JSON"),
    pytest.param(httpx.Response(200, json={"choices": [{"logprobs": None}]}), "another form", id="no chances"),
]


@pytest.mark.parametrize(("answer", "told"), AMISS)
def test_what_does_not_pass_is_one_line_with_the_cure(demo: MllmGrounder, answer: httpx.Response, told: str) -> None:
    double = VllmDouble({"demo": demo}, refuse=lambda path, body: answer)
    with pytest.raises(ModelError, match=told) as raised:
        remote(demo, double).open(picture(1))
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, EngineAwayError)


def away(path: str, body: dict[str, Any]) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused")


FAULTS = [
    pytest.param(refusal(500, "EngineCore encountered an issue"), "has a fault", id="its core is dead"),
    pytest.param(httpx.Response(200, json={"choices": [{"logprobs": {"content": []}}]}), "gave an answer up", id="nothing said"),
]


@pytest.mark.parametrize(("answer", "told"), FAULTS)
def test_a_fault_of_the_engine_is_waited_for_like_its_absence(demo: MllmGrounder, answer: httpx.Response, told: str) -> None:
    with pytest.raises(EngineAwayError, match=told):
        remote(demo, VllmDouble({"demo": demo}, refuse=lambda path, body: answer)).open(picture(1))


def test_an_engine_that_is_away_is_not_asked_for_each_image_of_a_step(demo: MllmGrounder) -> None:
    double = VllmDouble({"demo": demo})
    pipeline = Pipeline(remote(demo, double), FakeSegmenter(), slug="demo")
    asked = [Asked(pipeline.open(picture(number)), ["the cup"]) for number in range(3)]
    double.asked.clear()
    double.refuse = lambda path, body: refusal(500, "dead")
    assert all(isinstance(outcome, EngineAwayError) for outcome in pipeline.segment_each(asked))
    assert len(double.asked) <= 2 * len(asked)


def test_an_engine_that_loads_still_is_waited_for(demo: MllmGrounder) -> None:
    double = VllmDouble({"demo": demo})
    tries: list[str] = []

    def loading(path: str, body: dict[str, Any]) -> httpx.Response | None:
        tries.append(path)
        return refusal(503, "loading") if len(tries) < 9 else None

    double.refuse = loading
    assert find_model(VllmClient(URL, double.transport()), "demo", patience=30) == "demo"
    double.refuse = lambda path, body: refusal(503, "loading")
    with pytest.raises(EngineAwayError):
        find_model(VllmClient(URL, double.transport()), "demo")


def test_a_server_that_stays_away_is_told_with_how_to_start_it(demo: MllmGrounder) -> None:
    with pytest.raises(EngineAwayError, match=r"http://vllm:8000 is away .*refused.* start it: .*--enable-scale-out"):
        remote(demo, VllmDouble({"demo": demo}, refuse=away)).open(picture(1))


LISTS = [
    pytest.param({"root": "/models/Qwen2.5-VL-7B"}, "Qwen/Qwen2.5-VL-7B", None, id="a folder of the model's name"),
    pytest.param({"root": "Qwen/Qwen2.5-VL-7B"}, "Qwen/Qwen2.5-VL-7B", None, id="the hub's name"),
    pytest.param({"root": "/models/other"}, "Qwen/Qwen2.5-VL-7B", "serves /models/other, and SAM4MLLM_MODEL is", id="another model"),
]


@pytest.mark.parametrize(("listed", "model", "told"), LISTS)
def test_the_server_must_have_the_model(demo: MllmGrounder, listed: dict[str, str], model: str, told: str | None) -> None:
    client = VllmClient(URL, VllmDouble({"served": demo}, **listed).transport())
    if told is None:
        assert find_model(client, model) == "served"
        return
    with pytest.raises(ModelError, match=told):
        find_model(client, model)


def test_what_lists_no_models_is_no_vllm() -> None:
    with pytest.raises(ModelError, match="is no vLLM server"):
        VllmClient(URL, httpx.MockTransport(lambda request: httpx.Response(200, text="hello"))).models()


# -- adapters ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(demo: MllmGrounder) -> MllmGrounder:
    """The demo model with other weights between tower and language model."""
    other = load_checkpoint("demo", torch.device("cpu"))
    with torch.no_grad():
        for name, weight in other.model.named_parameters():
            if "merger" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return MllmGrounder(other)


def test_a_probe_changes_the_merger_alone(demo: MllmGrounder, tmp_path: Path) -> None:
    from safetensors import safe_open  # noqa: PLC0415 – only here

    folder = write_probe(demo.checkpoint, tmp_path)
    assert folder is not None
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names
    assert all("merger" in name for name in names)


def test_a_server_that_applies_the_merger_passes(demo: MllmGrounder, changed: MllmGrounder, tmp_path: Path) -> None:
    double = VllmDouble({"demo": demo}, {str(tmp_path / "engine-probe"): changed})
    there = remote(demo, double)
    check_merger(there._client, there, tmp_path)
    assert set(double.models) == {"demo"}


REFUSED = [
    pytest.param({}, None, "give both SAM4MLLM_HOME under the same path", id="it does not see the folder"),
    pytest.param({"same": True}, None, "--enable-tower-connector-lora", id="it drops the tensors"),
    pytest.param({"same": True}, refusal(404, "Not Found"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora", id="no adapters"),
    pytest.param({"same": True}, refusal(400, "LoRA rank 8 is greater than max_lora_rank 4"), "--max-lora-rank", id="small ranks"),
]


@pytest.mark.parametrize(("given", "answer", "told"), REFUSED)
def test_a_server_without_a_flag_is_refused(
    demo: MllmGrounder, tmp_path: Path, given: dict[str, bool], answer: httpx.Response | None, told: str
) -> None:
    double = VllmDouble({"demo": demo}, {str(tmp_path / "engine-probe"): demo} if given else {})
    if answer is not None:
        double.refuse = lambda path, body: answer if path == "/v1/load_lora_adapter" else None
    there = remote(demo, double)
    with pytest.raises(ModelError, match=told):
        check_merger(there._client, there, tmp_path)


def test_a_version_is_loaded_there_dropped_there_and_loaded_again_after_a_restart(
    demo: MllmGrounder, changed: MllmGrounder, tmp_path: Path
) -> None:
    double = VllmDouble({"demo": demo}, {str(tmp_path): changed})
    variants = VllmVariants(
        VllmClient(URL, double.transport()), "demo", demo.checkpoint, FakeSegmenter(), None, "demo", torch.device("cpu")
    )
    variants._attach("demo-1-0123abcd", tmp_path)
    grounder = variants._grounder("demo-1-0123abcd", demo.checkpoint, 5)
    image = picture(1)
    expected = changed.ground(changed.open(image), ["the cup"])[0].no_target_probability
    assert expected != pytest.approx(demo.ground(demo.open(image), ["the cup"])[0].no_target_probability, abs=1e-3)
    assert grounder.ground(grounder.open(image), ["the cup"])[0].no_target_probability == pytest.approx(expected, abs=1e-5)
    scene = grounder.open(image)
    double.models.pop("demo-1-0123abcd")
    double.scenes.clear()
    assert grounder.ground(scene, ["the cup"])[0].no_target_probability == pytest.approx(expected, abs=1e-5)
    variants.drop("demo-1-0123abcd")
    assert set(double.models) == {"demo"}
    with pytest.raises(ModelError, match="does not exist"):
        grounder.ground(scene, ["the cup"])
    with pytest.raises(ModelError, match="does not leave its device"):
        variants.away()
    assert variants.nbytes == 0


# -- bulk runs and settings ----------------------------------------------------------------------------------------------------------------


class Away(PlainWork):
    """The engine is away for some calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def loader(self) -> Any:
        return lambda job: loaded()

    def __call__(self, *given: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise EngineAwayError("the engine is away")
        return super().__call__(*given)


def test_a_run_waits_for_an_engine_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "AWAY_PAUSE", 0.001)
    work = Away(5)
    outcomes = list(local_stages(fake_pipeline(), work, Source())(BatchTask(number, {}) for number in range(9)))  # type: ignore[arg-type]
    assert all(outcome.answered is not None for outcome in outcomes)
    assert sorted(work.worked) == list(range(9))


def test_a_run_that_is_stopped_waits_no_more() -> None:
    stop = threading.Event()
    stop.set()
    stages = local_stages(fake_pipeline(), Away(10**9), Source(), stop=stop)  # type: ignore[arg-type]
    [outcome] = stages(iter([BatchTask(1, {})]))
    assert (outcome.answered, outcome.reason) == (None, "EngineAwayError")


SETTINGS = [
    pytest.param({"MODEL": "none"}, "SAM4MLLM_MODEL is none", id="no model"),
    pytest.param({"TRAIN_MODE": "pause"}, "TRAIN_MODE=pause cannot stop an engine", id="pause"),
    pytest.param({"ENGINE": "vllm:8000"}, "SAM4MLLM_ENGINE: it must start with http", id="no address"),
]


@pytest.mark.parametrize(("given", "told"), SETTINGS)
def test_what_an_engine_cannot_do_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], told: str) -> None:
    for name, value in {"ENGINE": URL, **given}.items():
        monkeypatch.setenv(f"SAM4MLLM_{name}", value)
    with pytest.raises(SettingsError, match=told):
        read_settings()


def test_an_outline_is_enough(demo: MllmGrounder) -> None:
    from sam4mllm.grounding.families import outline_checkpoint  # noqa: PLC0415 – beside what it is compared with

    outline = outline_checkpoint("demo", torch.device("cpu"))
    assert all(weight.is_meta for weight in outline.model.parameters())
    there = remote(demo, VllmDouble({"demo": demo}))
    bare = VllmGrounder(outline, there._client, "demo")
    assert bare.identity == demo.identity == there.called("other").identity
    assert_alike(demo, bare, make_scene((990_102, 2)).image, ["the cup", "all cups"], "box")
