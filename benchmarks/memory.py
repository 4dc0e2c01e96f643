"""Peak memory of evaluating a test set, over the bytes of the anomaly maps that it keeps.

    python benchmarks/memory.py                  # 1000 images at 256 px
    python benchmarks/memory.py --images 100     # a quick look

Runs what `dskd evaluate` runs after decoding: maps of every method, all metrics, the report's
section. The maps are float32, one per image and method (DSKD compares four: 4 x 262 MB for 1000
images at 256 px). The peak is the growth of the process's resident memory over what it held with
the detector loaded; activations, masks, the metrics' working memory and the images count, the last
mapped from a file as the cache maps them. One pass, not a median: a peak has no scatter to speak
of.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dskd_lite import report
from dskd_lite.datasets.folder import Category, Sample
from dskd_lite.detector import DSKD, Thresholds
from dskd_lite.evaluation import evaluate
from dskd_lite.experiment import prepare_detector
from dskd_lite.hardware import device_name
from dskd_lite.teacher import Teacher
from dskd_lite.training import to_tensor


def make_test_set(folder: Path, count: int, size: int) -> tuple[Category, np.ndarray]:
    """A category of which every second image is defective, and its images of noise, mapped."""
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 255  # 6 % of the image
    Image.fromarray(mask).save(folder / "mask.png")
    test = tuple(
        Sample(folder / f"{i}.png", "hole", folder / "mask.png")
        if i % 2
        else Sample(folder / f"{i}.png", "good", None)
        for i in range(count)
    )
    shape, rng = (count, size, size, 3), np.random.default_rng(0)
    with (folder / "images").open("wb") as file:
        for _ in range(count):
            file.write(rng.integers(0, 256, shape[1:], dtype=np.uint8).tobytes())
    images = np.memmap(folder / "images", np.uint8, mode="r", shape=shape)
    return Category(folder, (), test), images


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--teacher", default="offline")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    detector = DSKD(Teacher(options.teacher, "random"), options.size).eval()
    device = prepare_detector(detector, options.device, "fp32")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        category, images = make_test_set(Path(folder), options.images, options.size)
        detector(to_tensor(images[:1], device))  # what the first image costs is the detector's
        before = peak_bytes()
        evaluation = evaluate(detector, category, images, device=device)
        scored = peak_bytes()
        report.section(evaluation, Thresholds(image=0.5, pixel=0.5, false_positive_rate=0.05))
        reported = peak_bytes()
    one = next(iter(evaluation.maps.values())).nbytes
    kept = one * len(evaluation.maps)
    print(
        f"torch {torch.__version__}, {device_name('cpu')}; detector loaded {before / 1e6:.0f} MB; "
        f"maps {kept / 1e6:.0f} MB, {len(evaluation.maps)} methods of {one / 1e6:.0f} MB; growth "
        f"{(scored - before) / 1e6:.0f} MB for maps and metrics, "
        f"{(reported - before) / 1e6:.0f} MB with the report\n"
    )
    print(
        f"| memory of evaluating {options.images} images at {options.size} px "
        f"| the bytes of the maps, {len(evaluation.maps)} methods | 4× "
        f"| `python benchmarks/memory.py` | {(reported - before) / kept:.2f}× "
        f"({(reported - before) / one:.1f}× those of one method) |"
    )


if __name__ == "__main__":
    main()
