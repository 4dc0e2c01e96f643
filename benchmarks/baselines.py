"""Quality and seconds of the baselines on one category, as a table.

    python benchmarks/baselines.py CATEGORY --teacher resnet18 --weights FILE --size 128

CATEGORY is a folder in MVTec layout. One thread; image AUROC, pixel AUROC and AUPRO in percent.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch

from dskd_lite.baselines import DETECTORS, make_detector
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import scan_category
from dskd_lite.evaluation import evaluate
from dskd_lite.teacher import Teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("category", type=Path)
    parser.add_argument("--teacher", default="offline")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20, help="of rd4ad and autoencoder")
    parser.add_argument("--methods", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a teacher without layer4's branch says so once too often
    category = scan_category(options.category)
    normal = decoded_images(category.train, options.size, None)
    test = decoded_images([s.path for s in category.test], options.size, None)
    print(f"{category.name}: {len(normal)} normal, {len(test)} test images, {options.size} px, "
          f"teacher {options.teacher}, seed {options.seed}, {options.epochs} epochs")  # fmt: skip
    print(
        f"{'method':<16}{'image':>7}{'pixel':>7}{'AUPRO':>7}{'fit, CPU s':>12}{'test, CPU s':>12}"
    )
    for name in options.methods:
        trained = {"epochs": options.epochs} if name in ("rd4ad", "autoencoder") else {}
        teacher = Teacher(options.teacher, options.weights)
        detector = make_detector(name, teacher, options.size, options.seed, **trained)
        start = time.process_time()
        detector.fit(normal)
        fitted = time.process_time()
        scores = evaluate(detector, category, test).scores[name]
        figures = (scores.image_auroc, scores.pixel_auroc, scores.aupro)
        row = "".join(f"{'-' if f is None else f'{100 * f:.1f}':>7}" for f in figures)
        end = time.process_time()
        print(f"{name:<16}{row}{fitted - start:>12.1f}{end - fitted:>12.1f}", flush=True)


if __name__ == "__main__":
    main()
