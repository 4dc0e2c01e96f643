from __future__ import annotations

import pytest
import torch

from dskd_lite.students import ForwardStudent, ReverseStudent, SkipAttention, StridedConv7
from dskd_lite.teacher import Backbone


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_parameters_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        forward, reverse = ForwardStudent("wide_resnet50_2"), ReverseStudent("wide_resnet50_2")
    assert _millions(reverse) == pytest.approx(108, rel=0.02)
    assert _millions(forward) == pytest.approx(66.8, abs=0.05)  # 68.9 with the classifier's 2.05
    decoders = [b.decoder for b in (reverse.block1, reverse.block2, reverse.block3)]
    assert sum(map(_millions, decoders)) == pytest.approx(18.7, abs=0.05)
    skips = [
        c for b in (reverse.block1, reverse.block2, reverse.block3) for c in (b.conv3, b.conv7)
    ]
    assert sum(map(_millions, skips)) == pytest.approx(79.8, abs=0.05)


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet50", "resnet34", "resnet18", "offline"])
@pytest.mark.parametrize(
    ("skip", "attention"), [(True, True), (False, True), (True, False), (False, False)]
)
@pytest.mark.parametrize("stem_stride", [True, False])
def test_students_return_the_shapes_of_the_teacher(
    name: str, skip: bool, attention: bool, stem_stride: bool
) -> None:
    with torch.device("meta"):
        images = torch.empty(2, 3, 64, 96)
        features = Backbone(name, stem_stride)(images)
        expected = [f.shape for f in features[:3]]
        assert [d.shape for d in ForwardStudent(name, stem_stride)(images)] == expected
        assert [d.shape for d in ReverseStudent(name, skip, attention)(features)] == expected


def test_stage_4_of_the_forward_student_is_not_trained() -> None:
    student = ForwardStudent("offline")
    sum(d.mean() for d in student(torch.rand(2, 3, 32, 32))).backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone.layer4"), name


def test_every_parameter_of_the_reverse_student_is_trained() -> None:
    features = [f.detach() for f in Backbone("offline")(torch.rand(2, 3, 64, 64))]
    student = ReverseStudent("offline")
    sum(d.mean() for d in student(features)).backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []


def test_without_skip_only_the_top_of_the_teacher_matters() -> None:
    torch.manual_seed(0)
    features = [f.detach() for f in Backbone("offline")(torch.rand(2, 3, 64, 64))]
    others = [torch.rand_like(f) for f in features[:3]] + [features[3]]
    blind, seeing = ReverseStudent("offline", skip=False).eval(), ReverseStudent("offline").eval()
    torch.testing.assert_close(blind(features), blind(others))
    assert not torch.allclose(seeing(features)[0], seeing(others)[0])


def test_gate_multiplies_the_skip_by_one_number_per_position() -> None:
    torch.manual_seed(0)
    gate = SkipAttention(8, hidden=4).eval()
    above, skip = torch.rand(2, 8, 5, 6), torch.rand(2, 8, 5, 6) + 0.1
    factor = gate(above, skip) / skip
    assert gate.attention_map is not None
    torch.testing.assert_close(factor, gate.attention_map.expand_as(factor))
    assert 0 < gate.attention_map.min() and gate.attention_map.max() < 1
    torch.nn.init.zeros_(gate.psi.weight)
    torch.nn.init.constant_(gate.psi.bias, 50.0)  # an open gate lets everything through
    torch.testing.assert_close(gate(above, skip), skip)


def test_attention_maps_can_be_shown() -> None:
    features = Backbone("offline")(torch.rand(2, 3, 64, 64))
    student = ReverseStudent("offline").eval()
    student(features)
    assert [tuple(m.shape) for m in student.attention_maps()] == [
        (2, 1, 8, 8), (2, 1, 4, 4), (2, 1, 2, 2),
    ]  # fmt: skip
    assert ReverseStudent("offline", attention=False).attention_maps() == []


def test_the_7x7_convolution_by_blocks_is_itself() -> None:
    """Values and gradients, against torch's convolution with stride 2."""
    torch.manual_seed(0)
    convolution = StridedConv7(3).double()
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    parts = [x, convolution.weight, convolution.bias]
    expected, found = convolution(x), convolution.by_blocks(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), parts),
        torch.autograd.grad((expected * weights).sum(), parts),
    )


def test_the_7x7_convolution_by_blocks_learns_alike_in_half_precision() -> None:
    """Float32 weights and bfloat16 features under autocast, as in training on a GPU."""
    torch.manual_seed(0)
    convolution = StridedConv7(8).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 8, 12).bfloat16().contiguous(memory_format=torch.channels_last)
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for forward in (convolution.by_blocks, convolution.forward):
            out = forward(x)
            found.append((out, *torch.autograd.grad(out.float().square().mean(), [
                convolution.weight, convolution.bias,
            ])))  # fmt: skip
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()
        assert one.dtype == other.dtype
