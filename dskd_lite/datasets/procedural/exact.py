"""Arithmetic that gives the same bits on every machine, and the drawing tools built on it.

The benchmark is named by a hash of its pixels, so nothing here may depend on the processor, the
operating system or the numpy version. Only operations that IEEE 754 defines to the last bit are
used: ``+ - * /``, ``sqrt``, ``floor``, comparisons and integers, one per numpy call. Sine, arc
tangent, powers, exponentials, sums over an axis and numpy's ``Generator`` (whose streams may change
from version to version) are not among them; what is needed of those is written out below.

Coordinates are in pixels: a length of 1 is one pixel of the image. Angles are in turns. Edges are
drawn from signed distances, which smooths them without drawing at a higher resolution first.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SIZE = 128  # pixels of an image, each way

_CENTRES = np.arange(SIZE) + 0.5
X: Array = np.repeat(_CENTRES[None, :], SIZE, axis=0)
Y: Array = np.repeat(_CENTRES[:, None], SIZE, axis=1)


class Draws:
    """A stream of random numbers that is named by a text.

    Made from the raw bits of PCG64, which numpy promises never to change.
    """

    def __init__(self, name: str) -> None:
        entropy = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def array(self, *shape: int) -> Array:
        """Uniform numbers in [0, 1) of this shape."""
        count = 1
        for n in shape:
            count *= n
        raw = self._bits.random_raw(count) >> np.uint64(11)
        return (raw.astype(np.float64) / (1 << 53)).reshape(shape)

    def uniform(self, low: float, high: float) -> float:
        """One uniform number in [low, high)."""
        return low + (high - low) * float(self.array(1)[0])

    def integer(self, count: int) -> int:
        """One of 0 .. count - 1."""
        return int(self.uniform(0.0, count))

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.uniform(0.0, 1.0) < 0.5 else -1.0

    def colour(self, base: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
        """A colour near ``base``: brighter or darker by up to ``spread``, hue by a fifth of it."""
        value = self.uniform(1 - spread, 1 + spread)
        r, g, b = (c * value * self.uniform(1 - spread / 5, 1 + spread / 5) for c in base)
        return r, g, b


def sine(turns: Array) -> Array:
    """sin(2 pi turns) to 0.001, from one parabola corrected by a second."""
    t = turns - np.floor(turns + 0.5)
    y = t * (8.0 - 16.0 * np.abs(t))
    return y + 0.225 * (y * np.abs(y) - y)


def direction(turns: float) -> tuple[float, float]:
    """(cosine, sine) of an angle."""
    c, s = sine(np.array([turns + 0.25, turns]))
    return float(c), float(s)


def angle(x: Array, y: Array) -> Array:
    """The angle of (x, y) in turns, in [0, 1], to 0.0007."""
    ax, ay = np.abs(x), np.abs(y)
    ratio = np.minimum(ax, ay) / np.maximum(np.maximum(ax, ay), 1e-9)
    t = ratio * (0.125 + 0.04345 * (1.0 - ratio))
    t = np.where(ay > ax, 0.25 - t, t)
    t = np.where(x < 0, 0.5 - t, t)
    return np.where(y < 0, 1.0 - t, t)


def radius(x: Array, y: Array) -> Array:
    """Length of the vector (x, y)."""
    return np.sqrt(x * x + y * y)


def clamp(x: Array) -> Array:
    """``x`` limited to [0, 1]."""
    return np.minimum(np.maximum(x, 0.0), 1.0)


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below ``low``, 1 above ``high``, a cubic between; ``low > high`` turns it round."""
    t = clamp((x - low) / (high - low))
    return t * t * (3.0 - 2.0 * t)


def inside(distance: Array, softness: float = 1.0) -> Array:
    """Coverage in [0, 1] of a shape from its signed distance (negative inside)."""
    return clamp(0.5 - distance / softness)


def box(u: Array, v: Array, half_width: Array | float, half_height: Array | float) -> Array:
    """Signed distance to a rectangle about (0, 0)."""
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def noise(draws: Draws, cell: float) -> Array:
    """Smooth noise over the image in [-1, 1], with one random value every ``cell`` pixels."""
    columns, wx = _lattice(draws, cell)
    rows, wy = _lattice(draws, cell)
    values = draws.array(int(rows[-1]) + 2, int(columns[-1]) + 2) * 2.0 - 1.0
    lines = values[rows] + wy[:, None] * (values[rows + 1] - values[rows])
    left = lines[:, columns]
    return left + wx * (lines[:, columns + 1] - left)


def _lattice(draws: Draws, cell: float) -> tuple[Integers, Array]:
    position = _CENTRES / cell + draws.uniform(0.0, 1.0)
    index = np.floor(position)
    t = position - index
    return index.astype(np.int64), t * t * (3.0 - 2.0 * t)


def fractal(draws: Draws, cell: float, octaves: int) -> Array:
    """Sum of ``octaves`` noises, each of half the cell and half the height, in (-2, 2)."""
    total = noise(draws, cell)
    for octave in range(1, octaves):
        total += noise(draws, cell / (1 << octave)) / (1 << octave)
    return total


def noise_at(draws: Draws, u: Array, v: Array) -> Array:
    """Smooth noise in [-1, 1] at any coordinates: one random value per unit, repeating at 256."""
    values = draws.array(256 * 256) * 2.0 - 1.0
    iu, iv = np.floor(u), np.floor(v)
    tu, tv = u - iu, v - iv
    tu, tv = tu * tu * (3.0 - 2.0 * tu), tv * tv * (3.0 - 2.0 * tv)
    column, row = iu.astype(np.int64), iv.astype(np.int64)
    left, right = column & 255, (column + 1) & 255
    top, bottom = (row & 255) << 8, ((row + 1) & 255) << 8
    a, b = values[top + left], values[bottom + left]
    upper = a + tu * (values[top + right] - a)
    lower = b + tu * (values[bottom + right] - b)
    return upper + tv * (lower - upper)


def shifted(x: Array, dx: int, dy: int) -> Array:
    """``x`` moved by whole pixels to the right and down, edges repeated."""
    places = np.arange(SIZE)
    rows, columns = np.clip(places - dy, 0, SIZE - 1), np.clip(places - dx, 0, SIZE - 1)
    return x[rows][:, columns]


def soften(x: Array) -> Array:
    """Weighted mean of each pixel and its eight neighbours (1 2 1 each way), edges repeated."""
    rows = (shifted(x, 0, -1) + 2.0 * x + shifted(x, 0, 1)) * 0.25
    return (shifted(rows, -1, 0) + 2.0 * rows + shifted(rows, 1, 0)) * 0.25


def box_blur(x: Array, reach: int) -> Array:
    """Mean over a square of ``2 reach + 1`` pixels, edges repeated."""
    span = 2 * reach + 1
    for _ in range(2):
        padded = np.concatenate([x[:1]] * (reach + 1) + [x] + [x[-1:]] * reach)
        # accumulate adds one row after the other: its order is fixed, unlike that of sum
        running = np.add.accumulate(padded, axis=0)
        x = ((running[span:] - running[:-span]) / span).T
    return x


def to_uint8(x: Array) -> NDArray[np.uint8]:
    """[0, 1] to 0 .. 255, rounded half up."""
    return np.floor(clamp(x) * 255.0 + 0.5).astype(np.uint8)
