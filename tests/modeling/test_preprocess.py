"""ImagePreprocessor against a plain computation."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import ImageList

from segzoo.modeling.preprocess import ImagePreprocessor

MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]


def random_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def normalised(image: torch.Tensor) -> torch.Tensor:
    return (image.float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("divisor", [0, 1, 32])
def test_preprocess_mixed_sizes_equals_detectron2(divisor: int) -> None:
    images = [random_image(33, 50), random_image(64, 20)]
    batch = ImagePreprocessor(MEAN, STD, divisor, "RGB")([{"image": image} for image in images])
    expected = ImageList.from_tensors([normalised(image) for image in images], divisor)
    assert torch.equal(batch.tensor, expected.tensor)
    assert batch.image_sizes == expected.image_sizes == [(33, 50), (64, 20)]


def test_preprocess_padding_is_the_mean_colour() -> None:
    batch = ImagePreprocessor(MEAN, STD, 32)([{"image": random_image(5, 7)}])
    assert batch.tensor.shape == (1, 3, 32, 32)
    assert batch.tensor[:, :, 5:].abs().sum() == 0
    assert batch.tensor[:, :, :, 7:].abs().sum() == 0


def test_preprocess_letterbox_pads_to_the_asked_size() -> None:
    batch = ImagePreprocessor(MEAN, STD, 32)([{"image": random_image(40, 90), "pad_to": (100, 90)}])
    assert batch.tensor.shape == (1, 3, 128, 96)
    assert batch.image_sizes == [(40, 90)]


def test_preprocess_float_images_are_not_divided_again() -> None:
    image = random_image(8, 8)
    module = ImagePreprocessor(MEAN, STD)
    assert torch.equal(module([{"image": image}]).tensor, module([{"image": image.float()}]).tensor)


def test_preprocess_statistics_are_not_in_the_checkpoint() -> None:
    assert list(ImagePreprocessor(MEAN, STD).state_dict()) == []
    with pytest.raises(ValueError, match="length"):
        ImagePreprocessor([0.0], STD)
