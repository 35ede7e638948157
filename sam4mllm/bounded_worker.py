"""The process that :mod:`sam4mllm.bounded` starts: it limits itself, then runs one foreign text. It imports nothing of this package.

Standard input is one JSON object with a ``task``, standard output one with ``result`` or ``error``.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit this process's processor time, after which the kernel ends it, and its address space, beyond which allocations fail.

    The process cannot raise these limits again.
    """
    for kind, most in ((resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one already
            resource.setrlimit(kind, (most, most))


def match(patterns: list[str], names: list[str], most: int) -> list[list[int]]:
    """For each regular expression, return the indices of the names that it matches from end to end. ``most`` is not used: ``main`` passes
    it to every task.
    """
    del most
    compiled = [re.compile(pattern) for pattern in patterns]
    return [[index for index, name in enumerate(names) if pattern.fullmatch(name)] for pattern in compiled]


def render(template: str, variables: dict[str, Any], most: int) -> str:
    """Return a Jinja chat template rendered with ``variables``, in a sandbox with what transformers gives such templates. Raises
    MemoryError if it writes more than ``most`` characters.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    pieces, length = [], 0
    for piece in environment.from_string(template).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise MemoryError
    return "".join(pieces)


class Generation(Extension):
    """``{% generation %}`` marks what a model is trained to write; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 – Jinja declares it as a variable of instances

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


TASKS: dict[str, Callable[..., Any]] = {"match": match, "render": render}


def main(cpu_seconds: str, memory_bytes: str, output_characters: str) -> int:
    """Answer the request on standard input. Return the exit status: 1 if memory did not suffice or too much was written, else 0."""
    request = json.load(sys.stdin)
    task = TASKS[request.pop("task")]
    limit(int(cpu_seconds), int(memory_bytes))
    try:
        answer = {"result": task(**request, most=int(output_characters))}
    except MemoryError:
        return 1
    except Exception as error:  # whatever a foreign text raises is its author's error
        lines = str(error).strip().splitlines()
        answer = {"error": (lines[0] if lines else type(error).__name__)[:200]}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
