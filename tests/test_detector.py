from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dskd_lite import storage
from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.cost import count_cost
from dskd_lite.detector import DSKD, Thresholds
from dskd_lite.errors import InputError
from dskd_lite.folding import BlockConvolution, FusedBlock, fuse_blocks
from dskd_lite.teacher import Teacher


def _detector(**options: object) -> DSKD:
    torch.manual_seed(0)
    return DSKD(Teacher("offline", "random"), 64, **options).eval()


def _images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_prediction_has_the_shapes_and_the_score_is_the_maximum() -> None:
    prediction = _detector()(_images())
    assert prediction.score_maps.shape == (3, 6, 64, 64)
    assert prediction.fused_map.shape == (3, 64, 64)
    expected = torch.stack([m.max() for m in prediction.fused_map])
    torch.testing.assert_close(prediction.score, expected)
    assert prediction.score_maps.min() >= 0 and prediction.score_maps.max() <= 2


def test_equal_features_score_zero() -> None:
    """A forward student with the teacher's weights, told to normalise alike, has nothing to say."""
    detector = _detector()
    detector.forward_student.backbone.load_state_dict(detector.teacher.backbone.state_dict())
    detector.teacher.mean.zero_()
    detector.teacher.std.fill_(1.0)
    maps = detector(_images()).score_maps
    assert maps[:, :3].abs().max() < 1e-5
    assert maps[:, 3:].min() > 1e-3


def test_what_is_switched_off_has_no_weights() -> None:
    """Counted by hand for stages of 64, 128 and 256 channels, each under one of twice as many."""

    def weights(**options: bool) -> int:
        return sum(p.numel() for p in _detector(**options).parameters())

    # A 3x3 and a 7x7 convolution, and the merging one takes in half as many channels.
    skip = sum((9 + 49) * c * c + 2 * c + 2 * c * c for c in (64, 128, 256))
    # Two 1x1 convolutions to c channels with batch norm, one to a single channel with bias.
    attention = sum(2 * (2 * c * c + 2 * c) + c + 1 for c in (64, 128, 256))
    assert weights() - weights(skip=False) == skip
    assert weights() - weights(attention=False) == attention


@pytest.mark.parametrize("partial", [False, True])
def test_save_and_load_give_the_same_detector(partial: bool, tmp_path: Path) -> None:
    detector = _detector(skip=not partial, smoothing_sigma=2.0, nonnegative_fusion=partial)
    if partial:  # as the teacher from a file without stage 4's branch
        shortcut = {
            k: v
            for k, v in detector.teacher.backbone.state_dict().items()
            if not k.startswith("layer4") or "0.downsample" in k
        }
        detector.teacher.load_backbone(shortcut, "partial")
        detector.eval()
    detector.thresholds = Thresholds(1.5, 0.5, 0.05, held_out=None if partial else 12)
    with torch.no_grad():
        detector.fusion.input_scale.uniform_()
    detector.save(tmp_path / "model", {"note": "kept"})
    loaded = DSKD.load(tmp_path / "model")
    for a, b in zip(detector(_images()), loaded(_images()), strict=True):
        assert torch.equal(a, b)
    assert loaded.thresholds == detector.thresholds
    rights = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert rights == {0o644}  # for everybody to read
    assert not loaded.training
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["about"] == {"note": "kept"}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "model.json", "model.safetensors",
    ]  # fmt: skip


def test_a_stem_without_stride_is_saved_and_models_from_before_it_have_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for stride in (True, False):
        detector = DSKD(Teacher("offline", "random", stem_stride=stride), 64).eval()
        detector.save(tmp_path / "model")
        loaded = DSKD.load(tmp_path / "model")
        assert loaded.forward_student.backbone.conv1.stride == ((2, 2) if stride else (1, 1))
        assert torch.equal(loaded.score_maps(_images()), detector.score_maps(_images()))
        description = json.loads((tmp_path / "model" / "model.json").read_text())
        if stride:  # as written before there was a choice
            del description["stem_stride"]
            (tmp_path / "model" / "model.json").write_text(json.dumps(description))
            old = DSKD.load(tmp_path / "model")
            assert torch.equal(old.score_maps(_images()), detector.score_maps(_images()))


def test_other_formats_and_damage_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(InputError, match="no saved detector"):
        DSKD.load(folder)
    _detector().save(folder)
    description = json.loads((folder / "model.json").read_text())
    damages = {"detector": []}, {"format": 2, "versions": []}, {"about": 1}
    for damaged in ([], {"format": 1}, *(description | damage for damage in damages)):
        (folder / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"model.json is damaged"):
            DSKD.load(folder)
    (folder / "model.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(InputError, match="format 99, this version of dskd_lite reads format 1"):
        DSKD.load(folder)
    for thresholds in (1, {"image": 1.0, "pixel": None, "false_positive_rate": 0.05},
                       {"image": "a", "pixel": 1.0, "false_positive_rate": 0.05}):  # fmt: skip
        (folder / "model.json").write_text(json.dumps(description | {"thresholds": thresholds}))
        with pytest.raises(InputError, match="model is damaged: its files do not belong together"):
            DSKD.load(folder)
    (folder / "model.json").write_text(json.dumps(description | {"teacher": "resnet50"}))
    with pytest.raises(InputError, match="does not fit the teacher resnet50"):
        DSKD.load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        DSKD.load(folder)
    (folder / "model.json").write_text(json.dumps(description))
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model is damaged.*copy it again.*is not a weights file"):
        DSKD.load(folder)


def test_weights_of_another_model_are_noticed(tmp_path: Path) -> None:
    """With thresholds that are not theirs they would pass or flag everything."""
    for name in ("one", "other"):
        detector = _detector()
        with torch.no_grad():
            detector.fusion.weight.fill_(len(name))
        detector.save(tmp_path / name)
    weights = tmp_path / "one" / "model.safetensors"
    own = weights.read_bytes()
    for foreign in ((tmp_path / "other" / "model.safetensors").read_bytes(), own[:-4] + bytes(4)):
        weights.write_bytes(foreign)
        with pytest.raises(InputError, match="is damaged, or not what model"):
            DSKD.load(tmp_path / "one")
    description = json.loads((tmp_path / "one" / "model.json").read_text())
    del description["checksum"]  # as written before there was one
    (tmp_path / "one" / "model.json").write_text(json.dumps(description))
    DSKD.load(tmp_path / "one")
    nothing = {"image": float("nan"), "pixel": 1.0, "false_positive_rate": 0.05}
    description |= {"thresholds": nothing}
    (tmp_path / "one" / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"do not belong together .thresholds"):
        DSKD.load(tmp_path / "one")


def test_full_disk_while_saving_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    detector = _detector()
    detector.save(folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_flush_to_disk", full)
    with torch.no_grad():
        detector.fusion.weight.zero_()
    with pytest.raises(InputError, match="No space left on device"):
        detector.save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("size", "sigma"), [(16, 1.0), (100, 1.0), (64, 20.0), (64, -1.0), (64, float("inf"))]
)
def test_sizes_that_do_not_fit_are_refused(size: int, sigma: float) -> None:
    with pytest.raises(InputError):
        DSKD(Teacher("offline", "random"), size, smoothing_sigma=sigma)


def test_cost_at_full_size_is_as_counted_by_hand() -> None:
    cost = count_cost("wide_resnet50_2", 256)
    macs = {k: v["multiply_adds"] / 1e9 for k, v in cost.items()}
    assert macs["teacher"] == pytest.approx(14.9, abs=0.05)
    assert macs["forward_student"] == pytest.approx(12.0, abs=0.05)
    assert macs["reverse_student"] == pytest.approx(23, rel=0.03)
    assert cost["teacher"]["parameters"] == cost["forward_student"]["parameters"] == 66_834_240
    assert cost["fusion"] == {"parameters": 6, "multiply_adds": 6 * 256 * 256}


@pytest.mark.parametrize("kind", [DSKD, RD4AD])
@pytest.mark.parametrize("name", ["offline", "resnet50"])  # both kinds of residual block
@pytest.mark.parametrize("fused", ["", "by cuDNN", "cuDNN refuses"])
def test_folding_changes_no_map_and_leaves_no_batch_norm(
    kind: type, name: str, fused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused, what only CUDA has in half precision is written out here, in float64."""

    def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, *form: object) -> Tensor:
        if fused == "cuDNN refuses":
            raise RuntimeError("unable to find an engine to execute this computation")
        return torch.relu(torch.conv2d(x, weight, bias, *form))

    def conv_add_relu(
        x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *form: object
    ) -> Tensor:
        if fused == "cuDNN refuses":
            raise RuntimeError("unable to find an engine to execute this computation")
        return torch.relu(torch.conv2d(x, weight, bias, *form) + alpha * z)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", conv_add_relu)
    torch.manual_seed(0)
    detector = kind(Teacher(name, "random"), 64).eval().double()
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.running_mean, norm.bias):
                nn.init.normal_(values)
            for values in (norm.running_var, norm.weight):
                nn.init.uniform_(values, 0.5, 2.0)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    images = _images().double()
    with torch.no_grad():
        folded = detector.for_scoring()
        if fused:
            fuse_blocks(folded, torch.float64)
        expected, found = detector(images), folded(images)
    assert expected.score_maps.std() > 0.01
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    kinds = {type(module) for module in folded.modules()}
    assert (FusedBlock in kinds) == bool(fused)
    large = bool(fused) and kind is DSKD and name == "resnet50"
    assert (BlockConvolution in kinds) == large
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_a_model_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    _detector().save(folder)
    before = (folder / "model.safetensors").read_bytes()
    replace = os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(target) == folder and ".old." not in str(source):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(storage.os, "replace", fails)
    with pytest.raises(InputError, match="Input/output error"):
        _detector().save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
