from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LinearRegression
from torch import Tensor

from dskd_lite import pretraining
from dskd_lite.datasets.textures import procedural_textures
from dskd_lite.errors import InputError
from dskd_lite.pretraining import (
    Pretraining,
    draw_batch,
    matching_errors,
    pretrain,
    relation_error,
)
from dskd_lite.teacher import OFFLINE_WEIGHTS, Teacher

WEIGHTS = resources.files("dskd_lite") / "weights"
IMAGENET_COSINES = Path(__file__).parent / "imagenet_cosines.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ResNet-18 file with random weights: fit to be imitated, though not worth it."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("source") / "resnet18.safetensors"
    save_file(Teacher("resnet18", "random").backbone.state_dict(), path)
    return str(path)


def tiny(source: str, out: Path, **options: Any) -> Pretraining:
    defaults = dict(
        source=source, out=out, steps=3, batch_pixels=4 * 32 * 32, image_sizes=(32, 64),
        texture_size=64, sheet=4, pool=2, steps_per_sheet=2, validation=8, save_every=3,
    )  # fmt: skip
    return Pretraining(**(defaults | options))


@pytest.fixture(scope="module")
def uninterrupted(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tiny(source, tmp_path_factory.mktemp("whole")))


def test_ctrl_c_and_resume_reach_the_same_weights(
    source: str, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_and_interrupt(pool: Any, config: Pretraining, step: int, *stream: Any) -> Any:
        if step == 0 and not stream:
            os.kill(os.getpid(), signal.SIGINT)
        return draw_batch(pool, config, step, *stream)

    monkeypatch.setattr(pretraining, "draw_batch", draw_and_interrupt)
    with pytest.raises(SystemExit, match="stopped at step 1"):
        pretrain(tiny(source, tmp_path))
    monkeypatch.undo()

    resumed = pretrain(tiny(source, tmp_path, resume=True))
    assert resumed.read_bytes() == uninterrupted.read_bytes()


def test_batches_depend_on_seed_and_step_and_stay_in_range() -> None:
    pool = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8)
    config = tiny("unused", Path("unused"))
    first = draw_batch(pool, config, 0)
    assert 0 <= first.min() and first.max() <= 1 and first.shape[1] == 3
    torch.testing.assert_close(first, draw_batch(pool, config, 0), rtol=0, atol=0)
    for other in (draw_batch(pool, config, 1), draw_batch(pool, replace(config, seed=1), 0)):
        assert other.shape != first.shape or not torch.equal(other, first)
    shapes = {tuple(draw_batch(pool, config, step).shape) for step in range(20)}
    assert shapes == {(4, 3, 32, 32), (2, 3, 64, 64)}


def test_report_names_both_teachers(
    source: str, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretraining.report(tiny(source, tmp_path, report=uninterrupted))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" on ")[0] for line in lines] == ["random start", str(uninterrupted)]
    history = [json.loads(x) for x in (uninterrupted.parent / "history.jsonl").open()]
    expected = " ".join(f"E{t} {e:.3f}" for t, e in enumerate(history[-1]["textures"], start=1))
    assert lines[1].endswith(expected)


def test_what_a_run_leaves_is_a_teacher(uninterrupted: Path) -> None:
    with pytest.warns(UserWarning, match="layer4"):
        assert Teacher("offline", uninterrupted).has_shortcut_stage_4
    state = load_file(uninterrupted)
    assert {value.dtype for value in state.values()} == {torch.float16}
    history = [json.loads(x) for x in (uninterrupted.parent / "history.jsonl").open()]
    assert [record["step"] for record in history] == [0, 3]
    assert history[-1]["sha256"] == hashlib.sha256(uninterrupted.read_bytes()).hexdigest()
    assert len(history[-1]["textures"]) == 4
    assert history[-1]["textures"][0] < history[0]["textures"][0]


def test_bad_resumes_are_named(source: str, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.pt does not exist"):
        pretrain(tiny(source, tmp_path, resume=True))
    with pytest.raises(InputError, match="other options"):
        pretrain(tiny(source, uninterrupted.parent, resume=True, learning_rate=1e-3))
    with pytest.raises(InputError, match="nowhere"):
        pretrain(tiny(str(tmp_path / "nowhere.safetensors"), tmp_path))


def test_matching_error_is_that_of_linear_regression() -> None:
    torch.manual_seed(0)
    pupil, source = Teacher("offline", "random"), Teacher("resnet18", "random")
    fit, test = torch.rand(40, 3, 64, 64), torch.rand(12, 3, 64, 64)
    (errors,) = matching_errors(pupil, source, fit, test)

    def rows(network: Teacher, images: Tensor, stage: int) -> np.ndarray:
        return network(images)[stage].permute(0, 2, 3, 1).flatten(0, 2).double().numpy()

    for stage in range(3):
        mean, std = rows(source, fit, stage).mean(0), rows(source, fit, stage).std(0, ddof=1)
        std = std + 1e-3 * std.mean()
        line = LinearRegression().fit(
            rows(pupil, fit, stage), (rows(source, fit, stage) - mean) / std
        )
        guess = line.predict(rows(pupil, test, stage))
        expected = np.square(guess - (rows(source, test, stage) - mean) / std).mean()
        assert errors[stage] == pytest.approx(expected, rel=0.01)


def test_matching_error_of_the_source_itself_is_nothing() -> None:
    torch.manual_seed(0)
    source, images = Teacher("offline", "random"), torch.rand(40, 3, 64, 64)
    (errors,) = matching_errors(source, source, images, images)
    assert max(errors[:3]) < 1e-3


def test_relation_error_by_hand() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)
    positions = torch.tensor([0, 3, 5, 6])

    def cosines(feature: Tensor) -> list[float]:
        # Position 0..3 lie in image 0, 4..7 in image 1, row by row.
        vectors = [feature[p // 4, :, p % 4 // 2, p % 2].tolist() for p in positions.tolist()]
        return [
            sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
            for x in vectors
            for y in vectors
        ]

    a, b = np.array(cosines(ours)), np.array(cosines(theirs))
    expected = np.square(a - b).mean() / (b.var(ddof=1) + 1e-4)
    assert float(relation_error(ours, theirs, positions)) == pytest.approx(expected, rel=1e-4)


def test_relation_error_ignores_rotation_and_scale() -> None:
    torch.manual_seed(0)
    theirs = torch.randn(2, 5, 4, 4)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    ours = 3 * torch.einsum("dc,bchw->bdhw", rotation, theirs)
    assert float(relation_error(ours, theirs, torch.arange(32))) < 1e-6


# --- the file that ships -------------------------------------------------------------------------


def test_shipped_file_is_the_one_on_its_card() -> None:
    data = (WEIGHTS / OFFLINE_WEIGHTS).read_bytes()
    assert len(data) <= 8e6
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert re.findall(r"\b[0-9a-f]{64}\b", card) == [hashlib.sha256(data).hexdigest()]


def position_cosines(teacher: Teacher) -> list[Tensor]:
    """Cosines between neighbouring and far positions of ten textures, per stage E1..E3."""
    images = procedural_textures(10, 128, torch.Generator().manual_seed(2026))
    cosines = []
    for stage, feature in enumerate(teacher(images, 3)):
        step = 8 >> stage
        grid = torch.nn.functional.normalize(feature, dim=1)[..., ::step, ::step].flatten(2)
        pairs = [(0, 1), (0, 5), (1, 6), (2, 3), (4, 9), (7, 8), (10, 15), (12, 3)]  # of 4 x 4
        cosines.append(torch.stack([(grid[..., a] * grid[..., b]).sum(1) for a, b in pairs], 1))
    return [c.flatten() for c in cosines]


def test_shipped_teacher_sees_what_the_imagenet_network_sees() -> None:
    """The file holds the cosines of torchvision's ResNet-18 (IMAGENET1K_V1) for the same images."""
    truth = [torch.tensor(stage) for stage in json.loads(IMAGENET_COSINES.read_text())]
    torch.manual_seed(0)
    agreement = {
        weights: [
            float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
            for ours, theirs in zip(
                position_cosines(Teacher("offline", weights)), truth, strict=True
            )
        ]
        for weights in ("pretrained", "random")
    }
    for shipped, random in zip(agreement["pretrained"], agreement["random"], strict=True):
        assert shipped > 0.8
        assert 1 - shipped < 0.5 * (1 - random)
