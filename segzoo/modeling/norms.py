"""Batch norms by name, as the present run can have them."""

from __future__ import annotations

from detectron2.utils import comm

from segzoo.errors import ConfigError

BATCH_NORMS = ("BN", "SyncBN", "FrozenBN")


def norm_of_run(key: str, norm: str, device: str) -> str:
    """The name for Detectron2's `get_norm` of a batch norm in this process; entries of the state dict never differ.

    "SyncBN" is synchronised where there is something to synchronise: by torch's own on CUDA, by Detectron2's on a CPU
    (torch's refuses it), and is "BN" in a single process.

    Args:
        key: of the config, for the error.
        norm: one of `BATCH_NORMS`.
        device: MODEL.DEVICE, on which the model will run.

    Raises:
        ConfigError: another norm.
    """
    if norm not in BATCH_NORMS:
        raise ConfigError(f"{key} is {norm!r}", f"allowed: {', '.join(map(repr, BATCH_NORMS))}")
    if norm != "SyncBN":
        return norm
    if comm.get_world_size() == 1:
        return "BN"
    return "SyncBN" if device.startswith("cuda") else "naiveSyncBN"
