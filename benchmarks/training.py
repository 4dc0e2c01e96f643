"""Images per second of training DSKD's two students, beside RD4AD as others train it.

    python benchmarks/training.py --teacher resnet18                             # CPU, 128 px
    python benchmarks/training.py --teacher resnet18 --precision bf16            # CPU with AMX
    python benchmarks/training.py --teacher wide_resnet50_2 --size 256           # GPU
    python benchmarks/training.py --teacher wide_resnet50_2 --size 256 --images 320 --whole-run

The sides take turns; medians of the epochs after each turn's first. The teacher's weights are
random unless a file is given: they change no step's work. Ours is ``train_students`` as `dskd
train` calls it. RD4AD's side is one student as its official code trains it: the gradients of the
teacher not switched off and its stage 4 computed, plain Adam, contiguous memory, float32. With
``--install-anomalib`` a third side is anomalib's ReverseDistillation, also one student, with the
step of its LightningModule in a plain loop, float32, in a temporary environment. Images are noise:
their content changes no step's work.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rival
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dskd_lite.baselines.rd4ad import RD4ADStudent
from dskd_lite.cost import count_cost
from dskd_lite.detector import DSKD
from dskd_lite.experiment import choose_accelerator, resolve
from dskd_lite.hardware import device_name
from dskd_lite.teacher import Teacher
from dskd_lite.training import train_students

# Runs in the temporary environment: for each line it reads, the seconds of each epoch after the
# first.
ANOMALIB_WORKER = """
import json, sys, time
import dskd_lite._torchvision
import anomalib, numpy, torch
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
threads, teacher, size, batch, count, epochs, device = sys.argv[1:]
size, batch, count, epochs = int(size), int(batch), int(count), int(epochs)
torch.set_num_threads(int(threads))
images = numpy.random.default_rng(0).integers(0, 256, (count, 3, size, size)).astype("uint8")
print(anomalib.__version__, flush=True)
for _ in sys.stdin:
    model = ReverseDistillationModel(
        teacher, (size, size), ["layer1", "layer2", "layer3"], AnomalyMapGenerationMode.ADD, False
    ).to(device).train()
    trained = [*model.decoder.parameters(), *model.bottleneck.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.005, betas=(0.5, 0.99))
    criterion, seconds = ReverseDistillationLoss(), []
    for _ in range(epochs):
        start = time.perf_counter()
        for first in range(0, count, batch):
            data = torch.from_numpy(images[first : first + batch]).to(device).float().div(255)
            loss = criterion(*model(data))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds[1:]), flush=True)
"""


def dskd_epoch_seconds(options: argparse.Namespace, images: np.ndarray) -> list[float]:
    """Seconds of each epoch after the first, in which features are still being cached."""
    detector = DSKD(Teacher(options.teacher, options.weights), options.size)
    accelerator = choose_accelerator(options.device, options.precision)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ends: list[float] = []
    train_students(
        detector, images, options.epochs, options.batch, accelerator=accelerator,
        report=lambda step: ends.append(time.perf_counter()), compile=options.compile,
    )  # fmt: skip
    if accelerator.device.type == "cuda":
        print(f"peak memory of DSKD {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    per_epoch = len(ends) // options.epochs
    last = ends[per_epoch - 1 :: per_epoch]
    return [b - a for a, b in itertools.pairwise(last)]


def time_whole_run(options: argparse.Namespace, images: np.ndarray) -> None:
    """Train once, from the teacher's pass to the last checkpoint, and say how long it took."""
    epochs = options.epochs or 200
    torch.manual_seed(0)
    detector = DSKD(Teacher(options.teacher, options.weights), options.size)
    accelerator = choose_accelerator(options.device, options.precision)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_students(
            detector, images, epochs, options.batch, accelerator=accelerator,
            checkpoint=Path(folder) / "checkpoint.safetensors", compile=options.compile,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    print(f"torch {torch.__version__}, {device_name(accelerator.device)}; {options.teacher}, "
          f"{options.size} px, batch {options.batch}, {epochs} epochs of {len(images)} images: "
          f"{seconds:.1f} s, {epochs * len(images) / seconds:.1f} images/s")  # fmt: skip


def rd4ad_epoch_seconds(
    options: argparse.Namespace, images: np.ndarray
) -> tuple[list[float], float]:
    """Seconds of each epoch after the first, in which kernels are still being chosen, and the
    multiply-adds of an image, counted in that first epoch."""
    device = resolve(options.device, "fp32")[0]
    teacher = Teacher(options.teacher, options.weights).to(device)
    teacher.backbone.requires_grad_(True)
    student = RD4ADStudent(options.teacher).to(device).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.005, betas=(0.5, 0.999))

    def epoch() -> None:
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

    with FlopCounterMode(display=False) as counter:
        epoch()
    seconds = []
    for _ in range(options.epochs - 1):
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return seconds, counter.get_total_flops() / 2 / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, help="in each turn, 3 if not given")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
        help="of DSKD; the others compute in fp32",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="DSKD's blocks, with torch.compile")
    parser.add_argument("--install-anomalib", action="store_true")
    parser.add_argument(
        "--whole-run", action="store_true",
        help="time instead one training of DSKD, 200 epochs unless --epochs says otherwise, with "
        "the teacher's pass and checkpoints",
    )  # fmt: skip
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a teacher without layer4's branch says so once too often
    device, precision = resolve(options.device, options.precision)
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    if options.whole_run:
        time_whole_run(options, images)
        return
    options.epochs = options.epochs or 3
    ours = f"DSKD, both students, {precision}{', compiled' if options.compile else ''}"
    theirs = "RD4AD, as its code, fp32"
    seconds: dict[str, list[float]] = {ours: [], theirs: []}
    macs = 0.0
    arguments = (torch.get_num_threads(), options.teacher, options.size, options.batch,
                 options.images, options.epochs, device)  # fmt: skip
    with contextlib.ExitStack() as stack:
        worker, third = None, ""
        if options.install_anomalib:
            program = rival.anomalib(ANOMALIB_WORKER, *map(str, arguments))
            worker = stack.enter_context(program)
            third = f"anomalib {worker.version}, RD, fp32"
            seconds[third] = []
        for _ in range(options.rounds):
            seconds[ours] += dskd_epoch_seconds(options, images)
            rd4ad, macs = rd4ad_epoch_seconds(options, images)
            seconds[theirs] += rd4ad
            if worker:
                seconds[third] += json.loads(worker.ask())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}; "
          f"teacher {options.teacher}, {options.size} px, batch {options.batch}, "
          f"medians of {len(seconds[ours])} epochs of {options.images} images")  # fmt: skip
    rates = {name: options.images / statistics.median(s) for name, s in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<32}{rate:>9.1f} images/s {rates[ours] / rate:>7.2f}×")
    cost = count_cost(options.teacher, options.size)
    students = 3 * sum(cost[f"{s}_student"]["multiply_adds"] for s in ("forward", "reverse"))
    print(f"an image is {students / 1e9:.2f} GMAC to DSKD once features are cached, "
          f"{macs / 1e9:.2f} to RD4AD: {2 * students * rates[ours] / 1e12:.3f} and "
          f"{2 * macs * rates[theirs] / 1e12:.3f} TFLOP/s reached; at DSKD's rate 200 epochs of "
          f"320 images take {200 * 320 / rates[ours]:.0f} s\n")  # fmt: skip
    kind = "GPU" if device.type == "cuda" else "CPU"
    command = f"--teacher {options.teacher} --size {options.size} --precision {precision}"
    if options.compile:
        command += " --compile"
    print(f"| training both students, {kind}, {options.teacher}, {options.size} px, batch "
          f"{options.batch}, {precision} | RD4AD as its official code trains it "
          f"| {'3' if kind == 'GPU' else '1.8'}× | `python benchmarks/training.py {command}` "
          f"| {rates[ours] / rates[theirs]:.2f}× |")  # fmt: skip


if __name__ == "__main__":
    main()
