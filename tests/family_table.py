"""The table of docs/families.md: ``python -m tests.family_table`` runs the checks and writes it anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peft.tuners.lora import LoraLayer

from sam4mllm.adapters.lora import attach
from sam4mllm.grounding.copying import keeps_states
from sam4mllm.prompts.conversation import box_answer
from sam4mllm.prompts.dialects import Dialect
from tests.family_checks import CHECKS, LAYER, PACKED, READ_BACK, SEVERAL, Subject
from tests.family_models import KINDS

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- written by tests/family_table.py -->\n", "<!-- end -->\n"
FRAMES = {"milli": "thousandths, 0–999", "resized": "pixels of the resized image", "square": "shares of the padded square"}


def format_row(name: str, model_type: str, dialect: Dialect, image: str, learned: str) -> str:
    box, point = box_answer(dialect, "the cup", [(10, 20, 30, 40)]), dialect.spell_point((50, 60))
    cells = [name, f"`{model_type}`", FRAMES[dialect.frame], f"`{box}`", f"`{point}`", f"`{image}`", learned]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def learned_layers(subject: Subject) -> str:
    """How many linear layers LoRA changes, counted on the model."""
    checkpoint = subject.load()
    attach(checkpoint, 1, 1, 0.0)
    names = {name for name, module in checkpoint.model.named_modules() if isinstance(module, LoraLayer)}
    language = [name for name in names if ".language_model." in name]
    layers = range(checkpoint.model.config.get_text_config().num_hidden_layers)
    counts = sorted({sum(name.startswith(LAYER(layer, "")) for name in language) for layer in layers})
    only = "" if any(".mlp." in name for name in language) else " (attention only)"
    return f"{' or '.join(map(str, counts))} a layer{only}, {len(names) - len(language)} in the projector"


def render(subjects: dict[str, Subject]) -> str:
    """Both tables. Only for families that every check has held for."""
    formats = "| family | `model_type` | numbers | a box as answered | a point | image token | LoRA |\n|---|---|---|---|---|---|---|\n"
    checks = f"| family | {' | '.join(CHECKS)} |\n|---|{'---|' * len(CHECKS)}\n"
    for name, kind in KINDS.items():
        formats += format_row(name, kind.model_type, kind.dialect, kind.image, learned_layers(subjects[name]))
        marks = {**dict.fromkeys(CHECKS, "✓"), **({PACKED: "by copies", SEVERAL: "one by one"} if by_copies(subjects[name]) else {})}
        marks |= {READ_BACK: "points"} if kind.dialect.answers_with_points else {}
        checks += f"| {name} | {' | '.join(marks.values())} |\n"
    return f"{formats}\n{checks}"


def by_copies(subject: Subject) -> bool:
    """Whether each question goes on from a copy of a state, which no row can share."""
    return keeps_states(subject.grounder.checkpoint.model.config)


def between(page: str) -> str:
    """What the page has now."""
    return page.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subjects = {name: Subject(kind, Path(folder) / str(index)) for index, (name, kind) in enumerate(KINDS.items())}
        for subject in subjects.values():
            for check in CHECKS.values():
                check(subject)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.replace(BEGIN + between(page), BEGIN + render(subjects)), encoding="utf-8")


if __name__ == "__main__":
    main()
