"""What is photographed (colour, relief, gloss), what can happen to it, and the camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskd_lite.datasets.procedural.exact import (
    SIZE,
    Array,
    Draws,
    X,
    Y,
    direction,
    fractal,
    noise,
    radius,
    smoothstep,
    soften,
    to_uint8,
)

Colour = tuple[float, float, float]
Point = tuple[float, float]


@dataclass
class Surface:
    """Colour (3, SIZE, SIZE) in [0, 1]; height in pixels and gloss in [0, 1], both (SIZE, SIZE)."""

    colour: Array
    height: Array
    gloss: Array

    @classmethod
    def plain(cls, colour: Colour, gloss: float = 0.0) -> Surface:
        """Flat, of one colour."""
        flat = np.zeros((SIZE, SIZE))
        return cls(np.stack([flat + c for c in colour]), flat, flat + gloss)

    def paint(self, coverage: Array, colour: Sequence[Array | float]) -> None:
        """Lay a colour over the surface where ``coverage`` (in [0, 1]) says so."""
        for plane, c in zip(self.colour, colour, strict=True):
            plane += coverage * (c - plane)

    def tint(self, factor: Array, colour: Colour = (1.0, 1.0, 1.0)) -> None:
        """Multiply the colour by ``1 + factor * colour``."""
        for plane, c in zip(self.colour, colour, strict=True):
            plane *= 1.0 + factor * c

    def shade(self, light: tuple[float, float, float]) -> Array:
        """Light the relief from a direction: matt plus a highlight where there is gloss."""
        slope_x, slope_y = np.zeros_like(self.height), np.zeros_like(self.height)
        slope_x[:, 1:-1] = (self.height[:, 2:] - self.height[:, :-2]) * 0.5
        slope_y[1:-1] = (self.height[2:] - self.height[:-2]) * 0.5
        lx, ly, lz = light
        steepness = np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
        toward = lz - lx * slope_x - ly * slope_y
        matt = np.maximum(toward / steepness, 0.0)
        # the highlight is brightest where the normal halves the angle between light and viewer
        half = float(np.sqrt(2.0 + 2.0 * lz))
        shine = np.maximum((toward + 1.0) / (steepness * half), 0.0)
        for _ in range(4):
            shine = shine * shine
        return (0.35 + 0.65 / lz * matt) * self.colour + self.gloss * shine


@dataclass
class Pose:
    """How an item lies under the camera: turned, shifted and scaled about the image's middle."""

    turns: float
    shift: Point
    scale: float

    @classmethod
    def draw(cls, draws: Draws, turns: float, shift: float, scale: float) -> Pose:
        """Up to ``turns`` either way, ``shift`` pixels, and a factor of ``1 +- scale``."""
        return cls(
            draws.uniform(-turns, turns),
            (draws.uniform(-shift, shift), draws.uniform(-shift, shift)),
            draws.uniform(1 - scale, 1 + scale),
        )

    def to_item(self, x: Array = X, y: Array = Y) -> tuple[Array, Array]:
        """Image coordinates to the item's own, with (0, 0) in its middle."""
        c, s = direction(self.turns)
        dx, dy = x - (SIZE / 2 + self.shift[0]), y - (SIZE / 2 + self.shift[1])
        return (c * dx + s * dy) / self.scale, (c * dy - s * dx) / self.scale

    def to_image(self, u: float, v: float) -> Point:
        """The item's coordinates to the image's."""
        c, s = direction(self.turns)
        x = (c * u - s * v) * self.scale + SIZE / 2 + self.shift[0]
        return x, (s * u + c * v) * self.scale + SIZE / 2 + self.shift[1]


@dataclass
class Defect:
    """A defect to be made: its kind, how hard it is to see, and the numbers that shape it."""

    kind: str
    difficulty: float  # 0 obvious .. 1 hard
    draws: Draws

    def between(self, obvious: float, hard: float) -> float:
        """A size or strength between that of an obvious defect and of a hard one."""
        return obvious + (hard - obvious) * self.difficulty

    def place(self, margin: float) -> Point:
        """A point of the image at least ``margin`` pixels from its border."""
        return self.draws.uniform(margin, SIZE - margin), self.draws.uniform(margin, SIZE - margin)

    def path(self, middle: Point, length: float, pieces: int, wander: float,
             turns: float | None = None) -> list[Point]:  # fmt: skip
        """A polyline about ``middle`` that turns by up to ``wander`` from piece to piece."""
        heading = self.draws.uniform(0.0, 1.0) if turns is None else turns
        c, s = direction(heading)
        points = [(middle[0] - c * length / 2, middle[1] - s * length / 2)]
        for _ in range(pieces):
            c, s = direction(heading)
            x, y = points[-1]
            points.append((x + c * length / pieces, y + s * length / pieces))
            heading += self.draws.uniform(-wander, wander)
        return points

    def blob(self, middle: Point, size: float, rough: float) -> Array:
        """Signed distance (negative inside) to an irregular patch of radius ``size``."""
        wobble = fractal(self.draws, max(size, 3.0), 3) * (rough * size)
        return radius(X - middle[0], Y - middle[1]) + wobble - size


def stroke(points: Sequence[Point]) -> tuple[Array, Array]:
    """Distance to a polyline, and how far along it (0 to 1) the nearest point is."""
    nearest, along = np.full((SIZE, SIZE), np.inf), np.zeros((SIZE, SIZE))
    pieces = len(points) - 1
    for k in range(pieces):
        (x0, y0), (x1, y1) = points[k], points[k + 1]
        ex, ey = x1 - x0, y1 - y0
        t = np.clip(((X - x0) * ex + (Y - y0) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        distance = radius(X - x0 - t * ex, Y - y0 - t * ey)
        along = np.where(distance < nearest, (k + t) / pieces, along)
        nearest = np.minimum(nearest, distance)
    return nearest, along


def scratch(surface: Surface, points: Sequence[Point], width: float, depth: float, bare: float,
            where: Array | float = 1.0) -> None:  # fmt: skip
    """Cut a groove that tapers to both ends; its floor is brighter by ``bare`` (or darker)."""
    distance, along = stroke(points)
    taper = smoothstep(0.0, 0.15, along) * smoothstep(1.0, 0.85, along) * where
    profile = np.maximum(1.0 - distance / width, 0.0) * taper
    surface.height -= depth * width * profile
    surface.tint(smoothstep(0.0, 0.6, profile) * bare)


def stain(surface: Surface, draws: Draws, distance: Array, strength: float,
          absorbs: Colour) -> None:  # fmt: skip
    """Soak a patch: it swallows the colour ``absorbs``, most along its rim as a dried drop does."""
    patch = smoothstep(1.5, -1.5, distance)
    rim = smoothstep(-5.0, -0.5, distance)
    mottle = 1.0 + 0.25 * noise(draws, 4.0)
    surface.tint(-strength * patch * (0.75 + 0.25 * rim) * mottle, absorbs)


@dataclass
class Camera:
    """Light and film of one shot, all of it normal."""

    light: tuple[float, float, float]
    gradient: Point
    exposure: Colour
    blur: float
    grain: Array

    @classmethod
    def draw(cls, draws: Draws, around: float, unevenness: float, grain: float) -> Camera:
        """Light from the upper left, turned by up to ``around`` turns either way."""
        c, s = direction(0.625 + draws.uniform(-around, around))
        low = draws.uniform(0.45, 0.65)  # horizontal part of the light's direction
        tilt_x, tilt_y = c + draws.uniform(-1, 1), s + draws.uniform(-1, 1)
        level = draws.uniform(0.94, 1.06)
        exposure = (level * draws.uniform(0.985, 1.015), level, level * draws.uniform(0.98, 1.02))
        blur = draws.uniform(0.2, 0.5)
        speckle = draws.array(5, SIZE, SIZE) - 0.5
        return cls(
            light=(low * c, low * s, float(np.sqrt(1.0 - low * low))),
            gradient=(unevenness * tilt_x, unevenness * tilt_y),
            exposure=exposure,
            blur=blur,
            grain=grain * (speckle[0] + speckle[1] + 0.5 * speckle[2:]),
        )

    def shoot(self, surface: Surface) -> NDArray[np.uint8]:
        """The photograph, (SIZE, SIZE, 3)."""
        dx, dy = X / SIZE - 0.5, Y / SIZE - 0.5
        falloff = 1.0 + self.gradient[0] * dx + self.gradient[1] * dy - 0.25 * (dx * dx + dy * dy)
        lit = surface.shade(self.light) * falloff
        photo = np.zeros((SIZE, SIZE, 3), np.uint8)
        for channel in range(3):
            plane = lit[channel] + self.blur * (soften(lit[channel]) - lit[channel])
            plane = plane * self.exposure[channel]
            photo[..., channel] = to_uint8(plane + self.grain[channel] * (0.5 + 0.5 * plane))
        return photo
