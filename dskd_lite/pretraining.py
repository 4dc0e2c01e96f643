"""Train the offline teacher: knowledge distillation from an ImageNet network, without photographs.

The package ships a small teacher so that everything runs without a network. Where does a 6 MB file
get the eye of a network that saw a million photographs? By imitation, the book's own subject: the
*source* (an ImageNet ResNet-18) and the *pupil* (the same network, random start) look at the same
procedural textures, and the pupil learns to predict what the source computes.

Two losses per stage t, with S_t the source's features and P_t the pupil's:

- *matching*: a 1x1 convolution, thrown away afterwards, predicts S_t from P_t. Each channel of S_t
  is first brought to zero mean and unit variance, so an error of 1 is what a constant would reach.
- *relation*: the cosine between the features of any two positions, which is all that an anomaly map
  ever looks at, shall be the same in the pupil as in the source (Tung and Mori, "Similarity-
  preserving knowledge distillation", 2019). Its error is divided by the variance of the source's.

Stage 4 is only the shortcut of the source's layer4, ``relu(downsample(E3))``: no detector compares
E4, and without its residual branch the file is a quarter as large.

    python -m dskd_lite.pretraining --source resnet18 --out runs/pretraining
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dskd_lite.datasets.textures import TextureFolder, procedural_textures
from dskd_lite.errors import InputError
from dskd_lite.seeding import generator
from dskd_lite.storage import save_tensors, whole_file
from dskd_lite.teacher import OFFLINE_WEIGHTS, Backbone, ShortcutStage, Teacher, read_weights

SOURCE = "resnet18"
HELD_OUT = 1 << 30  # texture sheets from this number on are never trained on
SHEET, BATCH, CALIBRATION, POSITIONS = range(4)  # the streams that share one seed
RELATED_POSITIONS = 512
NOT_DECISIVE = ("out", "photos", "report", "resume")  # options that leave the weights as they are


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides the weights."""

    source: str = SOURCE
    """``resnet18`` (torchvision's download) or a weights file of a ResNet-18."""
    out: Path = Path("runs/pretraining")
    """Folder for the teacher, the checkpoint and the history."""
    photos: Path | None = None
    """Folder of photographs to report the matching error on; never trained on."""
    report: Path | None = None
    """Train nothing: report the matching errors of this teacher file and of a random start."""
    resume: bool = False
    """Go on from the checkpoint in ``out``."""
    seed: int = 0
    steps: int = 14000
    batch_pixels: int = 64 * 64 * 64
    """Pixels of a batch: 64 images at 64 px, 28 at 96 px, 16 at 128 px."""
    image_sizes: tuple[int, ...] = (64, 96, 128)
    """The size of each step's images is drawn from these."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    relation_weight: float = 0.3
    texture_size: int = 128
    sheet: int = 48
    """Textures made at a time; the oldest sheet leaves the pool when a new one comes."""
    pool: int = 48
    """Sheets in the pool."""
    steps_per_sheet: int = 12
    validation: int = 128
    """Textures to calibrate on, and as many held out to report the matching error on."""
    save_every: int = 2000
    """Steps between checkpoints, each with a validation and a teacher file."""


# --- images --------------------------------------------------------------------------------------


class TextureSheets(Dataset[Tensor]):
    """Sheet ``index`` is ``count`` textures as bytes, the same in any order and in any process."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed

    def __getitem__(self, index: int) -> Tensor:
        textures = procedural_textures(self.count, self.size, generator(self.seed, SHEET, index))
        return (textures * 255).round().byte()


def _prepare_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    torch.set_num_threads(1)


def texture_pools(config: Pretraining, first_step: int) -> Iterator[Tensor]:
    """Yield the pool (pool * sheet, 3, H, W) of each step; a second process makes the textures."""
    first_sheet = first_step // config.steps_per_sheet
    last_sheet = (config.steps - 1) // config.steps_per_sheet + config.pool
    loader = DataLoader(
        TextureSheets(config.sheet, config.texture_size, config.seed),
        batch_size=None,
        sampler=range(first_sheet, last_sheet),
        num_workers=1,
        prefetch_factor=4,
        worker_init_fn=_prepare_worker,
    )
    sheets = iter(loader)
    pool = torch.empty(config.pool, config.sheet, 3, config.texture_size, config.texture_size,
                       dtype=torch.uint8)  # fmt: skip
    for number in range(first_sheet, first_sheet + config.pool):
        pool[number % config.pool] = next(sheets)
    for step in range(first_step, config.steps):
        if step % config.steps_per_sheet == 0 and step > first_step:
            newest = step // config.steps_per_sheet + config.pool - 1
            pool[newest % config.pool] = next(sheets)
        yield pool.flatten(0, 1)


def draw_batch(pool: Tensor, config: Pretraining, step: int, stream: int = BATCH) -> Tensor:
    """Cut, mix and recolour a batch (B, 3, H, H) in [0, 1]; it depends on seed, step and pool."""
    rng = generator(config.seed, stream, step)

    def choose(options: int) -> int:
        return int(torch.randint(options, (1,), generator=rng))

    size = config.image_sizes[choose(len(config.image_sizes))]
    count = max(2, config.batch_pixels // size**2)
    # Windows from image size to texture size: the same pattern is seen at several scales.
    window = size + choose(config.texture_size - size + 1) * choose(2)
    chosen = torch.randint(len(pool), (2 * count,), generator=rng).tolist()
    corner = torch.randint(config.texture_size - window + 1, (2 * count, 2), generator=rng)
    crops = torch.stack([
        pool[i, :, y : y + window, x : x + window]
        for i, (y, x) in zip(chosen, corner.tolist(), strict=True)
    ]).float()  # fmt: skip
    crops = crops / 255
    if window != size:
        crops = F.interpolate(crops, size=(size, size), mode="bilinear", antialias=True)
    if choose(2):
        crops = crops.transpose(2, 3)
    crops = crops.flip([dim for dim in (2, 3) if choose(2)])
    images, others = crops.chunk(2)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=rng) * (high - low) + low

    # A third stays as it is, a third is blended as by a double exposure, a third through a mask.
    kind = uniform(0, 3)
    mask = (30 * (others.roll(1, 0)[:, :1] - uniform(0.2, 0.8))).sigmoid()
    opacity = torch.where(kind < 2, uniform(0, 0.5), mask) * (kind >= 1)
    images = images.lerp(others, opacity)
    # A random colour matrix, saturation, contrast and brightness.
    matrix = torch.randn(count, 3, 3, generator=rng) * uniform(0, 0.5)[..., 0] + torch.eye(3)
    matrix = matrix / matrix.abs().sum(2, keepdim=True)
    grey = (uniform(0, 1) < 0.25).float()[..., 0]
    matrix = matrix.lerp(torch.full((3, 3), 1 / 3).expand_as(matrix), grey)
    centre = images.mean((1, 2, 3), keepdim=True)
    contrast = (uniform(math.log(0.4), math.log(1.8))).exp()
    images = (matrix @ (images - centre).flatten(2)).view_as(images) * contrast
    images = images + centre.lerp(uniform(0, 1), (uniform(0, 1) < 0.5).float())
    return images.clamp(0, 1).contiguous(memory_format=torch.channels_last)


# --- networks ------------------------------------------------------------------------------------


def load_source(source: str) -> Teacher:
    """Load the network to imitate, its stage 4 reduced to the shortcut."""
    teacher = Teacher(SOURCE, "pretrained") if source == SOURCE else _from_file(SOURCE, source)
    if not teacher.has_shortcut_stage_4:
        teacher.backbone.layer4 = ShortcutStage(teacher.backbone.layer4[0].downsample)
    return teacher.to(memory_format=torch.channels_last)


def _from_file(name: str, path: str | Path) -> Teacher:
    """Load a teacher without the warning that stage 4 is short: here it is meant to be."""
    teacher = Teacher(name, "unset")
    teacher.load_backbone(read_weights(Path(path)), source=str(path))
    return teacher


class Pupil(nn.Module):
    """The backbone, and the projections that compare it with the source."""

    def __init__(self, source: Teacher) -> None:
        super().__init__()
        self.backbone = Backbone("offline")
        self.backbone.layer4 = ShortcutStage(self.backbone.layer4[0].downsample)
        widths = zip(self.backbone.channels, source.channels, strict=True)
        self.projections = nn.ModuleList(nn.Conv2d(own, wanted, 1) for own, wanted in widths)
        self.register_buffer("mean", source.mean.clone(), persistent=False)
        self.register_buffer("std", source.std.clone(), persistent=False)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features P1..P4 and what they predict of S1..S4."""
        features = self.backbone((images - self.mean) / self.std)
        predicted = [
            project(feature) for project, feature in zip(self.projections, features, strict=True)
        ]
        return features, predicted


def channel_statistics(source: Teacher, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return mean and standard deviation of each channel of each stage, both (1, C, 1, 1)."""
    statistics = []
    for feature in source(images):
        std, mean = torch.std_mean(feature, dim=(0, 2, 3), keepdim=True)
        statistics.append((mean, std + 1e-3 * std.mean()))  # a dead channel stays small
    return statistics


def relation_error(feature: Tensor, wanted: Tensor, positions: Tensor) -> Tensor:
    """Compare the cosines between all pairs of ``positions`` in two features (B, *, h, w)."""

    def cosines(x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)[positions].float()
        rows = F.normalize(rows, dim=1)
        return rows @ rows.T

    target = cosines(wanted)
    return (cosines(feature) - target).square().mean() / (target.var() + 1e-4)


@torch.no_grad()
def matching_errors(
    teacher: Teacher, source: Teacher, fit: Tensor, *tests: Tensor
) -> list[list[float]]:
    """Return, per stage, how badly the teacher's features predict the source's by a linear map.

    Between them stands the best 1x1 convolution there is, solved by least squares on the images
    ``fit``, so that any network can be measured, trained with projections or not. The error is the
    mean square over channels of zero mean and unit variance on ``fit``; one list for each of
    ``tests``. All images are (N, 3, H, W) in [0, 1].
    """

    def rows(network: Teacher, images: Tensor) -> list[Tensor]:
        batches = [network(batch) for batch in images.split(32)]
        stages = zip(*batches, strict=True)
        return [torch.cat(stage).movedim(1, -1).flatten(0, -2).double() for stage in stages]

    known, wanted = rows(teacher, fit), rows(source, fit)
    means = [x.mean(0) for x in known], [y.mean(0) for y in wanted]
    scales = [y.std(0) + 1e-3 * y.std(0).mean() for y in wanted]  # a dead channel stays small
    maps = []
    for x, y, x_mean, y_mean, scale in zip(known, wanted, *means, scales, strict=True):
        x, y = x - x_mean, (y - y_mean) / scale
        ridge = 1e-6 * len(x) * x.var() * torch.eye(x.shape[1], dtype=x.dtype)
        maps.append(torch.linalg.solve(x.T @ x + ridge, x.T @ y))
    errors = []
    for images in tests:
        stages = zip(rows(teacher, images), rows(source, images), maps, *means, scales, strict=True)
        errors.append([
            ((x - x_mean) @ linear - (y - y_mean) / scale).square().mean().item()
            for x, y, linear, x_mean, y_mean, scale in stages
        ])  # fmt: skip
    return errors


@torch.no_grad()
def calibrate_batch_norm(pupil: Pupil, batches: list[Tensor]) -> Pupil:
    """Return a copy whose batch-norm statistics are plain means over ``batches``.

    The running ones lag behind the weights and remember mostly the size of the last few images.
    """
    pupil = copy.deepcopy(pupil).train()
    for module in pupil.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # None means: cumulative average
    for batch in batches:
        pupil(batch)
    return pupil.eval()


def validation_images(config: Pretraining) -> tuple[Tensor, dict[str, Tensor]]:
    """Return textures for calibration, and by name the images that the errors are reported on."""
    sheets = TextureSheets(config.validation // 4, config.texture_size, config.seed)
    calibration, textures = (
        torch.cat([sheets[HELD_OUT + 4 * k + i] for i in range(4)]) / 255 for k in range(2)
    )
    judged = {"textures": textures}
    if config.photos is not None:
        folder = TextureFolder(config.photos, config.texture_size)
        every = len(folder) // 128 + 1
        judged["photos"] = torch.stack([folder[i] for i in range(0, len(folder), every)])
    return calibration, judged


def report(config: Pretraining) -> None:
    """Print the matching errors of the teacher file ``config.report`` and of a random start."""
    source = load_source(config.source)
    calibration, judged = validation_images(config)
    torch.manual_seed(config.seed)
    teachers = {"random start": Teacher("offline", "random")}
    teachers[str(config.report)] = _from_file("offline", config.report)
    for name, teacher in teachers.items():
        errors = matching_errors(teacher, source, calibration, *judged.values())
        for images, stages in zip(judged, errors, strict=True):
            print(
                f"{name} on {images}:",
                *(f"E{t} {error:.3f}" for t, error in enumerate(stages, start=1)),
            )


# --- training ------------------------------------------------------------------------------------


def save_teacher(pupil: Pupil, path: Path) -> str:
    """Write the backbone as half-precision safetensors; return the file's SHA-256."""
    state = {
        name: value.half()
        for name, value in pupil.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with whole_file(path) as temporary:
        save_tensors(state, temporary)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def learning_rate_at(step: int, config: Pretraining) -> float:
    """Rise linearly over the first 3 % of the steps, then fall to zero along a half cosine."""
    warmup = max(1, config.steps * 3 // 100)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def pretrain(config: Pretraining) -> Path:
    """Run the distillation and return the path of the teacher file.

    Ctrl-C leaves a checkpoint from which ``resume`` reaches the same weights. Raises InputError if
    there is nothing to resume from, or the checkpoint belongs to another configuration.
    """
    from tqdm import tqdm

    torch.manual_seed(config.seed)
    source = load_source(config.source)
    pupil = Pupil(source).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(pupil.parameters(), weight_decay=config.weight_decay)
    checkpoint_path, teacher_path = config.out / "checkpoint.pt", config.out / OFFLINE_WEIGHTS
    decisive = {k: str(v) for k, v in asdict(config).items() if k not in NOT_DECISIVE}
    step = 0
    if config.resume:
        if not checkpoint_path.is_file():
            raise InputError(f"{checkpoint_path} does not exist: start without --resume")
        checkpoint = torch.load(checkpoint_path, weights_only=True)
        if checkpoint["config"] != decisive:
            raise InputError(f"{checkpoint_path} was made with other options: repeat those")
        pupil.load_state_dict(checkpoint["pupil"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step = checkpoint["step"]
    config.out.mkdir(parents=True, exist_ok=True)

    calibration, judged = validation_images(config)
    statistics = channel_statistics(source, calibration)
    pixels = (calibration * 255).round().byte()
    pools = texture_pools(config, step)

    def save() -> None:
        state = {"pupil": pupil.state_dict(), "optimizer": optimizer.state_dict()}
        with whole_file(checkpoint_path) as temporary:
            torch.save({"config": decisive, "step": step, **state}, temporary)

    def validate() -> None:
        batches = [draw_batch(pixels, config, i, CALIBRATION) for i in range(20)]
        checksum = save_teacher(calibrate_batch_norm(pupil, batches), teacher_path)
        teacher = _from_file("offline", teacher_path)
        errors = matching_errors(teacher, source, calibration, *judged.values())
        record = {"step": step, "seconds": round(time.monotonic() - start), "sha256": checksum}
        record |= dict(zip(judged, errors, strict=True))
        with (config.out / "history.jsonl").open("a") as history:
            history.write(json.dumps(record) + "\n")
        tqdm.write(json.dumps(record))

    stop: list[int] = []  # a signal waits for the end of the step, so that no update is half done
    previous = signal.signal(signal.SIGINT, lambda number, frame: stop.append(number))
    start = time.monotonic()
    progress = tqdm(total=config.steps, initial=step, unit="step", mininterval=10)
    seen, losses = 0, []
    if step == 0:
        validate()
    try:
        while step < config.steps and not stop:
            images = draw_batch(next(pools), config, step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            positions = generator(config.seed, POSITIONS, step)
            with torch.autocast("cpu", torch.bfloat16):
                wanted = source(images)
                features, predicted = pupil(images)
            loss = torch.zeros(())
            for stage, (mean, std) in enumerate(statistics):
                target = wanted[stage].float()
                loss = loss + F.mse_loss(predicted[stage].float(), (target - mean) / std)
                if stage < 3:
                    count = target.shape[0] * target.shape[2] * target.shape[3]
                    chosen = torch.randint(count, (RELATED_POSITIONS,), generator=positions)
                    related = relation_error(features[stage], target, chosen)
                    loss = loss + config.relation_weight * related
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(float(loss.detach()))
            seen += len(images)
            rate = seen / (time.monotonic() - start)
            progress.set_postfix_str(
                f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}, {rate:.0f} images/s", False
            )
            progress.update()
            if step % config.save_every == 0 or step == config.steps:
                save()
                validate()
        if stop:
            save()
            raise SystemExit(f"stopped at step {step}: go on with --resume")
    finally:
        signal.signal(signal.SIGINT, previous)
        progress.close()
    return teacher_path


if __name__ == "__main__":
    import tyro

    try:
        config = tyro.cli(Pretraining, description=__doc__)
        report(config) if config.report else pretrain(config)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
