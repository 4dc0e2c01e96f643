"""Draw the landing page's picture: the data's way from an image to a heatmap.

``python book/figures/pipeline.py`` writes ``pipeline.svg`` for light pages and, for dark ones,
``pipeline_dark.svg`` beside this file. It is a schematic: image and maps are drawn, not computed.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle, RegularPolygon

from dskd_lite.plots import HEATMAP, ROLE_COLORS

TEACHER, FORWARD, REVERSE, FUSED = (
    ROLE_COLORS[role] for role in ("teacher", "forward", "reverse", "fused")
)
INK = {"pipeline.svg": "#1f2933", "pipeline_dark.svg": "#e8eaed"}
SIZE = (6.6, 6.6)
LEFT = 0.2
PICTURE = 1.3  # side of image and heatmap
BOX_X = (2.1, 3.3, 4.3, 5.1)  # left edges of the boxes of stages 1 to 4
BOX_SIZE = (0.95, 0.78, 0.62, 0.48)  # a stage has half the resolution of the one before
LANE_Y = {"forward": 5.95, "teacher": 4.6, "reverse": 3.25}


def draw(ink: str) -> plt.Figure:
    """Draw the whole picture with text and arrows in the colour ``ink``."""
    figure = plt.figure(figsize=SIZE)
    axes = figure.add_axes((0, 0, 1, 1))
    networks(axes, ink)
    maps_to_heatmap(axes, ink)
    axes.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]), aspect="equal")
    axes.axis("off")
    return figure


def networks(axes: Axes, ink: str) -> None:
    """Upper half: the image, the three networks, and which of their stages are compared."""
    middle = LANE_Y["teacher"]
    draw_part(axes, LEFT, middle - PICTURE / 2)
    axes.text(LEFT + PICTURE / 2, 3.88, "image", color=ink, ha="center", va="top", size=13)
    lane(axes, "forward", FORWARD, "D1 D2 D3")
    lane(axes, "teacher", TEACHER, "E1 E2 E3 E4")
    lane(axes, "reverse", REVERSE, "D1 D2 D3")
    for name, x, label in (
        ("forward", 5.05, "forward\nstudent"),
        ("teacher", 5.7, "teacher,\nfrozen"),
        ("reverse", 5.05, "reverse\nstudent"),
    ):
        y = LANE_Y[name] - (0.25 if name == "reverse" else 0)
        axes.text(x, y, label, color=ink, size=13, weight="bold", va="center")

    image_edge = (LEFT + PICTURE + 0.05, middle)
    for name in ("forward", "teacher"):
        arrow(axes, image_edge, (BOX_X[0], LANE_Y[name]), ink)
    for name, color, steps in (("forward", FORWARD, 2), ("teacher", TEACHER, 3)):
        for stage in range(steps):
            start = (BOX_X[stage] + BOX_SIZE[stage], LANE_Y[name])
            arrow(axes, start, (BOX_X[stage + 1], LANE_Y[name]), color)
    for stage in (2, 1):  # the reverse student goes from right to left
        end = (BOX_X[stage - 1] + BOX_SIZE[stage - 1], LANE_Y["reverse"])
        arrow(axes, (BOX_X[stage], LANE_Y["reverse"]), end, REVERSE)
    top_of_teacher = (BOX_X[3] + BOX_SIZE[3] / 2, middle - BOX_SIZE[3] / 2)
    arrow(axes, top_of_teacher, (BOX_X[2] + BOX_SIZE[2], LANE_Y["reverse"]), TEACHER, bend=-0.35)

    for stage in range(3):
        x, half = BOX_X[stage] + BOX_SIZE[stage] / 2, BOX_SIZE[stage] / 2
        compare(axes, (x, middle + half), (x, LANE_Y["forward"] - half), ink)
        beside = 0.6 * half  # the comparison to the right, the skip connection to the left
        lower = LANE_Y["reverse"] + half
        compare(axes, (x + beside, middle - half), (x + beside, lower), ink)
        arrow(axes, (x - beside, middle - half), (x - beside, lower), TEACHER)


def maps_to_heatmap(axes: Axes, ink: str) -> None:
    """Lower half: six maps, one from each comparison, become one."""
    arrow(axes, (1.2, 2.62), (1.2, 1.98), ink)
    axes.text(1.45, 2.3, "1 − cosine at each position,\nresized to the image, smoothed",
              color=ink, size=13, va="center")  # fmt: skip
    for index, color in enumerate([FORWARD] * 3 + [REVERSE] * 3):
        x, y = LEFT + 0.68 * (index % 3), 1.3 - 0.68 * (index // 3)
        heat(axes, x, y, 0.6, blur=(2.5, 4, 7)[index % 3], frame=color)
    arrow(axes, (2.24, 1.26), (2.75, 1.26), ink)
    box = FancyBboxPatch(
        (2.85, 0.86), 1.15, 0.8, "round,pad=0.05", facecolor=FUSED, edgecolor="none"
    )
    axes.add_patch(box)
    axes.text(3.42, 1.26, "fusion:\nsix weights", color="white", size=13, ha="center", va="center")
    arrow(axes, (4.06, 1.26), (4.55, 1.26), ink)
    heat(axes, 4.6, 1.26 - PICTURE / 2, PICTURE, blur=3, frame=FUSED)
    for x, label in (
        (1.18, "six score maps"),
        (4.6 + PICTURE / 2, "heatmap;\nscore = its maximum"),
    ):
        axes.text(x, 0.5, label, color=ink, size=13, ha="center", va="top")


def lane(axes: Axes, name: str, color: str, labels: str) -> None:
    """One network: its stages as boxes that shrink as their resolution does."""
    text = "#1f2933" if name == "forward" else "white"  # white on orange is hard to read
    for x, size, label in zip(BOX_X, BOX_SIZE, labels.split(), strict=False):
        y = LANE_Y[name]
        axes.add_patch(Rectangle((x, y - size / 2), size, size, facecolor=color, edgecolor="none"))
        axes.text(x + size / 2, y, label, color=text, size=14, weight="bold",
                  ha="center", va="center")  # fmt: skip


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, bend: float = 0
) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=12,
                        color=color, linewidth=1.6, shrinkA=2, shrinkB=2)
    )  # fmt: skip


def compare(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="<|-|>", mutation_scale=9, color=color,
                        linewidth=1.2, linestyle=(0, (2, 1.5)), shrinkA=2, shrinkB=2)
    )  # fmt: skip


def draw_part(axes: Axes, x: float, y: float) -> None:
    """A nut with a scratch on a pale ground: the image."""
    axes.add_patch(Rectangle((x, y), PICTURE, PICTURE, facecolor="#e9e4da", edgecolor="#8a8a8a"))
    center = (x + PICTURE / 2, y + PICTURE / 2)
    axes.add_patch(RegularPolygon(center, 6, radius=0.52, facecolor="#8d99a6", edgecolor="#5a6672"))
    axes.add_patch(Circle(center, 0.24, facecolor="#e9e4da", edgecolor="#5a6672"))
    scratch = scratch_points() * PICTURE + np.array([x, y])
    axes.plot(scratch[:, 0], scratch[:, 1], color="#2b1a12", linewidth=2.2)


def scratch_points() -> np.ndarray:
    """The scratch in a unit square, (N, 2)."""
    t = np.linspace(0, 1, 60)
    return np.stack([0.62 + 0.2 * t, 0.74 - 0.3 * t + 0.05 * np.sin(6 * t)], axis=1)


def heat(axes: Axes, x: float, y: float, side: float, blur: float, frame: str) -> None:
    """A map that is hot along the scratch; ``blur`` in hundredths of the side."""
    rows, columns = np.mgrid[0:1:96j, 0:1:96j]
    offsets = np.stack([columns, rows], axis=-1)[:, :, None] - scratch_points()
    distance = np.linalg.norm(offsets, axis=-1).min(axis=-1)
    values = np.exp(-0.5 * (distance / (blur / 100 + 0.02)) ** 2)
    axes.imshow(values, extent=(x, x + side, y, y + side), origin="lower", cmap=HEATMAP,
                vmin=0, vmax=1, aspect="equal")  # fmt: skip
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=frame, linewidth=2.5))


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "dskd_lite"  # the same bytes at every run
    folder = Path(__file__).parent
    for name, ink in INK.items():
        figure = draw(ink)
        figure.savefig(folder / name, transparent=True, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
