"""What the chapters share, so that no notebook repeats it: device, images, trained detectors.

Everything that is made once and used again lies in the course folder: the environment variable
``DSKD_COURSE_DIR``, or ``runs/course`` in the repository, or ``runs/course`` in the current folder
where the package was installed without it (on Colab).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dskd_lite
from dskd_lite import plots
from dskd_lite.config import Config
from dskd_lite.datasets import procedural
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import read_masks, scan_category
from dskd_lite.detector import DSKD
from dskd_lite.experiment import finish_detector, new_detector, new_noise
from dskd_lite.parallel import new_accelerator
from dskd_lite.storage import read_json, write_json
from dskd_lite.teacher import OFFLINE_WEIGHTS
from dskd_lite.training import (
    Report,
    Step,
    split_holdout,
    train_students,
)

MOST_THREADS = 4  # small networks on small images gain nothing from more


@dataclass(frozen=True)
class CourseData:
    """One category of the procedural benchmark in memory, test images ordered by their defect."""

    name: str
    train: np.ndarray
    """Normal images to learn from, (N, H, W, 3) uint8."""
    test: np.ndarray
    """Normal and defective images, (N, H, W, 3) uint8."""
    masks: np.ndarray
    """Defective pixels of the test images, (N, H, W) bool; all False for a normal one."""
    labels: np.ndarray
    """Whether each test image is defective, (N,) bool."""
    defects: list[str]
    """What is wrong with each test image, ``good`` for nothing."""

    def find(self, defect: str, count: int = 1) -> list[int]:
        """Indices of the first ``count`` test images of a defect, the most obvious first."""
        return [index for index, name in enumerate(self.defects) if name == defect][:count]


def setup(seed: int = 0) -> torch.device:
    """Seed torch and numpy, choose the number of threads, and return the device: a GPU or the CPU.

    In a notebook it also makes figures show as pictures.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(MOST_THREADS, os.cpu_count() or 1))
    _show_figures()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def folder() -> Path:
    """Where images and trained detectors are kept between chapters."""
    if "DSKD_COURSE_DIR" in os.environ:
        return Path(os.environ["DSKD_COURSE_DIR"])
    repository = Path(dskd_lite.__file__).resolve().parents[1]
    root = repository if (repository / "pyproject.toml").is_file() else Path.cwd()
    return root / "runs" / "course"


def category(name: str, image_size: int = 128) -> CourseData:
    """Read one category of the procedural benchmark, which is drawn if it is not there yet.

    Raises InputError for an unknown category.
    """
    (root,) = procedural.write_benchmark(folder() / "images", categories=[name])
    found, cache = scan_category(root), folder() / "cache"
    test = tuple(sample.path for sample in found.test)
    return CourseData(
        name=name,
        train=decoded_images(found.train, image_size, cache),
        test=decoded_images(test, image_size, cache),
        masks=read_masks(found.test, image_size),
        labels=np.array([sample.is_defective for sample in found.test]),
        defects=[sample.defect for sample in found.test],
    )


def trained_detector(
    name: str, epochs: int = 10, image_size: int = 128, fusion: bool = False, **options: Any
) -> DSKD:
    """A detector of a category with the offline teacher: the saved one if there is, else a new one.

    ``options`` are those of ``Config`` (``skip``, ``attention``, ``smoothing_sigma``, ``loss``,
    ``seed`` ...). Students learn from nine tenths of the normal images; with ``fusion`` the six
    weights are trained as well, and the held-out tenth gives the maps' scales and the thresholds.
    The students are the same with and without. In eval mode, on the device of ``setup``.

    Raises InputError for an unknown category, TypeError for an unknown option.
    """
    options = {"teacher": "offline", "epochs": epochs, "image_size": image_size, **options}
    config = Config(data=Path(name), **options)
    accelerator = new_accelerator(cpu=not torch.cuda.is_available())
    saved = folder() / "detectors" / f"{name}-{_fingerprint(name, fusion, asdict(config))}"
    if saved.is_dir():
        print(f"{name}: trained before, read again")
        return DSKD.load(saved).to(accelerator.device)
    images = category(name, image_size).train
    fitted, held_out = split_holdout(len(images), config.holdout, config.seed)
    if fusion:
        detector = trained_detector(name, **options)
        noise = new_noise(config)
        finish_detector(
            config, detector, images[fitted], images[held_out], noise, accelerator.device
        )
    else:
        detector = new_detector(config)
        train_students(
            detector, images[fitted], config.epochs, config.batch_size, config.learning_rate,
            config.loss, config.seed, accelerator, report=each_epoch(f"{name}: students", epochs),
        )  # fmt: skip
    detector.save(saved, {"category": name, "fusion": fusion, "options": options})
    return detector


def each_epoch(title: str, epochs: int) -> Report:
    """A report that writes, epoch by epoch, the mean loss of each one's steps, in short lines."""
    losses: list[float] = []
    print(f"{title}, loss of {epochs} epochs:", flush=True)

    def report(step: Step) -> None:
        losses.append(step.loss)
        if step.step * epochs == step.steps * (step.epoch + 1):
            ends = step.epoch + 1 == epochs or step.epoch % 7 == 6  # what a phone shows
            print(f" {np.mean(losses):.2f}", end="\n" if ends else "", flush=True)
            losses.clear()

    return report


def record_rung(name: str, rung: str, scores: dict[str, float]) -> dict[str, dict[str, float]]:
    """Keep what a chapter measured on a category and return all rungs kept so far, in their order.

    ``rung`` is one of ``plots.LADDER``; what was kept with another teacher or benchmark is not
    returned.
    """
    file = folder() / f"ladder-{name}-{_fingerprint(name, False, {})}.json"
    kept = read_json(file) if file.is_file() else {}
    kept[rung] = {metric: round(float(value), 4) for metric, value in scores.items()}
    write_json(file, kept)
    return {rung: kept[rung] for rung in plots.LADDER if rung in kept}


def _fingerprint(name: str, fusion: bool, options: dict[str, Any]) -> str:
    """A short name for everything that the result depends on, the teacher's weights included."""
    weights = (resources.files("dskd_lite") / "weights" / OFFLINE_WEIGHTS).read_bytes()
    made_of = {
        "category": name,
        "fusion": fusion,
        "options": options,
        "benchmark": procedural.VERSION,
        "package": dskd_lite.__version__,
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(made_of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _show_figures() -> None:
    """Let a notebook draw matplotlib figures that were made without pyplot."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.core.pylabtools import select_figure_formats
    except ImportError:  # a script, not a notebook
        return
    shell = get_ipython()
    if shell is not None:
        select_figure_formats(shell, {"png"}, dpi=110)
