"""Random colours: the augmentation of an image's pixels alone."""

from __future__ import annotations

import numpy as np
from fvcore.transforms.transform import Transform

from segzoo.data.transforms import ColorTransform
from segzoo.errors import ConfigError

# Of blue, green and red of COCO's pixels in 0..1: the eigenvalues of their covariance, largest first, and the
# eigenvectors as columns. The figures are those that CornerNet and CenterNet publish (CenterNet,
# src/lib/datasets/dataset/coco.py).
PCA_EIGENVALUES = np.array([0.2141788, 0.01817699, 0.00341571])
PCA_EIGENVECTORS_BGR = np.array(
    [
        [-0.58752847, -0.69563484, 0.41340352],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.56089297, 0.71832671, 0.41158938],
    ]
)


class ColorJitter:
    """Random brightness, contrast, saturation (factors 1 +- s), hue (+- turns), in random order; 0 leaves one out.

    Then, with `lighting`, a shift along the principal components of COCO's colours, each by its eigenvalue times a
    normally distributed number of this deviation (Krizhevsky et al. 2012, with CenterNet's figures).
    """

    def __init__(
        self,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        image_format: str = "BGR",
        lighting: float = 0.0,
    ) -> None:
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, strength in strengths.items():
            limit = 0.5 if name == "hue" else 1.0
            if not 0.0 <= strength <= limit:
                raise ConfigError(f"INPUT.COLOR_JITTER.{name.upper()} is {strength}", f"use 0 to {limit}")
        if not 0.0 <= lighting <= 1.0:
            raise ConfigError(f"INPUT.COLOR_JITTER.LIGHTING is {lighting}", "use 0 to 1")
        self.strengths = {name: strength for name, strength in strengths.items() if strength > 0}
        self.image_format, self.lighting = image_format, lighting

    @property
    def is_on(self) -> bool:
        """Whether it changes anything."""
        return bool(self.strengths) or self.lighting > 0

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """Draws every amount, their order and the shift."""
        steps = []
        for name, strength in self.strengths.items():
            neutral = 0.0 if name == "hue" else 1.0
            steps.append((name, neutral + float(rng.uniform(-strength, strength))))
        order = rng.permutation(len(steps))
        return ColorTransform([steps[k] for k in order], self.image_format, self._shift(rng))

    def _shift(self, rng: np.random.Generator) -> tuple[float, float, float]:
        if self.lighting == 0:
            return 0.0, 0.0, 0.0
        amounts = PCA_EIGENVALUES * rng.normal(scale=self.lighting, size=3)
        blue, green, red = (255 * PCA_EIGENVECTORS_BGR @ amounts).tolist()
        return (blue, green, red) if self.image_format == "BGR" else (red, green, blue)
