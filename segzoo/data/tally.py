"""Counting what was dropped or repaired, with the first few ids, for one summary instead of many warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class Tally:
    """Reasons, how often each occurred, and the first ids that it occurred with.

    Args:
        keep: ids remembered for each reason.
    """

    def __init__(self, keep: int = 5) -> None:
        self.keep = keep
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[Any]] = {}

    def add(self, reason: str, identifier: Any = None, count: int = 1) -> None:
        """Counts `reason` once more; `identifier` names the annotation, image or file if there is one."""
        self._counts[reason] = self._counts.get(reason, 0) + count
        first = self._first.setdefault(reason, [])
        if identifier is not None and len(first) < self.keep:
            first.append(identifier)

    def count(self, reason: str) -> int:
        """How often `reason` occurred."""
        return self._counts.get(reason, 0)

    def first(self, reason: str) -> list[Any]:
        """The first ids of `reason`, at most `keep`."""
        return list(self._first.get(reason, []))

    def total(self) -> int:
        """Sum over all reasons."""
        return sum(self._counts.values())

    def update(self, other: Tally) -> None:
        """Adds the counts and ids of `other`."""
        for reason in other:
            self.add(reason, count=other.count(reason))
            room = self.keep - len(self._first[reason])
            self._first[reason].extend(other.first(reason)[: max(room, 0)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{reason: {"count", "first"}}, ready for json."""
        return {reason: {"count": self.count(reason), "first": self.first(reason)} for reason in self}

    def rows(self) -> list[tuple[str, str, str]]:
        """(reason, count, first ids) as text, the most frequent first."""
        order = sorted(self._counts, key=lambda reason: -self._counts[reason])
        return [(reason, str(self.count(reason)), short_list(self._first[reason])) for reason in order]


def short_list(values: Iterable[Any]) -> str:
    """Values joined by commas."""
    return ", ".join(str(value) for value in values)
