from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dskd_lite._torchvision import torchvision
from dskd_lite.datasets.one_class import cifar10, class_folders, digits
from dskd_lite.errors import InputError

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def _folders(root: Path, train: int = 2, test: int = 3) -> Path:
    for part, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (10, 8), colour).save(root / part / name / f"{index}.png")
    return root


def test_folders_give_each_image_the_label_of_its_folder(tmp_path: Path) -> None:
    data = class_folders(_folders(tmp_path), size=16)
    assert data.classes == ("blue", "green", "red")
    assert data.train.shape == (6, 16, 16, 3) and data.test.shape == (9, 16, 16, 3)
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        for image, label in zip(images, labels, strict=True):
            assert tuple(image[5, 5]) == COLOURS[data.classes[label]]


def test_files_beside_the_images_are_listed(tmp_path: Path) -> None:
    root = _folders(tmp_path)
    assert class_folders(root).passed_over == ()
    others = (root / "test" / "red" / "list.txt", root / "train" / "loose.png")
    for path in others:
        path.touch()
    assert class_folders(root).passed_over == tuple(sorted(others))


def test_task_trains_on_the_normal_class_and_tests_on_all(tmp_path: Path) -> None:
    task = class_folders(_folders(tmp_path)).task("green")
    assert len(task.train) == 2 and (task.train == COLOURS["green"]).all()
    assert len(task.images) == 9 and task.labels.dtype == bool
    green = (task.images == COLOURS["green"]).all(axis=(1, 2, 3))
    assert (task.labels == ~green).all() and task.labels.sum() == 6


def test_a_class_may_only_be_tested(tmp_path: Path) -> None:
    root = _folders(tmp_path)
    for path in (root / "train" / "red").iterdir():
        path.unlink()
    (root / "train" / "red").rmdir()
    data = class_folders(root)
    assert data.classes == ("blue", "green", "red")
    assert data.task("blue").labels.sum() == 6
    with pytest.raises(InputError, match="'red' has no training images"):
        data.task("red")


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train is missing"):
        class_folders(tmp_path / "nowhere")
    root = _folders(tmp_path / "classes")
    with pytest.raises(InputError, match="no class is called 'cat': choose one of blue, green"):
        class_folders(root).task("cat")
    (root / "test" / "green" / "0.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"0\.png cannot be read"):
        class_folders(root)
    for path in (root / "test" / "green").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="green holds no image"):
        class_folders(root)
    only = tmp_path / "only"
    for part in ("train", "test"):
        (only / part / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(only / part / "a" / "0.png")
    with pytest.raises(InputError, match=r"one class only \(a\)"):
        class_folders(only)
    (only / "test" / "a").rename(only / "a")
    with pytest.raises(InputError, match="test holds no folder"):
        class_folders(only)


def test_digits_are_split_once_and_keep_their_grey() -> None:
    from sklearn.datasets import load_digits

    data = digits(size=8)  # the size they come in: nothing is resampled
    images = np.concatenate([data.train, data.test])
    labels = np.concatenate([data.train_labels, data.test_labels])
    assert len(images) == 1797 and len(data.test) == 599
    original = load_digits()

    def multiset(pixels: np.ndarray, numbers: np.ndarray) -> list[bytes]:
        return sorted(
            p.round().astype(np.uint8).tobytes() + bytes([n])
            for p, n in zip(pixels, numbers, strict=True)
        )

    assert multiset(images[..., 1] * (16 / 255), labels) == multiset(
        original.images, original.target
    )
    for digit in range(10):
        assert (data.test_labels == digit).mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(digits(size=8).test, data.test)
    assert not np.array_equal(digits(size=8, seed=1).test, data.test)
    assert digits().train.shape[1:] == (32, 32, 3)


def _write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10's files with two images each, whose hashes torchvision is told to expect."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 2, 3, 32, 32)).astype(np.uint8)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    hashes = [
        write(name, {"data": pixels[i].reshape(2, -1), "labels": [i, 9]})
        for i, name in enumerate(names)
    ]
    classes = list("abcdefghij")
    meta = write("batches.meta", {"label_names": classes})
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "train_list", hashes[:5])
    monkeypatch.setattr(dataset, "test_list", hashes[5:])
    monkeypatch.setattr(
        dataset, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return pixels


def test_cifar_comes_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = _write_cifar(tmp_path, monkeypatch)
    data = cifar10(tmp_path)
    assert data.classes == tuple("abcdefghij")
    assert np.array_equal(data.train, pixels[:5].reshape(10, 3, 32, 32).transpose(0, 2, 3, 1))
    assert np.array_equal(data.test, pixels[5].transpose(0, 2, 3, 1))
    assert data.train_labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    task = data.task("j")
    assert len(task.train) == 5 and task.labels.tolist() == [True, False]
    with pytest.raises(InputError, match="'a' has no test images"):
        data.task("a")
    assert cifar10(tmp_path, size=64).test.shape == (2, 64, 64, 3)


def test_cifar_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no whole CIFAR-10.*dskd data cifar10") as caught:
        cifar10(tmp_path)
    assert "\n" not in str(caught.value)


def test_jpeg_copy_of_cifar_has_its_ten_classes(real_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(real_data / "cifar10_jpeg.zip") as archive:
        names = [n for n in archive.namelist() if n.endswith(("/0000.jpg", "/0001.jpg"))]
        archive.extractall(tmp_path, names)
    data = class_folders(tmp_path / "cifar10")
    assert len(data.classes) == 10 and data.train.shape == data.test.shape == (20, 32, 32, 3)
