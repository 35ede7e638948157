"""Run the method on several images at once, so that their questions to the MLLM share forward passes.

The method is written for one image, as a generator that yields each question to the MLLM (a step) and is sent the answer. Such a generator
is a walk. Here a walk is run alone, or several are run in lockstep::

    first image     locate ─┐         ask points ─┐         masks
    second image    locate ─┴─ pass   ask points ─┴─ pass   masks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import EngineAwayError
from sam4mllm.grounding.many import ask_each, ground_each, open_each
from sam4mllm.grounding.protocol import Grounder, Inquiry, Question, Replies, Scene
from sam4mllm.values import Grounding

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Locate:
    """The question where ``phrases`` are in a scene. This walk's share of the time is added to ``seconds`` under ``stage``."""

    scene: Scene
    phrases: Sequence[str]
    question: Question
    seconds: dict[str, float]
    stage = "box"

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for all steps that can share a pass."""
        return (Locate, self.question)


@dataclass(frozen=True, eq=False)
class AskPoints:
    """The question whether the points of each inquiry lie on what was found. ``joint``: whether one answer is about all points of a box.

    This walk's share of the time is added to ``seconds`` under ``stage``.
    """

    scene: Scene
    inquiries: Sequence[Inquiry]
    joint: bool
    seconds: dict[str, float]
    stage = "points"

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for all steps that can share a pass."""
        return (AskPoints, self.joint)


@dataclass(frozen=True, eq=False)
class Confirm:
    """The question whether the outline that is drawn on ``image`` (H, W, 3) uint8 surrounds what ``phrase`` means.

    This walk's share of the time, which includes taking in the image, is added to ``seconds`` under "points", as for questions about
    points.
    """

    image: NDArray[np.uint8]
    phrase: str
    seconds: dict[str, float]
    stage = "points"

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for all steps that can share a pass."""
        return (Confirm,)


Step = Locate | AskPoints | Confirm
Walk = Generator[Step, Any, T]


def locate(step: Locate) -> Walk[list[Grounding]]:
    """Yield the step as a question to the MLLM, and return the answer to it: one Grounding a phrase."""
    found: list[Grounding] = yield step
    return found


def ask_points(step: AskPoints) -> Walk[list[Replies]]:
    """Yield the step as a question to the MLLM, and return the answer to it: one Replies an inquiry."""
    said: list[Replies] = yield step
    return said


def confirm(step: Confirm) -> Walk[Replies]:
    """Yield the step as a question to the MLLM, and return the answer to it: Replies with one entry."""
    said: Replies = yield step
    return said


def go_on() -> None:
    """Nothing is done between two steps."""


def walk_alone(grounder: Grounder, walk: Walk[T], between: Callable[[], None] = go_on) -> T:
    """Run a walk to its end and return its result. Errors of the walk or of the grounder are raised.

    ``between`` is called each time before the walk goes on, and before each question to the MLLM.
    """
    answer: Any = None
    while True:
        between()
        try:
            step = walk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        between()
        [answer] = _take(grounder, [step])


def walk_together(grounder: Grounder, walks: Sequence[Walk[T]], between: Callable[[], None] = go_on) -> list[T | Exception]:
    """Run several walks in lockstep and return for each its result, or the error that it or its question raised.

    An error in one walk ends no other, but an EngineAwayError ends all walks that share the pass. ``between`` is called each time before a
    walk goes on, and before each pass; what it raises is raised here, and there are then no results.
    """
    outcomes: dict[int, T | Exception] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(walks)))
    while answers:
        steps: dict[int, Step] = {}
        for index, answer in answers.items():
            between()
            try:
                steps[index] = walks[index].send(answer)
            except StopIteration as end:
                outcomes[index] = end.value
            except Exception as error:
                outcomes[index] = error
        answers = {}
        for kind in dict.fromkeys(step.kind for step in steps.values()):
            some = [index for index, step in steps.items() if step.kind == kind]
            between()
            for index, answer in zip(some, _take_each(grounder, [steps[index] for index in some]), strict=True):
                if isinstance(answer, Exception):
                    outcomes[index] = answer
                else:
                    answers[index] = answer
    return [outcomes[index] for index in range(len(walks))]


def _take_each(grounder: Grounder, steps: Sequence[Step]) -> list[Any]:
    """Return the answers to steps of one kind. If asking them together fails, each is asked alone, and an error takes the place of the
    answer of each that fails again. If EngineAwayError is raised, it takes the place of all answers, and no step is asked again.
    """
    try:
        return _take(grounder, steps)
    except EngineAwayError as error:
        return [error] * len(steps)
    except Exception as error:
        if len(steps) == 1:
            return [error]
    # outside of the except block: until the error is gone, what its traceback refers to takes up memory
    return [answer for step in steps for answer in _take_each(grounder, [step])]


def _take(grounder: Grounder, steps: Sequence[Step]) -> list[Any]:
    """Ask the grounder the questions of steps of one kind together (outlines one by one, but their images are taken in together). Return
    the answers, and add an equal share of the time to the ``seconds`` of each step. Errors of the grounder are raised, and no time is
    added.
    """
    began, first = time.perf_counter(), steps[0]
    answers: list[Any]
    if isinstance(first, Locate):
        answers = list(ground_each(grounder, [(step.scene, step.phrases) for step in steps if isinstance(step, Locate)], first.question))
    elif isinstance(first, AskPoints):
        answers = list(ask_each(grounder, [(step.scene, step.inquiries) for step in steps if isinstance(step, AskPoints)], first.joint))
    else:
        shown = [step for step in steps if isinstance(step, Confirm)]
        scenes = open_each(grounder, [step.image for step in shown])
        answers = [grounder.confirm(scene, [step.phrase]) for scene, step in zip(scenes, shown, strict=True)]
    share = (time.perf_counter() - began) / len(steps)
    for step in steps:
        step.seconds[step.stage] = step.seconds.get(step.stage, 0.0) + share
    return answers
