"""SegZoo: what the single-shot instance segmentation methods of this repository share.

The package never imports a method; the methods (polarmask, centermask, ...) import it.
"""

__version__ = "0.1.0"
