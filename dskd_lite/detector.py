"""DSKD assembled: teacher, two students, smoothing, fusion."""

from __future__ import annotations

import math
import platform
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

import dskd_lite
from dskd_lite._torchvision import torchvision
from dskd_lite.anomaly_maps import COMPARED_STAGES, GaussianSmoothing, anomaly_maps
from dskd_lite.errors import InputError
from dskd_lite.folding import fold_batch_norm, fuse_blocks
from dskd_lite.fusion import ScoreMapFusion, forward_map, manual_fusion, reverse_map
from dskd_lite.storage import read_json, save_tensors, whole_folder, write_json
from dskd_lite.students import ForwardStudent, ReverseStudent
from dskd_lite.teacher import Teacher, read_weights

FORMAT = 1
LARGEST_IMAGE = 4096  # there one map takes 67 MB, and so does the matrix that smooths it
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"


class Prediction(NamedTuple):
    """What the detector says about a batch: the larger, the more anomalous."""

    score_maps: Tensor
    """(B, 6, H, W) in [0, 2]: forward student's stages 1 to 3, then the reverse student's. Of RD4AD
    (B, 3, H, W), of the detectors without students (B, 1, H, W)."""
    fused_map: Tensor
    """(B, H, W), from 0 up (of the one-class SVM any number)."""
    score: Tensor
    """(B,), the maximum of each fused map."""


@dataclass(frozen=True)
class Thresholds:
    """Scores above which an image or a pixel is called anomalous."""

    image: float
    pixel: float
    false_positive_rate: float
    """Share of normal images (pixels) that the thresholds are expected to flag, in (0, 1)."""
    held_out: int | None = None
    """How many normal images they were fitted on; None if nobody knows, as of older models."""


def verdict_on(score: float, thresholds: Thresholds | None) -> str:
    """``normal`` or, strictly above the image threshold, ``anomalous``; ``unknown`` without one."""
    if thresholds is None:
        return "unknown"
    return "anomalous" if score > thresholds.image else "normal"


class StoredDetector(nn.Module):
    """What all detectors share: smoothing, thresholds, perhaps a teacher, and a folder to live in.

    ``options`` are all arguments of the subclass but the teacher, ``image_size`` and
    ``smoothing_sigma`` among them; ``load`` passes them to it again. A subclass defines
    ``forward``, from images (B, 3, H, W) in [0, 1] to a Prediction, and ``maps_by_method``. Raises
    InputError for an image size or a sigma that does not fit.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What teacher and students compute in while scoring; maps and fusion are always float32."""

    def __init__(self, teacher: Teacher | None, **options: Any) -> None:
        super().__init__()
        check_geometry(options["image_size"], options["smoothing_sigma"])
        self.options = options
        self.image_size: int = options["image_size"]
        self.teacher = teacher
        self.smoothing = GaussianSmoothing(options["smoothing_sigma"])
        self.thresholds: Thresholds | None = None

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, H, W) of images (B, 3, H, W) in [0, 1] by name, the one that counts last."""
        raise NotImplementedError

    def for_scoring(self) -> Self:
        """A detector with the same maps that may be faster; here itself."""
        return self

    def mixed_precision(self) -> AbstractContextManager[None]:
        """Autocast to ``precision`` on the detector's device; nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.smoothing.kernel.device.type, HALF[self.precision])

    def tensors(self) -> dict[str, Tensor]:
        """All that ``save`` writes and ``restore`` reads."""
        return self.state_dict()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what ``tensors`` gave; raises RuntimeError if it is another detector's."""
        self.load_state_dict(tensors)

    def save(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        """Write the whole detector, teacher included, as a folder of safetensors and JSON.

        ``about`` (anything JSON can hold) is kept beside it. The folder is replaced only once the
        new one is complete. Raises InputError if it cannot be written.
        """
        state = self.tensors()
        thresholds = asdict(self.thresholds) if self.thresholds else None
        held_out = thresholds.pop("held_out") if thresholds else None  # unknown to older versions
        description = {
            "format": FORMAT,
            "detector": type(self).__name__,
            "teacher": self.teacher.name if self.teacher else None,
            "stem_stride": self.teacher.stem_stride if self.teacher else None,
            "options": self.options,
            "thresholds": thresholds,
            "held_out": held_out,
            "versions": versions(),
            "about": about or {},
        }
        with whole_folder(folder) as temporary:
            save_tensors(state, temporary / WEIGHTS_FILE)
            description["checksum"] = zlib.crc32((temporary / WEIGHTS_FILE).read_bytes())
            write_json(temporary / DESCRIPTION_FILE, description)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote, in eval mode, on the CPU.

        Raises InputError if the folder is no saved detector, is damaged, has another format, or
        holds a detector of another class.
        """
        description = _read_description(folder)
        kind = description["detector"]
        if kind != cls.__name__:
            raise InputError(
                f"{folder} holds a detector of class {kind}, not {cls.__name__}: "
                f"load it with {kind}.load"
            )
        try:
            state = read_weights(folder / WEIGHTS_FILE)
        except InputError as error:
            raise InputError(
                f"{folder} is damaged or not whole: copy it again, or train again ({error})"
            ) from error
        belongs = description.get("checksum")  # older models lack it
        if belongs not in (None, zlib.crc32((folder / WEIGHTS_FILE).read_bytes())):
            raise InputError(
                f"{folder}: {WEIGHTS_FILE} is damaged, or not what {DESCRIPTION_FILE} belongs to: "
                "copy the folder as a whole, or train again"
            )
        prefix = "teacher.backbone."
        teachers = []
        try:
            if description["teacher"] is not None:
                stride = description.get("stem_stride", True)  # older models lack the line
                teachers = [Teacher(description["teacher"], "unset", stride)]
                teachers[0].load_backbone(
                    {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)},
                    source=str(folder / WEIGHTS_FILE),
                )
            detector = cls(*teachers, **description["options"])
            detector.restore(state)
            if description["thresholds"] is not None:
                numbers = {k: float(v) for k, v in description["thresholds"].items()}
                if any(map(math.isnan, numbers.values())):
                    raise ValueError(f"thresholds {numbers}")
                count = description.get("held_out")
                held_out = None if count is None else int(count)
                detector.thresholds = Thresholds(**numbers, held_out=held_out)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{folder} is damaged: its files do not belong together ({error!s:.200})".replace(
                    "\n", " "
                )
            ) from error
        return detector.eval()


class DistillationDetector(StoredDetector):
    """What DSKD and RD4AD share: a teacher, and students that ``train_students`` trains."""

    teacher: Teacher

    stages_read = 4
    """How many of the teacher's features the students and the maps read."""

    @property
    def students(self) -> tuple[nn.Module, ...]:
        """What is trained: a ForwardStudent turns images into D1..D3, any other student E1..E4."""
        raise NotImplementedError

    def for_scoring(self) -> Self:
        """Copy in eval mode: see ``fold_batch_norm``, and on a GPU ``fuse_blocks``."""
        device = self.smoothing.kernel.device
        # Older cards than Ampere's have no bf16; there nobody has tried cuDNN's fused convolutions.
        fused = (
            device.type == "cuda"
            and torch.version.cuda is not None
            and torch.backends.cudnn.enabled
            and torch.cuda.get_device_capability(device) >= (8, 0)
        )
        folded = fold_batch_norm(self)
        if fused and self.precision in HALF:
            fuse_blocks(folded, HALF[self.precision])
        return folded


class DSKD(DistillationDetector):
    """Dual-student knowledge distillation: ``detector(images)`` gives a Prediction.

    ``image_size``: side in pixels that images are resized to, a multiple of 32.
    ``smoothing_sigma``: Gaussian filter on the six maps, in pixels. ``skip`` and ``attention``
    switch parts of the reverse student; ``nonnegative_fusion`` is the form of the fusion's weights.

    Students start at random from torch's global generator. Raises InputError for an image size
    that does not fit.
    """

    def __init__(
        self,
        teacher: Teacher,
        image_size: int,
        skip: bool = True,
        attention: bool = True,
        smoothing_sigma: float = 4.0,
        nonnegative_fusion: bool = True,
    ) -> None:
        super().__init__(
            teacher,
            image_size=image_size,
            skip=skip,
            attention=attention,
            smoothing_sigma=smoothing_sigma,
            nonnegative_fusion=nonnegative_fusion,
        )
        self.forward_student = ForwardStudent(teacher.name, teacher.stem_stride)
        self.reverse_student = ReverseStudent(teacher.name, skip, attention)
        self.fusion = ScoreMapFusion(nonnegative_fusion)
        self.to(memory_format=torch.channels_last)  # the order that convolutions are fastest in

    @property
    def students(self) -> tuple[nn.Module, ...]:
        return self.forward_student, self.reverse_student

    def score_maps(self, images: Tensor) -> Tensor:
        """Six smoothed anomaly maps (B, 6, H, W) in [0, 2] of images (B, 3, H, W) in [0, 1]."""
        with self.mixed_precision():
            features = self.teacher(images)
            from_students = self.forward_student(images), self.reverse_student(features)
        compared, size = features[:COMPARED_STAGES], (images.shape[-2], images.shape[-1])
        maps = [anomaly_maps(compared, rebuilt, size) for rebuilt in from_students]
        return self.smoothing(torch.cat(maps, dim=1))

    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1]; call ``eval()`` first, as for any network."""
        score_maps = self.score_maps(images)
        fused = self.fusion.activation(score_maps)
        return Prediction(score_maps, fused, fused.flatten(1).amax(1))

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """One map (B, H, W) for each rung of the ablation: forward, reverse, manual, fused."""
        prediction = self(images)
        return {
            "forward": forward_map(prediction.score_maps),
            "reverse": reverse_map(prediction.score_maps),
            "manual": manual_fusion(prediction.score_maps),
            "fused": prediction.fused_map,
        }


def check_geometry(image_size: int, smoothing_sigma: float) -> None:
    """Raise InputError for an image size or a sigma, both in pixels, that does not fit."""
    if not 32 <= image_size <= LARGEST_IMAGE or image_size % 32:
        raise InputError(
            f"image size {image_size} does not fit the backbone: choose a multiple of 32, at most "
            f"{LARGEST_IMAGE}"
        )
    if not 0 <= smoothing_sigma < (image_size - 0.5) / 4:  # the radius is less than the size
        raise InputError(
            f"smoothing sigma {smoothing_sigma} must be at least 0 and under a quarter of the "
            f"image size {image_size}"
        )


def saved_kind(folder: Path) -> str:
    """Name of the class of detector that a folder holds; raises InputError if it holds none."""
    return _read_description(folder)["detector"]


def about_saved(folder: Path) -> dict[str, Any]:
    """What ``save`` was told ``about`` a detector; raises InputError if a folder holds none."""
    return _read_description(folder).get("about", {})


def _read_description(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION_FILE).is_file():
        raise InputError(
            f"{folder} holds no saved detector ({DESCRIPTION_FILE} is missing): "
            "give a folder that `dskd train` wrote"
        )
    description = read_json(folder / DESCRIPTION_FILE)
    kinds = {"detector": str, "about": dict, "versions": dict}
    if (
        not isinstance(description, dict)
        or any(not isinstance(description.get(name, kind()), kind) for name, kind in kinds.items())
        or "detector" not in description
    ):
        raise InputError(f"{folder / DESCRIPTION_FILE} is damaged: train again")
    if description.get("format") != FORMAT:
        raise InputError(
            f"{folder} has checkpoint format {description.get('format')!r}, this version of "
            f"dskd_lite reads format {FORMAT}: train again, or install the version that wrote "
            f"it ({description.get('versions', {}).get('dskd_lite', 'unknown')})"
        )
    return description


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "dskd_lite": dskd_lite.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
