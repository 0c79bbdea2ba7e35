"""Times the parts of a method that are its own, beside plain numpy programs that compute the same.

    python tools/benchmark.py targets [--method polarmask] [--repeats 15] [--threads 1] [--device cpu] [--json]
    python tools/benchmark.py decode
    python tools/benchmark.py shape     (CenterMask's local shapes at object centres beside the map of all shapes)
    python tools/benchmark.py coloring  (FCOSIS's objects by colour groups beside one forward an object)

Both run in turns in one process on the same input, after their results were compared; only the ratio says something
about the program, the times belong to the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

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
    parser.add_argument("part", choices=list(DEFAULT_METHODS), help="what to time")
    parser.add_argument(
        "--method",
        choices=list(methods_with_benchmarks()),
        help="default: polarmask, of shape centermask, of coloring fcosis",
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help='device of ours, "cpu" or "cuda"; the oracle needs the CPU')
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def run(part: str, method: str, repeats: int, threads: int, device_name: str) -> list[Comparison]:
    """Measures, and prints a line each.

    Raises:
        ConfigError: a count below 1, an absent device, or a part that the method does not offer.
    """
    if min(repeats, threads) < 1:
        raise ConfigError(f"--repeats {repeats}, --threads {threads} must be at least 1")
    try:
        device = torch.device(device_name)
    except RuntimeError as error:
        raise ConfigError(f"--device {device_name!r} is no device of torch", 'use "cpu" or "cuda"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device_name}: torch sees no GPU", "use --device cpu")
    benchmarks = importlib.import_module(f"projects.{methods_with_benchmarks()[method]}.benchmark").BENCHMARKS
    if part not in benchmarks:
        raise ConfigError(f"{method} has no benchmark {part!r}", f"it has {', '.join(benchmarks)}")
    torch.set_num_threads(threads)
    print(f"{'':62}{'ours ms':>10}{'oracle ms':>12}{'ratio':>8}")
    rows = []
    for row in benchmarks[part](repeats, device):
        print(f"{row.name:62}{row.ours_ms:>10.2f}{row.oracle_ms:>12.2f}{row.ratio:>7.1f}x", flush=True)
        if row.ours_mb and row.oracle_mb:
            memory = f"{row.ours_mb:>7.1f} MiB{row.oracle_mb:>8.1f} MiB{row.oracle_mb / row.ours_mb:>7.1f}x"
            print(f"{'    memory at the peak':62}{memory}")
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    args.method = args.method or DEFAULT_METHODS[args.part]
    try:
        rows = run(args.part, args.method, args.repeats, args.threads, args.device)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    print(f"medians of {args.repeats} turns, {args.threads} thread(s), {args.device}, torch {torch.__version__}")
    if args.json:
        conditions = {"part": args.part, "method": args.method, "threads": args.threads, "device": args.device}
        machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
        print(json.dumps({**conditions, **machine, "rows": [row.as_dict() for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
