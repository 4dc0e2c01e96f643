"""What only a CUDA device can show; skipped, saying so, where there is none."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dskd_lite import experiment
from dskd_lite.config import Config
from dskd_lite.detector import DSKD
from dskd_lite.experiment import choose_accelerator, load_run, prepare_detector
from dskd_lite.students import StridedConv7
from dskd_lite.teacher import Teacher
from dskd_lite.training import Step, to_tensor, train_students

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("error:training without CUDA graphs"),
]
# Batches of 6 and 5: only those of 5 are recorded as a CUDA graph, and one of 6 comes first.
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _plain_float32() -> Iterator[None]:
    """Without TF32, which convolutions use otherwise: ten bits of mantissa are no float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _detector() -> DSKD:
    torch.manual_seed(0)
    return DSKD(Teacher("offline"), 64)


def _losses(device: str, precision: str, **options: object) -> list[float]:
    losses: list[float] = []
    train_students(
        _detector(), IMAGES, 3, batch_size=6, accelerator=choose_accelerator(device, precision),
        report=lambda step: losses.append(step.loss), **options,
    )  # fmt: skip
    return losses


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.03), ("fp16", 0.004)]
)
def test_maps_are_those_of_the_cpu(precision: str, tolerance: float) -> None:
    detector = _detector().eval()
    with torch.no_grad():
        expected = detector.score_maps(to_tensor(IMAGES))
        device = prepare_detector(detector, "cuda", precision)
        images = to_tensor(IMAGES, device)
        found = [d(images).score_maps.cpu() for d in (detector, detector.for_scoring())]
    for maps in found:
        assert (maps - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize(
    ("precision", "first", "later"),
    [("fp32", 1e-5, 0.05), ("bf16", 0.01, 0.1), ("fp16", 0.01, 0.1)],
)
def test_training_goes_as_on_the_cpu(precision: str, first: float, later: float) -> None:
    """Loss by loss; fp16 with its scaling. Adam's first steps make rounding large."""
    expected, found = _losses("cpu", "fp32"), _losses("cuda", precision)
    assert found[0] == pytest.approx(expected[0], rel=first)
    assert found == pytest.approx(expected, rel=later)


def test_compiled_training_goes_as_on_the_cpu() -> None:
    """Compiled and recorded; batches of 6 images as they are."""
    expected, found = _losses("cpu", "fp32"), _losses("cuda", "bf16", compile=True)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_training_after_another(precision: str) -> None:
    """The first one's graphs must not break the recording of the second, nor keep its memory."""
    first = _losses("cuda", precision)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    assert _losses("cuda", precision) == pytest.approx(first, rel=0.02)
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 32 * 1024**2


def test_the_7x7_convolution_by_blocks_is_taken_and_right() -> None:
    """512 channels in bf16, where the forward pass leaves cuDNN's kernel for another."""
    torch.manual_seed(0)
    convolution, x = StridedConv7(512), torch.randn(2, 512, 8, 8)
    expected = convolution(x)
    convolution.to("cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        found = convolution(x.to("cuda", torch.bfloat16))
        blocks = convolution.by_blocks(x.to("cuda", torch.bfloat16))
    assert torch.equal(found, blocks)
    assert (found.cpu().float() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_resumes_on_the_device(tmp_path: Path, precision: str) -> None:
    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_students(
            _detector(), IMAGES, 3, batch_size=6, accelerator=choose_accelerator("cuda", precision),
            checkpoint=file, report=stop,
        )  # fmt: skip
    rest = _losses("cuda", precision, checkpoint=file, resume=True)
    assert rest == pytest.approx(_losses("cuda", precision)[3:], rel=0.02)


def test_a_whole_run_on_the_device(make_category: Callable[..., Path], tmp_path: Path) -> None:
    """Trained, saved and evaluated there, and read again on the CPU with the same scores."""
    config = Config(
        data=make_category(), out=tmp_path / "run", teacher="offline", image_size=64, epochs=2,
        fusion_epochs=2, batch_size=4, device="cuda", precision="bf16",
    )  # fmt: skip
    scores = experiment.run(config)["scores"]["fused"]
    on_cpu = experiment.evaluate_run(config.out, None, tmp_path / "again", device="cpu")
    assert on_cpu["scores"]["fused"]["pixel_auroc"] == pytest.approx(
        scores["pixel_auroc"], abs=0.01
    )
    assert next(load_run(config.out).parameters()).device.type == "cpu"
