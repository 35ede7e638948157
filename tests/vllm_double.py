"""A vLLM server as ours asks it: the same routes and refusals, with models of this process behind them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.scene import MllmScene

Refuse = Callable[[str, dict[str, Any]], httpx.Response | None]


def refusal(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "Error", "param": None, "code": status}})


@dataclass
class VllmDouble:
    """``models`` are what it calls the base model and adapters that it has, ``adapters`` what a folder holds; ``kept`` so many images are
    remembered. ``refuse`` is asked before each request for another answer, None for none.
    """

    models: dict[str, MllmGrounder]
    adapters: dict[str, MllmGrounder] = field(default_factory=dict)
    root: str = "demo"
    kept: int = 1000
    refuse: Refuse = lambda path, body: None
    scenes: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.base = next(iter(self.models))

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        self.asked.append(path)
        if (other := self.refuse(path, body)) is not None:
            return other
        answers = {"/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload, "/inference/v1/generate": self._generate}
        if path == "/v1/models":
            listed = [{"id": name, "root": self.root, "parent": None if name == self.base else self.base} for name in self.models]
            return httpx.Response(200, json={"object": "list", "data": listed})
        return answers[path](body) if path in answers else refusal(404, "Not Found")

    def _load(self, body: dict[str, Any]) -> httpx.Response:
        name, folder = body["lora_name"], body["lora_path"]
        if name in self.models:
            return refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if folder not in self.adapters:
            return refusal(404, f"Loading lora {name} failed: No adapter found for {folder}")
        self.models[name] = self.adapters[folder]
        return httpx.Response(200, text=f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, body: dict[str, Any]) -> httpx.Response:
        found = self.models.pop(body["lora_name"], None)
        return refusal(404, "The lora adapter cannot be found.") if found is None else httpx.Response(200, text="Success")

    @torch.inference_mode()
    def _generate(self, body: dict[str, Any]) -> httpx.Response:
        if body["model"] not in self.models:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        [part], asked = body["content_parts"], body["sampling_params"]
        if "url" in part:
            self.sent += 1
            self.scenes[part["uuid"]] = np.array(Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2]))))
        if part["uuid"] not in self.scenes:
            return refusal(400, "Cache miss for image at index 0 but data is not provided.")
        if len(asked["logprob_token_ids"]) != asked["logprobs"]:
            return refusal(400, "logprobs must equal len(logprob_token_ids)")
        grounder = self.models[body["model"]]
        scene = grounder.open(self.scenes[part["uuid"]])
        opening = grounder.encode(grounder.markup.opening)
        assert body["token_ids"][: len(opening)] == opening
        content = list(self._say(grounder, scene, body["token_ids"][len(opening) :] or opening[-1:], asked))
        while len(self.scenes) > self.kept:
            del self.scenes[next(iter(self.scenes))]
        return httpx.Response(
            200, json={"choices": [{"token_ids": [one["token_id"] for one in content], "logprobs": {"content": content}}]}
        )

    @staticmethod
    def _say(grounder: MllmGrounder, scene: MllmScene, ids: list[int], asked: dict[str, Any]) -> Any:
        """Greedily, one plain pass over all that was said for each token."""
        said = list(ids)
        for _ in range(asked["max_tokens"]):
            length = len(said)
            causal = np.tril(np.ones((length, length), np.bool_))
            logits, _ = grounder.forward(scene, np.array(said), np.arange(length), causal, np.array([length - 1]))
            chances = logits[0].log_softmax(-1)
            token = int(chances.argmax())
            shown = list(dict.fromkeys([token, *asked["logprob_token_ids"]]))[: asked["logprobs"]]
            top = [{"token_id": one, "logprob": float(chances[one]), "rank": 1} for one in shown]
            yield {"token_id": token, "logprob": float(chances[token]), "rank": 1, "top_logprobs": top}
            if token in asked["stop_token_ids"]:
                return
            said.append(token)
