"""``sam4mllm adapters``: the commands that look after adapter versions."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam4mllm.cli.options import DeviceOption, DialectOption, JsonOption, ModelOption, SegmenterOption, hush
from sam4mllm.errors import RegistryError
from sam4mllm.options import LearnedStrategy, PointsName
from sam4mllm.plain_text import one_line

if TYPE_CHECKING:
    from sam4mllm.adapters.manifest import Manifest
    from sam4mllm.adapters.registry import Registry

commands = typer.Typer(name="adapters", no_args_is_help=True, help="The adapter versions that are kept, and which of them serves.")
HomeOption = Annotated[Path | None, typer.Option("--home", help="Where versions are kept; else SAM4MLLM_HOME.")]
VersionArgument = Annotated[str, typer.Argument(help="A version, as `adapters list` shows it.")]


def _registry(home: Path | None) -> Registry:
    from sam4mllm.adapters.home import find_home
    from sam4mllm.adapters.registry import Registry

    return Registry(find_home() if home is None else home)


@commands.command("list", epilog="Example: sam4mllm adapters list --json")
def list_versions(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """All versions, oldest first; a star marks the one that serves."""
    registry = _registry(home)
    manifests, broken = registry.versions(), registry.broken()
    serving, known = None, True
    try:
        champion = registry.champion()
        serving = None if champion is None else champion.version
    except RegistryError as error:  # the list is still needed, to promote another version
        known = False
        print(f"which one serves cannot be told: {error}", file=sys.stderr)
    if as_json:
        versions = [asdict(manifest) for manifest in manifests]
        print(json.dumps({"serving": serving, "versions": versions, "broken": [asdict(one) for one in broken]}))
        return
    for manifest in manifests:
        mark = "*" if manifest.version == serving else " "
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(manifest.metrics.items()))
        print(one_line(f"{mark} {manifest.version}  {manifest.created}  {manifest.base_model}  {metrics}".rstrip()))
    if known and serving is None:
        print("* the base model alone")


@commands.command(epilog="Example: sam4mllm adapters show demo-1-0f3a9c12")
def show(version: VersionArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What a version is and where it comes from, once its files are found to be whole and safe."""
    fields = asdict(_registry(home).verify(version))
    if as_json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        shown = json.dumps(value) if isinstance(value, dict) else "none" if value is None else value
        print(one_line(f"{name.replace('_', ' ')}: {shown}"))


@commands.command(epilog="Example: sam4mllm adapters add /tmp/adapter --promote")
def add(
    folder: Annotated[Path, typer.Argument(help="An adapter's folder, as `sam4mllm train` or peft writes it.")],
    *,
    promote: Annotated[bool, typer.Option("--promote", help="Let it serve, too.")] = False,
    model: ModelOption = None,
    strategy: Annotated[
        LearnedStrategy | None, typer.Option("--strategy", help="How it is asked, instead of what its manifest says.")
    ] = None,
    points: Annotated[PointsName | None, typer.Option("--points", help="How its points are asked, likewise.")] = None,
    dialect: DialectOption = None,
    segmenter: SegmenterOption = None,
    device: DeviceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add an adapter from elsewhere as a version. The options say what its manifest does not; --strategy and --points override it.

    The version's name is the one that a server with this segmenter and device, and else the default settings, gives its predictions.
    Where --segmenter or --device is not given, SAM4MLLM_SEGMENTER or SAM4MLLM_DEVICE counts.
    """
    hush()
    from sam4mllm.adopt import Claims, adopt

    segmenter = segmenter or os.environ.get("SAM4MLLM_SEGMENTER")
    device = device or os.environ.get("SAM4MLLM_DEVICE")

    registry = _registry(home)
    manifest = adopt(folder, registry, Claims(model, strategy, points, dialect, segmenter, device))
    if promote:
        registry.promote(manifest.version)
    if as_json:
        print(json.dumps(asdict(manifest)))
        return
    print(f"added: {manifest.version}")
    if promote:
        _print_serving(manifest)


@commands.command(epilog="Example: sam4mllm adapters promote demo-1-0f3a9c12")
def promote(version: VersionArgument, home: HomeOption = None) -> None:
    """Let a version serve. A server that runs takes it up by itself."""
    _print_serving(_registry(home).promote(version))


@commands.command(epilog="Example: sam4mllm adapters rollback")
def rollback(home: HomeOption = None) -> None:
    """Let the version serve that served before the present one, or the base model alone; a second rollback goes one further back."""
    _print_serving(_registry(home).rollback())


@commands.command(epilog="Example: sam4mllm adapters export demo-1-0f3a9c12 /tmp/adapter")
def export(
    version: VersionArgument, folder: Annotated[Path, typer.Argument(help="A new or empty folder.")], home: HomeOption = None
) -> None:
    """Copy a version into a folder for `--adapter`; its part for the MLLM can be loaded by peft, too."""
    _registry(home).export(version, folder)
    print(f"{folder}: {version}")


def _print_serving(manifest: Manifest | None) -> None:
    print(f"serving: {'the base model alone' if manifest is None else manifest.version}")
