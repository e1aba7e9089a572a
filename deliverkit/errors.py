"""What can go wrong with an input. A failed connection is a result, not an error."""

from __future__ import annotations

from typing import Any


class DeliverkitError(Exception):
    """Base of all errors that deliverkit raises on purpose; its text is one line for a person."""


class FormatError(DeliverkitError):
    """A file is not what it was taken for: says path, line and problem."""

    def __init__(self, path: object, problem: str, line: int | None = None) -> None:
        self.path, self.problem, self.line = str(path), problem, line
        where = f"{self.path}, line {line}" if line is not None else self.path
        super().__init__(f"{where}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:  # from the process of a worker
        return type(self), (self.path, self.problem, self.line)


class SchemaError(DeliverkitError):
    """A frame lacks a column or holds the wrong type: names the first thing wrong."""


class FactsError(DeliverkitError):
    """A fact asked for is not in the tables (provider, policy, rule), or a table is broken."""


class TargetError(DeliverkitError):
    """A probe that must not be run as asked: bad port, bad host name, bad limits."""
