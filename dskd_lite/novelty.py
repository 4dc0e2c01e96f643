"""One-class novelty: each class of a labelled set in turn is normal, all others are anomalous."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from dskd_lite.config import Config, TeacherName
from dskd_lite.errors import InputError
from dskd_lite.storage import cache_beside, check_place
from dskd_lite.sweep import (
    RESULTS,
    Job,
    add_result,
    check_same_run,
    checksum_inputs,
    portable,
    read_results,
)

if TYPE_CHECKING:  # torch comes in when the command runs, so that --help answers at once
    import numpy as np
    import torch

    from dskd_lite.datasets.one_class import LabelledImages
    from dskd_lite.evaluation import Detector
    from dskd_lite.experiment import Display

DIGITS = "digits"
REFERENCE_SIZE = 256  # where sigma is 4 and the finest noise has cells of 8 pixels


@dataclass(frozen=True)
class Novelty(Config):
    """Options of `dskd novelty`: those of `dskd train`, with defaults for images of 32 pixels."""

    data: tyro.conf.Positional[Path] = Path(DIGITS)
    """digits, which need no download; a folder that holds CIFAR-10 as torchvision keeps it
    (cifar-10-batches-py); or any folder of classes (train/<class>, test/<class>)."""
    classes: tuple[str, ...] = ()
    """Classes to take as normal, one after the other; all of them if not given."""
    out: Path = Path("runs/novelty")
    """Folder for results.jsonl; one that holds results goes on with the classes that it lacks."""
    teacher: TeacherName = "offline"
    """Pretrained backbone; offline ships with the package."""
    image_size: int = 32
    """Side in pixels that images are resized to; a multiple of 32."""
    stem_stride: bool = True
    """Stem with stride and max-pool, as ImageNet's networks: it leaves 8, 4 and 2 of 32 pixels to
    compare. Without, 32, 16 and 8, at fifteen times the arithmetic; digits and CIFAR-10 were told
    apart worse."""
    epochs: int = 20
    """Passes over the normal images that train the students (or the autoencoder)."""
    smoothing_sigma: float | None = None
    """Gaussian filter on the score maps, in pixels; 4 for 256 pixels, in proportion, if not given:
    0.5 for 32."""
    octaves: tuple[int, int] | None = None
    """Perlin frequencies are 2^k cells per image, k from this range; from 0 to cells of 8 pixels,
    as 5 makes them of 256, if not given: 0 to 2 for 32."""
    noise_on: Literal["anywhere", "object"] = "anywhere"
    """Where noise may fall: anywhere, or on the object, found by its colour before the border's."""
    mixed_sizes: tyro.conf.Suppress[bool] = True
    resume: tyro.conf.Suppress[bool] = True


def fitted_to_size(options: Novelty) -> Novelty:
    """The options with sigma and octaves that suit the image size, where they were not given."""
    size = options.image_size
    sigma, octaves = options.smoothing_sigma, options.octaves
    return replace(
        options,
        smoothing_sigma=4.0 * size / REFERENCE_SIZE if sigma is None else sigma,
        octaves=(0, max(size // 8, 1).bit_length() - 1) if octaves is None else octaves,
    )


def run_novelty(options: Novelty, display: Display) -> list[dict[str, Any]]:
    """Train and test with each class as normal; returns a row of results for each.

    A row is written as soon as its class is done, and a class that has one is not run again; one
    that was interrupted goes on from its checkpoint. Raises InputError for anything wrong with the
    input.
    """
    from dskd_lite import experiment
    from dskd_lite.datasets.folder import note_on_passed_over
    from dskd_lite.hardware import hardware
    from dskd_lite.metrics import auroc

    options = fitted_to_size(options)
    experiment.check_numbers(options)
    accelerator = experiment.choose_accelerator(options.device, options.precision)
    if not accelerator.is_main_process:
        display = experiment.Silent()
    noise = experiment.new_noise(options)
    experiment.new_detector(options)  # so that a teacher that does not load stops here
    check_place(options.out)
    name, data = read_classes(options.data, options.image_size, cache_beside(options.out))
    jobs = list(_jobs(name, data, options))
    if not jobs:
        raise InputError(
            f"no class of {options.data} has both training and test images: each needs a folder in "
            "train and one in test"
        )
    file = options.out / RESULTS
    rows = {row["key"]: row for row in read_results(file)}
    inputs = checksum_inputs(options, {})
    for job in jobs:
        if job.key in rows:
            check_same_run(job, rows[job.key], data.checksum, inputs, file)
    if data.passed_over:
        display.say(note_on_passed_over(data.passed_over))
    for number, job in enumerate(jobs, start=1):
        (normal,) = job.config.classes
        state = "done before" if job.key in rows else f"{number} of {len(jobs)}"
        display.say(f"{normal} ({state})")
        if job.key in rows:
            continue
        task, seconds = data.task(normal), {}
        checkpoint = options.out / f"{job.key}.safetensors"
        detector, images = experiment.train_detector(
            job.config, task.train, noise, None, accelerator, display, seconds, checkpoint
        )
        precision = accelerator.mixed_precision
        detector.precision = "fp32" if precision == "no" else precision
        with experiment.timed(seconds, "evaluate"):
            progress = display.counter("evaluate", len(task.images))
            scores = image_scores(
                detector, task.images, options.batch_size, accelerator.device, progress
            )
        rows[job.key] = {
            "key": job.key,
            "category": name,
            "normal": normal,
            "checksum": data.checksum,
            "inputs": inputs,
            "scores": {
                method: {"image_auroc": auroc(values, task.labels)}
                for method, values in scores.items()
            },
            "images": images | {"test": len(task.images)},
            "seconds": seconds,
            "versions": experiment.versions(),
            "hardware": hardware(accelerator.device),
            "config": portable(asdict(job.config)),
        }
        if accelerator.is_main_process:
            rows |= add_result(file, rows[job.key])
            checkpoint.unlink(missing_ok=True)
    return [rows[job.key] for job in jobs]


def read_classes(source: Path, size: int, cache_dir: Path) -> tuple[str, LabelledImages]:
    """A labelled set and its name; raises InputError if there is none."""
    from dskd_lite.datasets import one_class

    if source == Path(DIGITS) and not source.is_dir():
        return DIGITS, one_class.digits(size)
    if (source / "cifar-10-batches-py").is_dir():
        return "cifar10", one_class.cifar10(source, size)
    return source.resolve().name, one_class.class_folders(source, size, cache_dir)


def _jobs(name: str, data: LabelledImages, options: Novelty) -> Iterator[Job]:
    """A run for each class; raises InputError for one that cannot be learned or tested."""
    from dskd_lite.training import split_holdout

    for normal in options.classes or data.both_parts:
        count = len(data.task(normal).train)
        try:
            split_holdout(count, options.holdout, options.seed)
        except InputError as error:
            raise InputError(f"class {normal}: {error}") from error
        label = options.teacher
        if options.teacher_weights != "pretrained":
            label += f"-{Path(options.teacher_weights).stem}"
        parts = [name, normal, options.method, label, options.image_size]
        parts += [f"e{options.epochs}", *["no-stem-stride"] * (not options.stem_stride)]
        parts.append(f"s{options.seed}")
        key = "_".join(str(part) for part in parts)
        yield Job(key, replace(options, classes=(normal,)))


def image_scores(
    detector: Detector,
    images: np.ndarray,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """The maximum of each map, (N,) by method, of uint8 images (N, H, W, 3); no map is kept."""
    import torch

    from dskd_lite.training import to_tensor

    scores: dict[str, list[torch.Tensor]] = {}
    detector = detector.for_scoring()
    for start in range(0, len(images), batch_size):
        batch = to_tensor(images[start : start + batch_size], device)
        with torch.no_grad():
            for method, maps in detector.maps_by_method(batch).items():
                scores.setdefault(method, []).append(maps.flatten(1).amax(1).float().cpu())
        progress(len(batch))
    return {method: torch.cat(parts).numpy() for method, parts in scores.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Image AUROC in percent as a Markdown table: a line for each class, and their mean."""
    methods = list(rows[0]["scores"])
    figures = {
        row["normal"]: [100 * row["scores"][method]["image_auroc"] for method in methods]
        for row in rows
    }
    if len(rows) > 1:
        columns = zip(*figures.values(), strict=True)
        figures["mean"] = [statistics.mean(column) for column in columns]
    lines = [["normal class", *methods], ["---"] * (1 + len(methods))]
    lines += [[name, *(f"{value:.1f}" for value in row)] for name, row in figures.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
