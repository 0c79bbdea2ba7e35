"""A model of a few parameters, a data set of a few images, and train_net's main over them, for subprocesses too."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn
from torch.nn import functional

from segzoo.config import get_segzoo_cfg
from segzoo.engine import trainer as trainer_module
from segzoo.engine.arguments import build_argument_parser
from segzoo.engine.launch import launch
from segzoo.engine.setup import setup
from segzoo.engine.trainer import Trainer

NUM_IMAGES = 12
# FAULT strikes in the forward pass of this number (from 0), in the process of this rank.
FAULT = os.environ.get("TINY_FAULT", "")
FAULT_ITERATION = int(os.environ.get("TINY_FAULT_ITERATION", "-1"))
FAULT_RANK = int(os.environ.get("TINY_FAULT_RANK", "0"))


@META_ARCH_REGISTRY.register()
class TinyNet(nn.Module):
    """Two convolutions with batch norm and dropout; its losses depend on the images, the instances and the RNG."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        num_classes = cfg.MODEL.FCOS.NUM_CLASSES
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Conv2d(8, num_classes, 1)
        self.box_head = nn.Linear(8, 4)
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("normalizer", torch.ones(()))
        # As in every model: of the config, not learned.
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN), persistent=False)
        self.is_stateful = True

    def forward(self, batched_inputs: list[dict]) -> object:
        images = torch.stack([functional.interpolate(x["image"][None].float(), (64, 64))[0] for x in batched_inputs])
        features = self.backbone(images.to(self.head.weight.device) / 64 - 2)
        if not self.training:
            return features
        logits = self.head(features).mean(dim=(2, 3)).float()
        targets = torch.zeros_like(logits)
        for row, sample in enumerate(batched_inputs):
            targets[row, sample["instances"].gt_classes.to(logits.device)] = 1.0
        counts = torch.tensor([len(x["instances"]) for x in batched_inputs], device=logits.device)
        boxes = self.box_head(features.mean(dim=(2, 3)).to(self.box_head.weight.dtype)).float().mean(dim=1)
        if self.is_stateful:
            self.normalizer.mul_(0.9).add_(0.1 * counts.float().mean())
        loss_cls = functional.binary_cross_entropy_with_logits(logits, targets)
        loss_box = ((boxes - 1).square() * counts).mean() / self.normalizer.clamp(min=1.0)
        self.num_calls += 1
        return {"loss_cls": loss_cls, "loss_box": self._strike(loss_box)}

    def _strike(self, loss: torch.Tensor) -> torch.Tensor:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if rank != FAULT_RANK or self.num_calls.item() - 1 != FAULT_ITERATION:
            return loss
        if FAULT == "nan":
            return loss * float("nan")
        if FAULT == "GROUP_TERM":
            os.killpg(os.getpgrp(), signal.SIGTERM)
        if FAULT in ("KILL", "TERM", "INT"):
            os.kill(os.getpid(), getattr(signal, f"SIG{FAULT}"))
        return loss


def write_tiny_coco(folder: Path, num_images: int = NUM_IMAGES, num_empty: int = 0, num_classes: int = 3) -> list[str]:
    """PNGs of 40x48 px with a rectangle or two each (the last `num_empty` with none); returns flags for train_net."""
    rng = np.random.default_rng(7)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(num_images):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        for _ in range(0 if index >= num_images - num_empty else 1 + index % 2):
            x, y, w, h = (int(v) for v in rng.integers((1, 1, 8, 8), (24, 20, 20, 16)))
            pixels[y : y + h, x : x + w] //= 4
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            category = 1 + len(annotations) % num_classes
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": category, "bbox": [x, y, w, h]}
                | {"segmentation": [polygon], "area": w * h, "iscrowd": 0}
            )
        name = f"{index:03d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "width": 48, "height": 40})
    categories = [{"id": k + 1, "name": f"kind{k}"} for k in range(num_classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "tiny.json").write_text(json.dumps(content))
    return ["--train-json", str(folder / "tiny.json"), "--train-images", str(folder / "images")]


def tiny_options(output_dir: Path, **changes: object) -> list[str]:
    """KEY VALUE pairs of a run of TinyNet; keyword SOLVER__MAX_ITER=3 gives "SOLVER.MAX_ITER 3"."""
    options = {
        "OUTPUT_DIR": str(output_dir),
        "MODEL.META_ARCHITECTURE": "TinyNet",
        "MODEL.WEIGHTS": "",
        "MODEL.DEVICE": "cpu",
        "SEED": "3",
        "INPUT.MIN_SIZE_TRAIN": "(40, 48)",
        "SOLVER.IMS_PER_BATCH": "4",
        "SOLVER.MAX_ITER": "8",
        "SOLVER.STEPS": "()",
        "SOLVER.BASE_LR": "0.01",
        "SOLVER.WARMUP_ITERS": "3",
        "SOLVER.LOG_PERIOD": "1",
        "DATALOADER.NUM_WORKERS": "0",
    }
    options |= {key.replace("__", "."): str(value) for key, value in changes.items()}
    return [word for pair in options.items() for word in pair]


def tiny_config(arguments: list[str]) -> CfgNode:
    """The frozen config of a run in this process, after setup."""
    return setup(get_segzoo_cfg(), build_argument_parser().parse_intermixed_args(arguments))


def read_losses(output_dir: Path) -> dict[int, tuple[float, float, float]]:
    """{iteration: (total_loss, loss_cls, loss_box)} of metrics.json; an iteration written twice is an error."""
    losses: dict[int, tuple[float, float, float]] = {}
    for line in (output_dir / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        if "total_loss" in entry:
            if entry["iteration"] in losses:
                raise ValueError(f"iteration {entry['iteration']} stands twice in metrics.json")
            losses[entry["iteration"]] = (entry["total_loss"], entry["loss_cls"], entry["loss_box"])
    return losses


def record_evaluation(cfg: CfgNode, model: nn.Module) -> dict:
    """Stands for evaluate_datasets: notes what this rank would evaluate."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(model.state_dict(), os.path.join(cfg.OUTPUT_DIR, f"evaluated_rank{rank}.pt"))
    return {"tiny": {"segm": {"AP": 1.0}}} if rank == 0 else {}


def main(args) -> None:  # type: ignore[no-untyped-def]
    """What train_net's main does, for TinyNet; dumps each rank's weights at the end."""
    torch.set_num_threads(1)
    trainer_module.evaluate_datasets = record_evaluation
    cfg = setup(get_segzoo_cfg(), args)
    trainer = Trainer(cfg, resume=args.resume, force=args.force)
    trainer.train()
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(dict(trainer.model.named_parameters()), os.path.join(cfg.OUTPUT_DIR, f"weights_rank{rank}.pt"))


if __name__ == "__main__":
    sys.exit(launch(main, build_argument_parser().parse_intermixed_args(), "cpu"))
