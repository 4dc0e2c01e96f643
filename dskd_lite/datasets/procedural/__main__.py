"""The benchmark at a glance: ``python -m dskd_lite.datasets.procedural --contact-sheet FILE``."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dskd_lite.datasets.procedural import CATEGORIES, Shot, render
from dskd_lite.errors import InputError

NORMAL = (0, 1)  # index of the normal images shown
DEFECTIVE = (2, 6)  # of each defect: one that is easy to see and one that is not
OUTLINE = (255, 0, 200)
TILE = 1.4  # inches


def contact_sheet(seed: int = 0) -> Image.Image:
    """Draw all categories: normal images, then every defect twice, with its mask outlined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [("test/good", index) for index in NORMAL]
    width = len(NORMAL) + 4 * len(DEFECTIVE)
    figure = Figure(figsize=(width * TILE, len(CATEGORIES) * (TILE + 0.2)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    axes = figure.subplots(len(CATEGORIES), width)
    for row, (name, category) in zip(axes, CATEGORIES.items(), strict=True):
        shots = columns + [(f"test/{kind}", i) for kind in category.defects for i in DEFECTIVE]
        for axis, (split, index) in zip(row, shots, strict=True):
            axis.imshow(_outlined(render(name, split, index, seed)))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_title(split.removeprefix("test/").replace("_", " "), fontsize=8, pad=2)
        row[0].set_ylabel(name, fontsize=10)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=100, facecolor="white")
    # a palette makes the file a third as large, and the grain hides it
    return Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)


def _outlined(shot: Shot) -> NDArray[np.uint8]:
    padded = np.pad(shot.mask, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return np.where((near & ~shot.mask)[..., None], np.array(OUTLINE, np.uint8), shot.image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="dskd_lite.datasets.procedural")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        contact_sheet(options.seed).save(options.contact_sheet, optimize=True)
    except (OSError, ValueError) as error:  # ValueError: a suffix that names no image format
        raise InputError(f"{options.contact_sheet} cannot be written: {error}") from error


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
