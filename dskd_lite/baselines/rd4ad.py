"""RD4AD: a student that decodes the teacher's features from an embedding of the normal class.

H. Deng and X. Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022.
DSKD's reverse student descends from it: what RD4AD squeezes through a bottleneck, DSKD hands over
by skip connections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dskd_lite.anomaly_maps import COMPARED_STAGES, LossForm, anomaly_maps
from dskd_lite.detector import DistillationDetector, Prediction
from dskd_lite.parallel import new_accelerator
from dskd_lite.seeding import STUDENTS, generator
from dskd_lite.students import base_width, conv_block, decoder_stage, start_at_random
from dskd_lite.teacher import Architecture, Teacher, architecture
from dskd_lite.training import train_students


class OneClassBottleneck(nn.Module):
    """Multi-scale feature fusion and one-class embedding: E1..E3 become one compact code.

    3x3 convolutions with stride 2 bring E1 (two of them) and E2 (one) to the size and the channels
    of E3; a residual stage like the teacher's fourth turns all three into the code
    (B, C_4, h_3 / 2, w_3 / 2). For wide ResNet-50 that is 58.89 M parameters. 67.28 M were
    published: the official code holds another 1x1 convolution, from 2 C_4 to C_4, with batch norm,
    8.39 M, that is never called and that is left out here.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        c1, c2, c3, _ = arch.channels
        self.reduce1 = nn.Sequential(conv_block(c1, c2, 3, stride=2), conv_block(c2, c3, 3, 2))
        self.reduce2 = conv_block(c2, c3, 3, stride=2)
        self.embedding = _embedding_stage(arch, inputs=3 * c3)

    def forward(self, teacher_features: Sequence[Tensor]) -> Tensor:
        e1, e2, e3 = teacher_features
        return self.embedding(torch.cat([self.reduce1(e1), self.reduce2(e2), e3], dim=1))


class RD4ADStudent(nn.Module):
    """Bottleneck and mirrored decoder: E1..E3 (E4 is not read) become D1..D3, shaped as E1..E3."""

    def __init__(self, name: str) -> None:
        super().__init__()
        arch = architecture(name)
        _, c2, c3, c4 = arch.channels
        self.bottleneck = OneClassBottleneck(arch)
        self.decoder3 = decoder_stage(arch, 3, inputs=c4)
        self.decoder2 = decoder_stage(arch, 2, inputs=c3)
        self.decoder1 = decoder_stage(arch, 1, inputs=c2)
        start_at_random(self)

    def forward(self, teacher_features: Sequence[Tensor]) -> list[Tensor]:
        d3 = self.decoder3(self.bottleneck(teacher_features[:COMPARED_STAGES]))
        d2 = self.decoder2(d3)
        return [self.decoder1(d2), d2, d3]


class RD4AD(DistillationDetector):
    """Reverse distillation from one-class embedding, trained by the trainer that trains DSKD.

    ``image_size``: side in pixels, a multiple of 32. ``smoothing_sigma``: Gaussian filter, in
    pixels. ``seed`` gives the student's start and the order of the images; ``epochs``,
    ``batch_size`` and ``loss`` are what ``fit`` trains with. Paper: 200 epochs, 16 images a
    step; the loss per position is its Eq. (2), the flattened one its code.

    Raises InputError for an image size or a sigma that does not fit.
    """

    stages_read = COMPARED_STAGES

    def __init__(
        self,
        teacher: Teacher,
        image_size: int,
        smoothing_sigma: float = 4.0,
        loss: LossForm = "per-position",
        epochs: int = 200,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(
            teacher,
            image_size=image_size,
            smoothing_sigma=smoothing_sigma,
            loss=loss,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, STUDENTS).initial_seed())
            self.student = RD4ADStudent(teacher.name)
        self.to(memory_format=torch.channels_last)  # the order that convolutions are fastest in

    @property
    def students(self) -> tuple[nn.Module, ...]:
        return (self.student,)

    def fit(self, images: np.ndarray) -> None:
        """Train on normal images, uint8 (N, H, W, 3), on a GPU if the detector is there.

        ``train_students`` does the same with more options: saving, resuming, precision. Raises
        InputError if the loss is not finite.
        """
        accelerator = new_accelerator(cpu=next(self.parameters()).device.type == "cpu")
        options = {name: self.options[name] for name in ("epochs", "batch_size", "loss", "seed")}
        train_students(self, images, accelerator=accelerator, **options)

    def score_maps(self, images: Tensor) -> Tensor:
        """Three smoothed anomaly maps (B, 3, H, W) in [0, 2] of images (B, 3, H, W) in [0, 1]."""
        with self.mixed_precision():
            features = self.teacher(images, stages=COMPARED_STAGES)
            rebuilt = self.student(features)
        size = (images.shape[-2], images.shape[-1])
        return self.smoothing(anomaly_maps(features, rebuilt, size))

    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1]; the fused map is the sum of the three, in [0, 6]."""
        score_maps = self.score_maps(images)
        fused = score_maps.sum(1)
        return Prediction(score_maps, fused, fused.flatten(1).amax(1))

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """The fused map (B, H, W) under ``rd4ad``."""
        return {"rd4ad": self(images).fused_map}


def _embedding_stage(arch: Architecture, inputs: int) -> nn.Sequential:
    """The teacher's stage 4 for another number of input channels."""
    channels = arch.channels[3]
    planes = channels // arch.block.expansion
    width = base_width(arch)
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels)
    )
    first = arch.block(inputs, planes, stride=2, downsample=shortcut, base_width=width)
    rest = [arch.block(channels, planes, base_width=width) for _ in range(arch.layers[3] - 1)]
    return nn.Sequential(first, *rest)
