"""Counting the ground truths that a training's centre part leaves out, with few lines in the log."""

from __future__ import annotations

import logging

from centermask.targets import NotTrained

logger = logging.getLogger(__name__)


class LeftOut:
    """Sums up what was left out, and logs the sums whenever they have doubled."""

    def __init__(self) -> None:
        self.flat = 0
        self.surplus = 0
        self._next = 1

    def add(self, batch: NotTrained, max_objects: int) -> None:
        """Adds a batch's counts.

        Args:
            batch: see `collect_objects`.
            max_objects: MAX_OBJECTS, for the message.
        """
        self.flat += batch.flat
        self.surplus += batch.surplus
        total = self.flat + self.surplus
        if total < self._next:
            return
        self._next = 2 * total
        logger.warning(
            "not trained on so far: %d objects beyond MODEL.CENTERMASK.MAX_OBJECTS %d of an image, %d without width or "
            "height in the maps",
            *(self.surplus, max_objects, self.flat),
        )
