"""The methods of this repository; their papers' studies lie beside this file, one folder a method."""

from __future__ import annotations

from detectron2.config import CfgNode

import centermask
import centermask.convert
import fcosis
import orienmask
import orienmask.convert
import polarmask
import polarmask.convert
from segzoo.config import get_segzoo_cfg

# One entry a method: the package registers its meta-architectures on import and has add_config(cfg).
METHODS = (polarmask, orienmask, centermask, fcosis)
# Formats of released weights, for tools/convert_weights.py; the first that knows a file takes it.
CONVERTERS = (*polarmask.convert.CONVERTERS, *orienmask.convert.CONVERTERS, *centermask.convert.CONVERTERS)


def get_cfg() -> CfgNode:
    """Detectron2's, SegZoo's and every method's config keys with their defaults."""
    cfg = get_segzoo_cfg()
    for method in METHODS:
        method.add_config(cfg)
    return cfg
