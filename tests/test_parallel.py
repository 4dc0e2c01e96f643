"""Two processes on one CPU against one process on the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from torch import nn

from dskd_lite import training
from dskd_lite.detector import DSKD
from dskd_lite.parallel import SyncedBatchNorm, share_of, synchronise_batch_norm
from dskd_lite.teacher import Teacher
from dskd_lite.training import to_tensor, train_students

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3)).astype(np.uint8)


def _train(file: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    detector = DSKD(Teacher("offline", "random"), 64, smoothing_sigma=1.0).double()
    losses: list[float] = []
    train_students(detector, IMAGES, 2, batch_size=6, report=lambda s: losses.append(s.loss))
    state = {k: v for k, v in detector.state_dict().items() if "student" in k}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save({"losses": torch.tensor(losses)} | state, file)


def test_two_processes_reach_the_weights_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 6 and 5 images, so that the shares differ too; weights and BN statistics.

    In float64, for Adam turns the rounding of a gradient near 0 into a whole step; even so a few
    channels differ in the seventh digit.
    """
    monkeypatch.setattr(training, "to_tensor", lambda i, d="cpu": to_tensor(i, d).double())
    debug_launcher(_train, (tmp_path / "two.pt",), num_processes=2)
    _train(tmp_path / "one.pt")
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


def _batch_norm(file: Path) -> None:
    torch.set_num_threads(1)
    layer = nn.Sequential(nn.BatchNorm2d(3).double())
    synchronise_batch_norm(layer)
    assert isinstance(layer[0], SyncedBatchNorm)
    rank = torch.distributed.get_rank()
    whole = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = whole[torch.as_tensor(share_of(np.arange(5), rank, 2))].requires_grad_()
    out = layer(own)
    (out**3).sum().backward()
    torch.save({"out": out.detach(), "grad": own.grad, "mean": layer[0].running_mean,
                "var": layer[0].running_var}, file.with_suffix(f".{rank}"))  # fmt: skip


def test_batch_norm_over_processes_is_batch_norm_over_the_batch(tmp_path: Path) -> None:
    """Values, gradients and running statistics, against torch's own layer on all five images."""
    debug_launcher(_batch_norm, (tmp_path / "bn",), num_processes=2)
    parts = [torch.load(tmp_path / f"bn.{rank}") for rank in (0, 1)]
    layer = nn.BatchNorm2d(3).double()
    whole = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole.requires_grad_()
    out = layer(whole)
    (out**3).sum().backward()
    torch.testing.assert_close(torch.cat([p["out"] for p in parts]), out.detach())
    torch.testing.assert_close(torch.cat([p["grad"] for p in parts]), whole.grad)
    for part in parts:
        torch.testing.assert_close(part["mean"], layer.running_mean)
        torch.testing.assert_close(part["var"], layer.running_var)


@pytest.mark.parametrize(("count", "sizes"), [(16, [8, 8]), (15, [8, 7])])
def test_shares_are_a_split(count: int, sizes: list[int]) -> None:
    shares = [share_of(np.arange(count), rank, 2) for rank in (0, 1)]
    assert [len(s) for s in shares] == sizes
    assert np.concatenate(shares).tolist() == list(range(count))
