"""The errors of this package that are meant for its users. Other faults, such as most wrong arguments in code, raise Python's own errors.

::

    Sam4mllmError
    ├── ImageError          the image cannot be used: broken, too large, too small
    ├── PhraseError         the phrase cannot be used: empty, too long, or with a control word of the model
    ├── ModelError          a model or adapter folder cannot be loaded
    │   ├── EngineAwayError the server that has the model does not answer; it may be back soon
    │   └── ExtensionError  what another installed package brings cannot be used
    ├── PromptError         a prompt for the segmenter is not well formed
    ├── DatasetError        a dataset folder is not in the format, or lacks files
    ├── TemplateError       a dialect or chat template lacks what is needed
    ├── TrainingError       a training plan cannot be followed, or a run cannot go on
    ├── EvaluationError     an evaluation cannot be set up as asked, or its results cannot be written
    ├── RegistryError       an adapter version is not whole or not safe, or cannot be stored
    └── MaskCodecError      an encoded mask is malformed or larger than allowed

Each message is one line that a user can act on.
"""

from __future__ import annotations

from sam4mllm.plain_text import one_line


class Sam4mllmError(Exception):
    """Base of all errors of this package; its text is one line, fit to be shown to a user, whatever foreign words it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def first_line(error: BaseException) -> str:
    """Return the first line of the message of any error, or the name of its class if the message is empty."""
    return one_line(next(iter(str(error).strip().splitlines()), type(error).__name__))


class ImageError(Sam4mllmError):
    """The image cannot be used."""


class PhraseError(Sam4mllmError):
    """The phrase cannot be used."""


class ModelError(Sam4mllmError):
    """A model or an adapter cannot be loaded."""


class EngineAwayError(ModelError):
    """The server that has the model does not answer."""


class ExtensionError(ModelError):
    """What another installed package brings cannot be used."""


class PromptError(Sam4mllmError):
    """A segmenter's prompt is not well formed."""


class DatasetError(Sam4mllmError):
    """A dataset folder is not in the format, or lacks files."""


class TemplateError(Sam4mllmError):
    """A dialect or a chat template lacks what is needed."""


class TrainingError(Sam4mllmError):
    """A training plan cannot be followed, or a run cannot go on."""


class EvaluationError(Sam4mllmError):
    """An evaluation cannot be set up as asked, or its results cannot be written."""


class RegistryError(Sam4mllmError):
    """An adapter version is not whole or not safe to load, or it cannot be stored."""


class MaskCodecError(Sam4mllmError):
    """An encoded mask (run lengths or polygons) is malformed or larger than allowed."""
