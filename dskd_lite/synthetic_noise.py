"""Synthetic anomalies: Perlin-shaped patches of an external texture, Eq. (3)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dskd_lite.errors import InputError


class Textures(Protocol):
    """Anything with a length whose items are images (3, H, W) in [0, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


def perlin_noise(frequencies: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Gradient noise after Perlin (1985, with the quintic fade of 2002), roughly within [-1, 1].

    ``frequencies`` (B, 2) are cells per image in y and x, one pair per image; returns (B, H, W).
    All images are made at once: each looks its gradients up in a lattice as fine as the finest.
    """
    batch, (height, width) = len(frequencies), size
    cells = int(frequencies.max()) + 1
    angles = 2 * torch.pi * torch.rand(batch, cells * cells, generator=generator)
    y = (torch.arange(height) + 0.5) / height * frequencies[:, :1]  # B H
    x = (torch.arange(width) + 0.5) / width * frequencies[:, 1:]  # B W
    y0, x0 = y.long(), x.long()
    fy, fx = (y - y0)[:, :, None], (x - x0)[:, None, :]

    def corner(dy: int, dx: int) -> Tensor:
        node = (y0 + dy)[:, :, None] * cells + (x0 + dx)[:, None, :]  # B H W
        angle = angles.gather(1, node.flatten(1)).view(batch, height, width)
        return torch.cos(angle) * (fx - dx) + torch.sin(angle) * (fy - dy)

    wy, wx = _quintic_fade(fy), _quintic_fade(fx)
    top = torch.lerp(corner(0, 0), corner(0, 1), wx.expand(batch, height, width))
    bottom = torch.lerp(corner(1, 0), corner(1, 1), wx.expand(batch, height, width))
    return 2**0.5 * torch.lerp(top, bottom, wy.expand(batch, height, width))


def _quintic_fade(t: Tensor) -> Tensor:
    return t * t * t * (t * (t * 6 - 15) + 10)


def blend(images: Tensor, masks: Tensor, textures: Tensor, opacity: Tensor) -> Tensor:
    """Lay textures over images inside the masks, Eq. (3).

    ``I_a = beta (M * A) + (1 - beta) (M * I_n) + (1 - M) * I_n`` with images I_n and textures A
    (B, 3, H, W) in [0, 1], masks M (B, H, W) in {0, 1}, opacity beta (B,) in [0, 1].
    """
    beta, mask = opacity.view(-1, 1, 1, 1), masks.unsqueeze(1).to(images.dtype)
    return beta * (mask * textures) + (1 - beta) * (mask * images) + (1 - mask) * images


class SyntheticNoise:
    """Draws masks and lays textures over normal images.

    ``textures``: the external source A. ``image_size``: (H, W). ``opacity``: the range of beta.
    ``octaves``: each of the two Perlin frequencies is 2^k cells per image, k drawn from this
    inclusive range; small k gives blobs as large as parts, large k gives specks of a few pixels.
    ``threshold``: noise above it is the mask. Everything that is drawn comes from the generator
    given to a call, so one seed gives one result whatever was drawn before.

    Raises InputError if there is no texture, or a range is empty.
    """

    def __init__(
        self,
        textures: Textures,
        image_size: tuple[int, int],
        opacity: tuple[float, float] = (0.15, 1.0),
        octaves: tuple[int, int] = (0, 5),
        threshold: float = 0.5,
    ) -> None:
        if len(textures) == 0:
            raise InputError("the texture source is empty: give a folder with images in it")
        if not 0 <= opacity[0] <= opacity[1] <= 1:
            raise InputError(f"opacity {opacity} must be a range within [0, 1]")
        if not 0 <= octaves[0] <= octaves[1]:
            raise InputError(f"octaves {octaves} must be a range of numbers from 0 up")
        if 2 ** octaves[1] > min(image_size):
            most = min(image_size).bit_length() - 1
            raise InputError(
                f"octaves {octaves} make cells smaller than a pixel: {min(image_size)} pixels have "
                f"room for octave {most} at most"
            )
        self.textures = textures
        self.image_size = image_size
        self.opacity = opacity
        self.octaves = octaves
        self.threshold = threshold

    def masks(
        self, count: int, generator: torch.Generator, allowed: Tensor | None = None
    ) -> Tensor:
        """Draw masks (count, H, W) in {0, 1}, none of them empty.

        ``allowed`` (count, H, W) bool: where noise may fall, everywhere if not given. A place so
        small that a hundred draws miss it becomes the mask itself.
        Raises InputError if some place is empty.
        """
        if allowed is None:
            allowed = torch.ones(count, *self.image_size, dtype=torch.bool)
        if not bool(allowed.flatten(1).any(1).all()):
            raise InputError("noise has no place to fall: a mask of allowed places is empty")
        masks = torch.zeros(count, *self.image_size, dtype=torch.bool)
        empty = torch.arange(count)
        for _ in range(100):
            if len(empty) == 0:
                break
            low, high = self.octaves
            exponents = torch.randint(low, high + 1, (len(empty), 2), generator=generator)
            noise = perlin_noise(2**exponents, self.image_size, generator)
            masks[empty] = (noise > self.threshold) & allowed[empty]
            empty = empty[~masks[empty].flatten(1).any(1)]
        masks[empty] = allowed[empty]
        return masks.float()

    def __call__(
        self, images: Tensor, generator: torch.Generator, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn images (B, 3, H, W) in [0, 1] into I_a of the same shape, and masks (B, H, W)."""
        count = len(images)
        masks = self.masks(count, generator, allowed)
        chosen = torch.randint(len(self.textures), (count,), generator=generator).tolist()
        textures = torch.stack([self.textures[index] for index in chosen])
        low, high = self.opacity
        opacity = low + (high - low) * torch.rand(count, generator=generator)
        device = images.device
        masks = masks.to(device)
        return blend(images, masks, textures.to(device), opacity.to(device)), masks
