"""One-class novelty: one class of a labelled set is normal, every other is anomalous.

A set is a folder of classes (``train/<class>``, ``test/<class>``), CIFAR-10, or scikit-learn's
digits, which need no download. Train on ``task.train``, score ``task.images`` and compare with
``task.labels``; one task for each class and the mean of their image AUROCs is the usual figure.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import IMAGE_SUFFIXES, files_below, list_images, subfolders
from dskd_lite.errors import InputError

SIZE = 32


@dataclass(frozen=True)
class OneClassTask:
    """One class to learn, all classes to judge."""

    normal: str
    train: np.ndarray
    """Training images of the normal class, (N, H, W, 3) uint8."""
    images: np.ndarray
    """Test images of all classes, (M, H, W, 3) uint8."""
    labels: np.ndarray
    """(M,) bool: whether each test image is anomalous, that is, of another class."""


@dataclass(frozen=True)
class LabelledImages:
    """A labelled set, whole; labels are indices into ``classes``."""

    classes: tuple[str, ...]
    train: np.ndarray
    """(N, H, W, 3) uint8."""
    train_labels: np.ndarray
    """(N,) int."""
    test: np.ndarray
    """(M, H, W, 3) uint8."""
    test_labels: np.ndarray
    """(M,) int."""
    passed_over: tuple[Path, ...] = ()
    """Files beside the images that are not read."""

    @property
    def both_parts(self) -> tuple[str, ...]:
        """The classes that have training images and test images."""
        present = set(self.train_labels.tolist()) & set(self.test_labels.tolist())
        return tuple(name for index, name in enumerate(self.classes) if index in present)

    @property
    def checksum(self) -> int:
        """CRC-32 of all pixels, labels and names of classes."""
        value = zlib.crc32("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for part in (self.train, self.train_labels, self.test, self.test_labels):
            value = zlib.crc32(np.ascontiguousarray(part), value)
        return value

    def task(self, normal: str) -> OneClassTask:
        """The task in which the class ``normal`` is normal.

        Raises InputError if there is no such class, or it lacks training or test images.
        """
        if normal not in self.classes:
            known = ", ".join(self.classes)
            raise InputError(f"no class is called {normal!r}: choose one of {known}")
        index = self.classes.index(normal)
        train, labels = self.train[self.train_labels == index], self.test_labels != index
        if not len(train) or labels.all():
            part = "test" if len(train) else "training"
            raise InputError(f"class {normal!r} has no {part} images: choose another as normal")
        return OneClassTask(normal, train, self.test, labels)


def digits(size: int = SIZE, seed: int = 0) -> LabelledImages:
    """scikit-learn's 1797 handwritten digits, a third of each class for testing.

    8x8 grey pixels, resized bilinearly; ``seed`` decides which images are for testing.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    small = (data.images * (255 / 16)).round().astype(np.uint8)
    images = np.stack([_resized(image, size) for image in small])
    parts = train_test_split(
        images, data.target, test_size=1 / 3, stratify=data.target, random_state=seed
    )
    train, test, train_labels, test_labels = parts
    return LabelledImages(tuple("0123456789"), train, train_labels, test, test_labels)


def cifar10(root: Path, size: int = SIZE) -> LabelledImages:
    """CIFAR-10 (Krizhevsky, 2009), 50 000 and 10 000 images, in torchvision's layout.

    ``root`` holds ``cifar-10-batches-py``, as `dskd data cifar10` leaves it. For a copy in image
    folders see ``class_folders``. Raises InputError if it is missing or damaged.
    """
    from dskd_lite._torchvision import torchvision

    try:
        train, test = (torchvision.datasets.CIFAR10(root, train=part) for part in (True, False))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{root} holds no whole CIFAR-10 ({reason}): fetch it with `dskd data cifar10`, or "
            "give the folder that holds cifar-10-batches-py"
        ) from error
    arrays = [
        part.data if size == SIZE else np.stack([_resized(image, size) for image in part.data])
        for part in (train, test)
    ]
    labels = [np.array(part.targets) for part in (train, test)]
    return LabelledImages(tuple(train.classes), arrays[0], labels[0], arrays[1], labels[1])


def class_folders(
    root: Path,
    size: int = SIZE,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> LabelledImages:
    """Any folder of classes: ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Images become squares of ``size`` pixels (``decoded_images`` explains the cache). A class may be
    absent from ``train``, when it is only ever anomalous. Raises InputError if a part or all its
    classes are missing, a class folder is empty, fewer than two classes are tested, or an image is
    damaged.
    """
    root = Path(root)
    parts = [_images_by_class(root / part) for part in ("train", "test")]
    classes = tuple(sorted(parts[0].keys() | parts[1].keys()))
    if len(parts[1]) < 2:
        raise InputError(
            f"{root / 'test'} holds one class only ({', '.join(parts[1])}): "
            "add a folder of images of another, for there is nothing to tell it from"
        )
    arrays, labels = [], []
    for part in parts:
        paths = [path for name in part for path in part[name]]
        arrays.append(decoded_images(paths, size, cache_dir, progress))
        numbers = [classes.index(name) for name in part for _ in part[name]]
        labels.append(np.array(numbers))
    read = {path for part in parts for paths in part.values() for path in paths}
    files = (path for part in ("train", "test") for path in files_below(root / part))
    others = tuple(sorted(path for path in files if path not in read))
    return LabelledImages(classes, arrays[0], labels[0], arrays[1], labels[1], others)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is missing: put a folder of images there for each class")
    images = {p.name: list_images(p) for p in subfolders(folder)}
    if not images:
        raise InputError(f"{folder} holds no folder: put one there for each class")
    for name, paths in images.items():
        if not paths:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"{folder / name} holds no image: put some there ({kinds})")
    return images


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    square = Image.fromarray(image).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square)
