"""Images per second of scoring with DSKD, beside RD4AD and beside the counted floor.

    python benchmarks/inference.py                                               # CPU, ResNet-18
    python benchmarks/inference.py --teacher wide_resnet50_2 --size 256 --precision bf16   # GPU

Both are whole detectors, images to fused map and score, in eval mode with random weights, whose
values change no time. DSKD runs in ``--precision``, with batch norm folded into its convolutions as
``dskd evaluate`` and ``dskd predict`` do; RD4AD as its code does, in float32 and not folded. The
floor is DSKD's counted multiply-adds at the rate that this device reaches on one large matrix
product in the same precision. All take turns, DSKD without folding as well; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.cost import count_cost
from dskd_lite.detector import DSKD
from dskd_lite.experiment import prepare_detector
from dskd_lite.hardware import device_name
from dskd_lite.teacher import Teacher


def seconds(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    options = parser.parse_args()
    teacher = Teacher(options.teacher, "random")
    dskd, rd4ad = DSKD(teacher, options.size).eval(), RD4AD(teacher, options.size).eval()
    prepare_detector(rd4ad, options.device, "fp32")
    device = prepare_detector(dskd, options.device, options.precision)
    scoring = dskd.for_scoring()
    images = torch.rand(options.batch, 3, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dskd.precision]
    side = 8192 if device.type == "cuda" else 1024
    square = torch.rand(side, side, device=device, dtype=dtype)
    sides = {
        "dskd": lambda: scoring(images),
        "not folded": lambda: dskd(images),
        "rd4ad": lambda: rd4ad(images),
        "product": lambda: square @ square,
    }
    with torch.no_grad():
        rounds = [
            {name: seconds(action, device) for name, action in sides.items()}
            for _ in range(options.repeats + 2)
        ][2:]  # kernels are chosen in the first
    median = {name: statistics.median(r[name] for r in rounds) for name in sides}
    cost = count_cost(options.teacher, options.size)
    counted = 2 * sum(cost[p]["multiply_adds"] for p in cost if p != "fusion")
    reached = counted * options.batch / median["dskd"]
    possible = 2 * side**3 / median["product"]
    rates = {name: options.batch / median[name] for name in ("dskd", "not folded", "rd4ad")}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}; "
        f"batch {options.batch}, medians of {options.repeats}, in turns\n"
        f"DSKD {dskd.precision} {rates['dskd']:.1f} images/s, without folding "
        f"{rates['not folded']:.1f}, RD4AD fp32 {rates['rd4ad']:.1f}\n"
        f"{counted / 2e9:.2f} GMAC an image: {reached / 1e12:.3f} TFLOP/s reached, a matrix "
        f"product reaches {possible / 1e12:.3f}\n"
    )
    arguments = f"--teacher {options.teacher} --size {options.size} --precision {dskd.precision}"
    print(
        f"| inference, {device.type.upper()}, {options.teacher}, {options.size} px, "
        f"{dskd.precision} | the floor; RD4AD fp32 | 40 % of the rate; 1× "
        f"| `python benchmarks/inference.py {arguments}` "
        f"| {reached / possible:.0%} of the matrix product's rate; "
        f"{rates['dskd'] / rates['rd4ad']:.2f}× |"
    )


if __name__ == "__main__":
    main()
