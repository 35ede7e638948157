"""One thing that is wrong with a set-up, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``check`` is the short name of what was looked at; ``problem`` and ``cure`` are one line together.

    ``passing``: it does not yet keep anything from working.
    """

    check: str
    problem: str
    cure: str
    passing: bool = False

    @property
    def line(self) -> str:
        return f"{self.check}: {self.problem}; {self.cure}"


def as_finding(check: str, error: Exception, cure: str = "see the message before this") -> Finding:
    """An error of ours as a finding: its line is already of the form "what is wrong; what to do". ``cure`` is for one that is not."""
    problem, _, advice = str(error).partition("; ")
    return Finding(check, problem, advice or cure)
