"""Where in an image synthetic noise may fall: on the object, or in regions given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from dskd_lite.datasets.folder import by_stem, list_images, read_mask, size_of
from dskd_lite.errors import InputError

BORDER = 1 / 32
"""Width of the frame that is taken for background, as a share of the image's side."""
CLEAN_UP = 1 / 64
"""Radius of what the clean-up closes, drops and adds around the object, as a share of the side."""
BINS = 256


def object_masks(images: np.ndarray) -> np.ndarray:
    """Masks (N, H, W) bool of the object in each of N images (N, H, W, 3) uint8, without labels.

    Every image's background is the median colour of its border; what lies farther from that colour
    than Otsu's threshold on the distances of all images together is the object. The threshold is
    that of the distances' roots, or bright parts alone would be the object. Gaps and holes are
    closed, specks dropped, and the rim is included.

    Where the border holds at least half as much of that object as the whole image does, there is no
    background to tell it from (a texture that fills the frame, an object that runs out of it):
    everything is object then, in every image. The same for a single image in which nothing is left.
    """
    side = images.shape[1]
    width, radius = max(round(BORDER * side), 1), max(round(CLEAN_UP * side), 1)
    border = np.ones(images.shape[1:3], dtype=bool)
    border[width:-width, width:-width] = False
    distances = np.empty(images.shape[:3], dtype=np.float32)
    for distance, image in zip(distances, images, strict=True):
        colours = image.astype(np.float32)
        distance[:] = np.linalg.norm(colours - np.median(colours[border], axis=0), axis=-1) ** 0.5
    masks = distances > otsu_threshold(distances)
    if masks[:, border].mean() >= masks.mean() / 2:  # all of equal colours have neither
        return np.ones_like(masks)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc, inside = x**2 + y**2 <= radius**2, slice(2 * radius, -2 * radius)
    for mask in masks:
        closed = ndimage.binary_closing(np.pad(mask, 2 * radius), disc)
        opened = ndimage.binary_opening(ndimage.binary_fill_holes(closed), disc)
        whole = ndimage.binary_dilation(opened, disc)[inside, inside]
        mask[:] = whole if whole.any() else True
    return masks


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that parts values, of any shape, into two groups as Otsu (1979) does.

    It gives the largest variance between the groups, on a histogram of 256 bins.
    """
    counts, edges = np.histogram(values.astype(np.float64), BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    below, sum_below = counts.cumsum(), (counts * centres).cumsum()
    above = below[-1] - below
    offset = sum_below[-1] * (below / below[-1]) - sum_below
    between = offset**2 / np.maximum(below * above, 1)
    return float(edges[1:][between.argmax()])


def read_regions(source: Path, images: Sequence[Path], size: int) -> np.ndarray:
    """Masks (N, size, size) bool of where noise may fall, drawn by hand or made elsewhere.

    ``source`` is one mask for all ``images``, or a folder with one for each, named as the image
    (its suffix may differ). What ``read_mask`` takes for defect belongs to the region. Raises
    InputError if a mask is missing, damaged, empty, or not of its image's size, or if two images or
    two masks have one name.
    """
    if source.is_file():
        found = dict.fromkeys(images, source)
    elif source.is_dir():
        by_stem(images)  # two of one name would share a mask
        by_name = by_stem(list_images(source))
        missing = [image for image in images if image.stem not in by_name]
        if missing:
            raise InputError(
                f"{source} has no mask for {missing[0]} ({len(missing)} such images): add "
                f"{source / missing[0].stem}.png, or give one mask image for all"
            )
        found = {image: by_name[image.stem] for image in images}
    else:
        raise InputError(
            f"--noise-on {source} does not exist: give anywhere, object, a mask image, or a folder "
            "with a mask for each training image"
        )
    masks = np.empty((len(images), size, size), dtype=bool)
    for mask, (image, path) in zip(masks, found.items(), strict=True):
        (a, b), (c, d) = size_of(path), size_of(image)
        if (a, b) != (c, d):
            raise InputError(
                f"{path} is {a}x{b} pixels but {image} is {c}x{d}: make them the same size"
            )
        mask[:] = read_mask(path, size)
        if not mask.any():
            raise InputError(f"{path} is empty at {size} px: paint white where noise may fall")
    return masks
