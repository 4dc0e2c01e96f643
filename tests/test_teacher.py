from __future__ import annotations

from http.client import IncompleteRead
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dskd_lite._torchvision import torchvision
from dskd_lite.errors import InputError
from dskd_lite.teacher import ARCHITECTURES, Backbone, Teacher


def _torchvision_features(net: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = net.maxpool(net.relu(net.bn1(net.conv1(normalise(images)))))
    features = []
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
        features.append(x)
    return features


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_are_those_of_torchvision_with_the_same_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    for module in net.modules():  # statistics other than 0 and 1, or a skipped BN goes unseen
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = _torchvision_features(net, images)
    torch.testing.assert_close(Teacher(name, tmp_path / "net.pth")(images), expected)


def test_stages_have_the_published_channels_and_strides() -> None:
    with torch.device("meta"):
        features = Teacher("wide_resnet50_2", "unset")(torch.empty(2, 3, 256, 256))
    shapes = [(256, 64, 64), (512, 32, 32), (1024, 16, 16), (2048, 8, 8)]
    assert [tuple(f.shape) for f in features] == [(2, *shape) for shape in shapes]


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "offline"])
def test_a_stem_without_stride_has_the_same_weights_and_skips_no_position(name: str) -> None:
    torch.manual_seed(0)
    coarse = Backbone(name).eval()
    fine = Backbone(name, stem_stride=False).eval()
    fine.load_state_dict(coarse.state_dict())
    images = torch.rand(1, 3, 32, 64)
    torch.testing.assert_close(fine.conv1(images)[..., ::2, ::2], coarse.conv1(images))
    with torch.no_grad():
        sizes = [tuple(f.shape[2:]) for f in fine(images)]
        assert sizes == [(32, 64), (16, 32), (8, 16), (4, 8)]
        assert [tuple(f.shape[2:]) for f in coarse(images)] == [(8, 16), (4, 8), (2, 4), (1, 2)]


@pytest.mark.parametrize(("name", "millions"), [("wide_resnet50_2", 66.83), ("resnet18", 11.18)])
def test_parameters_are_torchvisions_without_the_classifier(name: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = Backbone(name)
        whole = torchvision.models.get_model(name, weights=None)
    count = sum(p.numel() for p in backbone.parameters())
    assert count == sum(p.numel() for k, p in whole.named_parameters() if not k.startswith("fc."))
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_stays_frozen_and_in_eval_mode() -> None:
    teacher = Teacher("offline", "random").train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    assert not teacher(images)[0].requires_grad
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_file_without_the_branch_of_stage_4_gives_its_shortcut_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    full = Teacher("resnet18", "random")
    state = {
        k: v
        for k, v in full.backbone.state_dict().items()
        if not k.startswith("layer4") or "0.downsample" in k
    }
    save_file(state, tmp_path / "partial.safetensors")
    with pytest.warns(UserWarning, match="lacks the residual branch of layer4"):
        partial = Teacher("resnet18", tmp_path / "partial.safetensors")
    images = torch.rand(2, 3, 64, 64)
    e1, e2, e3, _ = full(images)
    e4 = torch.relu(full.backbone.layer4[0].downsample(e3))
    torch.testing.assert_close(partial(images), [e1, e2, e3, e4])
    partial.load_backbone(state, "the same file again")
    torch.testing.assert_close(partial(images), [e1, e2, e3, e4])


def test_unusable_weights_are_named(tmp_path: Path) -> None:
    missing, junk = tmp_path / "no.pth", tmp_path / "junk.pth"
    junk.write_bytes(b"not a zip file")
    (tmp_path / "junk.safetensors").write_bytes(b"short")
    other = tmp_path / "other.pth"
    torch.save(Teacher("resnet34", "random").backbone.state_dict(), other)
    for path, words in [
        (missing, "does not exist"),
        (junk, "is not a weights file"),
        (tmp_path / "junk.safetensors", "is not a weights file"),
        (other, "does not fit the teacher resnet18"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            Teacher("resnet18", path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_download_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    kept = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    kept.parent.mkdir()
    kept.write_bytes(b"a page that asks for a password")
    with pytest.raises(InputError, match=f"resnet18 are damaged .*: delete {kept}"):
        Teacher("resnet18")


@pytest.mark.parametrize("error", [OSError("no route"), IncompleteRead(b"", 5)])
def test_a_download_that_breaks_off_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError, match="resnet18 could not be downloaded"):
        Teacher("resnet18")


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="is not a weights file"):
        Teacher("resnet18", tmp_path / "code.pth")


def test_sizes_that_do_not_fit_are_refused() -> None:
    teacher = Teacher("offline", "random")
    for size in (16, 40):
        with pytest.raises(InputError, match="multiples of 32"):
            teacher(torch.rand(1, 3, size, size))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=", ".join(ARCHITECTURES)):
        Teacher("resnet19")


def test_real_weights_load_and_say_what_they_lack(real_data: Path) -> None:
    with pytest.warns(UserWarning, match="lacks the residual branch"):
        teacher = Teacher("resnet18", real_data / "teacher_resnet18_imagenet.safetensors")
    features = teacher(torch.rand(1, 3, 64, 64))
    assert [f.shape[1] for f in features] == [64, 128, 256, 512]
    assert all(f.std() > 0 for f in features)
