"""The materials that fill the image: woven fabric, brushed metal, terrazzo."""

from __future__ import annotations

import numpy as np

from dskd_lite.datasets.procedural.exact import (
    Array,
    Draws,
    Integers,
    X,
    Y,
    clamp,
    fractal,
    inside,
    noise,
    noise_at,
    sine,
    smoothstep,
)
from dskd_lite.datasets.procedural.surface import (
    Defect,
    Point,
    Pose,
    Surface,
    scratch,
    stain,
    stroke,
)

THREADS = 64  # more than cross the image; the properties of threads repeat after so many


def fabric(draws: Draws, defect: Defect | None) -> Surface:
    """Plain weave: blue warp threads (running down) over and under grey weft threads."""
    u, v = Pose.draw(draws, turns=0.015, shift=8.0, scale=0.03).to_item()
    u = (u + 0.8 * noise(draws, 30.0)) / 8.0
    v = (v + 0.8 * noise(draws, 30.0)) / 8.0
    column, row = np.floor(u), np.floor(v)
    across, down = u - column - 0.5, v - row - 0.5  # position within a crossing, -0.5 .. 0.5
    i, j = column.astype(np.int64) % THREADS, row.astype(np.int64) % THREADS
    warp_width, weft_width = 0.43 + 0.05 * draws.array(2, THREADS)
    warp_tone, weft_tone = 0.94 + 0.12 * draws.array(2, THREADS)
    warp_colour = draws.colour((0.44, 0.51, 0.62), 0.04)
    weft_colour = draws.colour((0.60, 0.64, 0.68), 0.04)
    fibre = noise(draws, 1.3)

    warp_above = 1.0 - 2.0 * ((i + j) & 1)
    if defect and defect.kind == "misweave":
        place = defect.place(28)
        columns, rows = defect.between(2.9, 0.0), defect.between(6.9, 1.0)
        slipped = np.abs(column - _at(column, place)) <= columns
        slipped &= np.abs(row - _at(row, place)) <= rows
        # the warp floats, loose, over the whole patch instead of diving under each second weft
        warp_above = np.where(slipped, 1.5, warp_above)
    warp = _thread(across, warp_width[i]) + 0.75 * warp_above * (1.0 - 4.0 * down * down)
    weft = _thread(down, weft_width[j]) - 0.75 * warp_above * (1.0 - 4.0 * across * across)
    if defect and defect.kind == "broken_thread":
        place = defect.place(24)
        run = Y - place[1] + 1.5 * noise(defect.draws, 3.0)
        broken = (column == _at(column, place)) & (np.abs(run) < defect.between(56, 14) / 2)
        # nothing lifts the weft any more, and the ground shows between its threads
        warp, weft = np.where(broken, -2.5, warp), np.where(broken, weft - 1.2, weft)
    cut = np.zeros_like(u)
    if defect and defect.kind == "hole":
        distance = defect.blob(defect.place(22), defect.between(11, 2.2), rough=0.4)
        cut = inside(distance + 1.5 * fibre)
        frayed = smoothstep(5.0, 0.0, distance) * np.abs(fibre)
        warp, weft = warp - 0.7 * frayed, weft - 0.7 * frayed

    top = smoothstep(-0.12, 0.12, warp - weft)  # 1 where the warp is seen
    relief = np.maximum(np.maximum(warp, weft), -1.8)
    relief = relief + cut * (-2.2 - relief)
    twist_warp, twist_weft = sine(2.0 * across + 2.5 * v), sine(2.0 * down + 2.5 * u)
    deep = 0.22 + 0.78 * smoothstep(-1.9, 1.2, relief)  # little light reaches the gaps
    warp_tone = warp_tone[i] * (1.0 + 0.08 * twist_warp + 0.10 * fibre) * deep
    weft_tone = weft_tone[j] * (1.0 + 0.08 * twist_weft + 0.10 * fibre) * deep
    surface = Surface.plain((0.0, 0.0, 0.0))
    surface.paint(1.0 - top, [weft_tone * c for c in weft_colour])
    surface.paint(top, [warp_tone * c for c in warp_colour])
    surface.paint(cut, (0.07, 0.06, 0.06))
    surface.height = 0.8 * relief
    if defect and defect.kind == "stain":
        distance = defect.blob(defect.place(26), defect.between(20, 9), rough=0.3)
        stain(surface, defect.draws, distance, defect.between(0.65, 0.25), (0.55, 0.75, 1.0))
    return surface


def _thread(offset: Array, half_width: Array) -> Array:
    """Height across a round thread; far below everything beside it."""
    t = offset / half_width
    return np.maximum(1.0 - t * t, -2.5)


def _at(values: Array, place: Point) -> float:
    """The value at an image position."""
    return float(values[int(place[1]), int(place[0])])


def metal(draws: Draws, defect: Defect | None) -> Surface:
    """A brushed plate: fine streaks along the brush, a broad reflection across it."""
    u, v = Pose.draw(draws, turns=0.03, shift=8.0, scale=0.05).to_item()
    surface = Surface.plain(draws.colour((0.60, 0.61, 0.63), 0.06), gloss=0.16)
    streaks = (
        noise_at(draws, u / 40 + 128, v / 0.9 + 128)
        + noise_at(draws, u / 20 + 128, v / 1.8 + 128)
        + noise_at(draws, u / 90 + 128, v / 4.0 + 128) * 0.7
    )
    surface.tint(0.055 * streaks)
    surface.height += 0.12 * streaks
    reflection = sine(v / draws.uniform(120, 170) + draws.uniform(0, 1))
    surface.tint(0.10 * reflection + 0.04 * noise(draws, 60.0))
    if defect is None:
        return surface
    if defect.kind == "scratch":
        across_brush = defect.draws.uniform(0.04, 0.46)
        points = defect.path(defect.place(34), defect.between(80, 22), 3, 0.012, across_brush)
        bare = defect.draws.sign() * defect.between(0.30, 0.10)
        scratch(surface, points, defect.between(1.8, 1.1), defect.between(0.9, 0.20), bare)
    elif defect.kind == "dent":
        size = defect.between(15, 6)
        bowl = smoothstep(0.0, -size, defect.blob(defect.place(22), size, rough=0.15))
        surface.height -= bowl * size * defect.between(0.45, 0.12)
    elif defect.kind == "rust":
        distance = defect.blob(defect.place(22), defect.between(12, 3.5), rough=0.5)
        grain = 0.5 + 0.5 * smoothstep(-0.6, 0.8, fractal(defect.draws, 3.0, 2))
        rust = smoothstep(2.0, -2.0, distance) * grain * defect.between(0.85, 0.25)
        surface.paint(rust, (0.43, 0.25, 0.13))
        surface.gloss *= 1.0 - rust
        surface.height += rust * fractal(defect.draws, 2.5, 2) * 0.4
    elif defect.kind == "hair":
        points = defect.path(defect.place(30), defect.between(70, 22), 8, 0.08)
        distance, _ = stroke(points)
        grey, width = defect.between(0.10, 0.40), defect.between(1.6, 0.9)
        shadow = smoothstep(width + 2.0, 0.0, distance)
        surface.tint(-0.30 * defect.between(1.0, 0.4) * shadow)
        surface.paint(defect.between(0.95, 0.6) * inside(distance - width / 2), (grey, grey, grey))
    return surface


STONES = ((0.80, 0.78, 0.74), (0.70, 0.66, 0.60), (0.60, 0.58, 0.55), (0.68, 0.58, 0.52),
          (0.55, 0.54, 0.54), (0.76, 0.72, 0.63))  # fmt: skip
GLASS = ((0.20, 0.48, 0.55), (0.33, 0.52, 0.24), (0.58, 0.56, 0.16))


def terrazzo(draws: Draws, defect: Defect | None) -> Surface:
    """Stone chips of several colours and two sizes, ground flat in grey cement."""
    surface = Surface.plain(draws.colour((0.70, 0.69, 0.66), 0.04), gloss=0.05)
    surface.tint(0.05 * fractal(draws, 3.0, 2) + 0.03 * noise(draws, 40.0))
    mottle = 1.0 + 0.04 * fractal(draws, 2.5, 2)
    for pitch, share in ((6.0, 0.5), (12.0, 0.6)):
        distance, owner = _chips(draws, pitch, share)
        tones = 0.94 + 0.12 * draws.array(CHIPS * CHIPS)
        stones = (draws.array(CHIPS * CHIPS) * len(STONES)).astype(np.int64)
        coverage, tone = inside(distance), tones[owner] * mottle
        colours = np.array(STONES).T[:, stones]
        surface.paint(coverage, [c[owner] * tone for c in colours])
        surface.height += 0.12 * coverage
    if defect is None:
        return surface
    if defect.kind == "crack":
        points = defect.path(defect.place(34), defect.between(95, 26), 9, 0.06)
        line, along = stroke(points)
        width = defect.between(1.8, 0.8) * (1.0 - 0.5 * along) + 0.3 * noise(defect.draws, 3.0)
        gap = inside(line - width / 2) * smoothstep(1.0, 0.95, along)
        surface.paint(gap * defect.between(0.95, 0.5), (0.16, 0.15, 0.14))
        surface.height -= 0.8 * gap
    elif defect.kind == "pit":
        size = defect.between(9, 2.2)
        hollow = defect.blob(defect.place(20), size, rough=0.4)
        surface.paint(inside(hollow) * defect.between(0.65, 0.45), (0.36, 0.34, 0.32))
        surface.height -= smoothstep(1.0, -0.7 * size, hollow) * size * 0.55
        surface.height += inside(hollow) * fractal(defect.draws, 2.5, 2) * 0.5
    elif defect.kind == "stain":
        patch = defect.blob(defect.place(28), defect.between(24, 9), rough=0.2)
        stain(surface, defect.draws, patch, defect.between(0.45, 0.12), (0.5, 0.8, 1.0))
    elif defect.kind == "foreign_chip":
        # the big chip nearest to a random place is of a stone that never occurs
        chips = np.where(inside(distance) > 0.9, owner, -1)
        x, y = defect.place(20)
        apart = np.where(chips >= 0, (X - x) * (X - x) + (Y - y) * (Y - y), np.inf)
        chosen = chips.reshape(-1)[int(np.argmin(apart))]
        opacity = coverage * (owner == chosen) * defect.between(0.95, 0.35)
        glass = GLASS[defect.draws.integer(len(GLASS))]
        surface.paint(clamp(opacity), [c * mottle for c in glass])
    return surface


CHIPS = 26  # cells each way in the table of chips, enough for the finest pitch


def _chips(draws: Draws, pitch: float, share: float) -> tuple[Array, Integers]:
    """Voronoi cells of jittered points: signed distance to the nearest chip, and its number."""
    grid = np.arange(CHIPS)
    seed_x = (grid[None, :] + 0.15 + 0.7 * draws.array(CHIPS, CHIPS)).reshape(-1)
    seed_y = (grid[:, None] + 0.15 + 0.7 * draws.array(CHIPS, CHIPS)).reshape(-1)
    u, v = X / pitch + 1.0 + draws.uniform(0, 1), Y / pitch + 1.0 + draws.uniform(0, 1)
    home = np.floor(v).astype(np.int64) * CHIPS + np.floor(u).astype(np.int64)
    nearest, second = np.full_like(u, np.inf), np.full_like(u, np.inf)
    owner = home
    for step in (-CHIPS, 0, CHIPS):
        for cell in (home + step - 1, home + step, home + step + 1):
            dx, dy = seed_x[cell] - u, seed_y[cell] - v
            distance = dx * dx + dy * dy
            owner = np.where(distance < nearest, cell, owner)
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    # a chip shrinks from its cell's border, the more the larger its number; some are not there
    number = draws.array(CHIPS * CHIPS)[owner]
    from_border = np.sqrt(second) - np.sqrt(nearest)
    distance = (0.10 + 0.35 * number - from_border) * (pitch * 0.5)
    return np.where(number < share, distance, 5.0), owner
