"""Masks of other places than the object for synthetic noise to fall on, for `--noise-on`.

    python book/noise_controls.py SCREW --out runs/places

SCREW is a category in MVTec's layout whose objects lie on a plain background. --out gets a drawn
region, `disc.png`, and three folders with a mask for each photo of train/good: *background*, all
but the object that `--noise-on object` finds; *other*, the place of the object in the photo before,
which has the object's size and shape but does not know this photo; and *half*, the photo cut
through the middle at an angle drawn anew. Prints how large each is, and how much of it is object.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dskd_lite.datasets.folder import read_image, scan_category, size_of
from dskd_lite.foreground import object_masks

DISC = (38 / 512, 36 / 512, 474 / 512, 476 / 512)
"""Left, top, right and bottom, as shares of the photo: drawn by eye around all screws."""


def places(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Where noise may fall in each image, a name for each kind of place, (N, H, W) bool each.

    ``images`` are (N, H, W, 3) uint8; ``seed`` is that of the halves' angles.
    """
    objects = object_masks(images)
    count, height, width = objects.shape
    turn = np.random.default_rng(seed).uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = np.mgrid[:height, :width]
    half = (x - (width - 1) / 2) * np.cos(turn) + (y - (height - 1) / 2) * np.sin(turn) > 0
    left, top, right, bottom = DISC
    across = (2 * (x + 0.5) / width - left - right) / (right - left)
    down = (2 * (y + 0.5) / height - top - bottom) / (bottom - top)
    disc = np.broadcast_to(across**2 + down**2 <= 1, objects.shape)
    return {
        "object": objects,
        "disc": disc,
        "background": ~objects,
        "other": np.roll(objects, 1, axis=0),
        "half": half,
    }


def write(mask: np.ndarray, path: Path, size: tuple[int, int]) -> None:
    """Write a mask as a PNG of ``size``, its photo's width and height in pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST).save(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a category in MVTec's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels of the runs")
    options = parser.parse_args(arguments)
    photos = scan_category(options.data).train
    found = places(np.stack([read_image(path, options.image_size) for path in photos]))
    for name, masks in found.items():
        on_object = found["object"][masks].mean()
        print(f"{name:10} {masks.mean():4.0%} of the photo, of that {on_object:4.0%} object")
    write(found["disc"][0], options.out / "disc.png", size_of(photos[0]))
    for name in ("background", "other", "half"):
        for path, mask in zip(photos, found[name], strict=True):
            write(mask, options.out / name / f"{path.stem}.png", size_of(path))


if __name__ == "__main__":
    main()
