"""Training of the segmenter's adapter from a dataset's folder; the adapter's folder appears complete or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sam4mllm.adapters.fields import SEGMENTER_FILES
from sam4mllm.adapters.files import check_adapter
from sam4mllm.adapters.follow import lasting_name
from sam4mllm.adapters.segmenter import Promptable, promptable, save_of_decoder
from sam4mllm.data.examples import Example
from sam4mllm.data.read_dataset import load_example_image
from sam4mllm.durable import sync_tree, whole_folder
from sam4mllm.errors import DatasetError
from sam4mllm.segmentation.loading import load_segmenter
from sam4mllm.training.decoder_fit import STEPS, DecoderLesson, fit_decoder, make_lessons
from sam4mllm.training.session import refuse_taken, select_examples, writing

MOST_PICTURES = 200
"""The most pictures that are learned from; of a larger dataset so many are drawn at random.

Their features are kept in memory (SAM: 4 MB a picture), and more pictures help little: 40, 20 and 10 gained 0.055, 0.052 and 0.045 of IoU.
"""
MOST_THINGS = 16
"""The most objects of one picture that are learned from; of more, so many are drawn at random. Each takes half a megabyte of memory."""

Track = Callable[[Iterable[list[Example]], int], Iterable[list[Example]]]
"""Wraps the pictures for a progress bar: it takes the pictures, each as the list of its examples, and their number, and yields them."""


@dataclass(frozen=True)
class DecoderRun:
    """The numbers of pictures and objects that an adapter learned from, and the loss of its last step."""

    pictures: int
    objects: int
    loss: float


def train_decoder(
    dataset: Path,
    out: Path,
    segmenter: str,
    device: torch.device,
    steps: int = STEPS,
    seed: int = 0,
    *,
    track: Track = lambda pictures, total: pictures,
) -> DecoderRun:
    """Fit an adapter of the segmenter's mask decoder to the masks of a dataset's split ``train``.

    Args:
        dataset: the dataset's folder.
        out: the folder where the adapter will be; it must be new or empty.
        segmenter: the segmenter's name.
        device: the device to run on.
        steps: how many steps the optimiser takes.
        seed: the seed of all that is drawn at random: pictures and objects, if there are too many, the adapter's first weights and the
            prompts.
        track: wraps the pictures, for a progress bar.

    Raises:
        DatasetError: the dataset or a picture cannot be read, or no example of the split ``train`` has a mask.
        ModelError: the segmenter cannot be loaded, or has no mask decoder.
        ExtensionError: the segmenter is another package's and cannot be used.
        TrainingError: ``out`` is there and not empty, or cannot be written, or the loss is no finite number.
        RegistryError: the trained weights are not finite.
    """
    refuse_taken(out)
    pictures = _choose(dataset, seed)
    drawing = promptable(load_segmenter(segmenter, device))
    lessons = [lesson for picture in track(pictures, len(pictures)) for lesson in _lessons(drawing, dataset, picture, seed)]
    model, loss = fit_decoder(drawing, lessons, steps, seed)
    with writing(out), whole_folder(out) as temporary:
        save_of_decoder(model, drawing, lasting_name(segmenter), temporary)
        check_adapter(temporary, SEGMENTER_FILES)
        sync_tree(temporary)
    return DecoderRun(len(pictures), len(lessons), loss)


def _choose(dataset: Path, seed: int) -> list[list[Example]]:
    """Return the examples that have a mask, grouped by picture; at most MOST_PICTURES groups. Raises DatasetError if there are none."""
    by_picture: dict[str, list[Example]] = {}
    for example in select_examples(dataset):
        if example.has_target:
            by_picture.setdefault(example.image, []).append(example)
    if not by_picture:
        raise DatasetError(f"{dataset} has no mask in its split train: the segmenter's adapter learns from masks alone")
    pictures = list(by_picture.values())
    if len(pictures) <= MOST_PICTURES:
        return pictures
    chosen = np.random.default_rng([seed, 23]).choice(len(pictures), MOST_PICTURES, replace=False)
    return [pictures[place] for place in sorted(chosen.tolist())]


def _lessons(drawing: Promptable, dataset: Path, picture: Sequence[Example], seed: int) -> list[DecoderLesson]:
    """Return one lesson for each distinct object of a picture, MOST_THINGS at most; two phrases may mean the same object."""
    objects = {str(instance.rle["counts"]): (example, index) for example in picture for index, instance in enumerate(example.instances)}
    some = list(objects.values())
    if len(some) > MOST_THINGS:
        some = [some[place] for place in np.random.default_rng([seed, len(some)]).choice(len(some), MOST_THINGS, replace=False)]
    masks = np.stack([example.masks()[index] for example, index in some])
    boxes_px = np.stack([example.boxes_px[index] for example, index in some])
    return make_lessons(drawing, load_example_image(dataset, picture[0]), masks, boxes_px)
