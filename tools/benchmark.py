"""Times whole methods by stage, and the parts that are a method's own beside plain numpy programs for the same.

    python tools/benchmark.py speed [--config-file F ...] [--batch 1 4] [--precision fp32 bf16] [--fill] [--json]
    python tools/benchmark.py targets [--method polarmask] [--repeats 15] [--threads 1] [--device cpu] [--json]
    python tools/benchmark.py decode
    python tools/benchmark.py shape     (CenterMask's local shapes at object centres beside the map of all shapes)
    python tools/benchmark.py coloring  (FCOSIS's objects by colour groups beside one forward an object)

What is compared runs in turns in one process on the same input; only ratios say something about the programs, the times
belong to the machine. docs/performance.md says what the stages of `speed` mean.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from projects import speed
from segzoo.errors import ConfigError, SegZooError
from segzoo.evaluation.timing import Comparison

# What can be timed -> the method that is meant unless another is named.
DEFAULT_METHODS = {"targets": "polarmask", "decode": "polarmask", "shape": "centermask", "coloring": "fcosis"}
PROJECTS = Path(__file__).resolve().parents[1] / "projects"


def methods_with_benchmarks() -> dict[str, str]:
    """Name in small letters -> folder below projects/ that has a benchmark.py."""
    return {folder.lower(): folder for folder in sorted(path.parent.name for path in PROJECTS.glob("*/benchmark.py"))}


def build_argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--repeats", type=int, default=15, help="timed turns (default: %(default)s)")
    shared.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    shared.add_argument("--device", default="cpu", help='"cpu" or "cuda"; numpy programs stay on the CPU')
    shared.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART", help="what to time")
    speed.add_arguments(parts.add_parser("speed", parents=[shared], help="whole methods, by stage"))
    for part, method in DEFAULT_METHODS.items():
        own = parts.add_parser(part, parents=[shared], help="beside a plain program")
        own.add_argument(
            "--method", choices=list(methods_with_benchmarks()), default=method, help="default: %(default)s"
        )
    return parser


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: torch knows or sees no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is no device of torch", 'use "cpu" or "cuda"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no GPU", "use --device cpu")
    return device


def compare(part: str, method: str, repeats: int, device: torch.device) -> list[Comparison]:
    """Measures, and prints a line each.

    Raises:
        ConfigError: a part that the method does not offer.
    """
    benchmarks = importlib.import_module(f"projects.{methods_with_benchmarks()[method]}.benchmark").BENCHMARKS
    if part not in benchmarks:
        raise ConfigError(f"{method} has no benchmark {part!r}", f"it has {', '.join(benchmarks)}")
    print(f"{'':62}{'ours ms':>10}{'oracle ms':>12}{'ratio':>8}")
    rows = []
    for row in benchmarks[part](repeats, device):
        print(f"{row.name:62}{row.ours_ms:>10.2f}{row.oracle_ms:>12.2f}{row.ratio:>7.1f}x", flush=True)
        if row.ours_mb and row.oracle_mb:
            memory = f"{row.ours_mb:>7.1f} MiB{row.oracle_mb:>8.1f} MiB{row.oracle_mb / row.ours_mb:>7.1f}x"
            print(f"{'    memory at the peak':62}{memory}")
        rows.append(row)
    print(f"medians of {repeats} turns, {torch.get_num_threads()} thread(s), {device}, torch {torch.__version__}")
    return rows


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints one part; gives the values for json.

    Raises:
        ConfigError: a count below 1, an absent device, or what `compare` and `speed.run` refuse.
    """
    if min(args.repeats, args.threads) < 1:
        raise ConfigError(f"--repeats {args.repeats}, --threads {args.threads} must be at least 1")
    device = choose_device(args.device)
    torch.set_num_threads(args.threads)
    if args.part == "speed":
        return speed.run(args, device)
    rows = compare(args.part, args.method, args.repeats, device)
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    settings = {"part": args.part, "method": args.method, "threads": args.threads, "device": args.device}
    return {**settings, **machine, "rows": [row.as_dict() for row in rows]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    try:
        values = run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    if args.json:
        print(json.dumps(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
