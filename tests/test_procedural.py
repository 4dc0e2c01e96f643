"""The embedded benchmark: pixels fixed by a hash, masks exact, folders whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dskd_lite.datasets import procedural
from dskd_lite.datasets.procedural import CATEGORIES, exact, render, write_benchmark
from dskd_lite.datasets.procedural.exact import Draws
from dskd_lite.errors import InputError

# of all images and masks of seed 0, as decoded: whoever changes a pixel makes another benchmark
PIXELS = "9395bde3e8affa334c3bb94d04bfb8c4f6b9ce8665684e25def1c9289cbcc78a"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark")
    write_benchmark(out)
    return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, for tests of the writing alone."""
    monkeypatch.setattr(procedural, "TRAIN", 2)
    monkeypatch.setattr(procedural, "GOOD", 1)
    monkeypatch.setattr(procedural, "DEFECTIVE", 1)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pixels_are_those_of_every_other_machine(benchmark: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(benchmark.rglob("*.png"), key=lambda p: p.relative_to(benchmark).as_posix()):
        digest.update(path.relative_to(benchmark).as_posix().encode())
        digest.update(read(path).tobytes())
    assert digest.hexdigest() == PIXELS


def test_layout_is_that_of_mvtec(benchmark: Path) -> None:
    assert sorted(p.name for p in benchmark.iterdir()) == sorted(CATEGORIES)
    for name, category in CATEGORIES.items():
        root = benchmark / name
        defects = sorted(category.defects)
        assert sorted(p.name for p in (root / "test").iterdir()) == sorted([*defects, "good"])
        assert sorted(p.name for p in (root / "ground_truth").iterdir()) == defects
        assert 60 <= len(list((root / "train" / "good").glob("*.png"))) <= 200
        assert len(list((root / "test" / "good").glob("*.png"))) >= 25
        for kind in defects:
            images = sorted((root / "test" / kind).iterdir())
            masks = sorted((root / "ground_truth" / kind).iterdir())
            assert [f"{p.stem}_mask.png" for p in images] == [p.name for p in masks]
            assert images[0].name == "000.png"
            assert read(images[0]).shape == (128, 128, 3)
            assert read(masks[0]).shape == (128, 128)
            assert set(np.unique(read(masks[0]))) == {0, 255}


def test_files_hold_what_render_gives(benchmark: Path) -> None:
    shot = render("gear", "test/bent_tooth", 4)
    assert np.array_equal(read(benchmark / "gear/test/bent_tooth/004.png"), shot.image)
    mask = read(benchmark / "gear/ground_truth/bent_tooth/004_mask.png")
    assert np.array_equal(mask == 255, shot.mask)


@pytest.mark.parametrize("category", CATEGORIES)
def test_mask_is_where_the_defect_changed_the_image(category: str) -> None:
    for kind in CATEGORIES[category].defects:
        for index in range(10):
            shot = render(category, f"test/{kind}", index)
            change = np.abs(shot.image.astype(int) - shot.without_defect).max(axis=-1)
            assert not change[~shot.mask].any()
            assert 12 <= shot.mask.sum() < 0.2 * shot.mask.size, (kind, index)
            # only gaps of a pixel or two between changed pixels may be filled
            assert (change[shot.mask] >= procedural.VISIBLE).mean() > 0.6, (kind, index)
            assert change.max() >= 16, (kind, index)


def test_a_normal_image_has_no_defect() -> None:
    shot = render("chip", "test/good", 3)
    assert not shot.mask.any()
    assert np.array_equal(shot.image, shot.without_defect)


def test_gaps_up_to_two_pixels_are_filled_and_nothing_else() -> None:
    mask = np.zeros((9, 12), bool)
    mask[1:8, 1:3] = mask[1:8, 5:7] = mask[1:8, 10:] = True  # gaps of two and of three columns
    mask[4, 11] = False
    closed = procedural._close(mask)
    expected = mask.copy()
    expected[1:8, 3:5] = True
    expected[4, 11] = True
    assert np.array_equal(closed, expected)


def test_defects_grow_harder_to_see_with_their_index() -> None:
    def visibility(index: int) -> float:
        shots = [render(c, f"test/{k}", index) for c in CATEGORIES for k in CATEGORIES[c].defects]
        change = [np.abs(s.image.astype(int) - s.without_defect).sum() for s in shots]
        return float(np.mean(change))

    assert visibility(0) > 2 * visibility(5) > 2 * visibility(9)


@pytest.mark.parametrize("category", CATEGORIES)
def test_seed_split_and_index_each_give_another_image(category: str) -> None:
    images = [
        render(category, "train/good", 0).image,
        render(category, "train/good", 0, seed=1).image,
        render(category, "train/good", 1).image,
        render(category, "test/good", 0).image,
    ]
    for i in range(4):
        for j in range(i):
            assert np.abs(images[i].astype(int) - images[j]).mean() > 3


def test_draws_are_the_raw_bits_of_pcg64() -> None:
    entropy = int.from_bytes(hashlib.sha256(b"a name").digest()[:16], "little")
    raw = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(3)
    expected = [int(word) // 2**11 / 2**53 for word in raw]
    assert Draws("a name").array(3).tolist() == expected


def test_approximations_keep_their_promises() -> None:
    turns = np.arange(-2000, 2000) / 777
    assert np.abs(exact.sine(turns) - np.sin(2 * np.pi * turns)).max() < 0.0011
    x, y = np.cos(2 * np.pi * turns) * 3, np.sin(2 * np.pi * turns) * 3
    error = exact.angle(x, y) - turns
    assert np.abs(error - np.round(error)).max() < 0.0007


def test_box_blur_is_the_mean_of_a_square() -> None:
    x = Draws("blur").array(exact.SIZE, exact.SIZE)
    padded = np.pad(x, 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    np.testing.assert_allclose(exact.box_blur(x, 2), windows.mean((2, 3)), atol=1e-12)


def test_a_complete_category_is_left_alone(tmp_path: Path, small: None) -> None:
    assert write_benchmark(tmp_path, categories=["metal"]) == [tmp_path / "metal"]
    image = tmp_path / "metal" / "train" / "good" / "000.png"
    before = image.stat().st_mtime_ns
    assert write_benchmark(tmp_path, categories=["metal"]) == [tmp_path / "metal"]
    assert image.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"metal exists and holds .*'seed': 0.*remove it"):
        write_benchmark(tmp_path, seed=1, categories=["metal"])
    assert image.stat().st_mtime_ns == before


def test_progress_sees_every_image(tmp_path: Path, small: None) -> None:
    seen = []

    def progress(shots: list[Any]) -> Iterator[Any]:
        for shot in shots:
            seen.append(shot)
            yield shot

    write_benchmark(tmp_path, categories=["metal"], progress=progress)
    assert len(seen) == 2 + 1 + 4


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, small: None) -> None:
    def interrupt(shots: list[Any]) -> Iterator[Any]:
        yield shots[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_benchmark(tmp_path, categories=["metal"], progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no category 'carpet': choose from fabric"):
        write_benchmark(tmp_path / "out", categories=["metal", "carpet"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="metal has no 'test/hole': choose one of train/good"):
        render("metal", "test/hole", 0)


def test_something_else_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metal").mkdir()
    (tmp_path / "metal" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="metal exists and is not part of a benchmark"):
        write_benchmark(tmp_path, categories=["metal"])
    assert [p.name for p in tmp_path.rglob("*")] == ["metal", "mine.txt"]


def test_a_category_that_another_process_wrote_meanwhile_is_taken(
    tmp_path: Path, small: None
) -> None:
    def meanwhile(shots: list[Path]) -> list[Path]:
        write_benchmark(tmp_path, categories=["metal"])
        return shots

    assert write_benchmark(tmp_path, categories=["metal"], progress=meanwhile) == [
        tmp_path / "metal"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metal"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        with pytest.raises(InputError, match=f"cannot be written to {out} "):
            write_benchmark(out, categories=["metal"])


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(error, "the system's words")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match=r"cannot be written .*the system's words"):
        write_benchmark(tmp_path, categories=["metal"])
    assert list(tmp_path.iterdir()) == []


def test_the_marker_names_what_the_folder_holds(benchmark: Path) -> None:
    marker = json.loads((benchmark / "chip" / "benchmark.json").read_text())
    assert marker == {"benchmark": "chip", "version": procedural.VERSION, "seed": 0}


def test_contact_sheet_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dskd_lite.datasets.procedural", "--contact-sheet"]
    sheet = tmp_path / "sheet.png"
    subprocess.run([*command, str(sheet)], check=True)
    assert read(sheet).shape[1] > 1000
    failed = subprocess.run([*command, str(tmp_path / "no" / "sheet.png")], capture_output=True)
    assert failed.returncode != 0
    assert failed.stderr.decode().count("\n") == 1
