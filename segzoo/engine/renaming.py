"""Names of other programs' weights into ours, by tables of rules: the words that the tables are written in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from segzoo.errors import CheckpointError

# {group}, {group+1}, {group-1}, {3*group} and {3*group+1} of a template.
_FIELD = re.compile(r"\{(?:(?P<factor>\d+)\*)?(?P<group>[a-z_]+)(?P<offset>[+-]\d+)?\}")

LEAF = r"(?P<leaf>weight|bias)"
NORM_LEAF = r"(?P<leaf>weight|bias|running_mean|running_var)"
BLOCK = r"layer(?P<stage>[1-4])\.(?P<block>\d+)"


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        pattern: regular expression that their whole name must match; its groups are named.
        template: our name, with {group} for what a group matched and {3*group+1} for a number worked out of it;
            "" = the entry is dropped.
        why: the reason for dropping it.
        shape: what the value is reshaped to; None = it stays as it is.
        order: our row i of the value is their row order[i], where two programs list channels differently; () = the
            same order.
    """

    pattern: str
    template: str
    why: str = ""
    shape: tuple[int, ...] | None = None
    order: tuple[int, ...] = ()


@dataclass
class Renamed:
    """What a table made of a dictionary of weights.

    Attributes:
        weights: the values under our names.
        used: their name -> our name.
        dropped: reason -> their names.
        unexpected: their names that no rule knows.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


# Of no use to frozen batch norms, and to others only where they average without momentum.
DROP_COUNTERS = Rule(r".+\.num_batches_tracked", "", why="counter of training steps, which evaluation does not read")


def resnet_rules(source: str, target: str) -> tuple[Rule, ...]:
    """A ResNet or ResNeXt named as torchvision does (so does mmdetection) into Detectron2's names.

    Args:
        source, target: what stands before the names, such as "backbone." and "backbone.bottom_up.".
    """
    table = (
        (r"conv1\.weight", "stem.conv1.weight"),
        (rf"bn1\.{NORM_LEAF}", "stem.conv1.norm.{leaf}"),
        (rf"{BLOCK}\.conv(?P<conv>[1-3])\.weight", "res{stage+1}.{block}.conv{conv}.weight"),
        (rf"{BLOCK}\.bn(?P<conv>[1-3])\.{NORM_LEAF}", "res{stage+1}.{block}.conv{conv}.norm.{leaf}"),
        (rf"{BLOCK}\.downsample\.0\.weight", "res{stage+1}.{block}.shortcut.weight"),
        (rf"{BLOCK}\.downsample\.1\.{NORM_LEAF}", "res{stage+1}.{block}.shortcut.norm.{leaf}"),
    )
    return tuple(Rule(re.escape(source) + pattern, target + template) for pattern, template in table)


def bare_name(name: str) -> str:
    """`name` without the "module." that a wrapper for several GPUs leaves before it."""
    return name.removeprefix("module.")


def rename(weights: Mapping[str, Tensor], rules: Iterable[Rule]) -> Renamed:
    """Applies to every entry the first rule that knows its `bare_name`.

    Raises:
        CheckpointError: two entries ask for one name, or a value cannot take the shape or order of its rule.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    result = Renamed()
    for name, value in weights.items():
        found = next(((match, rule) for regex, rule in compiled if (match := regex.fullmatch(bare_name(name)))), None)
        if found is None:
            result.unexpected.append(name)
        elif not found[1].template:
            result.dropped.setdefault(found[1].why, []).append(name)
        else:
            _use(result, name, _fill(found[1].template, found[0]), _arrange(name, value, found[1]))
    return result


def _use(result: Renamed, theirs: str, ours: str, value: Tensor) -> None:
    if ours in result.weights:
        other = next(name for name, taken in result.used.items() if taken == ours)
        raise CheckpointError(f"entries {other!r} and {theirs!r} are both {ours}", "remove one of them from the file")
    result.weights[ours] = value
    result.used[theirs] = ours


def _fill(template: str, match: re.Match[str]) -> str:
    def value(place: re.Match[str]) -> str:
        text = match[place["group"]]
        if place["factor"] is None and place["offset"] is None:
            return text
        return str(int(place["factor"] or 1) * int(text) + int(place["offset"] or 0))

    return _FIELD.sub(value, template)


def _arrange(name: str, value: Tensor, rule: Rule) -> Tensor:
    if rule.order:
        if tuple(value.shape[:1]) != (len(rule.order),):
            raise CheckpointError(f"entry {name!r} is {tuple(value.shape)}, not one of {len(rule.order)} rows")
        value = value[list(rule.order)]
    if rule.shape is None:
        return value
    try:
        return value.reshape(rule.shape)
    except RuntimeError as error:
        raise CheckpointError(f"entry {name!r} is {tuple(value.shape)}, not {rule.shape}") from error
