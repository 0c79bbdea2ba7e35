"""The command line of train_net.py."""

from __future__ import annotations

import argparse

EPILOG = """
examples:
  python train_net.py --config-file configs/polarmask_R50.yaml --num-gpus 8
  python train_net.py --config-file F --train-json J --train-images D --val-json J --val-images D OUTPUT_DIR out
  python train_net.py --config-file F --resume OUTPUT_DIR out
  python train_net.py --config-file F --eval-only MODEL.WEIGHTS out/model_best.pth
  torchrun --nproc_per_node 2 train_net.py --config-file F MODEL.DEVICE cpu

exit codes: 0 done; 2 the input is at fault (data, config, checkpoint); 3 training had to stop (a loss that is not
finite, a full disk); 75 stopped by SIGTERM with a checkpoint, resume me; 130 Ctrl-C, with a checkpoint.
"""


def build_argument_parser() -> argparse.ArgumentParser:
    """All flags; what is not a flag is a KEY VALUE pair of the config."""
    parser = argparse.ArgumentParser(
        description="Train, resume or evaluate any method of this repository.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="F", help="yaml file, see configs/")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    parser.add_argument("--force", action="store_true", help="resume even though the config differs")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (else OUTPUT_DIR's best) on DATASETS.TEST"
    )
    parser.add_argument("--allow-head-mismatch", action="store_true", help="load what fits of MODEL.WEIGHTS")
    parser.add_argument("--skip-audit", action="store_true", help="do not check the data sets before training")
    data = parser.add_argument_group("own data (COCO json)")
    data.add_argument("--train-json", default="", metavar="J", help="annotations; the set is named train_json")
    data.add_argument("--train-images", default="", metavar="D", help="folder of its images")
    data.add_argument("--val-json", default="", metavar="J", help="annotations; the set is named val_json")
    data.add_argument("--val-images", default="", metavar="D", help="folder of its images")
    processes = parser.add_argument_group("processes (torchrun sets them itself)")
    processes.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs, one process each, per machine")
    processes.add_argument("--num-processes", type=int, default=1, metavar="N", help="processes on a CPU, per machine")
    processes.add_argument("--num-machines", type=int, default=1, metavar="N")
    processes.add_argument("--machine-rank", type=int, default=0, metavar="R", help="0 .. num-machines - 1")
    processes.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://<machine 0>:<port>; auto = a free port, one machine"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change, after all flags")
    return parser
