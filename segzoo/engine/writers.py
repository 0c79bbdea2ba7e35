"""metrics.json: one line a log period with the values of that very iteration, also across resumes."""

from __future__ import annotations

import json
import os

from detectron2.utils.events import JSONWriter

from segzoo.engine.checkpoint import write_atomically


class MetricsJsonWriter(JSONWriter):
    """Detectron2's json writer without its median, so that two runs can be compared bit for bit.

    Args:
        path: json lines; lines of iterations from `start_iteration` on, which a killed run wrote after its last
            checkpoint, are dropped, as is a half-written last line.
        start_iteration: where this run starts.
    """

    def __init__(self, path: str, start_iteration: int) -> None:
        if os.path.isfile(path):
            write_atomically(path, "".join(_kept_lines(path, start_iteration)))
        super().__init__(path, window_size=1)


def _kept_lines(path: str, start_iteration: int) -> list[str]:
    kept = []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            try:
                iteration = json.loads(line)["iteration"]
            except (ValueError, KeyError, TypeError):
                continue
            if iteration < start_iteration:
                kept.append(line)
            elif iteration == start_iteration:
                # Results of the evaluation ("segm/AP") of the weights that are resumed from stay.
                results = {key: value for key, value in json.loads(line).items() if "/" in key}
                if results:
                    kept.append(json.dumps({**results, "iteration": iteration}) + "\n")
    return kept
