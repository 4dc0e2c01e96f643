"""Images per second out of the cache of decoded images, beside decoding them each time.

    python benchmarks/loader.py

The images are PNGs of 1024 px made from a seed: blurred noise with grain, about as hard to decode
as a photograph. One side decodes and resizes them all with PIL, on all cores; the other reads an
epoch out of the memory-mapped cache, in random order, as float batches on the device. (Training
reads its share of the cache into memory first.) Opening a cache that is there (hash of the files,
checksum of the cache) is paid once a run and timed apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from dskd_lite.datasets.cache import decoded_images
from dskd_lite.experiment import choose_accelerator
from dskd_lite.hardware import device_name
from dskd_lite.training import to_tensor


def make_pngs(folder: Path, count: int, side: int) -> list[Path]:
    """Write ``count`` images of ``side`` pixels."""
    paths = []
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = ndimage.zoom(
            rng.uniform(40, 215, (side // 32, side // 32, 3)), (32, 32, 1), order=1
        )
        pixels = (coarse + rng.normal(0, 2, (side, side, 1))).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{index:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def read_epoch(images: np.ndarray, batch: int, device: torch.device, seed: int) -> None:
    """All images once, as training reads them."""
    order = np.random.default_rng(seed).permutation(len(images))
    for start in range(0, len(images), batch):
        to_tensor(images[np.sort(order[start : start + batch])], device)
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(action: object, *arguments: object) -> float:
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=1024, help="of the PNGs, in pixels")
    parser.add_argument("--size", type=int, default=256, help="that they are resized to, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    device = choose_accelerator(options.device, "fp32").device
    decode, epoch, opening = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_pngs(folder, options.images, options.side)
        images = decoded_images(paths, options.size, folder / "cache")
        read_epoch(images, options.batch, device, seed=0)
        for repeat in range(options.repeats):
            decode.append(seconds(decoded_images, paths, options.size, None))
            epoch.append(seconds(read_epoch, images, options.batch, device, repeat + 1))
            opening.append(seconds(decoded_images, paths, options.size, folder / "cache"))
        del images
        weight = sum(path.stat().st_size for path in paths) / len(paths)
    rates = [options.images / statistics.median(s) for s in (epoch, decode, opening)]
    print(
        f"{os.cpu_count()} cores, {device_name('cpu')}, device {device.type}; {options.images} "
        f"PNGs of {options.side} px, {weight / 1e6:.1f} MB each, to {options.size} px; medians of "
        f"{options.repeats}, in turns\nepoch from the cache {rates[0]:.0f} images/s, PIL "
        f"{rates[1]:.1f} images/s, opening the cache {rates[2]:.0f} images/s\n"
    )
    print(
        f"| loader, an epoch from the cache, {options.size} px | PIL decode and resize of "
        f"{options.side} px PNGs, all cores | 20× | `python benchmarks/loader.py` "
        f"| {rates[0] / rates[1]:.0f}×; opening the cache once a run {rates[2] / rates[1]:.0f}× |"
    )


if __name__ == "__main__":
    main()
