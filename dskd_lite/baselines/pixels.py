"""The simplest detector there is: how far each pixel is from what it was on normal images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dskd_lite.detector import Prediction, StoredDetector
from dskd_lite.errors import InputError

GREY_LEVEL = 1 / 255


class PixelStatisticsDetector(StoredDetector):
    """Mean and standard deviation of each pixel's colours, and the distance from them.

    The distance is the mean over the three colours of ``|x - mean| / (std + 1/255)``: one grey
    level more, or a pixel that never changed would make any change infinite. ``image_size``: side
    in pixels, a multiple of 32. ``smoothing_sigma``: Gaussian filter, in pixels. Raises InputError
    for an image size or a sigma that does not fit.
    """

    name = "pixel-statistics"
    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, smoothing_sigma: float = 4.0) -> None:
        super().__init__(None, image_size=image_size, smoothing_sigma=smoothing_sigma)
        self.register_buffer("mean", torch.zeros(3, image_size, image_size))
        self.register_buffer("std", torch.ones(3, image_size, image_size))

    def fit(self, images: np.ndarray) -> None:
        """Learn from normal images, uint8 (N, H, W, 3); InputError if there are fewer than two."""
        if len(images) < 2:
            raise InputError(f"{len(images)} normal images are not enough: give at least two")
        total, squares = np.zeros(images.shape[1:]), np.zeros(images.shape[1:])
        for image in images:
            total += image
            squares += image.astype(np.float64) ** 2
        mean = total / len(images)
        std = np.sqrt((squares / len(images) - mean**2).clip(0))
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.from_numpy(values / 255).permute(2, 0, 1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1] by the distance, from 0 up."""
        distance = ((images - self.mean).abs() / (self.std + GREY_LEVEL)).mean(1, keepdim=True)
        smooth = self.smoothing(distance)
        return Prediction(smooth, smooth.squeeze(1), smooth.flatten(1).amax(1))

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """The smoothed distance (B, H, W)."""
        return {self.name: self(images).fused_map}
