"""Loader workers share the memory of the data set that was read before they were forked."""

from __future__ import annotations

import gc

from torch.utils.data import Dataset

from segzoo.data.loader import _torch_loader


class FrozenObjects(Dataset):
    """Any index -> the number of objects that garbage collections of the worker pass over."""

    def __getitem__(self, index: int) -> int:
        return gc.get_freeze_count()


def test_worker_collections_leave_what_the_parent_made_alone() -> None:
    parents = [[number] for number in range(1000)]
    ((num_frozen,),) = list(_torch_loader(FrozenObjects(), [[0]], num_workers=1, seed=0))
    assert num_frozen >= len(parents)
    assert gc.get_freeze_count() < num_frozen
