"""Textures: made up from random numbers, or read from a folder of photographs.

They serve twice. The synthetic noise blends them into normal images (A in Eq. 3), and the offline
teacher is distilled on nothing else. Both want variety: many scales, edges, colours, contrasts.

A procedural texture is built in three steps, each a batch of images at once:

1. *fields*: grey patterns of zero mean and unit variance, from one of seven families,
2. *colour*: one field through a random palette, tinted by another,
3. *composition*: two coloured layers, alone, through a mask, or as a dead-leaves scene, in which
   opaque shapes of many sizes hide one another. Of all simple models this one has statistics most
   like a photograph's (Lee, Mumford and Huang, "Occlusion models for natural images", 2001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dskd_lite.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MOST_LEAVES = 28


def procedural_textures(count: int, size: int, generator: Generator) -> Tensor:
    """Make ``count`` random textures, (count, 3, size, size) in [0, 1].

    The result depends on the state of ``generator`` and on both sizes, and on nothing else.
    """
    with torch.no_grad():
        one, other = _fields(2 * count, size, generator).chunk(2)
        first, second = _colour(one, other, generator), _colour(other, one, generator)
        images = _compose(first, second, generator)
        return _photograph(images, generator)


class ProceduralTextures(Sequence[Tensor]):
    """``length`` procedural textures, each (3, size, size) in [0, 1], made when asked for.

    Texture ``index`` depends on ``seed`` and ``index`` alone, so any worker may ask in any order.
    """

    def __init__(self, length: int = 5000, image_size: int = 256, seed: int = 0) -> None:
        self.length, self.image_size, self.seed = length, image_size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = Generator().manual_seed((self.seed << 32) + index)
        return procedural_textures(1, self.image_size, generator)[0]


class TextureFolder(Sequence[Tensor]):
    """Every image under ``root``, each (3, H, W) in [0, 1], with H and W equal to ``image_size``.

    An image is resized until it covers the square, and the square is cut from its centre.

    Raises InputError if the folder is missing or holds no image, or if an image cannot be read.
    """

    def __init__(self, root: str | Path, image_size: int = 256) -> None:
        self.root, self.image_size = Path(root), image_size
        if not self.root.is_dir():
            raise InputError(f"texture folder {root} does not exist: give a folder of images")
        self.paths = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self.paths:
            raise InputError(
                f"texture folder {root} holds no image: put {', '.join(IMAGE_SUFFIXES)} files there"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        import numpy as np
        from PIL import Image, ImageOps, UnidentifiedImageError

        path = self.paths[index]
        side = (self.image_size, self.image_size)
        try:
            with Image.open(path) as image:
                image = ImageOps.fit(image.convert("RGB"), side, Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise InputError(f"texture {path} cannot be read: replace or remove it") from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


def dtd_textures(root: str | Path, image_size: int = 256, download: bool = False) -> TextureFolder:
    """Return the Describable Textures Dataset, the paper's source of A, kept under ``root``.

    Raises InputError if it is not there and ``download`` is off, or if the download fails.
    """
    import dskd_lite._torchvision  # noqa: F401  (must come before torchvision)
    from torchvision.datasets import DTD

    try:
        DTD(root, download=download)
    except (RuntimeError, OSError) as error:
        raise InputError(f"no DTD under {root} ({error}): go online and download it") from error
    return TextureFolder(Path(root) / "dtd" / "dtd" / "images", image_size)


# --- random numbers, one row per image, shaped to broadcast over (N, H, W) -----------------------


def _uniform(n: int, low: float, high: float, generator: Generator, *more: int) -> Tensor:
    return torch.rand(n, *(more or (1, 1)), generator=generator) * (high - low) + low


def _log_uniform(n: int, low: float, high: float, generator: Generator, *more: int) -> Tensor:
    return _uniform(n, math.log(low), math.log(high), generator, *more).exp()


def _chance(n: int, probability: float, generator: Generator, *more: int) -> Tensor:
    return (torch.rand(n, *(more or (1, 1)), generator=generator) < probability).float()


def _standardise(fields: Tensor) -> Tensor:
    std, mean = torch.std_mean(fields, dim=(-2, -1), keepdim=True)
    return (fields - mean) / (std + 1e-4)


# --- fields: each family maps (n, size, generator) to (n, size, size) ----------------------------


def _noise(n: int, size: int, generator: Generator, smooth: bool = False) -> Tensor:
    """Fractional noise: white noise whose spectrum falls as 1 / frequency^a, perhaps stretched."""
    spectrum = torch.randn(n, size, size // 2 + 1, 2, generator=generator)
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    angle = _uniform(n, 0, math.pi, generator)
    stretch = 1 + _chance(n, 0.4, generator) * (_log_uniform(n, 1, 8, generator) - 1)
    along, across = angle.cos() * fx + angle.sin() * fy, angle.cos() * fy - angle.sin() * fx
    frequency = ((along * stretch).square() + (across / stretch).square()).sqrt() + 0.5 / size
    if smooth:
        exponent = _uniform(n, 2.5, 3.5, generator)
    else:
        exponent = _uniform(n, 0.0, 2.5, generator)
    log_frequency = frequency.log()
    amplitude = (-exponent * log_frequency).exp()
    band = _log_uniform(n, 1.5 / size, 0.35, generator).log()
    banded = _chance(n, 0.0 if smooth else 0.25, generator)
    amplitude = amplitude * (-banded * 4 * (log_frequency - band).square()).exp()
    amplitude[:, 0, 0] = 0
    noise = torch.fft.irfft2(torch.view_as_complex(spectrum) * amplitude, s=(size, size))
    return _standardise(noise)


def _coordinates(n: int, size: int, shortest: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Rotated, stretched and often warped (u, v), whose unit is ``shortest`` to ``size`` pixels."""
    pixels = torch.arange(size, dtype=torch.float32) - size / 2
    angle = _uniform(n, 0, 2 * math.pi, generator)
    u = angle.cos() * pixels + angle.sin() * pixels[:, None]
    v = angle.cos() * pixels[:, None] - angle.sin() * pixels
    period = _log_uniform(n, shortest, 0.7 * size, generator)
    aspect = _log_uniform(n, 0.5, 2, generator)
    bend = _chance(n, 0.5, generator) * _log_uniform(n, 0.5, 12, generator)
    warp_u, warp_v = _noise(2 * n, size, generator, smooth=True).chunk(2)
    u = (u + bend * warp_u) / (period * aspect) + _uniform(n, 0, 64, generator)
    v = (v + bend * warp_v) / (period / aspect) + _uniform(n, 0, 64, generator)
    return u, v


def _ridges(n: int, size: int, generator: Generator) -> Tensor:
    """Noise folded into ridges, contour lines or plateaus."""
    noise = _noise(n, size, generator, smooth=True)
    folds = _log_uniform(n, 0.5, 6, generator)
    wave = (noise * folds * math.pi).sin()
    sharp = _chance(n, 0.5, generator)
    hard = _log_uniform(n, 1, 20, generator)
    return sharp * (1 - wave.abs()) + (1 - sharp) * (hard * wave).tanh()


def _relief(n: int, size: int, generator: Generator) -> Tensor:
    """A rough or cellular surface under a lamp: the slope of a height field in one direction."""
    height = _noise(n, size, generator, smooth=True)
    height = torch.where(_chance(n, 0.4, generator) > 0, _cells(n, size, generator), height)
    angle = _uniform(n, 0, 2 * math.pi, generator)
    slope_x, slope_y = height - height.roll(1, -1), height - height.roll(1, -2)
    slope = _standardise(angle.cos() * slope_x + angle.sin() * slope_y)
    return (_log_uniform(n, 0.5, 3, generator) * slope).tanh()


def _gratings(n: int, size: int, generator: Generator) -> Tensor:
    """Stripes of soft or hard profile; two crossing sets make plaids, checks and grids."""
    u, v = (2 * math.pi * w for w in _coordinates(n, size, 3.0, generator))
    duty, hard = _uniform(n, -0.8, 0.8, generator), _log_uniform(n, 0.3, 20, generator)
    stripes_u, stripes_v = (hard * (u.sin() + duty)).tanh(), (hard * (v.sin() + duty)).tanh()
    kind = _uniform(n, 0, 4, generator)
    crossed = torch.where(kind < 3, torch.maximum(stripes_u, stripes_v), stripes_u + stripes_v)
    crossed = torch.where(kind < 2, stripes_u * stripes_v, crossed)
    return torch.where(kind < 1.2, stripes_u, crossed)


def _tiles(n: int, size: int, generator: Generator) -> Tensor:
    """Bricks or dots on a lattice, each of its own grey and size."""
    u, v = _coordinates(n, size, 4.0, generator)
    u = u + _chance(n, 0.5, generator) * 0.5 * (v.floor() % 2)
    cell = (u.floor() % 16 * 16 + v.floor() % 16).long().flatten(1)
    own = torch.rand(n, 256, generator=generator).gather(1, cell).view(n, size, size)
    u, v = (u - u.floor() - 0.5).abs(), (v - v.floor() - 0.5).abs()
    distance = torch.where(
        _chance(n, 0.5, generator) > 0, (u.square() + v.square()).sqrt(), torch.maximum(u, v)
    )
    spread = _chance(n, 0.5, generator) * _uniform(n, 0, 1, generator)
    radius = _uniform(n, 0.2, 0.5, generator) * (1 - 0.6 * spread * own)
    inside = (_log_uniform(n, 5, 60, generator) * (radius - distance)).sigmoid()
    return inside * (1 + _chance(n, 0.6, generator) * _uniform(n, -3, 3, generator) * own)


def _cells(n: int, size: int, generator: Generator) -> Tensor:
    """Voronoi cells: their borders, their greys, or the distance to their centres (Worley)."""
    u, v = _coordinates(n, size, 5.0, generator)
    u_cell, v_cell = u.floor(), v.floor()
    jitter = torch.rand(n, 3, 256, generator=generator)
    nearest = torch.full_like(u, 9.0)
    second, grey = nearest.clone(), torch.zeros_like(u)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            column, row = u_cell + du, v_cell + dv
            cell = (column % 16 * 16 + row % 16).long().flatten(1)
            x, y, own = (jitter[:, i].gather(1, cell).view_as(u) for i in range(3))
            distance = (column + x - u).square() + (row + y - v).square()
            closer = distance < nearest
            second = torch.where(closer, nearest, torch.minimum(second, distance))
            grey = torch.where(closer, own, grey)
            nearest = torch.where(closer, distance, nearest)
    nearest, second = nearest.sqrt(), second.sqrt()
    kind = _uniform(n, 0, 3, generator)
    borders = (_log_uniform(n, 2, 30, generator) * (second - nearest)).tanh()
    cells = torch.where(kind < 2, grey + 0.3 * borders, nearest)
    return torch.where(kind < 1, borders, cells)


def _programs(n: int, size: int, generator: Generator) -> Tensor:
    """A random three-layer network of sines over the coordinates: smooth, folded, unforeseen."""
    u, v = _coordinates(n, size, size / 4, generator)
    noise = _noise(n, size, generator)
    x = torch.stack([u, v, (u.square() + v.square()).sqrt(), 0.3 * noise], 1).flatten(2)
    for inputs, outputs in ((4, 8), (8, 8), (8, 1)):
        weight = torch.randn(n, outputs, inputs, generator=generator)
        weight = weight * _log_uniform(n, 0.7, 2.5, generator) * (2 / inputs) ** 0.5
        bias = _uniform(n, -math.pi, math.pi, generator, outputs, 1)
        x = torch.baddbmm(bias, weight, x).sin()
    return x.view(n, size, size)


_FAMILIES = (_noise, _noise, _ridges, _relief, _gratings, _tiles, _cells, _programs)


def _fields(n: int, size: int, generator: Generator) -> Tensor:
    """Draw a family for each of ``n`` fields; (n, size, size), zero mean, unit variance."""
    family = torch.randint(len(_FAMILIES), (n,), generator=generator)
    fields = torch.empty(n, size, size)
    for number, make in enumerate(_FAMILIES):
        chosen = family == number
        if chosen.any():
            fields[chosen] = make(int(chosen.sum()), size, generator)
    return _standardise(fields)


# --- colour and composition ----------------------------------------------------------------------


def _saturate(colours: Tensor, saturation: Tensor) -> Tensor:
    grey = colours.mean(-1, keepdim=True)
    return grey + saturation * (colours - grey)


def _colour(pattern: Tensor, tint: Tensor, generator: Generator) -> Tensor:
    """Colour two fields (N, H, W): the first walks through a palette, the second tints it."""
    n = len(pattern)
    saturation = _chance(n, 0.75, generator) * _uniform(n, 0, 1.3, generator)
    base = torch.rand(n, 1, 3, generator=generator)
    spread = _log_uniform(n, 0.08, 0.6, generator)
    palette = base + spread * torch.randn(n, 4, 3, generator=generator)
    palette = _saturate(palette, saturation)  # (N, 4, 3)
    level = (1.5 + 0.75 * pattern).clamp(0, 3)
    weights = torch.stack([(1 - (level - k).abs()).clamp_min(0) for k in range(4)], 1)
    images = torch.bmm(palette.transpose(1, 2), weights.flatten(2))
    direction = _saturate(torch.randn(n, 1, 3, generator=generator), saturation)
    strength = _chance(n, 0.6, generator) * _log_uniform(n, 0.01, 0.2, generator)
    images = images + (strength * direction).transpose(1, 2) * tint.flatten(1)[:, None]
    return images.view(n, 3, *pattern.shape[1:]).clamp(0, 1)


def _compose(first: Tensor, second: Tensor, generator: Generator) -> Tensor:
    """Put two layers together: one alone, both through a mask, or a dead-leaves scene."""
    n, size = len(first), first.shape[-1]
    kind = torch.rand(n, generator=generator)
    images = first.clone()
    masked = (kind > 0.2) & (kind < 0.4)
    if masked.any():
        m = int(masked.sum())
        level = _fields(m, size, generator) - _uniform(m, -1, 1, generator)
        mask = (_log_uniform(m, 1, 40, generator) * level).sigmoid()[:, None]
        images[masked] = first[masked].lerp(second[masked], mask)
    leaves = kind >= 0.4
    if leaves.any():
        images[leaves] = _dead_leaves(first[leaves], second[leaves], generator)
    return images


def _dead_leaves(first: Tensor, second: Tensor, generator: Generator) -> Tensor:
    """Scatter opaque shapes over ``first``; they are filled from both layers, tinted and shaded.

    Radii follow a power law of exponent -3, which makes the scene look alike at every scale.
    """
    n, size = len(first), first.shape[-1]
    count = _log_uniform(n, 2, MOST_LEAVES + 1, generator).floor()
    smallest = _log_uniform(n, 1.5, size / 5, generator)[:, :, 0]
    u = torch.rand(n, MOST_LEAVES, generator=generator)
    radius = (u * smallest**-2 + (1 - u) * (0.5 * size) ** -2) ** -0.5

    def per_leaf(low: float, high: float) -> Tensor:
        return _uniform(n, low, high, generator, MOST_LEAVES)[..., None, None]

    def some_leaves(probability: float) -> Tensor:
        return _chance(n, probability, generator, MOST_LEAVES)[..., None, None]

    centre_x, centre_y = per_leaf(-0.05, 1.05) * size, per_leaf(-0.05, 1.05) * size
    angle = per_leaf(0, math.pi)
    stretch = (some_leaves(0.6) * per_leaf(0, 1.2)).exp()
    square = some_leaves(0.35) * per_leaf(0.5, 1)
    wave, waves = some_leaves(0.35) * per_leaf(0, 0.25), per_leaf(2, 25)
    hole = some_leaves(0.15) * per_leaf(0.3, 0.8)
    x_scale = 1 / (radius[..., None, None] * stretch)
    y_scale = stretch / radius[..., None, None]
    cos, sin = angle.cos(), angle.sin()

    pixels = torch.arange(size, dtype=torch.float32)
    top = torch.zeros(n, size, size, dtype=torch.long)  # 0 is the ground
    across = torch.zeros(n, size, size)
    for k in range(int(count.max())):
        x, y = pixels - centre_x[:, k], pixels[:, None] - centre_y[:, k]
        p = (cos[:, k] * x + sin[:, k] * y) * x_scale[:, k]
        q = (cos[:, k] * y - sin[:, k] * x) * y_scale[:, k]
        p_abs, q_abs = p.abs(), q.abs()
        distance = (p_abs.square() + q_abs.square()).sqrt()
        distance = distance.lerp(torch.maximum(p_abs, q_abs), square[:, k])
        distance = distance + wave[:, k] * (waves[:, k] * p).sin()
        inside = (distance < 1) & (distance >= hole[:, k]) & (k < count)
        top = torch.where(inside, k + 1, top)
        across = torch.where(inside, q, across)

    # What a leaf is filled with, looked up by its number: plain colour, either layer, or a blend.
    flat = top.flatten(1)

    def fill(values: Tensor) -> Tensor:
        return values.gather(1, flat).view(n, 1, size, size)

    def with_ground(values: Tensor, ground: float) -> Tensor:
        return torch.cat([torch.full((n, 1), ground), values], 1)

    texture = fill(with_ground(_chance(n, 0.5, generator, MOST_LEAVES), 0.0))
    strength = _uniform(n, 0, 1, generator, MOST_LEAVES) * _chance(n, 0.7, generator, MOST_LEAVES)
    plain_ground = _chance(n, 0.4, generator)[:, :, 0]
    strength = torch.cat([1 - 0.95 * plain_ground, strength], 1)
    lamp = _uniform(n, -0.3, 0.3, generator, MOST_LEAVES) * _chance(n, 0.6, generator, MOST_LEAVES)
    shade = fill(with_ground(lamp, 0.0)) * across[:, None]
    colour = torch.rand(n, MOST_LEAVES + 1, 3, generator=generator)
    saturation = _chance(n, 0.7, generator) * _uniform(n, 0, 1, generator)
    colour = _saturate(colour, saturation).clamp(0, 1)
    tint = colour.gather(1, flat[..., None].expand(-1, -1, 3)).transpose(1, 2).view_as(first)
    strength = fill(strength)
    return (tint + strength * (torch.lerp(first, second, texture) - tint) + shade).clamp(0, 1)


def _photograph(images: Tensor, generator: Generator) -> Tensor:
    """What a camera adds: uneven light, exposure, contrast, gamma, blur and grain."""
    n, size = len(images), images.shape[-1]

    def one(values: Tensor) -> Tensor:
        return values[:, None]

    for probability in (0.8, 0.4):
        amount = _chance(n, probability, generator) * _uniform(n, 0.2, 1, generator)
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        images = images.lerp(F.avg_pool2d(padded, 3, stride=1), one(amount))
    ramp = torch.linspace(-1, 1, size)
    angle = _uniform(n, 0, 2 * math.pi, generator)
    light = angle.cos() * ramp + angle.sin() * ramp[:, None]
    light = 1 + _chance(n, 0.4, generator) * _uniform(n, 0, 0.4, generator) * light
    contrast = _log_uniform(n, 0.4, 1.3, generator)
    offset = _uniform(n, 0, 1, generator) * (1 - contrast)
    images = images.clamp(1e-3, 1).pow(one(_log_uniform(n, 0.6, 1.7, generator)))
    images = images * one(light * contrast) + one(offset)
    grain = _chance(n, 0.5, generator) * _log_uniform(n, 0.003, 0.06, generator)
    white = torch.randn(n, 1, size, size, generator=generator)
    return (images + one(grain) * white).clamp(0, 1)
