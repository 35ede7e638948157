"""The client of a vLLM server (0.32): it sends token ids, gets tokens and their log-probabilities, and loads adapters and unloads them.

A request names its image by hash. The server caches the images that it has seen recently, and answers ``Cache miss`` for any other one; the
request is then sent again with the image.
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
"""Most requests in flight at a time; the server batches them."""
SECONDS = 120.0
"""The timeout of one request, which includes its wait behind all others on a busy server."""
PATIENCE_SECONDS = 10.0
"""For how long a request to a server that does not answer is repeated before EngineAwayError is raised."""
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
    """A token that the model said, and, by id, the log-probabilities of it and of the tokens in ``Continuation.watched`` at its place."""

    id: int
    chances: Mapping[int, float]


@dataclass(frozen=True)
class Continuation:
    """A request to the model or adapter ``name`` to continue ``ids``, which hold one placeholder for the picture, greedily.

    The continuation ends with one of the tokens ``ends``, or after ``most`` tokens. ``watched`` are the ids, at most 19, whose
    log-probabilities are returned for each token of the continuation.
    """

    name: str
    ids: Sequence[int]
    picture: Picture
    most: int
    ends: frozenset[int]
    watched: Sequence[int]


class VllmClient:
    """The client of the server at an address. Its methods may be called from several threads.

    All methods that send a request raise EngineAwayError if the server does not answer; ``generate`` also if it has an internal error or
    gives an answer up. All but ``unload`` raise ModelError if the server refuses a request, and name the remedy where one is known.
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
        """Return the models and adapters that the server has, each with its ``id``, its ``root`` (the folder or hub id) and, if it is an
        adapter, its model as ``parent``.
        """
        answer = self._send("GET", "/v1/models")
        found = _json(answer).get("data")
        if answer.status_code != httpx.codes.OK or not isinstance(found, list):
            raise ModelError(f"{self.url} is no vLLM server: it does not list its models")
        return [one for one in found if isinstance(one, dict)]

    def generate(self, asked: Continuation) -> list[Spoken]:
        """Return the tokens of one continuation, with its end token if the model said one.

        An adapter that this client loaded and a restarted server no longer has is loaded again, and a picture that the server does not have
        is sent.
        """
        answer = self._send("POST", "/inference/v1/generate", _body(asked, with_data=False))
        if answer.status_code == httpx.codes.NOT_FOUND and UNKNOWN in answer.text and asked.name in self._folders:
            self.load(asked.name, self._folders[asked.name])  # the server was restarted and has lost the adapter
            answer = self._send("POST", "/inference/v1/generate", _body(asked, with_data=False))
        if "Cache miss" in answer.text or answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            # the internal error occurs where the server's processes disagree on what is cached, while another request is sending the image
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
        """Send the server a picture that it does not have, so that later requests find it cached. ``ids`` are the tokens before every
        question.
        """
        self.generate(Continuation(name, ids, picture, 1, frozenset(), ()))

    def generate_each(self, asked: Sequence[Continuation]) -> list[list[Spoken]]:
        """Return the tokens of several continuations, requested at the same time, in order."""
        return self.at_once(self.generate, asked)

    def at_once(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of ``work`` for each item, in order, computed in at most AT_ONCE threads. An error of ``work`` is raised.

        ``work`` may call this client, but not ``at_once`` or ``generate_each``: they wait for the same thread pool, which could deadlock.
        """
        return list(self._pool.map(work, items))

    def load(self, name: str, folder: Path) -> None:
        """Make the server load an adapter from a folder, which it must see under the same path.

        If the server already has an adapter of this name, it keeps that one.
        """
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
        """Make the server unload an adapter, which ``generate`` then no longer loads again. The server's answer is ignored, so it is no
        error if the server does not have the adapter, or refuses.
        """
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
    # the server also returns the token that the model said, in place of the last watched one: a spare one is added to be displaced
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
