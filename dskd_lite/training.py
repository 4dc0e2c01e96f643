"""Training: both students in one pass over normal images, then the six weights of the fusion."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import safe_open
from torch import Tensor
from torch.amp import GradScaler
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from dskd_lite.anomaly_maps import COMPARED_STAGES, LossForm, distillation_loss
from dskd_lite.compiled import compiled_blocks
from dskd_lite.detector import DSKD, DistillationDetector
from dskd_lite.errors import InputError
from dskd_lite.fusion import (
    MixLine,
    ScoreMapFusion,
    dice_loss,
    inverse_variance_weights,
    manual_weights,
)
from dskd_lite.graphs import RecordedStep, record
from dskd_lite.parallel import new_accelerator, share_of, synchronise_batch_norm
from dskd_lite.seeding import CHOICE, FUSION, HOLDOUT, ORDER, SETTLE, generator
from dskd_lite.storage import save_tensors, whole_file
from dskd_lite.students import ForwardStudent
from dskd_lite.synthetic_noise import SyntheticNoise

ADAM_BETAS = (0.5, 0.999)
# Late in training gradients are small, and so is Adam's second moment: one gradient of thirty times
# the median norm threw the reverse student back by 16 epochs. Under this norm nothing changes.
MAX_GRADIENT_NORM = 0.1
FREE_LEARNING_RATE = 0.005  # of the fusion's six weights, as in the paper
LINE_LEARNING_RATE = 0.05  # of the place on the line, which has to be able to reach its ends
SECONDS_BETWEEN_CHECKPOINTS = 60.0
# Normal images are not augmented, so the teacher says the same about them in every epoch.
MAX_CACHED_FEATURES = 2 * 1024**3  # bytes of main memory
# Of six maps and a mask for each noised image: 1170 images at 256 pixels.
MAX_CACHED_MAPS = 2 * 1024**3


@dataclass(frozen=True)
class Step:
    """What training reports after each step."""

    epoch: int
    step: int
    steps: int
    """Steps in all."""
    images: int
    """Images in this step."""
    images_in_all: int
    loss: float


Report = Callable[[Step], None]


def to_tensor(images: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Turn uint8 images (B, H, W, 3) into floats (B, 3, H, W) in [0, 1] on the device."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images))  # a copy: the cache is read-only
    return images.to(device).permute(0, 3, 1, 2).float().div(255)


def split_holdout(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split range(count) into indices to train on, at least two, and to hold out, at least one.

    Raises InputError if there are fewer than three images, or the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"holdout {share} must lie between 0 and 1, e.g. 0.1")
    if count < 3:
        raise InputError(
            f"{count} normal images are not enough: two train the students, one is held out"
        )
    order = torch.randperm(count, generator=generator(seed, HOLDOUT)).numpy()
    held = min(max(round(share * count), 1), count - 2)
    return np.sort(order[held:]), np.sort(order[:held])


def train_students(
    detector: DistillationDetector,
    images: np.ndarray,
    epochs: int,
    batch_size: int = 16,
    learning_rate: float = 0.005,
    loss: LossForm = "per-position",
    seed: int = 0,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Report = lambda step: None,
    compile: bool = False,
) -> None:
    """Train all students on normal images, uint8 (N, H, W, 3), with Adam (0.5, 0.999).

    The order of the images depends on the seed and the epoch alone. With a ``checkpoint`` path the
    state is saved once a minute, on Ctrl-C (unless it falls into an update of the weights) and at
    the end, and ``resume`` continues from it to the same weights as a run that was never stopped.
    The teacher's features are computed once and kept on the device, with the images, if they take
    no more than 2 GiB, or on a GPU a quarter of its free memory. On one GPU, batches of the usual
    size run as a CUDA graph; with ``compile`` they run compiled (see ``compiled_blocks``). Several
    processes (``accelerate launch``) share each batch and reach the weights of a single one, up to
    rounding.

    Raises InputError if the loss is not finite (the last checkpoint stays), the checkpoint cannot
    be written or belongs to another run, a batch has fewer images than there are processes, or
    there is nothing to compile with.
    """
    accelerator = accelerator or new_accelerator(cpu=True)
    main, rank, processes = (
        accelerator.is_main_process, accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    detector.to(accelerator.device).train()
    students = torch.nn.ModuleList(detector.students)
    if processes > 1:
        synchronise_batch_norm(students)
    parameters = [p for p in students.parameters() if p.requires_grad]
    optimizer = Adam(parameters, lr=learning_rate, betas=ADAM_BETAS, fused=True)
    steps_per_epoch = _batches(len(images), batch_size)
    steps = epochs * steps_per_epoch
    if len(images) // steps_per_epoch < processes:
        raise InputError(
            f"{processes} processes cannot share batches of {len(images) // steps_per_epoch} "
            "images: raise --batch-size, or start fewer processes"
        )
    run: dict[str, Any] = {
        "images": len(images), "batch_size": batch_size, "seed": seed, "loss": loss,
        "learning_rate": learning_rate, "weights": sum(p.numel() for p in parameters),
    }  # fmt: skip
    done = 0
    if checkpoint is not None:
        content = zlib.crc32(np.ascontiguousarray(images))
        run |= {
            "detector": type(detector).__name__,
            "teacher": _checksum(detector.teacher),
            "stem_stride": detector.teacher.stem_stride,
            "image content": content,
        }
        if resume and checkpoint.is_file():
            done = _load_checkpoint(checkpoint, run, students, optimizer, accelerator.scaler)
    if done > steps:
        raise InputError(
            f"{checkpoint} has trained for {done} steps, but {epochs} epochs are {steps}: give "
            f"--epochs {-(-done // steps_per_epoch)} or more, or train without --resume"
        )

    # Only now, as it puts autocast around the students, which the end of the block below takes off.
    *prepared, optimizer = accelerator.prepare(*students, optimizer)

    earlier = checkpoint is not None and checkpoint.is_file() and not resume and main

    def save() -> None:
        nonlocal earlier
        if checkpoint is None or not main:
            return
        if earlier:  # of another training, perhaps of days: kept until this one is done
            os.replace(checkpoint, set_aside(checkpoint))
        try:
            _save_checkpoint(checkpoint, run, done, students, optimizer, accelerator.scaler)
        except BaseException:
            if earlier:
                os.replace(set_aside(checkpoint), checkpoint)
            raise
        earlier = False

    saved_at = monotonic()
    update = value = None
    # Batches differ by one image at most; what is recorded or compiled is for the size of most.
    most = len(np.array_split(range(len(images)), steps_per_epoch)[steps_per_epoch // 2])
    quick = ExitStack()
    try:
        normals = _NormalImages(detector, images, batch_size, accelerator, keep=epochs > 1)
        if compile:
            usual = len(share_of(np.arange(most), rank, processes))
            quick.enter_context(compiled_blocks(students, usual))
        update = StudentsStep(students, prepared, optimizer, accelerator, loss, recorded_size=most)
        while done < steps:
            epoch, step = divmod(done, steps_per_epoch)
            order = torch.randperm(len(images), generator=generator(seed, ORDER, epoch)).numpy()
            chosen = np.array_split(order, steps_per_epoch)[step]  # no small rest: batch norm
            own = np.sort(share_of(chosen, rank, processes))
            # Processes average their gradients, so each counts by its share of the batch.
            value = update(*normals(own), share=len(own) * processes / len(chosen))
            done += 1
            update.counted = True
            whole = accelerator.reduce(value, "mean").item()
            if not math.isfinite(whole):
                stored = checkpoint is not None and checkpoint.is_file()
                kept = f"the last checkpoint is kept in {checkpoint}; " if stored else ""
                raise InputError(
                    f"the loss became {whole} in epoch {epoch + 1}, step {step + 1} of "
                    f"{steps_per_epoch}: {kept}try a lower --learning-rate, or --precision fp32"
                )
            report(Step(epoch, done, steps, len(chosen), epochs * len(images), whole))
            if monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                save()
                saved_at = monotonic()
    except KeyboardInterrupt:
        # In the middle of an update weights and count do not belong together. Before the first
        # there is nothing to save, and perhaps an earlier run's checkpoint to lose.
        if done and (update is None or (update.counted and (value is None or value.isfinite()))):
            save()
        raise
    finally:
        quick.close()
        optimizer.zero_grad(set_to_none=True)
        update = normals = value = None  # they hold on to a GPU's memory, as gradients do
        for student in students:  # or they would keep autocast, whatever ``precision`` says
            accelerator.unwrap_model(student, keep_fp32_wrapper=False)
    save()
    if checkpoint is not None and main:
        set_aside(checkpoint).unlink(missing_ok=True)
    accelerator.free_memory()
    settle_batch_norm(detector, images, batch_size, seed, rank, processes)
    detector.eval()


def _batches(images: int, batch_size: int) -> int:
    """How many batches an epoch has, of at most ``batch_size`` images and at least two.

    Batch norm cannot learn from a single image: of five in twos come batches of three and two.
    """
    return max(min(-(-images // batch_size), images // 2), 1)


def _images_last(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """to_tensor in the memory order that convolutions are fastest in."""
    return to_tensor(images, device).contiguous(memory_format=torch.channels_last)


class _NormalImages:
    """Normal images and the teacher's features of them, as batches on the device.

    ``keep``: compute the features once, and keep them and the images on the device if they fit.
    """

    def __init__(
        self,
        detector: DistillationDetector,
        images: np.ndarray,
        batch_size: int,
        accelerator: Accelerator,
        keep: bool,
    ) -> None:
        self.detector, self.accelerator = detector, accelerator
        self.images: np.ndarray | Tensor = images
        self.features = (
            _cached_features(detector, images, batch_size, accelerator) if keep else None
        )
        if self.features is not None:
            # Beside their features they are small, and a step need not wait for their copy.
            self.images = torch.from_numpy(np.array(images)).to(accelerator.device)

    def __call__(self, indices: np.ndarray) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [0, 1], and E1..E4 or as many as the detector reads."""
        device = self.accelerator.device
        if self.features is None:
            normal = _images_last(self.images[indices], device)
            with self.accelerator.autocast():
                return normal, self.detector.teacher(normal, self.detector.stages_read)
        where = torch.from_numpy(indices).to(device)
        return _images_last(self.images[where], device), [stage[where] for stage in self.features]


class StudentsStep:
    """One step of all students: ``step(normal, features, share)`` gives the loss before it.

    ``prepared`` are the students as Accelerate prepared them; ``normal`` and ``teacher_features``
    are what ``_NormalImages`` gives, ``share`` is what the loss is multiplied by. On one GPU
    batches of ``recorded_size`` images run as a CUDA graph.
    """

    def __init__(
        self,
        students: Iterable[torch.nn.Module],
        prepared: Iterable[torch.nn.Module],
        optimizer: AcceleratedOptimizer,
        accelerator: Accelerator,
        loss: LossForm,
        recorded_size: int,
    ) -> None:
        self.students = list(zip(students, prepared, strict=True))
        self.optimizer = optimizer
        self.accelerator, self.loss = accelerator, loss
        self.counted = True
        """Set to False when weights begin to move; the caller sets it once the step is counted."""
        self.recorded: RecordedStep | None = None
        self.recorded_size = recorded_size
        self.records = accelerator.device.type == "cuda" and accelerator.num_processes == 1
        self.has_run = False

    def __call__(self, normal: Tensor, teacher_features: Sequence[Tensor], share: float) -> Tensor:
        given = (normal, *teacher_features)
        if self.records and len(normal) == self.recorded_size:
            if self.has_run and self.recorded is None:
                self.record(given)
            self.has_run = True
            if self.recorded is not None:
                self.recorded.give(given)
                self.counted = False
                return self.recorded.replay()
        return self.run(*given, share=share)

    def run(self, normal: Tensor, *teacher_features: Tensor, share: float = 1.0) -> Tensor:
        """Take the step as it is, without a graph, from tensors given one by one."""
        self.optimizer.zero_grad(set_to_none=True)
        compared = teacher_features[:COMPARED_STAGES]
        value = normal.new_zeros(())
        for student, prepared in self.students:
            rebuilt = prepared(_student_input(student, normal, teacher_features))
            value = value + distillation_loss(compared, rebuilt, self.loss)
        value = value * share
        self.accelerator.backward(value)
        # Once: a second time in one step is an error.
        self.accelerator.unscale_gradients(self.optimizer)
        for student, _ in self.students:
            clip_grad_norm_(student.parameters(), MAX_GRADIENT_NORM)
        self.counted = False
        self.optimizer.step()
        return value.detach()

    def record(self, given: Sequence[Tensor]) -> None:
        """Record ``run``; where that fails there is a warning, and no second try."""
        groups = self.optimizer.param_groups
        for group in groups:  # Adam refuses to be recorded, or to run as it is, without being told
            group["capturable"] = True
        try:
            self.recorded = record(self.run, given)
        finally:
            for group in groups:
                group["capturable"] = False
        self.records = self.recorded is not None
        scaler = self.accelerator.scaler
        if self.recorded is None and scaler is not None:
            # A recording that broke off half way has unscaled what the next step unscales again.
            scaler._per_optimizer_states.clear()


def _student_input(
    student: torch.nn.Module, normal: Tensor, teacher_features: Sequence[Tensor]
) -> Tensor | Sequence[Tensor]:
    """What a student takes: the images, or what the teacher says about them."""
    return normal if isinstance(student, ForwardStudent) else teacher_features


@torch.no_grad()
def _cached_features(
    detector: DistillationDetector, images: np.ndarray, batch_size: int, accelerator: Accelerator
) -> list[Tensor] | None:
    """The teacher's features of all images, N first, on the device; None if they are too many."""
    stages: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        batch = _images_last(images[start : start + batch_size], accelerator.device)
        with accelerator.autocast():
            features = detector.teacher(batch, detector.stages_read)
        if not stages:
            size = sum(f[0].numel() * f.element_size() for f in features) * len(images)
            if size > _memory_for_features(accelerator.device):
                return None
            stages = [
                torch.empty((len(images), *f.shape[1:]), dtype=f.dtype, device=f.device,
                            memory_format=torch.channels_last)
                for f in features
            ]  # fmt: skip
        for stage, part in zip(stages, features, strict=True):
            stage[start : start + len(part)] = part
    return stages


def _memory_for_features(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) // 4
    return MAX_CACHED_FEATURES


@torch.no_grad()
def settle_batch_norm(
    detector: DistillationDetector,
    images: np.ndarray,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Replace the students' running statistics by means over normal images, uint8 (N, H, W, 3).

    A running mean follows weights that a learning rate of 0.005 moves at every step, and lags: in
    eval mode the forward student then saw statistics of weights it no longer had, and its maps
    failed on pixels (book/faithfulness.md has the figures). One pass with the final weights settles
    them, in an order that the seed draws: files that lie together are often alike, and the variance
    within a batch of such is less than that of all.
    """
    layers = [m for s in detector.students for m in s.modules() if isinstance(m, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
    detector.train()
    device = next(detector.parameters()).device
    order = torch.randperm(len(images), generator=generator(seed, SETTLE)).numpy()
    for chosen in np.array_split(order, _batches(len(images), batch_size)):
        own = np.sort(share_of(chosen, rank, processes))
        normal = _images_last(images[own], device)
        features = detector.teacher(normal, detector.stages_read)
        for student in detector.students:
            student(_student_input(student, normal, features))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _checksum(module: torch.nn.Module) -> int:
    """One number for all weights of a module."""
    value = 0
    for tensor in module.state_dict().values():
        value = zlib.crc32(tensor.cpu().contiguous().numpy(), value)
    return value


def set_aside(checkpoint: Path) -> Path:
    """Where an earlier training's checkpoint stays until the one that replaces it is done."""
    return checkpoint.with_suffix(f".before{checkpoint.suffix}")


def _save_checkpoint(
    path: Path,
    run: dict[str, Any],
    done: int,
    students: torch.nn.Module,
    optimizer: Adam,
    scaler: GradScaler | None,
) -> None:
    tensors = {f"students.{k}": v for k, v in students.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    with whole_file(path) as temporary:
        scale = json.dumps(scaler.state_dict() if scaler else {})
        save_tensors(
            tensors, temporary, {"run": json.dumps(run), "done": str(done), "scaler": scale}
        )


def _load_checkpoint(
    path: Path,
    run: dict[str, Any],
    students: torch.nn.Module,
    optimizer: Adam,
    scaler: GradScaler | None,
) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            # Copies: Windows replaces no file while a tensor still looks into it.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        stored = json.loads(metadata["run"])
    except Exception as error:
        raise InputError(f"{path} is damaged: delete it to start again") from error
    for key, value in run.items():
        if stored.get(key, value) != value:  # older checkpoints lack some
            raise InputError(
                f"{path} belongs to another run: its {key} is {stored.get(key)}, not {value}; "
                f"give the same options, or train without --resume, or delete {path}"
            )
    students.load_state_dict(
        {k.removeprefix("students."): v for k, v in tensors.items() if k.startswith("students.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            if value.dim() == 4:  # fused Adam walks through both in the order of memory
                value = value.contiguous(memory_format=torch.channels_last)
            state.setdefault(int(index), {})[name] = value
    full = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})
    scale = json.loads(metadata.get("scaler", "{}"))
    if scaler and scale:  # not if the run goes on in another precision
        scaler.load_state_dict(scale)
    return int(metadata["done"])


@torch.no_grad()
def normal_statistics(
    detector: DSKD, images: np.ndarray, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Mean and variance (6,) of each score map over images and positions.

    ``images`` are normal ones, uint8 (N, H, W, 3). A variance is at least a millionth of the
    squared mean: under that it is rounding.
    """
    device = next(detector.fusion.parameters()).device
    total, squares = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for start in range(0, len(images), batch_size):
        maps = detector.score_maps(to_tensor(images[start : start + batch_size], device))
        total += maps.mean((2, 3)).sum(0).cpu().double()
        squares += maps.square().mean((2, 3)).sum(0).cpu().double()
    means = total / len(images)
    variances = (squares / len(images) - means.square()).clamp_min(1e-6 * means.square())
    return means.float(), variances.float()


def train_fusion(
    detector: DSKD,
    images: np.ndarray,
    noise: SyntheticNoise,
    epochs: int,
    batch_size: int = 16,
    seed: int = 0,
    rounds: int = 1,
    held_out: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    report: Report = lambda step: None,
) -> None:
    """Train the six weights by dice loss on normal images, uint8 (N, H, W, 3), under noise.

    The students are fixed, so each image's maps are computed once for each of ``rounds`` draws of
    noise; ``epochs`` go over these maps. They are kept on the device: if they took more than 2 GiB,
    as many images as fit are drawn, and the others left out.

    As in the paper the six weights are free: Adam (0.5, 0.999), 0.005. With ``held_out``, normal
    images that the students have not seen, it is the recommended form: maps are divided by their
    means on those, and the weights stay on the line from the mix by hand to the inverse variances:
    only the place on it is trained, by the same loss, and a common factor, which ranks nothing and
    is dropped at the end. Then those images have a fused map of 1 on average.

    ``allowed`` (N, H, W) bool: where noise may fall in each image, anywhere if not given.
    """
    banks = noised_maps(detector, images, noise, batch_size, seed, rounds, allowed)
    line = None
    if held_out is not None:
        means, variances = normal_statistics(detector, held_out, batch_size)
        detector.fusion.input_scale.copy_(means)
        line = MixLine(manual_weights(means), inverse_variance_weights(means, variances))
    fit_fusion(detector.fusion, banks, epochs, line, report)


@torch.no_grad()
def noised_maps(
    detector: DSKD,
    images: np.ndarray,
    noise: SyntheticNoise,
    batch_size: int = 16,
    seed: int = 0,
    rounds: int = 1,
    allowed: np.ndarray | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Score maps (B, 6, H, W) and masks (B, H, W) of normal images under noise, a pair a batch.

    The arguments are those of ``train_fusion``, which see for what is kept if there are many.
    """
    detector.eval()
    device = detector.fusion.weight.device
    fits = MAX_CACHED_MAPS // (rounds * 7 * 4 * images.shape[1] * images.shape[2])
    if len(images) > max(fits, batch_size):
        order = torch.randperm(len(images), generator=generator(seed, CHOICE)).numpy()
        drawn = np.sort(order[: max(fits, batch_size)])
        images, allowed = images[drawn], None if allowed is None else allowed[drawn]
    banks: list[tuple[Tensor, Tensor]] = []
    for draw in range(rounds):
        for start in range(0, len(images), batch_size):
            rng = generator(seed, FUSION, draw, start)
            normal = to_tensor(images[start : start + batch_size], device)
            places = None if allowed is None else allowed[start : start + batch_size]
            noised, masks = noise(normal, rng, None if places is None else torch.from_numpy(places))
            banks.append((detector.score_maps(noised), masks))
    return banks


def fit_fusion(
    fusion: ScoreMapFusion,
    banks: Sequence[tuple[Tensor, Tensor]],
    epochs: int,
    line: MixLine | None = None,
    report: Report = lambda step: None,
) -> None:
    """Fit the six weights to maps (B, 6, H, W) and masks (B, H, W) by dice loss.

    ``banks`` are those of ``noised_maps``. The weights are free, or stay on ``line`` if one is
    given, with the learning rate that each has in ``train_fusion``.
    """
    device = fusion.weight.device
    line = None if line is None else line.to(device)
    trained = [fusion.weight] if line is None else line.parameters()
    rate = FREE_LEARNING_RATE if line is None else LINE_LEARNING_RATE
    optimizer = Adam(trained, lr=rate, betas=ADAM_BETAS)
    steps = epochs * len(banks)
    seen = epochs * sum(len(masks) for _, masks in banks)
    for epoch in range(epochs):
        for step, (maps, masks) in enumerate(banks):
            weight = fusion.weight if line is None else line()
            value = dice_loss(functional_call(fusion, {"weight": weight}, (maps,)), masks)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            number = epoch * len(banks) + step + 1
            report(Step(epoch, number, steps, len(maps), seen, value.item()))
    if line is not None:
        with torch.no_grad():
            fusion.weight.copy_(line.mix())
