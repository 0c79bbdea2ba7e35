"""Settings of every test: one thread, fixed seeds, and where the reference data lies."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Set before torch is imported: `make test` runs one process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# No test may reach for the network behind our backs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state, in whatever order and process it runs."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def catalogs_restored() -> Iterator[None]:
    """What a test registers, replaces or removes in the catalogs of data sets is undone after it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from segzoo.data import registration

    datasets, sources = dict(DatasetCatalog.data), dict(registration._sources)
    metadata = {name: (entry, dict(entry.__dict__)) for name, entry in MetadataCatalog.data.items()}
    yield
    DatasetCatalog.data = datasets
    MetadataCatalog.data = {name: entry for name, (entry, _) in metadata.items()}
    for entry, attributes in metadata.values():
        entry.__dict__.clear()
        entry.__dict__.update(attributes)
    registration._sources.clear()
    registration._sources.update(sources)


@pytest.fixture(autouse=True)
def loggers_restored() -> Iterator[None]:
    """A run in a test's process takes its loggers to its own folder, where caplog of later tests would not see them."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    before = {logger: (logger.propagate, list(logger.handlers), logger.level) for logger in loggers}
    yield
    for logger, (propagate, handlers, level) in before.items():
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference_root() -> Path:
    """The folder of the reference data ($SEGZOO_REFERENCE, else `shared` beside the checkout), or a skip."""
    root = Path(os.environ.get("SEGZOO_REFERENCE", REPOSITORY.parent / "shared"))
    if not root.is_dir():
        pytest.skip(f"no reference data at {root}; set SEGZOO_REFERENCE to its folder")
    return root


@pytest.fixture(scope="session")
def parity(reference_root: Path) -> ModuleType:
    """The reader of what the authors' programs compute (load, state_dict, unpack), or a skip."""
    path = reference_root / "parity" / "reference.py"
    if not path.is_file():
        pytest.skip(f"no {path}")
    spec = importlib.util.spec_from_file_location("segzoo_parity_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
