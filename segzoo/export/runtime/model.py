"""An exported model as a function of images.

Shape shorthand: N images, D detections, H, W size of an image in pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segzoo.errors import CheckpointError, ConfigError
from segzoo.export.runtime.decoders import DECODERS
from segzoo.export.runtime.detections import Detections, cut_window
from segzoo.export.runtime.images import Prepared, prepare, read_image

# Version of what the metadata means; a file of another one is refused.
FORMAT = 1
# Entries of the metadata, each json.
KEYS = ("format", "method", "decoder", "input", "classes", "settings", "identity", "second")
PREFIX = "segzoo."


def second_path(path: str | os.PathLike) -> Path:
    """Where the second graph of a model lies: model.onnx -> model.objects.onnx."""
    path = Path(path)
    return path.with_name(f"{path.stem}.objects{path.suffix}")


def load_model(path: str | os.PathLike, *, num_threads: int = 0, providers: Sequence[str] = ()) -> RuntimeModel:
    """A model written by tools/export.py, and the second file beside it where it has one.

    Args:
        path: the .onnx file.
        num_threads: of onnxruntime; 0 = its own choice.
        providers: of onnxruntime, in order; () = the CPU.

    Raises:
        CheckpointError: no such file, no ONNX model, one without our metadata or of another version, or a second file
            that is missing or belongs to another model.
        ConfigError: onnxruntime is not installed.
    """
    session = open_session(path, num_threads, providers)
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map, path)
    objects = None
    if metadata["second"]:
        beside = second_path(path)
        if not beside.is_file():
            raise CheckpointError(
                f"{path}: its second graph {beside} is missing", "keep the two files side by side, under these names"
            )
        objects = open_session(beside, num_threads, providers)
        if read_metadata(objects.get_modelmeta().custom_metadata_map, beside)["identity"] != metadata["identity"]:
            raise CheckpointError(f"{beside} belongs to another model than {path}", "copy both files of one export")
    return RuntimeModel(session, objects, metadata)


def open_session(path: str | os.PathLike, num_threads: int, providers: Sequence[str]) -> Any:
    """onnxruntime's session; errors as of `load_model`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("onnxruntime is not installed", "pip install onnxruntime") from error
    if not os.path.isfile(path):
        raise CheckpointError(f"model {path} does not exist", "tools/export.py writes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Its warnings are about initialisers that no user can change.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers) or _CPU)
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise CheckpointError(
            f"{path} is no ONNX model that onnxruntime {onnxruntime.__version__} reads: {str(error)[:200]}",
            "export it again, or take a newer onnxruntime",
        ) from error


_CPU = ["CPUExecutionProvider"]


def read_metadata(entries: Mapping[str, str], path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a file by KEYS.

    Raises:
        CheckpointError: an entry is missing or no json, the version is another, or the decoder is unknown.
    """
    absent = [key for key in KEYS if PREFIX + key not in entries]
    if absent:
        raise CheckpointError(
            f"{path} has no {', '.join(PREFIX + key for key in absent)} in its metadata", "export it by tools/export.py"
        )
    try:
        metadata = {key: json.loads(entries[PREFIX + key]) for key in KEYS}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its metadata is no json: {error}", "export it again") from error
    if metadata["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of format {metadata['format']}, this program reads {FORMAT}", "export it again with this one"
        )
    if metadata["decoder"] not in DECODERS:
        raise CheckpointError(
            f"{path} wants the decoder {metadata['decoder']!r}; known are {', '.join(DECODERS)}", "update SegZoo"
        )
    return metadata


class RuntimeModel:
    """Detects the objects of images.

    Args:
        session: onnxruntime's, of the graph from images to maps.
        objects: that of the second graph, or None.
        metadata: see `read_metadata`.
    """

    def __init__(self, session: Any, objects: Any, metadata: dict[str, Any]) -> None:
        self.session, self.objects, self.metadata = session, objects, metadata
        self.outputs = [output.name for output in session.get_outputs()]
        self.class_names: list[str] = list(metadata["classes"])
        # May be changed, such as "score_threshold".
        self.settings: dict[str, Any] = dict(metadata["settings"])

    def __call__(self, image: np.ndarray | str | os.PathLike) -> Detections:
        """The detections of one image at its own size, best first.

        Args:
            image: (H, W, 3) uint8 in BGR order as OpenCV reads it, or the path of a file.

        Raises:
            DatasetError: the file cannot be read.
            ConfigError: the image does not fit into a graph of fixed size.
            ValueError: an array of another shape or type.
        """
        prepared = prepare(image if isinstance(image, np.ndarray) else read_image(image), self.metadata["input"])
        return self.decode(self.maps(prepared.batch), prepared)

    def maps(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """(N, 3, H, W) float32, as `prepare` makes it -> the raw maps by name.

        Raises:
            ConfigError: a batch or a size that the graph does not take.
        """
        rule = self.metadata["input"]
        if batch.ndim != 4 or batch.shape[1] != 3 or batch.dtype != np.float32:
            raise ConfigError(f"a batch must be (N, 3, H, W) float32, got {batch.shape} {batch.dtype}")
        size, divisor = batch.shape[2:], max(1, rule["divisor"])
        if rule["size"] and tuple(size) != tuple(rule["size"]):
            raise ConfigError(
                f"an input of {size[0]} x {size[1]}, the model takes {rule['size'][0]} x {rule['size'][1]} only",
                "export without --size",
            )
        if any(side < 1 or side % divisor for side in size):
            raise ConfigError(
                f"an input of {size[0]} x {size[1]}: sides must be multiples of {divisor}",
                "pad at the right and the bottom, as segzoo.export.runtime.images.prepare does",
            )
        if rule["batch"]:
            return self._in_parts(batch, rule["batch"])
        return dict(zip(self.outputs, self.session.run(None, {"images": batch})))

    def _in_parts(self, batch: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """A graph of a fixed batch sees so many images at a time, the last time some of zeros."""
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part)
            filled = np.concatenate((part, np.zeros((missing, *batch.shape[1:]), np.float32))) if missing else part
            parts.append([values[: len(part)] for values in self.session.run(None, {"images": filled})])
        return {name: np.concatenate(values) for name, values in zip(self.outputs, zip(*parts))}

    def decode(self, maps: Mapping[str, np.ndarray], image: Prepared) -> Detections:
        """The detections of one image from its maps (1, C, h, w)."""
        objects = self._run_objects if self.objects is not None else None
        found = DECODERS[self.metadata["decoder"]](maps, self.settings, image, objects)
        return found if image.window is None else cut_window(found, image.window)

    def _run_objects(self, *inputs: np.ndarray) -> np.ndarray:
        names = [entry.name for entry in self.objects.get_inputs()]
        result: np.ndarray = self.objects.run(None, dict(zip(names, inputs, strict=True)))[0]
        return result
