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

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Generator, Tensor

from dskd_lite.datasets.folder import IMAGE_SUFFIXES, images_below, open_image, size_of
from dskd_lite.errors import InputError
from dskd_lite.seeding import generator

MOST_LEAVES = 28


def procedural_textures(count: int, size: int, rng: Generator) -> Tensor:
    """Make ``count`` random textures, (count, 3, size, size) in [0, 1].

    The result depends on the state of ``rng`` and on both sizes, and on nothing else.
    """
    with torch.no_grad():
        one, other = _fields(2 * count, size, rng).chunk(2)
        first, second = _colour(one, other, rng), _colour(other, one, rng)
        images = _compose(first, second, rng)
        return _photograph(images, rng)


class ProceduralTextures(Sequence[Tensor]):
    """``length`` procedural textures, each (3, H, W) in [0, 1], made when asked for.

    H and W are ``image_size``. Texture ``index`` depends on ``seed`` and ``index`` alone, so any
    worker may ask in any order.
    """

    def __init__(self, length: int = 5000, image_size: int = 256, seed: int = 0) -> None:
        self.length, self.image_size, self.seed = length, image_size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"there is no texture {index} of {self.length}")
        return procedural_textures(1, self.image_size, generator(self.seed, index))[0]


class TextureFolder(Sequence[Tensor]):
    """Every image under ``root``, at any depth, each (3, H, W) in [0, 1].

    H and W are ``image_size``: an image is resized until it covers the square, and the square is
    cut from its centre, so that a texture keeps its proportions.

    Raises InputError if the folder is missing or holds no image, or if an image's header cannot be
    read; if the rest of it is damaged, when it is drawn.
    """

    def __init__(self, root: str | Path, image_size: int = 256) -> None:
        self.image_size = image_size
        if not Path(root).is_dir():
            raise InputError(f"texture folder {root} does not exist: give a folder of images")
        self.paths = images_below(Path(root))
        if not self.paths:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"texture folder {root} holds no image: put some there ({kinds})")
        for path in self.paths:  # of the header: the rest is read when the texture is drawn
            size_of(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = open_image(self.paths[index])
        square = (self.image_size, self.image_size)
        image = ImageOps.fit(image, square, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# --- random numbers, one row per image, shaped to broadcast over (N, H, W) -----------------------


def _uniform(n: int, low: float, high: float, rng: Generator, *more: int) -> Tensor:
    return torch.rand(n, *(more or (1, 1)), generator=rng) * (high - low) + low


def _log_uniform(n: int, low: float, high: float, rng: Generator, *more: int) -> Tensor:
    return _uniform(n, math.log(low), math.log(high), rng, *more).exp()


def _chance(n: int, probability: float, rng: Generator, *more: int) -> Tensor:
    return (torch.rand(n, *(more or (1, 1)), generator=rng) < probability).float()


def _standardise(fields: Tensor) -> Tensor:
    std, mean = torch.std_mean(fields, dim=(-2, -1), keepdim=True)
    return (fields - mean) / (std + 1e-4)


# --- fields: each family maps (n, size, rng) to (n, size, size) ----------------------------


def _noise(n: int, size: int, rng: Generator, smooth: bool = False) -> Tensor:
    """Fractional noise: white noise whose spectrum falls as 1 / frequency^a, perhaps stretched."""
    spectrum = torch.randn(n, size, size // 2 + 1, 2, generator=rng)
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    angle = _uniform(n, 0, math.pi, rng)
    stretch = 1 + _chance(n, 0.4, rng) * (_log_uniform(n, 1, 8, rng) - 1)
    along, across = angle.cos() * fx + angle.sin() * fy, angle.cos() * fy - angle.sin() * fx
    frequency = ((along * stretch).square() + (across / stretch).square()).sqrt() + 0.5 / size
    if smooth:
        exponent = _uniform(n, 2.5, 3.5, rng)
    else:
        exponent = _uniform(n, 0.0, 2.5, rng)
    log_frequency = frequency.log()
    amplitude = (-exponent * log_frequency).exp()
    band = _log_uniform(n, 1.5 / size, 0.35, rng).log()
    banded = _chance(n, 0.0 if smooth else 0.25, rng)
    amplitude = amplitude * (-banded * 4 * (log_frequency - band).square()).exp()
    amplitude[:, 0, 0] = 0
    noise = torch.fft.irfft2(torch.view_as_complex(spectrum) * amplitude, s=(size, size))
    return _standardise(noise)


def _coordinates(n: int, size: int, shortest: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Rotated, stretched and often warped (u, v), whose unit is ``shortest`` to ``size`` pixels."""
    pixels = torch.arange(size, dtype=torch.float32) - size / 2
    angle = _uniform(n, 0, 2 * math.pi, rng)
    u = angle.cos() * pixels + angle.sin() * pixels[:, None]
    v = angle.cos() * pixels[:, None] - angle.sin() * pixels
    period = _log_uniform(n, shortest, 0.7 * size, rng)
    aspect = _log_uniform(n, 0.5, 2, rng)
    bend = _chance(n, 0.5, rng) * _log_uniform(n, 0.5, 12, rng)
    warp_u, warp_v = _noise(2 * n, size, rng, smooth=True).chunk(2)
    u = (u + bend * warp_u) / (period * aspect) + _uniform(n, 0, 64, rng)
    v = (v + bend * warp_v) / (period / aspect) + _uniform(n, 0, 64, rng)
    return u, v


def _ridges(n: int, size: int, rng: Generator) -> Tensor:
    """Noise folded into ridges, contour lines or plateaus."""
    noise = _noise(n, size, rng, smooth=True)
    folds = _log_uniform(n, 0.5, 6, rng)
    wave = (noise * folds * math.pi).sin()
    sharp = _chance(n, 0.5, rng)
    hard = _log_uniform(n, 1, 20, rng)
    return sharp * (1 - wave.abs()) + (1 - sharp) * (hard * wave).tanh()


def _relief(n: int, size: int, rng: Generator) -> Tensor:
    """A rough or cellular surface under a lamp: the slope of a height field in one direction."""
    height = _noise(n, size, rng, smooth=True)
    height = torch.where(_chance(n, 0.4, rng) > 0, _cells(n, size, rng), height)
    angle = _uniform(n, 0, 2 * math.pi, rng)
    slope_x, slope_y = height - height.roll(1, -1), height - height.roll(1, -2)
    slope = _standardise(angle.cos() * slope_x + angle.sin() * slope_y)
    return (_log_uniform(n, 0.5, 3, rng) * slope).tanh()


def _gratings(n: int, size: int, rng: Generator) -> Tensor:
    """Stripes of soft or hard profile; two crossing sets make plaids, checks and grids."""
    u, v = (2 * math.pi * w for w in _coordinates(n, size, 3.0, rng))
    duty, hard = _uniform(n, -0.8, 0.8, rng), _log_uniform(n, 0.3, 20, rng)
    stripes_u, stripes_v = (hard * (u.sin() + duty)).tanh(), (hard * (v.sin() + duty)).tanh()
    kind = _uniform(n, 0, 4, rng)
    crossed = torch.where(kind < 3, torch.maximum(stripes_u, stripes_v), stripes_u + stripes_v)
    crossed = torch.where(kind < 2, stripes_u * stripes_v, crossed)
    return torch.where(kind < 1.2, stripes_u, crossed)


def _tiles(n: int, size: int, rng: Generator) -> Tensor:
    """Bricks or dots on a lattice, each of its own grey and size."""
    u, v = _coordinates(n, size, 4.0, rng)
    u = u + _chance(n, 0.5, rng) * 0.5 * (v.floor() % 2)
    cell = (u.floor() % 16 * 16 + v.floor() % 16).long().flatten(1)
    own = torch.rand(n, 256, generator=rng).gather(1, cell).view(n, size, size)
    u, v = (u - u.floor() - 0.5).abs(), (v - v.floor() - 0.5).abs()
    distance = torch.where(
        _chance(n, 0.5, rng) > 0, (u.square() + v.square()).sqrt(), torch.maximum(u, v)
    )
    spread = _chance(n, 0.5, rng) * _uniform(n, 0, 1, rng)
    radius = _uniform(n, 0.2, 0.5, rng) * (1 - 0.6 * spread * own)
    inside = (_log_uniform(n, 5, 60, rng) * (radius - distance)).sigmoid()
    return inside * (1 + _chance(n, 0.6, rng) * _uniform(n, -3, 3, rng) * own)


def _cells(n: int, size: int, rng: Generator) -> Tensor:
    """Voronoi cells: their borders, their greys, or the distance to their centres (Worley)."""
    u, v = _coordinates(n, size, 5.0, rng)
    u_cell, v_cell = u.floor(), v.floor()
    jitter = torch.rand(n, 3, 256, generator=rng)
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
    kind = _uniform(n, 0, 3, rng)
    borders = (_log_uniform(n, 2, 30, rng) * (second - nearest)).tanh()
    cells = torch.where(kind < 2, grey + 0.3 * borders, nearest)
    return torch.where(kind < 1, borders, cells)


def _programs(n: int, size: int, rng: Generator) -> Tensor:
    """A random three-layer network of sines over the coordinates: smooth, folded, unforeseen."""
    u, v = _coordinates(n, size, size / 4, rng)
    noise = _noise(n, size, rng)
    x = torch.stack([u, v, (u.square() + v.square()).sqrt(), 0.3 * noise], 1).flatten(2)
    for inputs, outputs in ((4, 8), (8, 8), (8, 1)):
        weight = torch.randn(n, outputs, inputs, generator=rng)
        weight = weight * _log_uniform(n, 0.7, 2.5, rng) * (2 / inputs) ** 0.5
        bias = _uniform(n, -math.pi, math.pi, rng, outputs, 1)
        x = torch.baddbmm(bias, weight, x).sin()
    return x.view(n, size, size)


_FAMILIES = (_noise, _noise, _ridges, _relief, _gratings, _tiles, _cells, _programs)


def _fields(n: int, size: int, rng: Generator) -> Tensor:
    """Draw a family for each of ``n`` fields; (n, size, size), zero mean, unit variance."""
    family = torch.randint(len(_FAMILIES), (n,), generator=rng)
    fields = torch.empty(n, size, size)
    for number, make in enumerate(_FAMILIES):
        chosen = family == number
        if chosen.any():
            fields[chosen] = make(int(chosen.sum()), size, rng)
    return _standardise(fields)


# --- colour and composition ----------------------------------------------------------------------


def _saturate(colours: Tensor, saturation: Tensor) -> Tensor:
    grey = colours.mean(-1, keepdim=True)
    return grey + saturation * (colours - grey)


def _colour(pattern: Tensor, tint: Tensor, rng: Generator) -> Tensor:
    """Colour two fields (N, H, W): the first walks through a palette, the second tints it."""
    n = len(pattern)
    saturation = _chance(n, 0.75, rng) * _uniform(n, 0, 1.3, rng)
    base = torch.rand(n, 1, 3, generator=rng)
    spread = _log_uniform(n, 0.08, 0.6, rng)
    palette = base + spread * torch.randn(n, 4, 3, generator=rng)
    palette = _saturate(palette, saturation)  # (N, 4, 3)
    level = (1.5 + 0.75 * pattern).clamp(0, 3)
    weights = torch.stack([(1 - (level - k).abs()).clamp_min(0) for k in range(4)], 1)
    images = torch.bmm(palette.transpose(1, 2), weights.flatten(2))
    direction = _saturate(torch.randn(n, 1, 3, generator=rng), saturation)
    strength = _chance(n, 0.6, rng) * _log_uniform(n, 0.01, 0.2, rng)
    images = images + (strength * direction).transpose(1, 2) * tint.flatten(1)[:, None]
    return images.view(n, 3, *pattern.shape[1:]).clamp(0, 1)


def _compose(first: Tensor, second: Tensor, rng: Generator) -> Tensor:
    """Put two layers together: one alone, both through a mask, or a dead-leaves scene."""
    n, size = len(first), first.shape[-1]
    kind = torch.rand(n, generator=rng)
    images = first.clone()
    masked = (kind > 0.2) & (kind < 0.4)
    if masked.any():
        m = int(masked.sum())
        level = _fields(m, size, rng) - _uniform(m, -1, 1, rng)
        mask = (_log_uniform(m, 1, 40, rng) * level).sigmoid()[:, None]
        images[masked] = first[masked].lerp(second[masked], mask)
    leaves = kind >= 0.4
    if leaves.any():
        images[leaves] = _dead_leaves(first[leaves], second[leaves], rng)
    return images


def _dead_leaves(first: Tensor, second: Tensor, rng: Generator) -> Tensor:
    """Scatter opaque shapes over ``first``; they are filled from both layers, tinted and shaded.

    Radii follow a power law of exponent -3, which makes the scene look alike at every scale.
    """
    n, size = len(first), first.shape[-1]
    count = _log_uniform(n, 2, MOST_LEAVES + 1, rng).floor()
    smallest = _log_uniform(n, 1.5, size / 5, rng)[:, :, 0]
    u = torch.rand(n, MOST_LEAVES, generator=rng)
    radius = (u * smallest**-2 + (1 - u) * (0.5 * size) ** -2) ** -0.5

    def per_leaf(low: float, high: float) -> Tensor:
        return _uniform(n, low, high, rng, MOST_LEAVES)[..., None, None]

    def some_leaves(probability: float) -> Tensor:
        return _chance(n, probability, rng, MOST_LEAVES)[..., None, None]

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

    texture = fill(with_ground(_chance(n, 0.5, rng, MOST_LEAVES), 0.0))
    strength = _uniform(n, 0, 1, rng, MOST_LEAVES) * _chance(n, 0.7, rng, MOST_LEAVES)
    plain_ground = _chance(n, 0.4, rng)[:, :, 0]
    strength = torch.cat([1 - 0.95 * plain_ground, strength], 1)
    lamp = _uniform(n, -0.3, 0.3, rng, MOST_LEAVES) * _chance(n, 0.6, rng, MOST_LEAVES)
    shade = fill(with_ground(lamp, 0.0)) * across[:, None]
    colour = torch.rand(n, MOST_LEAVES + 1, 3, generator=rng)
    saturation = _chance(n, 0.7, rng) * _uniform(n, 0, 1, rng)
    colour = _saturate(colour, saturation).clamp(0, 1)
    tint = colour.gather(1, flat[..., None].expand(-1, -1, 3)).transpose(1, 2).view_as(first)
    strength = fill(strength)
    return (tint + strength * (torch.lerp(first, second, texture) - tint) + shade).clamp(0, 1)


def _photograph(images: Tensor, rng: Generator) -> Tensor:
    """What a camera adds: uneven light, exposure, contrast, gamma, blur and grain."""
    n, size = len(images), images.shape[-1]

    def one(values: Tensor) -> Tensor:
        return values[:, None]

    for probability in (0.8, 0.4):
        amount = _chance(n, probability, rng) * _uniform(n, 0.2, 1, rng)
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        images = images.lerp(F.avg_pool2d(padded, 3, stride=1), one(amount))
    ramp = torch.linspace(-1, 1, size)
    angle = _uniform(n, 0, 2 * math.pi, rng)
    light = angle.cos() * ramp + angle.sin() * ramp[:, None]
    light = 1 + _chance(n, 0.4, rng) * _uniform(n, 0, 0.4, rng) * light
    contrast = _log_uniform(n, 0.4, 1.3, rng)
    offset = _uniform(n, 0, 1, rng) * (1 - contrast)
    images = images.clamp(1e-3, 1).pow(one(_log_uniform(n, 0.6, 1.7, rng)))
    images = images * one(light * contrast) + one(offset)
    grain = _chance(n, 0.5, rng) * _log_uniform(n, 0.003, 0.06, rng)
    white = torch.randn(n, 1, size, size, generator=rng)
    return (images + one(grain) * white).clamp(0, 1)
