"""Slow reference implementations of asking about points, against which the fast ones are checked.

They use one prompt for each point (with or without a cache), a cache that is copied for each point, or one pass for each answer token.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from sam4mllm.grounding.asking import NOTHING_SAID
from sam4mllm.grounding.copying import Past
from sam4mllm.grounding.encoders import position_ids, with_text
from sam4mllm.grounding.head import logits_of
from sam4mllm.grounding.mllm import MllmGrounder
from sam4mllm.grounding.protocol import Inquiry, Replies
from sam4mllm.grounding.scene import MllmScene
from sam4mllm.grounding.windows import masks


@torch.inference_mode()
def ask_separately(grounder: MllmGrounder, image: NDArray[np.uint8], inquiry: Inquiry) -> Replies:
    """Ask about each point in a prompt of its own, for which the image is prefilled anew. The packed pass must give the same replies."""
    said = []
    for point in inquiry.points_px:
        scene = grounder.open(image)
        first, head = grounder.history(scene, inquiry)
        ids = [*first, *head, *grounder.joint_question([point_numbers(grounder, scene, point)])]
        said.append(grounder.verdicts.inside(_continue(grounder, scene, ids)))
    return _joined(said)


@torch.inference_mode()
def ask_at_once(grounder: MllmGrounder, image: NDArray[np.uint8], inquiry: Inquiry) -> Replies:
    """Ask about each point in one forward pass over image and question, without a cache and without an attention mask of this package."""
    scene, checkpoint = grounder.open(image), grounder.checkpoint
    encoded = checkpoint.encode(checkpoint, grounder.markup.opening, Image.fromarray(image))
    first, head = grounder.history(scene, inquiry)
    said = []
    for point in inquiry.points_px:
        ids = [*first, *head, *grounder.joint_question([point_numbers(grounder, scene, point)])]
        inputs = with_text(encoded, torch.tensor(ids), torch.arange(len(ids)))
        hidden = checkpoint.model.model(**inputs, use_cache=False, return_dict=True)
        said.append(grounder.verdicts.inside(logits_of(checkpoint.model, hidden.last_hidden_state[:, -1])))
    return _joined(said)


@torch.inference_mode()
def ask_expanded(grounder: MllmGrounder, scene: MllmScene, inquiry: Inquiry) -> Replies:
    """Ask about each point in a row of a batch of its own: prefix and history are prefilled once and their cache expanded to the batch.

    The model must have no linear-attention layers; AssertionError is raised if it has.
    """
    first, head = grounder.history(scene, inquiry)
    ids = np.array([*first, *head])
    history, cache = len(ids), _prefill(grounder, scene, ids)
    assert isinstance(cache, DynamicCache)  # rows are padded here, and a recurrent state would take the padding in
    questions = [grounder.joint_question([point_numbers(grounder, scene, point)]) for point in inquiry.points_px]
    if not questions:
        return NOTHING_SAID
    width = max(map(len, questions))
    cache.batch_repeat_interleave(len(questions))
    tokens = torch.tensor([question + [question[-1]] * (width - len(question)) for question in questions], device=grounder.device)
    past = scene.length + history
    visible = torch.ones(width, past + width, dtype=torch.bool, device=grounder.device).tril(past)
    positions = torch.arange(width, device=grounder.device) + scene.following + history
    output = grounder.checkpoint.model.model(
        input_ids=tokens,
        attention_mask=masks(grounder.checkpoint.model, visible),
        position_ids=position_ids(positions.expand(scene.rows, len(questions), -1)),
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )
    lasts = torch.tensor([len(question) - 1 for question in questions], device=grounder.device)
    hidden = output.last_hidden_state[torch.arange(len(questions), device=grounder.device), lasts]
    return grounder.verdicts.inside(logits_of(grounder.checkpoint.model, hidden))


@torch.inference_mode()
def ask_one_by_one(grounder: MllmGrounder, scene: MllmScene, inquiry: Inquiry) -> Replies:
    """Ask about all points in one question, as published: the answers are decoded greedily, each with the earlier ones in the prompt."""
    first, head = grounder.history(scene, inquiry)
    points = [point_numbers(grounder, scene, point) for point in inquiry.points_px]
    question = [*first, *head, *grounder.joint_question(points)]
    said: list[Replies] = []
    for _ in points:
        answered = grounder.verdicts.spell(_joined(said).inside > 0.5)
        said.append(grounder.verdicts.inside(_continue(grounder, scene, [*question, *answered])))
    return _joined(said)


def _joined(said: list[Replies]) -> Replies:
    every = [NOTHING_SAID, *said]
    return Replies(np.concatenate([one.inside for one in every]), np.concatenate([one.mass for one in every]))


def point_numbers(grounder: MllmGrounder, scene: MllmScene, point_px: NDArray[np.float32]) -> tuple[int, int]:
    """A point in the dialect's numbers."""
    [(x, y)] = grounder.point_numbers(scene, point_px[None])
    return x, y


def _continue(grounder: MllmGrounder, scene: MllmScene, ids: list[int]) -> Tensor:
    """Logits (1, vocabulary) after a plain, unpacked continuation of the prefix."""
    length = len(ids)
    causal = np.tril(np.ones((length, length), np.bool_))
    return grounder.forward(scene, np.array(ids), np.arange(length), causal, np.array([length - 1]))[0]


def _prefill(grounder: MllmGrounder, scene: MllmScene, ids: NDArray[np.int64]) -> Past:
    causal = np.tril(np.ones((len(ids), len(ids)), np.bool_))
    return grounder.forward(scene, ids, np.arange(len(ids)), causal, np.array([len(ids) - 1]))[1]
