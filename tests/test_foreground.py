from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import scan_category
from dskd_lite.datasets.textures import ProceduralTextures
from dskd_lite.detector import DSKD
from dskd_lite.errors import InputError
from dskd_lite.foreground import object_masks, otsu_threshold, read_regions
from dskd_lite.synthetic_noise import SyntheticNoise
from dskd_lite.teacher import Teacher
from dskd_lite.training import train_fusion

RNG = np.random.default_rng(0)


def _discs(count: int, radius: int, colour: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise with a disc at a random place, and the masks that it was drawn with."""
    images = RNG.integers(90, 110, (count, size, size, 3)).astype(np.uint8)
    centres = RNG.integers(radius + 10, size - radius - 10, (count, 2))
    y, x = np.mgrid[:size, :size]
    masks = np.stack([(y - a) ** 2 + (x - b) ** 2 <= radius**2 for a, b in centres])
    images[masks] = colour
    return images, masks


@pytest.mark.parametrize("colour", [250, 20])
def test_a_disc_is_found_with_its_rim_and_without_its_holes(colour: int) -> None:
    images, drawn = _discs(4, 20, colour)
    images[0, 5:7, 60:62] = colour  # a speck at the side
    centre = tuple(int(c) for c in np.argwhere(drawn[1]).mean(0))
    images[1, centre[0] - 6 : centre[0] + 6, centre[1] - 6 : centre[1] + 6] = 100  # a hole
    found = object_masks(images)
    for mask, disc in zip(found, drawn, strict=True):
        assert (mask | ~disc).all()  # nothing of the disc is left out
        assert disc.sum() < mask.sum() < disc.sum() * 1.3  # a rim of 2 pixels round 20


def test_a_dull_body_with_bright_parts_is_found_whole() -> None:
    images = RNG.integers(95, 105, (3, 64, 64, 3)).astype(np.uint8)
    images[:, 20:44, 16:48] = 60
    images[:, 16:20, 16:48] = images[:, 44:48, 16:48] = 255
    assert object_masks(images)[:, 20:44, 16:48].all()


def test_what_fills_the_frame_is_all_object() -> None:
    texture = RNG.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    stripes = np.zeros((3, 64, 64, 3), np.uint8)
    stripes[:, :, ::8] = 200
    for images in (texture, stripes, np.full((2, 64, 64, 3), 7, np.uint8)):
        assert object_masks(images).all()


def test_an_image_without_its_object_is_all_object() -> None:
    images, _ = _discs(4, 20, 250)
    images[2] = 100
    found = object_masks(images)
    assert found[2].all() and found[0].mean() < 0.5


def test_otsu_is_the_best_of_all_cuts() -> None:
    values = np.concatenate([RNG.normal(10, 2, 500), RNG.normal(30, 5, 200)])
    cuts = np.linspace(values.min(), values.max(), 2000)[1:-1]

    def between(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(cut) for cut in cuts)
    assert between(otsu_threshold(values)) == pytest.approx(best, rel=0.01)


def test_screws_are_found_and_tiles_fill_the_frame(real_data: Path) -> None:
    for name in ("mvtec/screw", "magnetic_tile"):
        paths = scan_category(real_data / name).train[::40]
        share = object_masks(decoded_images(paths, 128, None)).mean((1, 2))
        if name == "magnetic_tile":
            assert (share == 1).all()
        else:
            assert (0.1 < share).all() and (share < 0.4).all()


def test_the_fusion_learns_from_noise_within_its_images_region() -> None:
    images = RNG.integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    allowed = np.zeros((7, 32, 32), bool)
    for index, region in enumerate(allowed):
        region[4 * index : 4 * index + 4] = True
    drawn: list[np.ndarray] = []

    class Spy(SyntheticNoise):
        def __call__(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
            noised, masks = super().__call__(*arguments)
            drawn.append(masks.bool().numpy())
            return noised, masks

    noise = Spy(ProceduralTextures(20, 32), (32, 32), octaves=(0, 2))
    detector = DSKD(Teacher("offline", "random"), 32, smoothing_sigma=1.0)
    train_fusion(detector, images, noise, epochs=1, batch_size=4, allowed=allowed)
    masks = np.concatenate(drawn)
    assert masks.shape == allowed.shape
    assert masks.any((1, 2)).all() and not (masks & ~allowed).any()


# --- regions given as images ---------------------------------------------------------------------


def _save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    grey = np.full((40, 80, 3), 90, np.uint8)
    return [_save(grey, tmp_path / "train" / "good" / f"{i}.jpg") for i in range(3)]


def _half(row: slice, value: int = 255) -> np.ndarray:
    mask = np.zeros((40, 80), np.uint8)
    mask[row] = value
    return mask


def test_each_image_gets_the_mask_of_its_name(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    rows = [slice(0, 20), slice(20, 40), slice(10, 30)]
    for index, row in enumerate(rows):
        _save(_half(row, value=1 if index else 255), folder / f"{index}.png")
    _save(_half(slice(0, 1)), folder / "another.png")
    masks = read_regions(folder, photos, 32)
    assert masks.shape == (3, 32, 32)
    for mask, row in zip(masks, rows, strict=True):
        expected = np.zeros((32, 32), bool)
        expected[int(row.start * 0.8) : int(row.stop * 0.8)] = True
        assert np.array_equal(mask, expected)


def test_one_mask_serves_all_images(photos: list[Path], tmp_path: Path) -> None:
    masks = read_regions(_save(_half(slice(0, 20)), tmp_path / "mask.png"), photos, 32)
    assert masks.shape == (3, 32, 32) and masks[:, :16].all() and not masks[:, 16:].any()


def test_masks_that_do_not_fit_are_named(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    with pytest.raises(InputError, match=r"masks does not exist: give anywhere, object, a mask"):
        read_regions(folder, photos, 32)
    _save(_half(slice(0, 20)), folder / "0.png")
    with pytest.raises(InputError, match=r"no mask for .*1\.jpg \(2 such images\): add .*1\.png"):
        read_regions(folder, photos, 32)
    _save(np.full((80, 40), 255, np.uint8), folder / "1.png")
    _save(_half(slice(0, 20)), folder / "2.png")
    with pytest.raises(InputError, match=r"1\.png is 40x80 pixels but .*1\.jpg is 80x40"):
        read_regions(folder, photos, 32)
    _save(_half(slice(0, 0)), folder / "1.png")
    with pytest.raises(InputError, match=r"1\.png is empty at 32 px"):
        read_regions(folder, photos, 32)
    twin = _save(_half(slice(0, 20)), photos[0].with_suffix(".bmp"))
    with pytest.raises(InputError, match=r"0\..* and .*0\..* are both called 0"):
        read_regions(folder, [*photos, twin], 32)
    (folder / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png cannot be read"):
        read_regions(folder, photos, 32)
