"""``sam4mllm scenes``: its options, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sam4mllm.cli.options import JsonOption, NounsName, SceneKind
from sam4mllm.cli.progress import bar

commands = typer.Typer()


@commands.command(epilog="Example: sam4mllm scenes /tmp/scenes --count 120 --seed 7")
def scenes(
    folder: Annotated[Path, typer.Argument(help="Where to write the dataset.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Images; each has five phrases, three if they are relational.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same scenes.")] = 0,
    nouns: Annotated[
        NounsName, typer.Option("--nouns", help="Ask for nouns that the demo model knows, or for new ones.")
    ] = NounsName.KNOWN,
    kind: Annotated[
        SceneKind,
        typer.Option(
            "--kind",
            help="ambiguous: two things in nearly one box. mixed: one scene in three is ambiguous. relational: phrases that compare things "
            "or find one by way of others. shifted: other backgrounds, light, blur, noise or drawn lines.",
        ),
    ] = SceneKind.DEFAULT,
    split: Annotated[str, typer.Option("--split", help="Of all examples: test, or train for `sam4mllm train`.")] = "test",
    as_json: JsonOption = False,
) -> None:
    """Write demo scenes with phrases and exact masks as a dataset."""
    from sam4mllm.demo.dataset import write_scenes
    from sam4mllm.demo.glyphs import novel_nouns

    asked = novel_nouns() if nouns is NounsName.NOVEL else None
    written = write_scenes(folder, count, seed, asked, lambda items: bar(items, count, "drawing"), split=split, kind=kind.value)
    line = f"{folder}: {count} images, {written} phrases"
    print(json.dumps({"folder": str(folder), "images": count, "phrases": written}) if as_json else line)
