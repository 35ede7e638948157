"""The calls to a vLLM server (0.32): tokens in, tokens and their log-probabilities out; adapters by name.

A request names its image by hash. The server keeps what it has seen of late and answers ``Cache miss`` for any other, which is then sent.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from sam4mllm.errors import EngineAwayError, ModelError, first_line

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 32
"""Requests under way; the server batches them."""
SECONDS = 120.0
"""For one answer, behind all others of a busy server."""
PATIENCE_SECONDS = 10.0
"""How long a server that is away is asked again before somebody is told."""
PAUSE_SECONDS = 0.5
UNKNOWN = "does not exist"
"""What the server says of a model or adapter that it does not have."""
START = "python -m vllm.entrypoints.openai.api_server … --enable-scale-out --enable-lora --enable-tower-connector-lora"


@dataclass(frozen=True)
class Picture:
    """An image as the server takes it: a PNG file, and the SHA-256 that names it."""

    sha256: str
    png: bytes


@dataclass(frozen=True)
class Spoken:
    """A token that the model said, and the log-probabilities of it and of the watched ones, by id."""

    id: int
    chances: Mapping[int, float]


@dataclass(frozen=True)
class Continuation:
    """A greedy continuation of ``ids``, which hold one placeholder for the picture, by the model or adapter ``name``.

    At most ``most`` tokens, up to and with one of ``ends``; ``watched``: ids whose log-probabilities are told for each token, at most 19.
    """

    name: str
    ids: Sequence[int]
    picture: Picture
    most: int
    ends: frozenset[int]
    watched: Sequence[int]


class VllmClient:
    """A server at an address. Its methods may be called from several threads.

    All raise EngineAwayError where the server does not answer, and ModelError with the cure for what it refuses.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        self._http = httpx.Client(
            base_url=self.url, timeout=httpx.Timeout(SECONDS, connect=5.0), limits=limits, transport=transport, trust_env=False
        )
        self._pool = ThreadPoolExecutor(AT_ONCE, "vllm")
        self._folders: dict[str, Path] = {}

    def models(self) -> list[dict[str, Any]]:
        """What the server has: ``id``, ``root`` (the folder or hub id), and ``parent``, of an adapter its model."""
        answer = self._send("GET", "/v1/models")
        found = _json(answer).get("data")
        if answer.status_code != httpx.codes.OK or not isinstance(found, list):
            raise ModelError(f"{self.url} is no vLLM server: it does not list its models")
        return [one for one in found if isinstance(one, dict)]

    def generate(self, asked: Continuation) -> list[Spoken]:
        """The tokens of one continuation, the end among them if it was said."""
        answer = self._send("POST", "/inference/v1/generate", _body(asked, with_data=False))
        if answer.status_code == httpx.codes.NOT_FOUND and UNKNOWN in answer.text and asked.name in self._folders:
            self.load(asked.name, self._folders[asked.name])  # the server was started anew
            answer = self._send("POST", "/inference/v1/generate", _body(asked, with_data=False))
        if "Cache miss" in answer.text or answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            # the second where the server's own parts disagree on what is cached: another request is just bringing the image
            answer = self._send("POST", "/inference/v1/generate", _body(asked, with_data=True))
        if answer.status_code == httpx.codes.NOT_FOUND and UNKNOWN not in answer.text:
            raise ModelError(f"{self.url} takes no tokens: start it with --enable-scale-out")
        if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            raise EngineAwayError(f"the engine at {self.url} has a fault ({_reason(answer)}); its log says which, start it anew")
        if answer.status_code != httpx.codes.OK:
            raise ModelError(f"{self.url} refused a question: {_reason(answer)}")
        try:
            choice = answer.json()["choices"][0]
            spoken = [_spoken(one) for one in choice["logprobs"]["content"]]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelError(f"{self.url} answers in another form than vLLM 0.32 ({type(error).__name__})") from error

        if not spoken:
            raise EngineAwayError(f"the engine at {self.url} gave an answer up; it is being stopped, or has too many")
        return spoken

    def show(self, name: str, ids: Sequence[int], picture: Picture) -> None:
        """Let the server take in a picture, so that what is asked next finds it there. ``ids`` are what precedes every question."""
        self.generate(Continuation(name, ids, picture, 1, frozenset(), ()))

    def generate_each(self, asked: Sequence[Continuation]) -> list[list[Spoken]]:
        """The same of several at once, in order."""
        return self.at_once(self.generate, asked)

    def at_once(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """What ``work`` makes of each item, in threads; it may ask the server, but not by this."""
        return list(self._pool.map(work, items))

    def load(self, name: str, folder: Path) -> None:
        """Let the server load an adapter from a folder, which it must see under the same path; one that it has stays."""
        answer = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status_code == httpx.codes.OK or "already been loaded" in answer.text:
            self._folders[name] = folder
            return
        if "No adapter found" in answer.text:
            raise ModelError(f"{self.url} does not see {folder}: give both SAM4MLLM_HOME under the same path")
        if answer.status_code == httpx.codes.NOT_FOUND or "LoRA" in answer.text:
            cure = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank 64"
            raise ModelError(f"{self.url} takes no adapter ({_reason(answer)}): {cure}")
        raise ModelError(f"{self.url} could not load the adapter {name}: {_reason(answer)}")

    def unload(self, name: str) -> None:
        """Free an adapter; one that the server does not have is none."""
        self._folders.pop(name, None)
        self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, json=body)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                reason = f"{first_line(error)}"
            else:
                if answer.status_code not in (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE):
                    return answer
                reason = f"it answers {answer.status_code}"
            if time.monotonic() > end:
                raise EngineAwayError(f"the engine at {self.url} is away ({reason}); start it: {START}")
            time.sleep(PAUSE_SECONDS)


def _body(asked: Continuation, with_data: bool) -> dict[str, Any]:
    part = {"type": "image_url", "uuid": asked.picture.sha256}
    if with_data:
        part["url"] = "data:image/png;base64," + base64.b64encode(asked.picture.png).decode()
    # the token that was said comes first and pushes the last one out
    spare = next(token for token in range(len(asked.watched) + 1) if token not in asked.watched)
    watched = [*asked.watched, spare]
    sampling = {
        "max_tokens": asked.most,
        "temperature": 0.0,
        "stop_token_ids": sorted(asked.ends),
        "logprob_token_ids": watched,
        "logprobs": len(watched),
        "detokenize": False,
    }
    return {"model": asked.name, "token_ids": list(asked.ids), "content_parts": [part], "sampling_params": sampling}


def _spoken(told: Mapping[str, Any]) -> Spoken:
    chances = {one["token_id"]: float(one["logprob"]) for one in told["top_logprobs"]}
    return Spoken(told["token_id"], {**chances, told["token_id"]: float(told["logprob"])})


def _reason(answer: httpx.Response) -> str:
    error = _json(answer).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or f"status {answer.status_code}")[:200]


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
