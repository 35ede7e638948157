"""One thing that is wrong with a set-up, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A fault of a set-up. ``check`` is the short name of the check that found it; ``problem`` and ``cure`` together make one line.

    ``passing``: the fault does not keep anything from working yet.
    """

    check: str
    problem: str
    cure: str
    passing: bool = False

    @property
    def line(self) -> str:
        return f"{self.check}: {self.problem}; {self.cure}"


def as_finding(check: str, error: Exception, cure: str = "see the message before this") -> Finding:
    """Return an error of this project as a finding: its text is already "what is wrong; what to do". ``cure`` is for a text without that
    end.
    """
    problem, _, advice = str(error).partition("; ")
    return Finding(check, problem, advice or cure)
