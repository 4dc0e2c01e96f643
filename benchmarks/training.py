"""Images per second of training DSKD's two students, beside RD4AD as its official code trains it.

    python benchmarks/training.py --teacher resnet18                             # CPU, 128 px
    python benchmarks/training.py --teacher wide_resnet50_2 --size 256           # GPU

Both sides run in one process and take turns; medians of the epochs after each turn's first. The
teacher's weights are random unless a file is given: they change no step's work. Ours is
``train_students`` as `dskd train` calls it. RD4AD's side is one student, the gradients of the
teacher not switched off and its stage 4 computed, plain Adam, contiguous memory, float32. Images
are noise: their content changes no step's work.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
import warnings

import numpy as np
import torch
from torch.nn import functional as F

from dskd_lite.baselines.rd4ad import RD4ADStudent
from dskd_lite.cost import count_cost
from dskd_lite.detector import DSKD
from dskd_lite.experiment import choose_accelerator
from dskd_lite.teacher import Teacher
from dskd_lite.training import train_students


def dskd_epoch_seconds(options: argparse.Namespace, images: np.ndarray) -> list[float]:
    """Seconds of each epoch after the first, in which features are still being cached."""
    detector = DSKD(Teacher(options.teacher, options.weights), options.size)
    accelerator = choose_accelerator(options.device, "auto")
    ends: list[float] = []
    train_students(
        detector, images, options.epochs, options.batch, accelerator=accelerator,
        report=lambda step: ends.append(time.perf_counter()),
    )  # fmt: skip
    per_epoch = len(ends) // options.epochs
    last = ends[per_epoch - 1 :: per_epoch]
    return [b - a for a, b in itertools.pairwise(last)]


def rd4ad_epoch_seconds(options: argparse.Namespace, images: np.ndarray) -> list[float]:
    """Seconds of each epoch after the first, in which kernels are still being chosen."""
    device = choose_accelerator(options.device, "auto").device
    teacher = Teacher(options.teacher, options.weights).to(device)
    teacher.backbone.requires_grad_(True)
    student = RD4ADStudent(options.teacher).to(device).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.005, betas=(0.5, 0.999))
    seconds = []
    for _ in range(options.epochs):
        start = time.perf_counter()
        for first in range(0, len(images), options.batch):
            batch = torch.from_numpy(images[first : first + options.batch]).to(device)
            batch = batch.permute(0, 3, 1, 2).float().div(255).contiguous()
            features = teacher.backbone((batch - teacher.mean) / teacher.std)
            loss = torch.stack([
                (1 - F.cosine_similarity(e.flatten(1), d.flatten(1))).mean()
                for e, d in zip(features[:3], student(features), strict=True)
            ]).sum()  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3, help="in each turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a teacher without layer4's branch says so once too often
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        ours += dskd_epoch_seconds(options, images)
        theirs += rd4ad_epoch_seconds(options, images)
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {place}; teacher "
          f"{options.teacher}, {options.size} px, batch {options.batch}, "
          f"medians of {len(ours)} epochs of {options.images} images")  # fmt: skip
    sides = {"DSKD, both students": ours, "RD4AD, as its code": theirs}
    rates = {name: options.images / statistics.median(s) for name, s in sides.items()}
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>9.1f} images/s")
    dskd, rd4ad = rates.values()
    cost = count_cost(options.teacher, options.size)
    students = sum(cost[f"{s}_student"]["multiply_adds"] for s in ("forward", "reverse"))
    print(f"DSKD computes {3 * students / 1e9:.2f} GMAC an image once features are cached: "
          f"{2 * 3 * students * dskd / 1e12:.3f} TFLOP/s reached; at this rate 200 epochs of 320 "
          f"images take {200 * 320 / dskd:.0f} s\n")  # fmt: skip
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    arguments = f"--teacher {options.teacher} --size {options.size}"
    print(f"| training both students, {'GPU' if on_gpu else 'CPU'}, {options.teacher}, "
          f"{options.size} px, batch {options.batch} | RD4AD as its official code trains it "
          f"| {'3' if on_gpu else '1.8'}× | `python benchmarks/training.py {arguments}` "
          f"| {dskd / rd4ad:.2f}× |")  # fmt: skip


if __name__ == "__main__":
    main()
