"""What is measured: a row is one representation with its settings, a group makes several rows from the same targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from projects.upper_bound.inputs import MaskList
    from projects.upper_bound.objects import ImageObjects


@dataclass(frozen=True)
class Row:
    """One representation.

    method: whose. title: its settings in words. input: size of the image in the network's input. settings: by name.
    is_method: False for what only explains another row, and is never a method's best.
    """

    method: str
    title: str
    input: str
    settings: dict[str, int | float | str] = field(default_factory=dict)
    is_method: bool = True

    @property
    def name(self) -> str:
        """Method and title."""
        return f"{self.method}: {self.title}"


class Group(Protocol):
    """Rows that share work; goes to other processes, so that it holds settings only."""

    @property
    def rows(self) -> list[Row]:
        """What it gives masks for."""

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks that come back of an image's objects, one list a row, at the image's size."""
