"""The single items that lie before a background: a gear and a chip on its board."""

from __future__ import annotations

import numpy as np

from dskd_lite.datasets.procedural.exact import (
    Array,
    Draws,
    angle,
    box,
    box_blur,
    clamp,
    direction,
    fractal,
    inside,
    noise,
    noise_at,
    radius,
    shifted,
    sine,
    smoothstep,
)
from dskd_lite.datasets.procedural.surface import Colour, Defect, Pose, Surface, scratch


def _lay(ground: Surface, item: Surface, coverage: Array, lift: int) -> Surface:
    """An item of thickness ``lift`` pixels on a ground, with the shadow that it casts."""
    shadow = box_blur(shifted(coverage, lift, lift), lift)
    ground.tint(-0.6 * shadow)
    ground.paint(coverage, item.colour)
    ground.height += coverage * (item.height - ground.height)
    ground.gloss += coverage * (item.gloss - ground.gloss)
    return ground


TEETH, HOLES = 12, 5


def gear(draws: Draws, defect: Defect | None) -> Surface:
    """A steel gear on a dark mat: twelve teeth, five round windows, a bore with a keyway."""
    pose = Pose.draw(draws, turns=0.025, shift=2.5, scale=0.02)
    u, v = pose.to_item()
    r, turn = radius(u, v), angle(u, v)
    lengths = 9.8 + 0.4 * draws.array(TEETH)
    bends = 0.4 * (draws.array(TEETH) - 0.5)
    sizes = np.zeros(HOLES) + 8.0
    if defect and defect.kind == "missing_tooth":
        lengths[defect.draws.integer(TEETH)] *= defect.between(0.0, 0.70)
    if defect and defect.kind == "bent_tooth":
        bends[defect.draws.integer(TEETH)] += defect.draws.sign() * defect.between(6.0, 2.2)
    if defect and defect.kind == "blocked_hole":
        sizes[defect.draws.integer(HOLES)] *= defect.between(0.0, 0.75)

    sector = np.floor(turn * TEETH)
    tooth = sector.astype(np.int64) % TEETH
    rise = r - 44.0
    leaning = bends[tooth] * clamp(rise / 10.0)
    sideways = np.abs((turn * TEETH - sector - 0.5) * (6.2832 / TEETH) * r + leaning)
    outline = np.maximum(sideways - (7.6 - 0.30 * rise), rise - lengths[tooth])
    outline = np.minimum(outline, rise)
    for k in range(HOLES):
        c, s = direction(k / HOLES)
        outline = np.maximum(outline, sizes[k] - radius(u - 29.0 * c, v - 29.0 * s))
    outline = np.maximum(outline, 9.5 - r)
    outline = np.maximum(outline, -box(u, v + 10.0, 2.6, 3.4))

    steel = Surface.plain(draws.colour((0.52, 0.53, 0.55), 0.06), gloss=0.20)
    lathe = noise_at(draws, r / 1.1, np.abs(turn - 0.5) * 12)  # folded: no seam at 0
    gleam = sine(turn * 2 + draws.uniform(0, 1))
    steel.tint(0.07 * lathe + 0.05 * noise(draws, 30.0) + 0.12 * gleam)
    steel.height = 1.6 * clamp(-outline / 2.2) + 0.10 * lathe
    steel.height += 1.6 * smoothstep(17.5, 15.5, r) - 1.2 * smoothstep(17.0, 19.0, r)
    steel.height += 1.2 * smoothstep(39.0, 41.0, r)
    if defect and defect.kind == "scratch":
        spin = direction(defect.draws.uniform(0, 1))
        middle = pose.to_image(30.0 * spin[0], 30.0 * spin[1])
        points = defect.path(middle, defect.between(60, 26), 3, 0.015)
        bare = defect.draws.sign() * defect.between(0.45, 0.25)
        scratch(steel, points, defect.between(2.4, 1.6), defect.between(0.9, 0.35), bare)

    mat = Surface.plain(draws.colour((0.27, 0.29, 0.30), 0.08))
    mat.tint(0.06 * fractal(draws, 2.2, 2) + 0.05 * noise(draws, 40.0))
    mat.height += 0.12 * noise(draws, 2.0)
    return _lay(mat, steel, inside(outline), lift=3)


PINS = 6  # on each of two sides
PITCH = 11.2
# dot-matrix letters, 3 x 5, rows from the top, as three bits each
FONT = {
    "D": (6, 5, 5, 5, 6), "S": (7, 4, 7, 1, 7), "K": (5, 5, 6, 5, 5), "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7), "2": (7, 1, 7, 4, 7), "3": (7, 1, 3, 1, 7), "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7), "6": (7, 4, 7, 5, 7), "7": (7, 1, 1, 2, 2), "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7), "-": (0, 0, 7, 0, 0),
}  # fmt: skip


def chip(draws: Draws, defect: Defect | None) -> Surface:
    """A black package with 12 pins on a green board; its name is fixed, its lot number is not."""
    pose = Pose.draw(draws, turns=0.009, shift=2.0, scale=0.015)
    u, v = pose.to_item()
    board = Surface.plain(draws.colour((0.10, 0.33, 0.20), 0.08), gloss=0.06)
    board.tint(0.06 * fractal(draws, 3.0, 2) + 0.05 * noise(draws, 40.0))

    # pins repeat along u; the upper and the lower row have their own properties
    position = u / PITCH + PINS / 2
    number = np.clip(np.floor(position), 0, PINS - 1).astype(np.int64)
    pin = number + PINS * (v > 0)
    out = np.abs(v) - 25.0  # distance from the package's side
    sideways = (position - number - 0.5) * PITCH
    bends = 0.4 * (draws.array(2 * PINS) - 0.5)
    lengths = 17.0 + 0.6 * draws.array(2 * PINS)
    if defect and defect.kind == "bent_pin":
        bends[defect.draws.integer(2 * PINS)] = defect.draws.sign() * defect.between(8.0, 3.6)
    if defect and defect.kind == "missing_pin":
        lengths[defect.draws.integer(2 * PINS)] = defect.between(0.0, 8.0)

    trace = np.maximum(box(sideways, out - 40.0, 1.2, 40.0), -out)
    board.paint(inside(trace) * 0.55, (0.20, 0.46, 0.30))
    board.height += 0.4 * inside(trace)
    pad = box(sideways, out - 14.0, 3.9, 6.5)
    _coat(board, inside(pad), (0.66, 0.42, 0.24), 0.5, 0.15)
    leaning = bends[pin] * clamp(out / 16.0)
    lead = box(sideways - leaning, out - lengths[pin] / 2, 2.5, lengths[pin] / 2)
    metal = inside(lead)
    shadow = box_blur(shifted(metal, 2, 2), 1)
    board.tint(-0.55 * shadow * (1.0 - metal))
    arch = smoothstep(11.0, 4.0, out)  # a pin leaves the package high and comes down to its pad
    pins = Surface.plain(draws.colour((0.70, 0.70, 0.71), 0.05), gloss=0.30)
    pins.height = 2.0 * clamp(-lead / 1.6) + 5.0 * arch
    pins.tint(0.08 * noise(draws, 3.0) - 0.25 * smoothstep(3.0, 0.0, out))
    board.paint(metal, pins.colour)
    board.height += metal * (pins.height - board.height)
    board.gloss += metal * (pins.gloss - board.gloss)
    if defect and defect.kind == "solder_bridge":
        k, side = defect.draws.integer(PINS - 1) + 1, defect.draws.sign()
        place = pose.to_image((k - PINS / 2) * PITCH, side * (25.0 + defect.draws.uniform(7, 13)))
        size = defect.between(6.5, 3.4)
        distance = defect.blob(place, size, rough=0.25)
        _coat(board, inside(distance), (0.66, 0.66, 0.68), 2.2 * clamp(-distance / size), 0.35)

    edge = box(u, v, 36.0, 25.0)
    body = Surface.plain(draws.colour((0.17, 0.17, 0.18), 0.06), gloss=0.05)
    body.tint(0.12 * fractal(draws, 2.0, 2))
    body.height = 2.4 * clamp(-edge / 3.0) + 0.10 * noise(draws, 2.0)
    dimple = radius(u + 29.0, v - 18.0) - 3.0
    body.height -= 0.9 * smoothstep(0.8, -0.8, dimple)
    lot = "".join(str(draws.integer(10)) for _ in range(4))
    ink = draws.uniform(0.72, 0.84)
    print_ = np.maximum(_text("DSKD-12", u, v + 8.0, 2.1), _text(lot, u, v - 7.0, 1.8))
    print_ = print_ * (0.92 + 0.08 * noise(draws, 2.0))
    if defect and defect.kind == "misprint":
        place = pose.to_image(defect.draws.uniform(-22, 22), -8.0)
        worn = smoothstep(1.0, -1.0, defect.blob(place, defect.between(18, 6.5), rough=0.3))
        print_ = print_ * (1.0 - worn * defect.between(1.0, 0.7))
    body.paint(print_ * ink, (0.86, 0.86, 0.82))
    return _lay(board, body, inside(edge), lift=3)


def _coat(surface: Surface, coverage: Array, colour: Colour, height: Array | float,
          gloss: float) -> None:  # fmt: skip
    surface.paint(coverage, colour)
    surface.height += coverage * height
    surface.gloss += coverage * (gloss - surface.gloss)


def _text(text: str, u: Array, v: Array, dot: float) -> Array:
    """Coverage of dot-matrix text about (0, 0), with dots of ``dot`` pixels."""
    dots = np.zeros((7, 4 * len(text) + 1))  # one empty dot all round
    for k, letter in enumerate(text):
        for row, bits in enumerate(FONT[letter]):
            for column in range(3):
                dots[row + 1, 4 * k + 1 + column] = (bits >> (2 - column)) & 1
    column = np.clip(u / dot + dots.shape[1] / 2 - 0.5, 0, dots.shape[1] - 1.001)
    row = np.clip(v / dot + dots.shape[0] / 2 - 0.5, 0, dots.shape[0] - 1.001)
    i, j = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    s, t = column - i, row - j
    upper = dots[j, i] + s * (dots[j, i + 1] - dots[j, i])
    lower = dots[j + 1, i] + s * (dots[j + 1, i + 1] - dots[j + 1, i])
    return smoothstep(0.25, 0.75, upper + t * (lower - upper))
