"""Stage two of the demo MLLM: the language model learns to answer, and the vision tower is trained with it.

Losses: cross-entropy on the answers (soft around true coordinates), attention drawn to where the answer lies, and stage one's dense
terms. The auxiliary terms are for this base model alone; LoRA training uses text cross-entropy on answers, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4mllm.demo.architecture import HEADS, HIDDEN, MERGE
from sam4mllm.demo.pretrain.ahead import Ahead
from sam4mllm.demo.pretrain.dense import DenseTargets, coordinate_loss
from sam4mllm.demo.pretrain.examples import BOXES_ONLY, Session, Sitting, draw_sitting, session_of
from sam4mllm.demo.pretrain.lessons import Lesson, Teacher
from sam4mllm.demo.pretrain.loop import CPU, PretrainPlan, run
from sam4mllm.demo.pretrain.tower import NARROW, DemoTrainee
from sam4mllm.demo.tokenizer import AFTER_IMAGE, BEFORE_IMAGE, COORDINATES, IMAGE, build_tokenizer, vocabulary
from sam4mllm.demo.wording import IRREGULAR_PLURALS
from sam4mllm.grounding.packing import additive, pack
from sam4mllm.training.state import has_state, load_weights

DENSE_WEIGHT = 0.5
FORM_WEIGHT = 0.3
"""Weight of the cross-entropy of tokens that decide nothing: words repeated from the question or common to all answers."""
SHARPENING, WIDE = 3000, 14.0
RATE, RATE_TRAINED = 1e-3, 6e-4
"""Peak learning rates: of a run that starts from a trained tower alone, and of one that starts from a whole trained model."""
WARMUP, WARMUP_TRAINED = 300, 60
SEED = 21
JUDGING_LAYER = 2
LOOKS = {
    "noun": (1, slice(0, 2), 0.2),
    "across": (0, slice(0, HEADS // 2), 0.1),
    "down": (0, slice(HEADS // 2, HEADS), 0.1),
    "point": (JUDGING_LAYER, slice(0, HEADS), 0.4),
    "answer": (3, slice(0, 3), 0.5),
}
"""Layer, heads and weight of each kind of supervised attention. A noun looks at the things that it names. Where a point is judged, an early
layer reads the point's two numbers and a later one looks at the place. An answer looks at the thing whose box it is about to give, in a
look back at the outlined mask. If there is no such thing, the attention is to fall on the tokens before the image's.
"""
ALIKE_LAYERS, SHARPNESS = (1, 2, 3), 2.0
"""`ALIKE_LAYERS` are the layers whose key projections start as copies of the query projections; `SHARPNESS` is the starting weight of their
query norms, which makes their attention sharper than the usual 1.
"""


def start(model: DemoTrainee, tower: Path) -> None:
    """Set the first weights of the stage.

    The tower, the heads and the embeddings of coordinates come from a saved state of stage one, the folder ``tower``. In the language
    model, the embeddings of nouns are the weights by which the tower's head recognises them, and keys start like queries in the layers
    whose attention is to find what looks like a word (ALIKE_LAYERS). All its other matrices are random. Raises what ``load_weights``
    raises.
    """
    load_weights(tower / "model.safetensors", model)
    ids = {token: index for index, token in enumerate(vocabulary())}
    generator = torch.Generator().manual_seed(5)
    language = model.mllm.model.language_model
    with torch.no_grad():
        for name, parameter in language.layers.named_parameters():
            if name.endswith("proj.weight"):
                parameter.normal_(0, 0.6 * parameter.shape[1] ** -0.5, generator=generator)
        for layer in ALIKE_LAYERS:
            attention = language.layers[layer].self_attn
            nn.init.orthogonal_(attention.q_proj.weight, gain=0.8, generator=generator)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_norm.weight.fill_(SHARPNESS)
        embeddings = model.words()
        nouns, rows = model.heads.noun_rows()
        rows = F.normalize(rows, dim=-1)
        words = [index for token, index in ids.items() if not token.isdigit() or len(token) != 3]
        embeddings[words] = torch.randn(len(words), HIDDEN, generator=generator) * HIDDEN**-0.5
        for noun, row in zip(nouns, rows, strict=True):
            for word in {noun, IRREGULAR_PLURALS.get(noun, noun)}:
                embeddings[ids[word]] = row


def train(
    folder: Path,
    begin: Callable[[DemoTrainee], None],
    steps: int,
    *,
    batch: int = 8,
    threads: int = 2,
    seed: int = SEED,
    rate: float = RATE,
    minutes: float | None = None,
    workers: int = 0,
    boxes_only: int = BOXES_ONLY,
    device: torch.device = CPU,
) -> DemoTrainee:
    """Run or continue the stage and return the model; ``begin`` gives a new run its first weights.

    ``boxes_only`` is the number of steps before the first point questions. 0 stands for a run from a whole trained model: it also has a
    shorter warm-up, sharp coordinate targets from the start, and Muon instead of AdamW. ``rate`` is the peak learning rate, and
    ``workers`` the number of processes that draw scenes. Raises what :func:`~sam4mllm.demo.pretrain.loop.run` raises.
    """
    torch.manual_seed(seed)
    model = DemoTrainee()
    if not has_state(folder):
        begin(model)
    # only this implementation returns the attention weights, which look_losses needs
    model.mllm.model.language_model.config._attn_implementation = "eager"
    sittings = Ahead(partial(draw_sitting, seed, batch, boxes_only), steps, 1, workers)
    session = partial(session_of, boxes_only=boxes_only)
    sharpening = SHARPENING if boxes_only else 0
    losses = batch_losses(model, Teacher(build_tokenizer()), lambda step: sittings(step)[0], session, sharpening)
    warmup = WARMUP if boxes_only else WARMUP_TRAINED
    source = "of the tower" if boxes_only else "of a whole model"
    plan = PretrainPlan(
        folder,
        steps,
        batch,
        rate,
        warmup=warmup,
        threads=threads,
        seed=seed,
        minutes=minutes,
        source=source,
        optimizer="adamw" if boxes_only else "muon",
        device=device,
    )
    run(plan, model, losses)
    return model


def batch_losses(
    model: DemoTrainee,
    teacher: Teacher,
    draw: Callable[[int], Sitting],
    session: Callable[[int], Session],
    sharpening: int = SHARPENING,
) -> Callable[[int], dict[str, Tensor]]:
    """Return the function from a step to its loss terms. ``draw`` gives the step's data, ``session`` the step's kind; ``sharpening`` is the
    number of steps that :func:`softness` takes.
    """

    def losses(step: int) -> dict[str, Tensor]:
        sitting = draw(step)
        visual, grid = model.see(sitting.images)
        crowded = session(step) == "crowd"
        sigma = NARROW if crowded else softness(step, sharpening)
        seen = model.heads.losses(visual.flatten(0, 1), sitting.dense, model.coordinate_embeddings(), sigma)
        if crowded:
            return seen
        terms = {name: term if name.startswith("_") else DENSE_WEIGHT * term for name, term in seen.items()}
        read = forward(model, sitting.lessons, visual, grid)
        terms |= answer_losses(model, teacher, sitting.lessons, read.hidden[:, read.prefix :], sigma)
        terms |= look_losses(sitting.lessons, read.attentions, read.prefix)
        terms |= spot_losses(model, sitting.lessons, sitting.dense, read, sigma)
        return {_named(session(step), name): term for name, term in terms.items()}

    return losses


def softness(step: int, sharpening: int) -> float:
    """Return the standard deviation, in thousandths, of the soft targets of coordinates: it falls from WIDE to NARROW in ``sharpening``
    steps. With 0 it is NARROW from the first step on, for a model that knows coordinates, which would unlearn them otherwise.
    """
    return NARROW if step >= sharpening else float(WIDE * (NARROW / WIDE) ** (step / sharpening))


def _named(session: Session, name: str) -> str:
    """Return the name under which a figure is logged: some figures are kept apart by the kind of step."""
    return f"{name}_{session}" if name in ("_verdict", "_decided", "_coordinate_error") else name


class Read(NamedTuple):
    """The language model's outputs for a batch of rows, prefix included.

    The hidden states (B, L, HIDDEN): ``hidden`` are the final ones, ``first`` those after the first layer, ``early`` after the judging
    layer, ``late`` after the next one. ``attentions`` are the attention weights of each layer (B, heads, L, L). ``prefix`` is the length of
    the prefix that all rows share.
    """

    hidden: Tensor
    first: Tensor
    early: Tensor
    late: Tensor
    attentions: tuple[Tensor, ...]
    prefix: int


def forward(model: DemoTrainee, lessons: list[Lesson], visual: Tensor, grid: Tensor) -> Read:
    """Run the language model on the images' visual tokens ``visual`` (B, T, HIDDEN), each followed by its lesson's packed row.

    ``grid`` (B, 3) is each image's grid of patches, as :meth:`DemoTrainee.see` returns it.
    """
    ids = {token: index for index, token in enumerate(vocabulary())}
    tokens = visual.shape[1]
    prefix = torch.tensor([ids[token] for token in (*BEFORE_IMAGE, *[IMAGE] * tokens, *AFTER_IMAGE)])
    rows = [pack(lesson.segments) for lesson in lessons]
    longest = max(len(row.ids) for row in rows)
    total = len(prefix) + longest
    row_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    visible = torch.eye(total, dtype=torch.bool).repeat(len(rows), 1, 1)
    visible[:, : len(prefix), : len(prefix)] = torch.ones(len(prefix), len(prefix)).tril().bool()
    positions = prefix_positions(tokens, grid[0])[:, None].repeat(1, len(rows), 1)
    following = positions.max() + 1
    offsets = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row.ids)
        row_ids[index, :length] = torch.as_tensor(row.ids)
        offsets[index, :length] = torch.as_tensor(row.offsets)
        visible[index, len(prefix) :, : len(prefix)] = True
        visible[index, len(prefix) : len(prefix) + length, len(prefix) : len(prefix) + length] = torch.as_tensor(row.mask)
    embed = model.mllm.get_input_embeddings()
    head = embed(prefix)[None].expand(len(rows), -1, -1)
    inputs = torch.cat([head[:, :2], visual.to(head.dtype), head[:, -1:], embed(row_ids)], 1)
    output = model.mllm.model.language_model(
        inputs_embeds=inputs,
        attention_mask=additive(visible[:, None], torch.bfloat16),
        position_ids=torch.cat([positions, (following + offsets)[None].expand(3, -1, -1)], 2),
        use_cache=False,
        output_attentions=True,
        output_hidden_states=True,
    )
    early, late = output.hidden_states[JUDGING_LAYER + 1 : JUDGING_LAYER + 3]
    return Read(output.last_hidden_state, output.hidden_states[1], early, late, output.attentions, len(prefix))


def prefix_positions(tokens: int, grid: Tensor) -> Tensor:
    """Return the multimodal positions (3, 2 + tokens + 1), that is time, row and column, of the shared prefix of a row.

    The prefix is the tokens "user, vision start, image, vision end"; ``grid`` (3,) is the image's grid of patches.
    """
    rows, columns = int(grid[1]) // MERGE, int(grid[2]) // MERGE
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack([torch.zeros(tokens, dtype=torch.long), down.flatten(), across.flatten()]) + 2
    return torch.cat([torch.arange(2).expand(3, -1), image, torch.full((3, 1), 2 + max(rows, columns))], 1)


def _gather(hidden: Tensor, places: list[tuple[int, int]]) -> Tensor:
    index = torch.tensor(places)
    return hidden[index[:, 0], index[:, 1]]


def answer_losses(model: DemoTrainee, teacher: Teacher, lessons: list[Lesson], hidden: Tensor, sigma: float) -> dict[str, Tensor]:
    """Return the weighted loss terms of the answers, and figures for the log, whose names begin with an underscore.

    ``coordinate`` is the :func:`~sam4mllm.demo.pretrain.dense.coordinate_loss` of the numbers. The others are cross-entropies: ``decide``
    of the tokens that decide (a box or none, another box or the end), ``form`` of the remaining tokens, and ``verdict`` of yes and no.
    """
    head = model.mllm.lm_head.weight
    zero = hidden.sum() * 0
    places = [(b, position) for b, lesson in enumerate(lessons) for position, _ in lesson.coordinates]
    values = torch.tensor([value for lesson in lessons for _, value in lesson.coordinates])
    terms = {"coordinate": zero, "_coordinate_error": zero}
    if places:
        logs = F.log_softmax((_gather(hidden, places) @ head.T).float(), -1)[
            :, teacher.first_coordinate : teacher.first_coordinate + len(COORDINATES)
        ]
        terms["coordinate"] = coordinate_loss(logs, values, sigma)
        terms["_coordinate_error"] = (logs.argmax(-1) + 0.5 - values).abs().median()
    for name, decides in (("decide", True), ("form", False)):
        chosen = [
            (b, position, token) for b, lesson in enumerate(lessons) for position, token, decision in lesson.choices if decision == decides
        ]
        if not chosen:
            continue
        logits = (_gather(hidden, [(b, position) for b, position, _ in chosen]) @ head.T).float()
        answers = torch.tensor([token for *_, token in chosen])
        terms[name] = F.cross_entropy(logits, answers) * (2.0 if decides else FORM_WEIGHT)
        if decides:
            terms["_decided"] = (logits.argmax(-1) == answers).float().mean()
    asked = [(b, position, token) for b, lesson in enumerate(lessons) for position, token in lesson.verdicts]
    if asked:
        logits = (_gather(hidden, [(b, position) for b, position, _ in asked]) @ head.T).float()
        answers = torch.tensor([token for *_, token in asked])
        terms["verdict"] = 3.0 * F.cross_entropy(logits, answers)
        terms["_verdict"] = (logits.argmax(-1) == answers).float().mean()
    return terms


def spot_losses(model: DemoTrainee, lessons: list[Lesson], dense: list[DenseTargets], read: Read, sigma: float) -> dict[str, Tensor]:
    """Return what the heads' ``point_losses`` and ``spot_losses`` give for all points that the lessons ask about: weighted loss terms and
    figures for the log. Without such points it is empty.
    """
    spots = [(b, *spot) for b, lesson in enumerate(lessons) for spot in lesson.spots]
    if not spots:
        return {}
    places = [(b, position + read.prefix) for b, position, *_ in spots]
    beneath = torch.as_tensor(np.stack([dense[b].fine[cell] for b, _, cell, *_ in spots]))
    offsets = torch.tensor([offset for *_, offset, _, _ in spots])
    points = torch.tensor([point for *_, point, _ in spots])
    own = torch.as_tensor(np.stack([shown for *_, shown in spots]))
    return {
        **model.heads.point_losses(_gather(read.first, places), points, model.coordinate_embeddings(), sigma),
        **model.heads.spot_losses(_gather(read.early, places), _gather(read.late, places), offsets, beneath, own),
    }


def look_losses(lessons: list[Lesson], attentions: tuple[Tensor, ...], prefix: int) -> dict[str, Tensor]:
    """Return for each kind in LOOKS the weighted -log of the attention of its heads that falls on the right columns, and that attention."""
    terms: dict[str, Tensor] = {}
    for kind, (layer, heads, weight) in LOOKS.items():
        looks = [(b, position, columns) for b, lesson in enumerate(lessons) for name, position, columns in lesson.looks if name == kind]
        if looks:
            index = torch.tensor([(b, position + prefix) for b, position, _ in looks])
            seen = attentions[layer][index[:, 0], heads, index[:, 1]].float()
            right = torch.zeros(len(looks), seen.shape[-1])
            for row, (*_, columns) in zip(right, looks, strict=True):
                row[torch.as_tensor(columns)] = 1.0
            mass = (seen * right[:, None]).sum(-1)
            terms[f"look_{kind}"] = -weight * (mass + 1e-4).log().mean()
            terms[f"_mass_{kind}"] = mass.mean()
    return terms
