from __future__ import annotations

import pytest
import torch

from dskd_lite.errors import InputError
from dskd_lite.seeding import generator
from dskd_lite.synthetic_noise import SyntheticNoise, blend, perlin_noise

TEXTURES = [torch.full((3, 48, 64), value) for value in (0.0, 1.0)]
SIZE = (48, 64)


def _perlin_by_the_book(
    angles: torch.Tensor, cells: int, fy: int, fx: int, y: float, x: float
) -> float:
    """One value of Perlin noise, scalar arithmetic: dot products at four corners, faded."""
    y0, x0 = int(y * fy), int(x * fx)
    dy, dx = y * fy - y0, x * fx - x0
    fade = [t**3 * (6 * t * t - 15 * t + 10) for t in (dy, dx)]
    total = 0.0
    for j in (0, 1):
        for i in (0, 1):
            angle = angles[(y0 + j) * cells + x0 + i]
            dot = float(torch.cos(angle)) * (dx - i) + float(torch.sin(angle)) * (dy - j)
            weight = (fade[0] if j else 1 - fade[0]) * (fade[1] if i else 1 - fade[1])
            total += weight * dot
    return 2**0.5 * total


def test_noise_is_perlins() -> None:
    frequencies = torch.tensor([[1, 4], [8, 2], [16, 16]])
    noise = perlin_noise(frequencies, SIZE, generator(0))
    cells = 17
    angles = 2 * torch.pi * torch.rand(3, cells * cells, generator=generator(0))
    for image, (fy, fx) in enumerate(frequencies.tolist()):
        for row, column in ((0, 0), (11, 37), (47, 63), (24, 32)):
            y, x = (row + 0.5) / SIZE[0], (column + 0.5) / SIZE[1]
            expected = _perlin_by_the_book(angles[image], cells, fy, fx, y, x)
            assert noise[image, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_blend_is_equation_3() -> None:
    image, texture = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), 1.0)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    blended = blend(image, mask, texture, torch.tensor([0.2]))
    expected = torch.tensor([[0.6, 0.5], [0.5, 0.6]]).expand(1, 3, 2, 2)
    torch.testing.assert_close(blended, expected)


def test_noise_stays_inside_its_mask_and_in_range() -> None:
    noise = SyntheticNoise(TEXTURES, SIZE)
    images = torch.rand(40, 3, *SIZE, generator=generator(1))
    noised, masks = noise(images, generator(2))
    outside = (masks == 0).unsqueeze(1).expand_as(images)
    assert torch.equal(noised[outside], images[outside])
    inside = ~outside
    assert (noised[inside] != images[inside]).float().mean() > 0.99
    assert noised.min() >= 0 and noised.max() <= 1
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_opacity_keeps_its_range() -> None:
    noise = SyntheticNoise([torch.ones(3, *SIZE)], SIZE, opacity=(0.15, 1.0))
    noised, masks = noise(torch.zeros(300, 3, *SIZE), generator(3))
    opacity = noised.flatten(1).amax(1)  # white over black shows beta itself
    assert 0.15 <= opacity.min() < 0.2
    assert 0.95 < opacity.max() <= 1
    assert opacity.mean().item() == pytest.approx(0.575, abs=0.05)
    assert masks.flatten(1).any(1).all()


def test_masks_are_never_empty_even_when_most_draws_are() -> None:
    noise = SyntheticNoise(TEXTURES, SIZE, octaves=(0, 0), threshold=0.6)
    one_draw = perlin_noise(torch.ones(200, 2, dtype=torch.long), SIZE, generator(4)) > 0.6
    assert not one_draw.flatten(1).any(1).all()  # else this test shows nothing
    assert noise.masks(200, generator(4)).flatten(1).any(1).all()


def test_noise_falls_only_where_allowed() -> None:
    noise = SyntheticNoise(TEXTURES, SIZE)
    allowed = torch.zeros(20, *SIZE, dtype=torch.bool)
    allowed[:, 10:30, 20:50] = True
    allowed[0] = False
    allowed[0, 5, 5] = True  # a single pixel, which a draw will hardly hit
    masks = noise.masks(20, generator(5), allowed)
    assert masks[~allowed].sum() == 0
    assert masks.flatten(1).any(1).all()
    with pytest.raises(InputError, match="no place to fall"):
        noise.masks(2, generator(5), torch.zeros(2, *SIZE, dtype=torch.bool))


def test_octaves_set_the_size_of_the_patches() -> None:
    def edge_share(octaves: tuple[int, int]) -> float:
        masks = SyntheticNoise(TEXTURES, SIZE, octaves=octaves).masks(60, generator(6))
        edges = (masks[:, 1:] != masks[:, :-1]).sum() + (masks[:, :, 1:] != masks[:, :, :-1]).sum()
        return float(edges / masks.sum())

    assert edge_share((0, 2)) < 0.5 * edge_share((4, 5))


def test_one_seed_gives_one_result_whatever_came_before() -> None:
    noise = SyntheticNoise(TEXTURES, SIZE)
    images = torch.rand(4, 3, *SIZE)
    first = noise(images, generator(7, 3))
    noise(images, generator(8))
    again, other = noise(images, generator(7, 3)), noise(images, generator(7, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_unusable_settings_are_refused() -> None:
    for settings, words in (
        ({"textures": []}, "empty"),
        ({"textures": TEXTURES, "opacity": (0.5, 0.2)}, "opacity"),
        ({"textures": TEXTURES, "octaves": (3, 1)}, "octaves"),
        ({"textures": TEXTURES, "octaves": (0, 30)}, "smaller than a pixel"),
    ):
        with pytest.raises(InputError, match=words):
            SyntheticNoise(image_size=SIZE, **settings)
