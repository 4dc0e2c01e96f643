"""Speed and memory of the pixel metrics, beside what is used for them elsewhere.

    python benchmarks/metrics.py                      # scikit-learn, RD4AD's 200 steps
    python benchmarks/metrics.py --install-anomalib   # and anomalib, in a temporary environment

Every ratio compares two medians of one run on the same maps, taken in turns, so that whatever else
the machine does meets both. Maps and masks are made from a seed: smooth noise, and one to three
ellipses on three of four images.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rival
import sklearn
import torch
from scipy import ndimage
from sklearn.metrics import auc, roc_auc_score

from dskd_lite.hardware import device_name
from dskd_lite.metrics import aupro, auroc, legacy_pro

Metric = Callable[[np.ndarray, np.ndarray], float]

# Runs in the temporary environment: for each line it reads, one measurement (value and seconds).
ANOMALIB_WORKER = """
import sys, time
import dskd_lite._torchvision
import anomalib, numpy, torch
from anomalib.metrics import aupro
torch.set_num_threads(int(sys.argv[1]))
data = numpy.load(sys.argv[2])
maps, masks = torch.from_numpy(data["maps"]), torch.from_numpy(data["masks"]).long()
print(anomalib.__version__, flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    metric = aupro._AUPRO(fpr_limit=0.3)
    metric.update(maps, masks)
    print(float(metric.compute()), time.perf_counter() - start, flush=True)
"""


def make_maps(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Score maps (N, H, W) float32 and masks (N, H, W) bool."""
    rng = np.random.default_rng(seed)
    noise = rng.gamma(2.0, 1.0, (count, size, size))
    masks = np.zeros(noise.shape, bool)
    rows, columns = np.mgrid[:size, :size]
    for mask in masks[count // 4 :]:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.uniform(0, size, 2)
            height, width = rng.uniform(size / 50, size / 10, 2)
            mask |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
    return ndimage.gaussian_filter(noise + 0.4 * masks, (0, 4, 4)).astype(np.float32), masks


def two_hundred_steps(maps: np.ndarray, masks: np.ndarray, label_once: bool = False) -> float:
    """Per-region overlap as RD4AD's code goes about it: at each threshold all anew, labels too."""
    areas = []
    for score_map, mask in zip(maps, masks, strict=True):
        if not mask.any():
            continue
        rates, overlaps = [], []
        low, high = float(score_map.min()), float(score_map.max())
        regions = None
        for threshold in np.linspace(low, high, 200, endpoint=False):
            if regions is None or not label_once:
                labelled, count = ndimage.label(mask, np.ones((3, 3)))
                regions = [np.nonzero(labelled == number) for number in range(1, count + 1)]
            flagged = score_map > threshold
            overlaps.append(np.mean([flagged[region].mean() for region in regions]))
            rates.append(np.logical_and(~mask, flagged).sum() / (~mask).sum())
        kept = np.array(rates) < 0.3
        rates, overlaps = np.array(rates)[kept], np.array(overlaps)[kept]
        areas.append(auc(rates / rates.max(), overlaps))
    return float(np.mean(areas))


def roc_auc(maps: np.ndarray, masks: np.ndarray) -> float:
    return float(roc_auc_score(masks.ravel(), maps.ravel()))


def steps_labelled_once(maps: np.ndarray, masks: np.ndarray) -> float:
    return two_hundred_steps(maps, masks, label_once=True)


def timed(metric: Metric, maps: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Value and seconds."""
    start = time.perf_counter()
    value = metric(maps, masks)
    return value, time.perf_counter() - start


def in_turns(
    measurements: dict[str, Callable[[], tuple[float, float]]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Value and median seconds of each, after one round that is not counted."""
    rounds = [{name: run() for name, run in measurements.items()} for _ in range(repeats + 1)]
    return {
        name: (rounds[0][name][0], statistics.median(r[name][1] for r in rounds[1:]))
        for name in measurements
    }


def row(
    what: str, ours: tuple[float, float], rival: str, theirs: tuple[float, float], goal: str
) -> None:
    (value, seconds), (their_value, their_seconds) = ours, theirs
    ratio = f"{their_seconds / seconds:.1f}×"
    print(
        f"| {what} | {value:.6f} | {seconds:.3f} s | {rival} | {their_value:.6f} "
        f"| {their_seconds:.3f} s | {ratio} | {goal} |",
        flush=True,
    )


def peak_memory(metric: Metric, maps: np.ndarray, masks: np.ndarray) -> float:
    """Highest allocation during the call, over the bytes of the maps, which come on top."""
    tracemalloc.start()
    metric(maps, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / maps.nbytes


def compare_anomalib(maps: np.ndarray, masks: np.ndarray, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "maps.npz"
        np.savez(file, maps=maps, masks=masks)
        with rival.anomalib(ANOMALIB_WORKER, str(torch.get_num_threads()), str(file)) as worker:

            def measure() -> tuple[float, float]:
                value, seconds = worker.ask().split()
                return float(value), float(seconds)

            sides = {"ours": lambda: timed(aupro, maps, masks), "theirs": measure}
            result = in_turns(sides, repeats)
            name = f"anomalib {worker.version} AUPRO"
            row("`aupro`", result["ours"], name, result["theirs"], "10×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=160)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--install-anomalib", action="store_true")
    options = parser.parse_args()

    maps, masks = make_maps(options.maps, options.size, options.seed)
    print(
        f"{device_name('cpu')}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}\n"
        f"{options.maps} maps of {options.size}×{options.size} float32 (seed {options.seed}), "
        f"{masks.mean():.1%} of the pixels defective; medians of {options.repeats}\n"
    )
    print("| ours | value | time | theirs | value | time | ratio | goal |")
    print("|---|---|---|---|---|---|---|---|")
    metrics = (auroc, roc_auc, aupro, legacy_pro, two_hundred_steps, steps_labelled_once)
    result = in_turns(
        {m.__name__: lambda m=m: timed(m, maps, masks) for m in metrics}, options.repeats
    )
    row("`auroc`", result["auroc"], "scikit-learn `roc_auc_score`", result["roc_auc"], "5×")
    steps = "RD4AD's 200 steps", result["two_hundred_steps"], "20×"
    row("`aupro`", result["aupro"], *steps)
    row("`legacy_pro`", result["legacy_pro"], *steps)
    once = "the 200 steps, regions labelled once", result["steps_labelled_once"], "–"
    row("`legacy_pro`", result["legacy_pro"], *once)
    if options.install_anomalib:
        compare_anomalib(maps, masks, options.repeats)
    else:
        print("\nanomalib: not measured (add --install-anomalib)")

    half = np.zeros_like(masks)
    half[:, : options.size // 2] = True
    print(
        "\n| peak memory on top of the maps | over the bytes of the maps "
        "| if half of the pixels are defective | goal |\n|---|---|---|---|"
    )
    for metric in (auroc, aupro, legacy_pro):
        usual, most = (peak_memory(metric, maps, m) for m in (masks, half))
        print(f"| `{metric.__name__}` | {usual:.2f}× | {most:.2f}× | 3× |")


if __name__ == "__main__":
    main()
