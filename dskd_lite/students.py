"""The two students: one goes the teacher's way, one comes back from its top."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_lite.anomaly_maps import COMPARED_STAGES
from dskd_lite.teacher import Architecture, Backbone, Bottleneck, architecture


class ForwardStudent(nn.Module):
    """The teacher's architecture with a random start and no connection to the teacher.

    Turns images (B, 3, H, W) in [0, 1] into D1..D3, shaped as E1..E3. Stage 4 belongs to the
    architecture but nothing reads it, so it is neither computed nor trained. ``name`` and
    ``stem_stride`` are the teacher's.
    """

    def __init__(self, name: str, stem_stride: bool = True) -> None:
        super().__init__()
        self.backbone = Backbone(name, stem_stride)
        self.backbone.layer4.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.backbone(images, stages=COMPARED_STAGES)


class SkipAttention(nn.Module):
    """Attention gate: the features from above decide where the skip connection may pass.

    ``alpha = sigmoid(psi(relu(W_g gate + W_x skip)))``, one value in [0, 1] per position, times the
    skip: the additive gate of Attention U-Net (Oktay et al., 2018). ``gate`` and ``skip`` are
    (B, channels, h, w). The last ``alpha`` (B, 1, h, w) stays in ``attention_map`` to be shown.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        )
        self.skip = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        )
        self.psi = nn.Conv2d(hidden, 1, 1)
        self.attention_map: Tensor | None = None

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.psi(torch.relu(self.gate(gate) + self.skip(skip))))
        self.attention_map = alpha.detach()
        return alpha * skip


class StridedConv7(nn.Conv2d):
    """7x7 convolution with stride 2: (B, C, h, w) to (B, C, h/2, w/2), h and w even.

    For 512 channels and more in half precision cuDNN had no kernel on tensor cores (H200, CUDA 13),
    and took nine times as long as for the same sums as a 4x4 convolution with stride 1 over blocks
    of 2x2 pixels: kernel row k reads pixel row 2i + k - 3, which is row (k + 1) % 2 of block
    i - 2 + (k + 1) // 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype in (torch.float16, torch.bfloat16)
        return self.by_blocks(x) if x.is_cuda and half and self.is_large else super().forward(x)

    @property
    def is_large(self) -> bool:
        """Whether blocks pay on CUDA in half precision."""
        return self.in_channels >= 512

    def by_blocks(self, x: Tensor) -> Tensor:
        """The same as a 4x4 convolution; the zeros that make the kernel 8x8 cost a third more."""
        # In half precision first: the kernel of 1024 channels is 205 MB in float32.
        return convolve_blocks(x, block_kernel(self.weight.to(x.dtype)), self.bias)


def block_kernel(weight: Tensor) -> Tensor:
    """The kernel (C, 4C, 4, 4) that does on blocks what (C, C, 7, 7) does on pixels."""
    return _blocks(F.pad(weight, (1, 0, 1, 0)))


def convolve_blocks(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """``StridedConv7`` of x (B, C, h, w) by a ``block_kernel``."""
    out = F.conv2d(_blocks(x), kernel, bias, padding=2)
    return out[..., :-1, :-1]  # an even kernel with the same padding on both sides adds one


def _blocks(x: Tensor) -> Tensor:
    """Turn (B, C, h, w) into (B, 4C, h/2, w/2), channels last: each 2x2 pixels beside each other.

    Pixels are moved with all their channels, which lie together in memory if x is channels-last.
    """
    batch, channels, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(batch, h // 2, 2, w // 2, 2, channels)
    blocks = blocks.permute(0, 1, 3, 2, 4, 5).reshape(batch, h // 2, w // 2, 4 * channels)
    return blocks.permute(0, 3, 1, 2)


class ReverseBlock(nn.Module):
    """One step of Eq. (2): from D^{t+1} and, by the skip connection, E_t, to D^t.

    The skip connection is a 3x3 and a 7x7 convolution of E_t with stride 2, C_t to C_t channels
    each, so that together they have the channels and the size of D^{t+1}. The gate lets D^{t+1}
    weigh it; a 1x1 convolution of both brings C_t channels to a residual block that doubles the
    size. Without ``skip`` the gate weighs D^{t+1} itself, which then goes on alone. The three
    convolutions are bare, as Eq. (2) writes them: with batch norm and ReLU behind each, the one run
    that was made ended with worse maps (book/faithfulness.md).
    """

    def __init__(self, arch: Architecture, stage: int, skip: bool, attention: bool) -> None:
        super().__init__()
        channels, above = arch.channels[stage - 1], arch.channels[stage]
        self.conv3 = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if skip else None
        self.conv7 = StridedConv7(channels) if skip else None
        self.attention = SkipAttention(above, hidden=channels) if attention else None
        self.merge = nn.Conv2d(2 * above if skip else above, channels, 1)
        self.decoder = decoder_stage(arch, stage, inputs=channels)

    def forward(self, above: Tensor, teacher_feature: Tensor) -> Tensor:
        """Turn D^{t+1} (B, C_{t+1}, h/2, w/2) and E_t (B, C_t, h, w) into D^t, shaped as E_t."""
        if self.conv3 is not None and self.conv7 is not None:
            skip = torch.cat([self.conv3(teacher_feature), self.conv7(teacher_feature)], dim=1)
        else:
            skip = above
        if self.attention is not None:
            skip = self.attention(above, skip)
        x = skip if self.conv3 is None else torch.cat([above, skip], dim=1)
        return self.decoder(self.merge(x))


class ReverseStudent(nn.Module):
    """Rebuilds the teacher's features from the top: E4 to D3 to D2 to D1, Eq. (2).

    ``name`` is the teacher's; ``skip`` and ``attention`` switch the two parts off for ablation.
    """

    def __init__(self, name: str, skip: bool = True, attention: bool = True) -> None:
        super().__init__()
        arch = architecture(name)
        self.block3 = ReverseBlock(arch, 3, skip, attention)
        self.block2 = ReverseBlock(arch, 2, skip, attention)
        self.block1 = ReverseBlock(arch, 1, skip, attention)
        start_at_random(self)

    def forward(self, teacher_features: Sequence[Tensor]) -> list[Tensor]:
        """Turn E1..E4 into D1..D3, shaped as E1..E3."""
        e1, e2, e3, e4 = teacher_features
        d3 = self.block3(e4, e3)
        d2 = self.block2(d3, e2)
        d1 = self.block1(d2, e1)
        return [d1, d2, d3]

    def attention_maps(self) -> list[Tensor]:
        """The gates' last maps, stages 1 to 3, (B, 1, h/2, w/2) each; empty without attention."""
        gates = (self.block1.attention, self.block2.attention, self.block3.attention)
        return [g.attention_map for g in gates if g is not None and g.attention_map is not None]


def start_at_random(student: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution (fan-out), as ResNets do."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def conv_block(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU: (B, inputs, h, w) to (B, outputs, h/stride, w/stride)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def decoder_stage(arch: Architecture, stage: int, inputs: int) -> nn.Sequential:
    """The mirror image of an encoder stage: its strided convolutions become transposed ones.

    Turns (B, inputs, h, w) into (B, C_stage, 2h, 2w). The stage that rebuilds E3 is as deep as the
    encoder's first, and so on down, as in RD4AD.
    """
    channels = arch.channels[stage - 1]
    planes = channels // arch.block.expansion
    upsample = nn.Sequential(
        nn.ConvTranspose2d(inputs, channels, 2, stride=2, bias=False), nn.BatchNorm2d(channels)
    )
    first = arch.block(inputs, planes, downsample=upsample, base_width=base_width(arch))
    if arch.block is Bottleneck:
        width = first.conv2.out_channels
        first.conv2 = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
    else:
        first.conv1 = nn.ConvTranspose2d(inputs, channels, 2, stride=2, bias=False)
    depth = arch.layers[COMPARED_STAGES - stage]
    rest = [arch.block(channels, planes, base_width=base_width(arch)) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def base_width(arch: Architecture) -> int:
    """Width per group in the terms of the architecture's block."""
    return arch.width_per_group if arch.block is Bottleneck else 64  # all that a BasicBlock takes
