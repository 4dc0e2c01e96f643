"""One run from a folder of images to a trained detector and its report."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator

from dskd_lite import report
from dskd_lite.baselines import DETECTORS, make_detector
from dskd_lite.config import Config
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import (
    Category,
    check_sizes,
    find_categories,
    note_on_shape,
    notes_on_files,
    read_masks,
    scan_category,
    size_of,
)
from dskd_lite.datasets.textures import ProceduralTextures, TextureFolder
from dskd_lite.detector import (
    DESCRIPTION_FILE,
    DSKD,
    WEIGHTS_FILE,
    DistillationDetector,
    StoredDetector,
    Thresholds,
    about_saved,
    saved_kind,
    versions,
)
from dskd_lite.errors import InputError
from dskd_lite.evaluation import (
    Evaluation,
    evaluate,
    fit_thresholds,
    score_images,
    threshold_notes,
)
from dskd_lite.foreground import object_masks, read_regions
from dskd_lite.hardware import hardware
from dskd_lite.parallel import new_accelerator
from dskd_lite.seeding import STUDENTS, generator
from dskd_lite.storage import (
    cache_beside,
    check_place,
    locked,
    whole_file,
    write_json,
    write_table,
)
from dskd_lite.synthetic_noise import SyntheticNoise
from dskd_lite.teacher import Teacher
from dskd_lite.training import (
    Step,
    set_aside,
    split_holdout,
    train_fusion,
    train_students,
)

CHECKPOINT, MODEL = "checkpoint.safetensors", "model"
REPORT, PAGE, TEST_SCORES = "report.json", "report.html", "test_scores.csv"


class Display(Protocol):
    """Where a run shows what it does; see cli.py for the one with progress bars."""

    def say(self, line: str) -> None: ...

    def counter(self, title: str, total: int) -> Callable[[int], None]: ...

    def steps(self, title: str) -> Callable[[Step], None]: ...


class Silent:
    """A display that shows nothing."""

    def say(self, line: str) -> None:
        pass

    def counter(self, title: str, total: int) -> Callable[[int], None]:
        return lambda count: None

    def steps(self, title: str) -> Callable[[Step], None]:
        return lambda step: None


def resolve(device: str, precision: str) -> tuple[torch.device, str]:
    """The device and the precision (fp32, bf16, fp16) that two options mean on this machine.

    Raises InputError for a device that this machine does not have, or fp16 without CUDA.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise InputError("this machine has no CUDA device: use --device auto or --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("this machine has no MPS device: use --device auto or --device cpu")
    if device == "auto":
        # Never MPS: batch norm's gradients are wrong there in the order of memory that is used here
        # (PyTorch's issue 175189, mended after the version that is pinned).
        device = "cuda" if cuda else "cpu"
    if precision == "auto":
        # A T4 says that it supports bf16, but only emulates it, slowly.
        real = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        fast = "bf16" if real else "fp16"
        precision = fast if device == "cuda" else "fp32"
    if precision == "fp16" and device != "cuda":
        raise InputError("fp16 needs a CUDA device: use --precision fp32 or bf16")
    return torch.device(device), precision


def choose_accelerator(device: str, precision: str) -> Accelerator:
    """Device and precision as HF Accelerate understands them, to train with.

    Raises InputError as ``resolve``.
    """
    chosen, precision = resolve(device, precision)
    return new_accelerator(chosen.type == "cpu", precision)


def prepare_detector(detector: StoredDetector, device: str, precision: str) -> torch.device:
    """Put a detector on the device, to score there in this precision; returns the device.

    Raises InputError as ``resolve``.
    """
    chosen, detector.precision = resolve(device, precision)
    detector.to(chosen)
    return chosen


def run(config: Config, display: Display | None = None) -> dict[str, Any]:
    """Train and evaluate on one category or a folder of several; returns what report.json holds.

    A single category's model, checkpoint and report lie in ``out``; of several, each in
    ``out/<category>``, and ``out`` gets a report of them all. Everything that can be checked is
    checked before the first file is written. Raises InputError for anything wrong with the input,
    if ``out`` holds a model of another category, or those of several and is given one, and if
    another process trains into it.
    """
    display = display or Silent()
    categories = [scan_category(root) for root in find_categories(config.data)]
    if not config.mixed_sizes:
        for category in categories:
            check_sizes(category.train + tuple(s.path for s in category.test))
    check_numbers(config)
    for category in categories:  # not after hours spent on the first
        split_holdout(len(category.train), config.holdout, config.seed)
    accelerator = choose_accelerator(config.device, config.precision)
    if not accelerator.is_main_process:
        display = Silent()
    noise = new_noise(config)
    regions = [_regions(config, category) for category in categories]
    new_detector(config)  # so that a teacher that does not load stops here
    check_place(config.out)
    folders = [config.out] if len(categories) == 1 else [config.out / c.name for c in categories]
    for folder, category in zip(folders, categories, strict=True):
        _check_own(folder, category.name)
    several = sorted(p.parents[1].name for p in config.out.glob(f"*/{MODEL}/{DESCRIPTION_FILE}"))
    if len(categories) > 1:
        _check_own(config.out, Path(os.path.abspath(config.data)).name)
    elif several:
        raise InputError(
            f"{config.out} holds models of several categories ({several[0]} …): give another --out"
        )
    with ExitStack() as locks:
        for folder in dict.fromkeys([config.out, *folders] if accelerator.is_main_process else ()):
            locks.enter_context(locked(folder, wait=False))
        if len(categories) == 1:
            return _run_category(
                config, categories[0], config.out, noise, regions[0], accelerator, display
            )[0]
        return _run_categories(config, categories, noise, regions, accelerator, display)


def _check_own(folder: Path, name: str) -> None:
    """Raise InputError if a folder's model is of a category of another name, or no model of ours.

    A model is replaced as a whole folder, and with it whatever else somebody keeps there.
    """
    model = folder / MODEL
    ours = {WEIGHTS_FILE, DESCRIPTION_FILE}
    found = {path.name for path in model.glob("[!.]*")} if model.is_dir() else set()
    if (model.exists() and not model.is_dir()) or found - ours:
        raise InputError(
            f"{model} holds files that no training wrote, and training would delete them: give "
            "another --out, or move them"
        )
    try:
        data = about_saved(model).get("data")
    except InputError:  # no model, or none that anybody could use
        return
    if isinstance(data, str) and Path(data).name != name:
        raise InputError(
            f"{folder} holds a model of {Path(data).name}, not of {name}: give another --out, or "
            f"delete {model}"
        )


def _run_categories(
    config: Config,
    categories: list[Category],
    noise: SyntheticNoise,
    regions: list[np.ndarray | None],
    accelerator: Accelerator,
    display: Display,
) -> dict[str, Any]:
    reports, sections = [], []
    for number, (category, region) in enumerate(zip(categories, regions, strict=True), start=1):
        display.say(f"{category.name} ({number} of {len(categories)})")
        folder = config.out / category.name
        content, section = _run_category(
            config, category, folder, noise, region, accelerator, display
        )
        reports.append(content)
        sections.append(section)
    content = {
        "data": str(config.data),
        "config": _json_config(config),
        "scores": report.mean_scores([r["scores"] for r in reports]),
        "categories": {c.name: r["scores"] for c, r in zip(categories, reports, strict=True)},
        "notes": [
            f"{category.name}: {note}"
            for category, single in zip(categories, reports, strict=True)
            for note in single["notes"]
        ],
        "seconds": {k: sum(r["seconds"][k] for r in reports) for k in reports[0]["seconds"]},
        "versions": versions(),
        "hardware": hardware(accelerator.device),
    }
    if accelerator.is_main_process:
        write_report(config.out, content, sections)
    return content


def write_report(folder: Path, content: dict[str, Any], sections: list[str]) -> None:
    """Write report.json and, where there was something to evaluate, report.html.

    An older report.html does not stay beside a report that has none.
    """
    write_json(folder / REPORT, content)
    if not any(sections):
        (folder / PAGE).unlink(missing_ok=True)
    else:
        method = content["config"]["method"]
        title = method.upper() if method in ("dskd", "rd4ad", "pca") else method.capitalize()
        title += f" on {Path(content['data']).resolve().name}"
        with whole_file(folder / PAGE) as temporary:
            page = report.html_page(title, content, [s for s in sections if s])
            # Of a name that is no text the page shows the bytes.
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _run_category(
    config: Config,
    category: Category,
    folder: Path,
    noise: SyntheticNoise,
    regions: np.ndarray | None,
    accelerator: Accelerator,
    display: Display,
) -> tuple[dict[str, Any], str]:
    seconds: dict[str, float] = {}
    cache = cache_beside(folder)
    device = accelerator.device
    display.say(f"{len(category.train)} normal images to train on, {len(category.test)} to test on")
    for note in notes_on_files(category, category.train):  # before hours of training
        display.say(note)
    with timed(seconds, "decode"):
        normal, test = (
            decoded_images(paths, config.image_size, cache, display.counter(title, len(paths)))
            for title, paths in (
                ("read train", category.train),
                ("read test", tuple(s.path for s in category.test)),
            )
        )
        read_masks(category.test, config.image_size)  # a damaged one is not to be met after hours
    if config.resume and not (folder / CHECKPOINT).is_file():  # a sweep always resumes, unheard
        display.say(f"there is no {folder / CHECKPOINT} to resume: training starts from nothing")
    detector, images = train_detector(
        config, normal, noise, regions, accelerator, display, seconds, folder / CHECKPOINT
    )
    options = _json_config(config)
    if accelerator.is_main_process:  # before anything can go wrong with the test images
        about = {"data": str(category.root), "config": options}
        if not config.mixed_sizes:
            about["photo_size"] = size_of(category.train[0])
        detector.save(folder / MODEL, about)
    with timed(seconds, "evaluate"):
        progress = display.counter("evaluate", len(test))
        evaluation = evaluate(detector, category, test, config.batch_size, device, progress)
        evaluation.notes.extend(threshold_notes(detector.thresholds))
        section = report.section(evaluation, detector.thresholds) if len(test) else ""
    content = {
        "data": str(category.root),
        "config": options,
        "scores": report.as_json(evaluation.scores),
        "thresholds": dataclasses.asdict(detector.thresholds),
        "verdicts": report.verdicts_as_json(evaluation, detector.thresholds),
        "defects": report.defects_as_json(evaluation, detector.thresholds),
        "fusion_weights": (
            detector.fusion.map_weights.tolist() if isinstance(detector, DSKD) else None
        ),
        "images": images | {"test": len(test)},
        "notes": evaluation.notes,
        "seconds": seconds,
        "versions": versions(),
        "hardware": hardware(device),
    }
    if accelerator.is_main_process:
        write_report(folder, content, [section])
        _write_test_scores(folder, evaluation, detector.thresholds)
    return content, section


def _write_test_scores(folder: Path, evaluation: Evaluation, thresholds: Thresholds | None) -> None:
    """Write a line for each test image; an older table does not stay if there is none."""
    if evaluation.maps:
        write_table(folder / TEST_SCORES, report.image_table(evaluation, thresholds))
    else:
        (folder / TEST_SCORES).unlink(missing_ok=True)


def train_detector(
    config: Config,
    normal: np.ndarray,
    noise: SyntheticNoise,
    regions: np.ndarray | None,
    accelerator: Accelerator,
    display: Display,
    seconds: dict[str, float],
    checkpoint: Path | None = None,
) -> tuple[StoredDetector, dict[str, int]]:
    """Train a detector as the options say on normal images, uint8 (N, H, W, 3), thresholds too.

    ``regions`` (N, H, W) bool: where noise may fall, if masks were given. ``seconds`` gets what
    each part took. Returns the detector and how many images trained it and were held out.
    """
    device = accelerator.device
    fitted, held_out = split_holdout(len(normal), config.holdout, config.seed)
    detector = new_detector(config)
    with timed(seconds, "train_students"):
        if isinstance(detector, DistillationDetector):
            if checkpoint is not None and checkpoint.is_file() and not config.resume:
                display.say(
                    f"{checkpoint} is of an earlier training: --resume would have gone on from it; "
                    f"until this one is done it is kept as {set_aside(checkpoint).name}"
                )
            train_students(
                detector,
                normal[fitted],
                config.epochs,
                config.batch_size,
                config.learning_rate,
                config.loss,
                config.seed,
                accelerator,
                checkpoint,
                config.resume,
                display.steps("students"),
                config.compile,
            )
        else:
            detector.to(device).fit(normal[fitted])
    with timed(seconds, "train_fusion"):
        allowed = None if regions is None else regions[fitted]
        finish_detector(
            config, detector, normal[fitted], normal[held_out], noise, device, allowed, display
        )
    return detector, {"train": len(fitted), "held_out": len(held_out)}


def finish_detector(
    config: Config,
    detector: StoredDetector,
    fitted: np.ndarray,
    held_out: np.ndarray,
    noise: SyntheticNoise,
    device: torch.device,
    allowed: np.ndarray | None = None,
    display: Display | None = None,
) -> None:
    """Train the fusion, if the detector has one, and fit the thresholds, as the options say.

    ``fitted`` and ``held_out`` are the normal images that the students have and have not learned
    from, uint8 (N, H, W, 3); ``allowed`` (N, H, W) bool, where noise may fall in the first.
    """
    if isinstance(detector, DSKD):
        if config.noise_on == "object":
            allowed = object_masks(fitted)
        train_fusion(
            detector,
            fitted,
            noise,
            config.fusion_epochs,
            config.batch_size,
            seed=config.seed,
            held_out=held_out if config.fusion == "recommended" else None,
            allowed=allowed,
            report=(display or Silent()).steps("fusion"),
        )
    maps = score_images(detector, held_out, config.batch_size, device)
    final = maps.popitem()[1]  # the last rung of the ablation is what is used
    del maps  # fitting takes memory of its own
    detector.thresholds = fit_thresholds(final, config.false_positive_rate)


def new_detector(config: Config) -> StoredDetector:
    """A detector as the options say, students at random from the seed."""
    options: dict[str, Any] = {"smoothing_sigma": config.smoothing_sigma, "seed": config.seed}
    if config.method in ("rd4ad", "autoencoder"):
        options |= {"epochs": config.epochs, "batch_size": config.batch_size}
    if config.method in ("pixel-statistics", "autoencoder"):  # neither has a teacher
        return make_detector(config.method, None, config.image_size, **options)
    with torch.random.fork_rng(devices=[]):  # a random teacher comes from the seed as well
        torch.manual_seed(generator(config.seed, STUDENTS).initial_seed())
        teacher = Teacher(config.teacher, config.teacher_weights, config.stem_stride)
        if config.method == "rd4ad":
            options["loss"] = config.loss
        if config.method != "dskd":
            return make_detector(config.method, teacher, config.image_size, **options)
        return DSKD(
            teacher,
            config.image_size,
            config.skip,
            config.attention,
            config.smoothing_sigma,
            nonnegative_fusion=config.fusion == "recommended",
        )


def new_noise(config: Config) -> SyntheticNoise:
    """The noise that the options name; raises InputError if there are no textures."""
    size = config.image_size
    textures = (
        ProceduralTextures(image_size=size, seed=config.seed)
        if config.textures == "procedural"
        else TextureFolder(config.textures, size)
    )
    return SyntheticNoise(textures, (size, size), config.opacity, config.octaves)


def _regions(config: Config, category: Category) -> np.ndarray | None:
    """Masks of where noise may fall in each training image, (N, H, W) bool, if they are given."""
    if config.noise_on in ("anywhere", "object"):
        return None
    source = Path(config.noise_on)
    own = source / category.name
    return read_regions(own if own.is_dir() else source, category.train, config.image_size)


def check_numbers(config: Config) -> None:
    """Raise InputError for a number among the options that is out of range."""
    for name, least in (("epochs", 1), ("fusion_epochs", 1), ("batch_size", 2), ("seed", 0)):
        if getattr(config, name) < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(config, name)} must be at least {least}")
    if not 0 < config.learning_rate < float("inf"):
        raise InputError(f"--learning-rate {config.learning_rate} must be above 0, e.g. 0.005")
    if not 0 < config.holdout < 1:
        raise InputError(f"--holdout {config.holdout} must lie between 0 and 1, e.g. 0.1")
    if not 0 < config.false_positive_rate < 1:
        raise InputError(f"--false-positive-rate {config.false_positive_rate} must lie in (0, 1)")


def _json_config(config: Config) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {k: os.fspath(v) if isinstance(v, Path) else v for k, v in values.items()}


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Write into ``seconds`` how long the block took."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def load_run(folder: Path) -> StoredDetector:
    """The detector of a run: give the run's folder, or the model's."""
    model = _model_of(folder)
    if not model.is_dir():
        raise InputError(f"{folder} is not a folder: give one that `dskd train` wrote")
    several = sorted(p.parents[1].name for p in folder.glob(f"*/{MODEL}/{DESCRIPTION_FILE}"))
    if model == folder and several:
        raise InputError(
            f"{folder} holds runs of several categories: name one, e.g. {folder / several[0]}"
        )
    kinds = {kind.__name__: kind for kind in DETECTORS.values()}
    return kinds.get(saved_kind(model), DSKD).load(model)


def _model_of(run: Path) -> Path:
    return run / MODEL if (run / MODEL).is_dir() else run


def evaluate_run(
    folder: Path,
    data: Path | None,
    out: Path,
    device: str = "auto",
    batch_size: int = 16,
    display: Display | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Evaluate a run's detector on a category, write a report to ``out``, return its content.

    Without ``data`` the category is the one it was trained on. Raises InputError if the run or the
    data cannot be read, or ``out`` is the run itself, whose own report would be lost.
    """
    display = display or Silent()
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} must be at least 1")
    if out.resolve() in (folder.resolve(), _model_of(folder).resolve()):
        raise InputError(f"{out} holds the run with its own report: give another --out")
    check_place(out)
    detector = load_run(folder)
    trained_on = about_saved(_model_of(folder))
    if not {"data", "config"} <= trained_on.keys():
        raise InputError(f"{folder} does not say how it was trained: give a run of `dskd train`")
    category = scan_category(data or Path(trained_on["data"]), to_train=False)
    if not category.test:
        raise InputError(
            f"{category.root} has no test images: put some in {category.root / 'test'}, or name "
            "another category with --data"
        )
    target = prepare_detector(detector, device, precision)
    paths = tuple(sample.path for sample in category.test)
    notes = notes_on_files(category, paths)
    trained_size = photo_size(folder)
    shapes = [note_on_shape(size_of(path), trained_size) for path in paths]
    if odd := [f"{path}, {note}" for path, note in zip(paths, shapes, strict=True) if note]:
        others = f" (and {len(odd) - 1} more images)" if odd[1:] else ""
        notes.append(odd[0] + others)
    seconds: dict[str, float] = {}
    with timed(seconds, "evaluate"):
        # Where training left it, unless the report is to lie elsewhere.
        run, place = (Path(os.path.abspath(path)) for path in (folder, out))
        cache = cache_beside(run if place.parent == run else place)
        progress = display.counter("read test", len(paths))
        test = decoded_images(paths, detector.image_size, cache, progress)
        progress = display.counter("evaluate", len(test))
        evaluation = evaluate(detector, category, test, batch_size, target, progress)
    evaluation.notes.extend([*notes, *threshold_notes(detector.thresholds)])
    content = {
        "data": str(category.root),
        "config": trained_on["config"],
        "scores": report.as_json(evaluation.scores),
        "notes": evaluation.notes,
        "defects": report.defects_as_json(evaluation, detector.thresholds),
        "seconds": seconds,
        "versions": versions(),
        "hardware": hardware(target),
    }
    if detector.thresholds is not None:
        content["verdicts"] = report.verdicts_as_json(evaluation, detector.thresholds)
    write_report(out, content, [report.section(evaluation, detector.thresholds)])
    _write_test_scores(out, evaluation, detector.thresholds)
    return content


def photo_size(run: Path) -> tuple[int, int] | None:
    """Width and height in pixels of the images that a run trained on; None if they were mixed."""
    size = about_saved(_model_of(run)).get("photo_size")
    whole = isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)
    return (size[0], size[1]) if whole and min(size) > 0 else None
