"""Files of the authors' own programs into ours: read safely, renamed by a table, held against the model, recorded.

A method describes its formats as `Converter`s in `<method>/convert.py`; `projects.CONVERTERS` lists them all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

import segzoo
from segzoo.engine.checkpoint import read_checkpoint, write_atomically
from segzoo.engine.renaming import Renamed, Rule, bare_name, rename
from segzoo.engine.weights import count_by_part, mismatch_report
from segzoo.errors import CheckpointError, TrainingError

AUTO = "auto"
# Large, and of no use without the program that wrote it.
UNRECORDED = ("state_dict", "optimizer")
SHOWN_KEYS = 5
SHOWN_CHARACTERS = 80


@dataclass
class Source:
    """A file as it was found.

    Attributes:
        weights: its tensors under its own names.
        notes: the plain values that it holds beside them.
    """

    weights: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """The model that renamed weights belong to.

    Attributes:
        config_file: config of this repository that is nearest.
        options: config key -> value that the weights ask for; those that the config has already may be among them.
        found: what the names and shapes tell, in words, for the report.
        part: what stands before our names of all that such files hold, where that is not the whole model, such as
            ("backbone.",); () = the whole model.
    """

    config_file: str
    options: dict[str, Any]
    found: dict[str, str]
    part: tuple[str, ...] = ()


def read_pth(path: str) -> Source:
    """A torch file {"state_dict": ..., ...} as mmcv and most training programs write it, or a bare state dict.

    Raises:
        CheckpointError: not to be read without running its code, damaged, or without tensors.
    """
    content = read_checkpoint(path)
    weights = content.get("state_dict", content)
    odd = [key for key, value in weights.items() if not isinstance(value, Tensor)] if isinstance(weights, dict) else []
    if not isinstance(weights, dict) or not weights or odd:
        held = f"entry {odd[0]!r} is no tensor" if odd else "no tensors"
        raise CheckpointError(f"{path}: not a file of weights: {held}", "give a .pth file with a 'state_dict'")
    beside = {} if weights is content else {key: item for key, item in content.items() if key not in UNRECORDED}
    return Source(weights, plain_values(beside))


@dataclass(frozen=True)
class Converter:
    """One format of files.

    Attributes:
        name: what --format calls it.
        title: what it is, for people.
        mark: regular expression of a name that only such files hold.
        rules: their names -> ours.
        fit: renamed weights -> the model that they belong to; raises CheckpointError if they cannot tell.
        read: path -> the file's content; raises CheckpointError for files of another kind.
        claims: path -> whether its first bytes (or its name, where it has too few) are those of this kind only, so that
            nothing else need read it and this format tells what is wrong with it; None = they do not tell.
    """

    name: str
    title: str
    mark: str
    rules: Sequence[Rule]
    fit: Callable[[Mapping[str, Tensor]], Fit]
    read: Callable[[str], Source] = read_pth
    claims: Callable[[str], bool] | None = None

    def recognises(self, source: Source) -> bool:
        """Whether a name carries the mark."""
        return any(re.fullmatch(self.mark, bare_name(name)) for name in source.weights)


def open_source(path: str, converters: Sequence[Converter], name: str = AUTO) -> tuple[Converter, Source]:
    """Reads `path` as format `name`, or as the first of all that knows it.

    Raises:
        CheckpointError: unreadable, unsafe, or of no such format.
    """
    candidates = [converter for converter in converters if name in (AUTO, converter.name)]
    candidates = [converter for converter in candidates if converter.claims and converter.claims(path)] or candidates
    errors, sources = [], dict.fromkeys((converter.read for converter in candidates), Source({}))
    for read in sources:
        try:
            sources[read] = read(path)
        except CheckpointError as error:
            errors.append(error)
    if errors and len(errors) == len(sources):
        raise errors[0]
    for converter in candidates:
        if converter.recognises(sources[converter.read]):
            return converter, sources[converter.read]
    known = "; ".join(f"{converter.name} is {converter.title}" for converter in candidates)
    names = [key for source in sources.values() for key in source.weights]
    raise CheckpointError(
        f"{path}: not a file of format {name!r} (its {len(names)} entries: {', '.join(names[:SHOWN_KEYS])}, ...)",
        f"known formats: {known}",
    )


def convert(source: Source, converter: Converter, path: str) -> Renamed:
    """The weights of `source` under our names; what no rule knows is listed, not used.

    Raises:
        CheckpointError: two entries for one name, or values that are not finite.
    """
    try:
        renamed = rename(source.weights, converter.rules)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", error.remedy) from error
    wild = [theirs for theirs, ours in renamed.used.items() if not renamed.weights[ours].isfinite().all()]
    if wild:
        shown = ", ".join(wild[:SHOWN_KEYS])
        raise CheckpointError(
            f"{path}: NaN or infinite values in {len(wild)} entries: {shown}", "its training diverged; take another"
        )
    # Cloned: a view of a larger tensor would be written with all of it.
    renamed.weights = {name: value.detach().clone() for name, value in renamed.weights.items()}
    return renamed


def needed_options(cfg: CfgNode, options: Mapping[str, Any]) -> list[str]:
    """KEY VALUE words for the options in which `cfg` differs."""
    words = []
    for key, value in options.items():
        present = cfg
        for part in key.split("."):
            present = present[part]
        if present != value:
            words += [key, value if isinstance(value, str) else repr(value)]
    return words


def model_shapes(cfg: CfgNode) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of the state dict of `cfg`'s model, which is built without memory for its values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


@dataclass
class Report:
    """All that is said about one conversion.

    Attributes:
        record: provenance, see `provenance`.
        renamed: see there.
        missing: entries of the model that the file lacks, by our names.
        wrong_shape: "name (theirs) -> (the model's)".
        part: see `Fit`.
        left_out: entries of the model outside of `part`, which stay as they are initialised.
    """

    record: dict[str, Any]
    renamed: Renamed
    missing: list[str]
    wrong_shape: list[str]
    part: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """Why the weights cannot be used, "" if they can."""
        return mismatch_report(self.missing, self.renamed.unexpected, self.wrong_shape)

    @property
    def parameters(self) -> int:
        """Learned values: all but the statistics of batch norms."""
        return sum(value.numel() for name, value in self.renamed.weights.items() if ".running_" not in name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        return {
            **self.record,
            "parameters": self.parameters,
            "used": self.renamed.used,
            "missing": self.missing,
            "unexpected": self.renamed.unexpected,
            "wrong_shape": self.wrong_shape,
            "dropped": self.renamed.dropped,
            "part": list(self.part),
            "left_out": self.left_out,
        }

    def text(self) -> str:
        """Every name in its group, then what the file is and where it belongs."""
        groups = {
            "used": [f"{theirs} -> {ours}" for theirs, ours in self.renamed.used.items()],
            **{f"dropped ({why})": names for why, names in self.renamed.dropped.items()},
            "missing": self.missing,
            "unexpected": self.renamed.unexpected,
            "of another shape": self.wrong_shape,
        }
        lines = []
        for title, names in groups.items():
            lines += [f"{title}: {len(names)}", *(f"    {name}" for name in names)]
        record = self.record
        lines += [f"{key}: {record[key]}" for key in ("file", "sha256", "format", "date", "segzoo")]
        lines += [f"{key}: {_shortened(value)}" for key, value in _flat(record["notes"])]
        lines += [f"{what}: {value}" for what, value in record["found"].items()]
        if self.left_out:
            lines.append(f"not in such files, stays random: {count_by_part(self.left_out)}")
        config = shlex.join(["--config-file", record["config_file"], *record["options"]])
        return "\n".join([*lines, f"parameters: {self.parameters:,}", f"belongs to: {config}"])


def compare(
    renamed: Renamed, shapes: Mapping[str, tuple[int, ...]], record: dict[str, Any], part: tuple[str, ...] = ()
) -> Report:
    """Holds renamed weights against the model's shapes, key by key; only within `part` (see `Fit`) must all be there.

    Entries that the model does not have move to the unexpected ones. Counters of batch norms may be missing.
    """
    alien = [theirs for theirs, ours in renamed.used.items() if ours not in shapes]
    kept = {theirs: ours for theirs, ours in renamed.used.items() if ours in shapes}
    weights = {ours: renamed.weights[ours] for ours in kept.values()}
    absent = [name for name in shapes if name not in weights and not name.endswith("num_batches_tracked")]
    left_out = [name for name in absent if part and not name.startswith(part)]
    missing = [name for name in absent if name not in set(left_out)]
    wrong = [
        f"{name} {tuple(value.shape)} -> {shapes[name]}"
        for name, value in weights.items()
        if tuple(value.shape) != shapes[name]
    ]
    renamed = Renamed(weights, kept, renamed.dropped, renamed.unexpected + alien)
    return Report(record, renamed, missing, wrong, part, left_out)


def provenance(path: str, converter: Converter, source: Source, fit: Fit, options: Sequence[str]) -> dict[str, Any]:
    """Where weights come from, in plain values: kept inside the written file."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "file": os.path.basename(path),
        "sha256": digest,
        "format": converter.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "segzoo": segzoo.__version__,
        "config_file": fit.config_file,
        "options": list(options),
        "found": dict(fit.found),
        "notes": source.notes,
    }


def plain_values(value: Any) -> Any:
    """`value` with only numbers, texts and containers of them; whatever else lies in a container is left out."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items() if _is_plain(item)}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value if _is_plain(item)]
    return value


def _flat(notes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in notes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shortened(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | Mapping | list | tuple)


def write_converted(path: str, report: Report) -> None:
    """Writes {"model": weights, "source": provenance}, which `load_weights` reads; with "part" if it is only a part.

    Raises:
        CheckpointError: the file cannot be written.
    """
    dropped = {why: list(names) for why, names in report.renamed.dropped.items()}
    content: dict[str, Any] = {"model": report.renamed.weights, "source": {**report.record, "dropped": dropped}}
    if report.part:
        content["part"] = list(report.part)
    try:
        write_atomically(path, content)
    except TrainingError as error:
        # Its remedy speaks of training runs.
        raise CheckpointError(error.message, "check the folder of --output and the space on its disk") from error
