"""Trains several models on one data set under one budget and reports on them side by side.

    python tools/compare.py --quick                         # generated scenes, all methods and Mask R-CNN, on a CPU
    python tools/compare.py --train-json train.json --train-images images --val-json val.json --val-images images \\
        --minutes 20 --output output/mine
    python tools/compare.py ... --method polarmask --method mask_rcnn --config-file mine=my.yaml --max-iter 5000 \\
        --batch 8 --seed 1 --seed 2 --seed 3 --num-gpus 1
    python tools/compare.py ... --report-only               # anew from what was trained

All models see the same images. A budget in minutes is that of the iterations alone: a few are timed first, and each
recipe's schedule is scaled to as many as fit. Each training has a folder of its own below --output; done ones are not
done again, interrupted ones go on. The report is <output>/report.html (one file, no network), report.md and
compare.json. Exit code 0: all was measured. 1: a training failed; the others are in the report. 2: a wrong input. 75
or 130: SIGTERM or Ctrl-C; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.compare.plan import METHODS, SUITES, Budget, Settings, choose_entries
from projects.compare.result import ReportSettings, compare
from projects.runs import DATA_FLAGS, PROCESS_FLAGS, add_run_flags, given_words
from segzoo.errors import ConfigError, SegZooError
from segzoo.evaluation.speed import PRECISIONS
from segzoo.report.write import write_report

# Of --quick: minutes of training a model, such that five of them and all else take less than 40 on two CPU cores.
QUICK_MINUTES = 4.0


def build_parser() -> argparse.ArgumentParser:
    """The options of this tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="output/compare", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help=f"--suite scenes --minutes {QUICK_MINUTES:g}")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    models = parser.add_argument_group("models")
    models.add_argument("--suite", choices=list(SUITES), help="configs of the methods (default: small)")
    models.add_argument("--method", action="append", default=[], metavar="NAME", help=f"of {', '.join(METHODS)}; may "
                        "be given again; default: all")  # fmt: skip
    models.add_argument("--config-file", action="append", default=[], metavar="[NAME=]FILE", help="a further model")
    models.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys for all models")
    budget = parser.add_argument_group("budget")
    budget.add_argument("--minutes", type=float, default=0.0, metavar="M", help="of training, each model and seed")
    budget.add_argument("--max-iter", type=int, default=0, metavar="N", help="instead: iterations of equal batches")
    budget.add_argument("--batch", type=int, default=0, metavar="B", help="images an iteration; default: the configs'")
    budget.add_argument("--seed", action="append", type=int, default=[], metavar="S", help="may be given again")
    budget.add_argument("--evaluations", type=int, default=1, metavar="E", help="of each training; default: at the end")
    report = parser.add_argument_group("report")
    report.add_argument("--title", default="", help="of the page")
    report.add_argument("--images", type=int, default=6, metavar="I", help="in the gallery (default: %(default)s)")
    report.add_argument(
        "--failures", type=int, default=8, metavar="F", help="shown of each model (default: %(default)s)"
    )
    report.add_argument("--speed-repeats", type=int, default=5, metavar="R", help="turns; 0 measures no speed")
    report.add_argument("--speed-batch", type=int, nargs="+", default=[1], metavar="B", help="default: %(default)s")
    report.add_argument("--precision", nargs="+", choices=list(PRECISIONS), help="default: all of them on a GPU, fp32 "
                        "on a CPU")  # fmt: skip
    add_run_flags(parser.add_argument_group("of every training, see train_net.py"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, measures, writes the report; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return _run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; the same command goes on", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    budget = _budget(args)
    settings = Settings(args.output, given_words(args, DATA_FLAGS), given_words(args, PROCESS_FLAGS), tuple(args.opts))
    entries = choose_entries(args.suite or ("scenes" if args.quick else "small"), args.method, args.config_file)
    report = ReportSettings(
        title=args.title,
        num_images=args.images,
        num_failures=args.failures,
        speed_repeats=args.speed_repeats,
        speed_batches=tuple(args.speed_batch),
        precisions=tuple(args.precision or ()),
    )
    comparison = compare(entries, budget, settings, report, trains=not args.report_only)
    paths = write_report(comparison, args.output)
    for path in (paths.page, paths.markdown, paths.json):
        print(path)
    failed = [run for model in comparison.models for run in model.runs if run.error]
    if args.json:
        print(json.dumps({**asdict(paths), "failed": len(failed)}))
    return 1 if failed else 0


def _budget(args: argparse.Namespace) -> Budget:
    minutes = args.minutes or (QUICK_MINUTES if args.quick and not args.max_iter else 0.0)
    if (minutes > 0) == (args.max_iter > 0) or min(minutes, args.max_iter) < 0:
        raise ConfigError(f"--minutes {minutes:g} and --max-iter {args.max_iter}", "give one of them, above 0")
    low = {"--batch": args.batch, "--images": args.images, "--failures": args.failures, "--seed": min(args.seed or [0])}
    for flag, value in (low | {"--speed-repeats": args.speed_repeats}).items():
        if value < 0:
            raise ConfigError(f"{flag} {value} is below 0")
    if min(args.evaluations, *args.speed_batch) < 1:
        raise ConfigError(f"--evaluations {args.evaluations}, --speed-batch {args.speed_batch} must be at least 1")
    if len(set(args.seed)) < len(args.seed):
        raise ConfigError(f"--seed is given twice: {args.seed}", "a seed has one training a model")
    return Budget(minutes, args.max_iter, args.batch, tuple(args.seed or [1]), args.evaluations)


if __name__ == "__main__":
    sys.exit(main())
