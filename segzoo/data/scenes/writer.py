"""Writes generated scenes as a COCO data set, and `scenes-v1`, the one of all demos and comparisons."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import cv2
import numpy as np

from segzoo.data.scenes.annotations import annotate
from segzoo.data.scenes.layout import make_layout
from segzoo.data.scenes.shapes import CLASS_NAMES
from segzoo.data.scenes.textures import render
from segzoo.errors import DatasetError

logger = logging.getLogger(__name__)

# Another look or another mixture of objects is another data set: never change what version 1 draws.
SCENES_VERSION = 1
SCENES_V1 = "scenes-v1"
SCENES_V1_NAMES = ("scenes-v1_train", "scenes-v1_val")
IMAGE_SIZE_PX = 256
MIN_IMAGE_SIZE_PX = 64
# Set while worker processes draw, and inherited by them.
DRAWING_VARIABLE = "SEGZOO_DRAWING_SCENES"
# split -> (images, seed)
SCENES_V1_SPLITS = {"train": (2000, 1), "val": (200, 2)}
IMAGES_PER_JOB = 50
MAX_WORKERS = 4


def make_scene(seed: int, index: int, size_px: int = IMAGE_SIZE_PX) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draws scene `index` of a seed; the same at any time, in any order, on any machine.

    Returns:
        the image, (size_px, size_px, 3) uint8 BGR, and its COCO annotations without ids.
    """
    # Two generators, so that a change of colours would leave the masks as they are.
    layout = make_layout(np.random.default_rng([SCENES_VERSION, seed, index, 0]), size_px, size_px)
    return render(np.random.default_rng([SCENES_VERSION, seed, index, 1]), layout), annotate(layout)


class Drawing(NamedTuple):
    """A kind of scenes.

    draw: (seed, index, side in px) -> what `make_scene` gives; of a module, so that other processes can import it.
    class_names: of the category ids 1, 2 and so on. description, version: what the json says of it.
    """

    draw: Callable[[int, int, int], tuple[np.ndarray, list[dict[str, Any]]]]
    class_names: tuple[str, ...]
    description: str
    version: int


SCENES = Drawing(make_scene, CLASS_NAMES, "SegZoo generated scenes", SCENES_VERSION)


def generate_scenes(
    folder: str,
    num_images: int,
    seed: int,
    *,
    split: str = "train",
    size_px: int = IMAGE_SIZE_PX,
    num_workers: int | None = None,
    drawing: Drawing = SCENES,
) -> str:
    """Writes folder/{split}/000001.png ... and folder/{split}.json.

    Args:
        folder: made if it does not exist.
        num_images: how many.
        seed: of the data set; another seed gives other scenes.
        split: name of the json and of the image folder.
        size_px: side of the square images; objects scale with it (1/16 to 1/2 of it).
        num_workers: processes; None takes up to four, 0 or 1 draws in this one.
        drawing: what is drawn.

    Returns:
        the json's path.

    Raises:
        DatasetError: a number is out of range, or the folder cannot be written.
    """
    if num_images < 1 or size_px < MIN_IMAGE_SIZE_PX or seed < 0:
        raise DatasetError(
            f"generate_scenes: num_images={num_images}, size_px={size_px}, seed={seed}",
            f"give at least 1 image, at least {MIN_IMAGE_SIZE_PX} px and a seed >= 0",
        )
    image_folder = os.path.join(folder, split)
    try:
        os.makedirs(image_folder, exist_ok=True)
        annotations_per_image = _draw_all(drawing, image_folder, num_images, seed, size_px, num_workers)
        json_file = os.path.join(folder, f"{split}.json")
        with open(json_file, "w", encoding="utf-8") as stream:
            json.dump(_to_coco(drawing, annotations_per_image, seed, size_px), stream, separators=(",", ":"))
    except OSError as error:
        raise DatasetError(f"cannot write generated scenes to {folder}: {error}", "choose a writable folder") from error
    return json_file


def _draw_all(
    drawing: Drawing, image_folder: str, num_images: int, seed: int, size_px: int, num_workers: int | None
) -> list[list[dict[str, Any]]]:
    starts = range(0, num_images, IMAGES_PER_JOB)
    jobs = [(drawing, image_folder, seed, size_px, start, min(num_images, start + IMAGES_PER_JOB)) for start in starts]
    if num_workers is None:
        num_workers = min(MAX_WORKERS, os.cpu_count() or 1, len(jobs))
    if num_workers > 1 and _can_spawn():
        # Spawned, not forked: the caller may hold threads and a GPU.
        context = multiprocessing.get_context("spawn")
        with (
            contextlib.suppress(BrokenProcessPool),  # e.g. a script without the __main__ guard: draw here instead
            _environment(DRAWING_VARIABLE, "1"),
            ProcessPoolExecutor(num_workers, mp_context=context) as pool,
        ):
            return [annotations for batch in pool.map(_draw_range, jobs) for annotations in batch]
    return [annotations for job in jobs for annotations in _draw_range(job)]


def _can_spawn() -> bool:
    """Whether a child could start: not from a daemon (a loader's worker), nor when the program came by stdin."""
    main_file = getattr(sys.modules["__main__"], "__file__", None)
    return not multiprocessing.current_process().daemon and (main_file is None or os.path.isfile(main_file))


def _draw_range(job: tuple[Drawing, str, int, int, int, int]) -> list[list[dict[str, Any]]]:
    drawing, image_folder, seed, size_px, start, stop = job
    annotations_per_image = []
    # OpenCV's threads only get in each other's way on images this small; the caller's setting comes back.
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for index in range(start, stop):
        image, annotations = drawing.draw(seed, index, size_px)
        # PNG: decoders agree on it to the bit; level 1 is the quickest to write and to read.
        _, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        with open(os.path.join(image_folder, _file_name(index)), "wb") as stream:
            stream.write(encoded.tobytes())
        annotations_per_image.append(annotations)
    cv2.setNumThreads(num_threads)
    return annotations_per_image


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.png"


def _to_coco(
    drawing: Drawing, annotations_per_image: list[list[dict[str, Any]]], seed: int, size_px: int
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, annotations_of_image in enumerate(annotations_per_image):
        image_id = index + 1
        images.append({"id": image_id, "file_name": _file_name(index), "height": size_px, "width": size_px})
        for annotation in annotations_of_image:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {
        "info": {"description": drawing.description, "version": str(drawing.version), "seed": seed},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(drawing.class_names)],
    }


def ensure_scenes_v1(root: str | None = None) -> str:
    """Makes sure that root/scenes-v1 is there and complete; draws it once, about half a minute on two cores.

    The folder appears by one rename, so it is either absent or whole. A second process waits for the first.

    Args:
        root: folder of data sets; None takes $DETECTRON2_DATASETS, else ./datasets.

    Returns:
        the folder root/scenes-v1.

    Raises:
        DatasetError: the folder cannot be written, or holds something else.
    """
    root = os.path.expanduser(root or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    folder = os.path.join(root, SCENES_V1)
    if not os.path.isdir(folder):
        if DRAWING_VARIABLE in os.environ:
            # A spawned worker imports the caller's script; without a guard that one asks for the scenes again, and
            # would wait for a lock that its own parent holds.
            raise RuntimeError("the script lacks `if __name__ == '__main__':`")
        logger.info("Drawing %s into %s (once; half a minute on two free cores)", SCENES_V1, root)
        try:
            os.makedirs(root, exist_ok=True)
            with _locked(os.path.join(root, f".{SCENES_V1}.lock")):
                if not os.path.isdir(folder):
                    _write_scenes_v1(root, folder)
        except OSError as error:
            raise DatasetError(
                f"cannot write {folder}: {error}", "set DETECTRON2_DATASETS to a folder you may write"
            ) from error
    missing = [split for split in SCENES_V1_SPLITS if not os.path.isfile(os.path.join(folder, f"{split}.json"))]
    if missing:
        raise DatasetError(
            f"{folder} exists but is not {SCENES_V1}: {missing[0]}.json is missing", "remove it; it is drawn anew"
        )
    return folder


def _write_scenes_v1(root: str, folder: str) -> None:
    unfinished = tempfile.mkdtemp(prefix=f".{SCENES_V1}-", dir=root)
    try:
        for split, (num_images, seed) in SCENES_V1_SPLITS.items():
            generate_scenes(unfinished, num_images, seed, split=split)
        os.chmod(unfinished, 0o755)  # mkdtemp's folders are for their owner only
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for the processes started meanwhile."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Holds an exclusive lock that the system drops when the process dies."""
    try:
        import fcntl
    except ImportError:  # not on Windows; the rename still keeps a half-written folder out of sight
        yield
        return
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def scenes_v1(root: str | None = None) -> None:
    """Draws scenes-v1 if need be and registers "scenes-v1_train" and "scenes-v1_val" (see `ensure_scenes_v1`)."""
    from segzoo.data.registration import register_coco_json

    folder = ensure_scenes_v1(root)
    for name, split in zip(SCENES_V1_NAMES, SCENES_V1_SPLITS, strict=True):
        register_coco_json(name, os.path.join(folder, f"{split}.json"), os.path.join(folder, split))
