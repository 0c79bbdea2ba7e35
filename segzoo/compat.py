"""What differs between versions of the libraries; each entry has a test that shows the difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def numpy_float_alias() -> Iterator[None]:
    """`np.float` meanwhile, which numpy 1.24 took away and lvis 0.5.3, its latest release, still asks for."""
    if "float" in vars(np):
        yield
        return
    np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]
