"""What computed a result, as it stands beside the result."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch


def device_name(device: torch.device | str) -> str:
    """Name of the GPU, or for the CPU its model, e.g. "AMD EPYC".

    Linux alone tells the model in a file; elsewhere it is what Python knows, e.g. "arm64".
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device: torch.device | str) -> dict[str, str | int]:
    """Device, threads of the CPU and the day (UTC, year-month-day) of a result computed now."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }
