"""Milliseconds of one training step, in the forms that training can take, on one device.

    python benchmarks/step.py --teacher wide_resnet50_2 --size 256 --profile   # a GPU
    python benchmarks/step.py                                                  # CPU, ResNet-18

The step is the one of ``train_students`` (both students' passes, losses and gradients, clipping,
Adam), on one batch of noise that stays on the device. Where a graph can be recorded, each form is
timed as it is and as a CUDA graph. ``--profile`` adds the kernels that the GPU is busy with.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch.optim import Adam
from torch.profiler import ProfilerActivity, profile

from dskd_lite.compiled import compiled_blocks
from dskd_lite.detector import DSKD
from dskd_lite.experiment import choose_accelerator, resolve
from dskd_lite.hardware import device_name
from dskd_lite.teacher import Teacher
from dskd_lite.training import ADAM_BETAS, StudentsStep


def milliseconds(action: Callable[[], torch.Tensor], repeats: int) -> float:
    """Median of a step, its loss read as training reads it."""
    found = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        action().item()
        found.append(time.perf_counter() - start)
    return 1e3 * statistics.median(found[2:])


def print_kernels(action: Callable[[], torch.Tensor], steps: int = 3) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(steps):
            action().item()
    rows = [row for row in profiled.key_averages() if row.self_device_time_total > 0]
    kernels = sorted(rows, key=lambda row: -row.self_device_time_total)
    busy = sum(row.self_device_time_total for row in kernels) / 1e3 / steps
    count = sum(row.count for row in kernels) / steps
    print(f"  the GPU is busy for {busy:.2f} ms, with {count:.0f} kernels")
    for row in kernels[:25]:
        spent = row.self_device_time_total / 1e3 / steps
        print(f"  {spent:8.3f} ms {row.count / steps:6.0f}x {row.key[:90]}")


def time_step(options: argparse.Namespace, compiled: bool) -> None:
    accelerator = choose_accelerator(options.device, options.precision)
    device = accelerator.device
    torch.manual_seed(0)
    detector = DSKD(Teacher(options.teacher, "random"), options.size).to(device).train()
    trained = [p for s in detector.students for p in s.parameters() if p.requires_grad]
    optimizer = Adam(trained, lr=0.005, betas=ADAM_BETAS, fused=True)
    *prepared, optimizer = accelerator.prepare(*detector.students, optimizer)
    step = StudentsStep(
        detector.students, prepared, optimizer, accelerator, "per-position", options.batch
    )
    images = torch.rand(options.batch, 3, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    with accelerator.autocast():
        features = detector.teacher(images, detector.stages_read)
    name = "compiled" if compiled else "as it is"
    forms = {name: lambda: step.run(images, *features)}
    if device.type == "cuda":
        forms[f"{name}, as a CUDA graph"] = lambda: step(images, features, 1.0)
    blocks = compiled_blocks(detector.students, options.batch)
    with blocks if compiled else contextlib.nullcontext():
        start = time.perf_counter()
        forms[name]().item()
        print(f"{name}: the first step took {time.perf_counter() - start:.1f} s")
        for form, action in forms.items():
            found = milliseconds(action, options.repeats)
            print(f"{form:<28}{found:>8.2f} ms{1e3 * options.batch / found:>9.1f} images/s")
            if options.profile and device.type == "cuda":
                print_kernels(action)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device, precision = resolve(options.device, options.precision)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}; "
          f"{options.teacher}, {options.size} px, batch {options.batch}, {precision}, "
          f"medians of {options.repeats}")  # fmt: skip
    for compiled in (False, True):
        time_step(options, compiled)


if __name__ == "__main__":
    main()
