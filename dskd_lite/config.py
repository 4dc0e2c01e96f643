"""Every option of a training run, in one frozen dataclass, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

TeacherName = Literal["wide_resnet50_2", "resnet50", "resnet34", "resnet18", "offline"]
Method = Literal[
    "dskd", "rd4ad", "pixel-statistics", "one-class-svm", "pca", "gaussian", "nearest-patches",
    "autoencoder",
]  # fmt: skip
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Config:
    """Options of `dskd train`; a preset gives them other defaults."""

    data: tyro.conf.Positional[Path]
    """Category in MVTec layout (train/good, test/<defect>, ground_truth/<defect>), or a folder of
    several categories."""
    out: Path = Path("runs/run")
    """Folder for the report, the model and the checkpoint."""
    method: Method = "dskd"
    """What is trained: DSKD, its peer RD4AD with one student and no fusion, or what came before:
    statistics of pixels or of the teacher's features, or an autoencoder on pixels. Only DSKD reads
    textures, skip, attention, fusion, fusion-epochs, opacity, octaves and noise-on."""
    teacher: TeacherName = "wide_resnet50_2"
    """Pretrained backbone; offline ships with the package."""
    teacher_weights: str = "pretrained"
    """pretrained, random, or a .safetensors or torchvision .pth file."""
    textures: str = "procedural"
    """procedural, or a folder of images: the external source of synthetic noise."""
    image_size: int = 256
    """Side in pixels that images are resized to; a multiple of 32."""
    stem_stride: bool = True
    """Stem with stride and max-pool, as ImageNet's networks; without, features are four times as
    high and wide: for images of about 32 pixels, if at all (book/results.md compares)."""
    epochs: int = 200
    """Passes over the normal images that train the students (or the autoencoder)."""
    batch_size: int = 16
    """Images per step, over all processes."""
    learning_rate: float = 0.005
    """Of Adam with betas (0.5, 0.999)."""
    loss: Literal["per-position", "flattened"] = "per-position"
    """Cosine distance at each position (Eq. 1), or of each layer as one vector (RD4AD's code)."""
    skip: bool = True
    """Skip connections into the reverse student."""
    attention: bool = True
    """Attention gates in the reverse student."""
    smoothing_sigma: float = 4.0
    """Gaussian filter on the score maps, in pixels."""
    fusion: Literal["recommended", "paper"] = "recommended"
    """Recommended: weights between the manual mix and the maps' inverse variances on normal images;
    paper: raw maps, free weights."""
    fusion_epochs: int = 20
    """Passes over the noised images that train the six fusion weights."""
    opacity: tuple[float, float] = (0.15, 1.0)
    """Range of the noise's opacity."""
    octaves: tuple[int, int] = (0, 5)
    """Perlin frequencies are 2^k cells per image, k from this range; small k makes large blobs."""
    noise_on: str = "anywhere"
    """Where noise may fall: anywhere; object, found by its colour before the border's; a mask image
    for all training images; or a folder of masks named as they are (of several categories, with a
    subfolder each). White is where it may fall."""
    holdout: float = 0.1
    """Share of the normal images kept from the students, for map scales and thresholds."""
    false_positive_rate: float = 0.05
    """Share of normal images that the stored threshold may flag."""
    seed: int = 0
    """Of every random number."""
    device: Device = "auto"
    """Auto takes a CUDA GPU if there is one; mps, of Macs, is not tested."""
    precision: Precision = "auto"
    """Auto: bf16 or fp16 on a GPU, fp32 on a CPU."""
    compile: bool = False
    """Compile the students' blocks with torch.compile, which needs a C++ compiler, and on CUDA
    Triton: quicker steps on a GPU, after most of a minute in the first run on a machine; on a CPU
    it does not pay."""
    mixed_sizes: bool = False
    """Accept images of different sizes, each resized to the same square."""
    resume: bool = False
    """Go on from the checkpoint in the run's folder."""


PRESETS: dict[str, dict[str, Any]] = {
    # In the same time small batches bring the loss on normal images further down (README.md).
    "demo": {"teacher": "offline", "image_size": 128, "epochs": 5, "batch_size": 4},
    "paper-128": {"image_size": 128},
    "paper-256": {"image_size": 256},
}
