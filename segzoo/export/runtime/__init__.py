"""Exported models without torch and Detectron2: onnxruntime, numpy, OpenCV and pycocotools are all it needs.

    python -m segzoo.export.runtime model.onnx photo.jpg --output photo.json --picture photo.png

    from segzoo.export.runtime import load_model
    detections = load_model("model.onnx")("photo.jpg")      # boxes, scores, classes, masks as run lengths

Where the decoding lives. The file of a model says in its metadata which decoder it wants and with what settings
(`segzoo.export.plan`). The decoders lie here, one module for each way in which maps become masks (`polar`, `shapes`,
`orientation`, `attention`, `regions`), and not beside the methods, for three reasons: a method's package registers its
network with Detectron2 when it is imported, and so imports torch; `segzoo` imports no method, not even by a name that
it reads in a file (a file that decides what is imported is a way in for strangers); and a server can take this folder,
segzoo/errors.py and two numpy modules of segzoo/geometry, and nothing else. What a decoder does is written down twice
therefore, there in torch for every device, here in numpy; tests/export holds the two together for every method.

Shape shorthand in this package: D detections, K classes, C channels, H, W size of the output image in pixels, h, w size
of a map, R locations of all levels.
"""

from segzoo.export.runtime.detections import Detections
from segzoo.export.runtime.images import read_image
from segzoo.export.runtime.model import RuntimeModel, load_model

__all__ = ["Detections", "RuntimeModel", "load_model", "read_image"]
