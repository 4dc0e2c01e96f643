from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dskd_lite.datasets.textures import ProceduralTextures, TextureFolder, procedural_textures
from dskd_lite.errors import InputError


def textures(count: int, size: int, seed: int = 0) -> Tensor:
    return procedural_textures(count, size, torch.Generator().manual_seed(seed))


def test_the_generator_decides_the_textures() -> None:
    torch.testing.assert_close(textures(9, 32), textures(9, 32), rtol=0, atol=0)
    assert not torch.equal(textures(9, 32), textures(9, 32, seed=1))
    torch.rand(5)  # the global random numbers play no part
    torch.testing.assert_close(textures(2, 32), textures(2, 32), rtol=0, atol=0)


@pytest.mark.parametrize("size", [16, 48, 65])
def test_shape_and_range(size: int) -> None:
    images = textures(40, size)
    assert images.shape == (40, 3, size, size)
    assert images.isfinite().all()
    assert images.min() >= 0 and images.max() <= 1


def test_variety() -> None:
    images = textures(200, 64)
    # No two are alike: the closest pair is still far apart.
    pairs = torch.cdist(images.flatten(1), images.flatten(1)) / images[0].numel() ** 0.5
    assert pairs[~torch.eye(200, dtype=torch.bool)].min() > 0.01
    contrast = images.std((1, 2, 3))
    assert contrast.quantile(0.9) > 3 * contrast.quantile(0.1)
    colourfulness = images.std(1).mean((1, 2))
    assert (colourfulness < 0.01).any() and (colourfulness > 0.15).any()


def test_spectrum_falls_like_that_of_photographs() -> None:
    """Photographs have power ~ 1 / f^a with a near 2 (Field 1987: from 1.6 to 2.4 or so)."""
    grey = textures(300, 64).mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(grey).abs().square().mean(0)
    frequency = torch.fft.fftfreq(64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    rings = [(radius >= low) & (radius < 1.3 * low) for low in (0.03, 0.05, 0.08, 0.13, 0.2)]
    x = np.log([radius[ring].mean() for ring in rings])
    y = np.log([power[ring].mean() for ring in rings])
    slope = np.polyfit(x, y, 1)[0]
    assert -2.6 < slope < -1.4


def test_a_texture_depends_on_seed_and_index_alone() -> None:
    backwards = {i: ProceduralTextures(4, 32, seed=3)[i] for i in (3, 2, 1, 0)}
    for i, texture in enumerate(ProceduralTextures(4, 32, seed=3)):  # stops at its end
        torch.testing.assert_close(texture, backwards[i], rtol=0, atol=0)
        assert texture.shape == (3, 32, 32)
    assert i == 3
    assert not torch.equal(ProceduralTextures(4, 32, seed=4)[0], backwards[0])
    with pytest.raises(IndexError):
        ProceduralTextures(4, 32)[4]


def test_folder_covers_the_square_and_keeps_the_centre(tmp_path: Path) -> None:
    thirds = np.zeros((20, 60, 3), dtype=np.uint8)
    thirds[:, :20], thirds[:, 20:40], thirds[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    (tmp_path / "deep" / "down").mkdir(parents=True)
    Image.fromarray(thirds).save(tmp_path / "deep" / "down" / "wide.png")
    Image.fromarray(thirds.transpose(1, 0, 2)).save(tmp_path / "tall.TIF")
    (tmp_path / "notes.txt").write_text("no image")
    folder = TextureFolder(tmp_path, image_size=10)
    assert len(folder) == 2
    for texture in folder:
        expected = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 10, 10)
        assert texture.shape == expected.shape
        inner = (slice(None), slice(2, -2), slice(2, -2))  # at the rim the resizing blends colours
        torch.testing.assert_close(texture[inner], expected[inner])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".bmp", ".tiff"])
def test_folder_reads_grey_images_of_any_kind(tmp_path: Path, suffix: str) -> None:
    Image.new("L", (12, 12), 51).save(tmp_path / f"grey{suffix}")
    (texture,) = TextureFolder(tmp_path, image_size=8)
    torch.testing.assert_close(texture, torch.full((3, 8, 8), 0.2), rtol=0, atol=0.005)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        TextureFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no image"):
        TextureFolder(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(InputError, match=r"torn\.png"):  # before hours of training
        TextureFolder(tmp_path)
