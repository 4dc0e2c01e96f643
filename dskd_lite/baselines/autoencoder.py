"""A small convolutional autoencoder on pixels: what it cannot redraw is anomalous."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_lite.detector import Prediction, StoredDetector
from dskd_lite.seeding import ORDER, STUDENTS, generator
from dskd_lite.training import to_tensor


class AutoencoderDetector(StoredDetector):
    """Squeezes images through a bottleneck and measures how far the copy is from the original.

    Three convolutions with stride 2 and their mirror image; at the narrowest point
    (B, ``code``, H / 8, W / 8). ``image_size``: side in pixels, a multiple of 32, as everywhere.
    ``smoothing_sigma``: Gaussian filter, in pixels. ``seed``: of the start and the order of the
    images. Raises InputError for an image size or a sigma that does not fit.
    """

    name = "autoencoder"

    def __init__(
        self,
        image_size: int,
        smoothing_sigma: float = 4.0,
        code: int = 8,
        epochs: int = 20,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(
            None, image_size=image_size, smoothing_sigma=smoothing_sigma, code=code,
            epochs=epochs, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, STUDENTS).initial_seed())
            self.encoder = nn.Sequential(
                *_down(3, 16), *_down(16, 32), *_down(32, 64), nn.Conv2d(64, code, 1)
            )
            self.decoder = nn.Sequential(
                *_up(code, 64), *_up(64, 32), *_up(32, 16), nn.Conv2d(16, 3, 3, padding=1)
            )

    def redraw(self, images: Tensor) -> Tensor:
        """Redraw images (B, 3, H, W) in [0, 1]."""
        return torch.sigmoid(self.decoder(self.encoder(images)))

    def fit(self, images: np.ndarray) -> None:
        """Train on normal images, uint8 (N, H, W, 3), with Adam (0.002) on the squared error."""
        self.train()
        device = next(self.parameters()).device
        optimizer = torch.optim.Adam(self.parameters(), lr=0.002)
        for epoch in range(self.epochs):
            order = torch.randperm(len(images), generator=generator(self.seed, ORDER, epoch))
            for chosen in order.split(self.batch_size):
                batch = to_tensor(images[chosen.numpy()], device)
                optimizer.zero_grad(set_to_none=True)
                F.mse_loss(self.redraw(batch), batch).backward()
                optimizer.step()
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1] by the squared error, mean over the colours."""
        error = (self.redraw(images) - images).square().mean(1, keepdim=True)
        smooth = self.smoothing(error)
        return Prediction(smooth, smooth.squeeze(1), smooth.flatten(1).amax(1))

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """The smoothed squared error (B, H, W), in [0, 1]."""
        return {self.name: self(images).fused_map}


def _down(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 4, 2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


def _up(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.ConvTranspose2d(inputs, outputs, 2, 2), nn.BatchNorm2d(outputs), nn.ReLU()
