"""What the demo reads and how it names what it writes."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

IMAGE_ENDINGS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
VIDEO_ENDINGS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))


def find_images(inputs: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Expands files, folders and glob patterns.

    A folder gives its own files with an image's ending, sorted by name (not those of its subfolders). A file named
    by itself is tried whatever its ending.

    Returns:
        the images, each once, in order; and (input, reason) of what cannot be an image.
    """
    images: dict[str, None] = {}
    refused: list[tuple[str, str]] = []
    for entry in inputs:
        if os.path.isdir(entry):
            found = [os.path.join(entry, name) for name in sorted(os.listdir(entry)) if _has_image_ending(name)]
            reason = f"the folder holds no image ({', '.join(sorted(IMAGE_ENDINGS))})"
        elif os.path.exists(entry):
            # First, so that a file with a bracket in its name is not taken for a pattern.
            found, reason = [entry], ""
        else:
            found = sorted(path for path in glob.glob(entry, recursive=True) if os.path.isfile(path))
            reason = "no such file or folder, and as a pattern it matches none"
        if not found:
            refused.append((entry, reason))
        for path in found:
            if os.path.splitext(path)[1].lower() in VIDEO_ENDINGS:
                refused.append((path, "is a video; the demo takes images: extract its frames, e.g. by ffmpeg"))
            else:
                images[path] = None
    return list(images), refused


def _has_image_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def overlay_names(images: Sequence[str]) -> list[str]:
    """A PNG name for each image; equal stems are told apart by _2, _3 ..."""
    names: list[str] = []
    used: set[str] = set()
    for path in images:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, number = f"{stem}.png", 2
        # Compared without case: some file systems do not tell A.png from a.png.
        while name.lower() in used:
            name, number = f"{stem}_{number}.png", number + 1
        used.add(name.lower())
        names.append(name)
    return names
