"""Draws docs/pictures/regularization.png (figure 6), and with a run docs/pictures/attention.png, of generated scenes.

    python -m projects.FCOSIS.draw_maps docs/pictures --run output/demo_fcosis

Shape shorthand: M objects of the scene, H, W its size in px.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np
import torch

from fcosis.fcosis import FCOSIS
from fcosis.pictures import regularization_pictures
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.scenes.samples import scene_sample
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.predictor import Predictor
from segzoo.engine.setup import CONFIG_NAME
from segzoo.errors import ConfigError, SegZooError
from segzoo.visualization import save_image, side_by_side

# Of no split of scenes-v1: two leaves, one across the other, with a crescent and a star on them, and a star apart.
SEED, INDEX = 7, 446
# FCOS's.
STRIDES, SIZES_OF_INTEREST = (8, 16, 32, 64, 128), (64.0, 128.0, 256.0, 512.0)
COLUMNS = 3


def draw_regularization(seed: int = SEED, index: int = INDEX) -> np.ndarray:
    """The scene and the weights of its positive locations by the three rules of figure 6."""
    image, instances = scene_sample(seed, index)
    pictures = {"scene": image, **regularization_pictures(image, instances, STRIDES, SIZES_OF_INTEREST)}
    return side_by_side(list(pictures.values()), list(pictures), columns=len(pictures))


def draw_attention(folder: str, seed: int = SEED, index: int = INDEX) -> np.ndarray:
    """The scene and what a run makes its masks of.

    Args:
        folder: OUTPUT_DIR of a training of FCOSIS on generated scenes.

    Raises:
        ConfigError: no run of FCOSIS, or it detects nothing.
    """
    cfg = merge_config(get_cfg(), os.path.join(folder, CONFIG_NAME))
    if cfg.MODEL.META_ARCHITECTURE != "FCOSIS":
        raise ConfigError(f"{folder} is a run of {cfg.MODEL.META_ARCHITECTURE}", "give one of FCOSIS")
    cfg.MODEL.WEIGHTS = trained_weights("", folder)
    model = Predictor(cfg).model
    assert isinstance(model, FCOSIS)
    image, _ = scene_sample(seed, index)
    channels = image[:, :, ::-1] if model.preprocessor.input_format == "RGB" else image
    pictures = model.map_pictures({"image": torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))})
    if not pictures:
        raise ConfigError(f"{folder} detects nothing in scene {index} of seed {seed}", "train it for longer")
    return side_by_side([image, *pictures.values()], ["scene", *pictures], columns=COLUMNS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", help="where the pictures go")
    parser.add_argument("--run", default="", metavar="DIR", help="OUTPUT_DIR of a training on generated scenes")
    args = parser.parse_args(arguments)
    try:
        save_image(os.path.join(args.folder, "regularization.png"), draw_regularization(), png_level=9)
        if args.run:
            save_image(os.path.join(args.folder, "attention.png"), draw_attention(args.run), png_level=9)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
