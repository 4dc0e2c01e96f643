"""The places that noise is kept to beside the object: read back as `--noise-on` reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dskd_lite.datasets.folder import list_images
from dskd_lite.foreground import read_regions

BARS = {"a": (10, 20, 25, 60), "b": (40, 30, 70, 50), "c": (45, 45, 70, 75)}


@pytest.fixture(scope="module")
def controls(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("book/noise_controls.py")


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    """Three photos of 96 px, each of a white bar on black, at another place."""
    folder = tmp_path / "bars"
    (folder / "train" / "good").mkdir(parents=True)
    (folder / "test" / "good").mkdir(parents=True)
    for name, box in BARS.items():
        photo = Image.new("RGB", (96, 96))
        ImageDraw.Draw(photo).rectangle(box, fill=(255, 255, 255))
        photo.save(folder / "train" / "good" / f"{name}.png")
    photo.save(folder / "test" / "good" / "0.png")
    return folder


def test_places_are_read_back_as_they_were_made(
    controls: ModuleType, bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "places"
    controls.main([str(bars), "--out", str(out), "--image-size", "48"])
    photos = list_images(bars / "train" / "good")
    background, other, half, disc = (
        read_regions(out / name, photos, 48) for name in ("background", "other", "half", "disc.png")
    )
    for index, name in enumerate(sorted(BARS)):
        left, top, right, bottom = (side // 2 for side in BARS[name])
        assert not background[index, top : bottom + 1, left : right + 1].any()
        # The object has a rim of a pixel or two around the bar; beyond that all is background.
        background[index, max(top - 3, 0) : bottom + 4, max(left - 3, 0) : right + 4] = True
        assert background[index].all()
    objects = ~read_regions(out / "background", photos, 48)
    assert np.array_equal(other, objects[[2, 0, 1]])
    assert np.abs(half.mean((1, 2)) - 0.5).max() < 0.05
    assert not np.array_equal(half[0], half[1])
    assert abs(disc[0].mean() - np.pi / 4 * (436 / 512) * (440 / 512)) < 0.01
    printed = capsys.readouterr().out
    assert "object" in printed and "background" in printed and "of that   0% object" in printed
