from __future__ import annotations

import multiprocessing
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from dskd_lite.datasets import cache
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import (
    check_sizes,
    find_categories,
    images_below,
    note_on_depth,
    open_image,
    read_image,
    read_mask,
    read_masks,
    scan_category,
    size_of,
)
from dskd_lite.errors import InputError

Make = Callable[..., Path]


def test_layout_is_read(make_category: Make) -> None:
    category = scan_category(make_category(train=4, good=2, defects=3))
    assert (category.name, len(category.train), len(category.test)) == ("tiny", 4, 5)
    assert [s.defect for s in category.test] == ["good"] * 2 + ["hole"] * 3
    assert category.has_masks
    masks = read_masks(category.test, 64)
    assert not masks[:2].any()
    assert masks[2:].sum() == 3 * 16 * 16
    assert masks[2, 10:26, 12:28].all()


def test_test_images_and_masks_are_optional(make_category: Make) -> None:
    assert not scan_category(make_category("a", masks=False)).has_masks
    root = make_category("b")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    assert scan_category(root).test == ()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "tiff", "JPEG"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "c" / "train" / "good"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), (200, 100, 50)).save(folder / f"a.{suffix}")
    category = scan_category(tmp_path / "c")
    image = read_image(category.train[0], 32)
    assert image.shape == (32, 32, 3)
    assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 3  # JPEG rounds


def test_grey_palette_and_16_bit_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.png")
    Image.fromarray(np.full((4, 4), 65535 // 5, np.uint16)).save(tmp_path / "deep.png")
    for name, value in (("grey", (77,) * 3), ("deep", (51,) * 3)):
        assert open_image(tmp_path / f"{name}.png").getpixel((0, 0)) == value
    assert open_image(tmp_path / "palette.png").mode == "RGB"


def _break_layout(root: Path, how: str) -> str:
    """Damage a category; returns what the message must contain."""
    if how == "missing":
        shutil.rmtree(root)
        return "is not a folder"
    if how == "empty":
        shutil.rmtree(root)
        root.mkdir()
        return "is empty"
    if how == "no train/good":
        shutil.rmtree(root / "train" / "good")
        return "no train/good"
    if how == "no image":
        for path in (root / "train" / "good").iterdir():
            path.unlink()
        return "holds no image"
    if how == "mask without image":
        (root / "test" / "hole" / "001.png").unlink()
        return "001_mask.png is a mask without an image"
    if how == "image without mask":
        (root / "ground_truth" / "hole" / "001_mask.png").unlink()
        return "001.png has no mask"
    (root / "test" / "hole").rename(root / "test" / "other")
    return "holds masks but"


@pytest.mark.parametrize(
    "how",
    ["missing", "empty", "no train/good", "no image", "mask without image", "image without mask",
     "folder of masks without images"],
)  # fmt: skip
def test_broken_layouts_are_named(how: str, make_category: Make) -> None:
    root = make_category()
    words = _break_layout(root, how)
    with pytest.raises(InputError) as caught:
        for found in find_categories(root):
            scan_category(found)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_folder_of_categories(make_category: Make, tmp_path: Path) -> None:
    make_category("b")
    make_category("a")
    (tmp_path / "notes").mkdir()
    assert [p.name for p in find_categories(tmp_path)] == ["a", "b"]


def test_damaged_image_is_named(make_category: Make) -> None:
    root = make_category()
    victim = root / "train" / "good" / "002.png"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(InputError, match=r"002\.png cannot be read"):
        decoded_images(scan_category(root).train, 32, None)


def test_sizes_that_differ_are_refused_by_name(make_category: Make) -> None:
    root = make_category()
    check_sizes(scan_category(root).train)
    Image.new("RGB", (64, 48)).save(root / "train" / "good" / "003.png")
    with pytest.raises(InputError, match=r"000\.png is 64x64.*003\.png is 64x48.*--mixed-sizes"):
        check_sizes(scan_category(root).train)


def test_mask_of_another_size_than_its_image_is_refused(make_category: Make) -> None:
    root = make_category()
    Image.new("L", (32, 64)).save(root / "ground_truth" / "hole" / "000_mask.png")
    with pytest.raises(InputError, match=r"000_mask\.png is 32x64 pixels but its image"):
        scan_category(root)


def test_cache_gives_what_decoding_gives(make_category: Make, tmp_path: Path) -> None:
    paths = scan_category(make_category()).train
    plain = decoded_images(paths, 32, None)
    np.testing.assert_array_equal(plain, [read_image(path, 32) for path in paths])
    for _ in range(2):
        np.testing.assert_array_equal(decoded_images(paths, 32, tmp_path / "cache"), plain)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_is_used_and_keyed_by_content_and_size(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = scan_category(make_category()).train
    folder = tmp_path / "cache"
    first = decoded_images(paths, 32, folder)
    decoded_images(paths, 64, folder)
    monkeypatch.setattr(cache, "read_image", lambda path, size: pytest.fail("decoded again"))
    np.testing.assert_array_equal(decoded_images(paths, 32, folder), first)
    monkeypatch.undo()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(paths[0])
    assert (decoded_images(paths, 32, folder)[0] == 9).all()


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "empty"])
def test_damaged_cache_is_made_again(damage: str, make_category: Make, tmp_path: Path) -> None:
    paths = scan_category(make_category()).train
    folder = tmp_path / "cache"
    expected = np.array(decoded_images(paths, 32, folder))
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped byte":
        content[1000] ^= 255
    else:
        del content[0 if damage == "empty" else 5000 :]
    file.write_bytes(content)
    np.testing.assert_array_equal(decoded_images(paths, 32, folder), expected)


def test_two_processes_at_once_fill_one_cache(make_category: Make, tmp_path: Path) -> None:
    paths = scan_category(make_category(train=40)).train
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        read = [pool.submit(decoded_images, paths, 32, tmp_path / "c") for _ in range(6)]
        runs = [run.result() for run in read]
    expected = decoded_images(paths, 32, None)
    for images in runs:
        np.testing.assert_array_equal(images, expected)
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_what_a_killed_process_left_in_the_cache_is_removed(
    make_category: Make, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, hours in ((".of_yesterday.tmp", 25), (".of_another_process.tmp", 1)):
        (cache / name).write_bytes(b"half of it")
        os.utime(cache / name, (time.time() - 3600 * hours,) * 2)
    decoded_images(scan_category(make_category()).train, 32, cache)
    assert [path.name for path in cache.glob(".*")] == [".of_another_process.tmp"]


def test_cache_that_cannot_be_written_is_an_input_error(
    make_category: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="could not be written"):
        decoded_images(scan_category(make_category()).train, 32, tmp_path / "file")


def test_a_cache_that_another_process_was_faster_to_write_is_taken(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, replace = scan_category(make_category()).train, os.replace

    def windows_replace(source: Path, target: Path) -> None:  # a file that is mapped stays
        replace(source, target)
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", windows_replace)
    images = decoded_images(paths, 32, tmp_path / "cache")
    assert (images == decoded_images(paths, 32, None)).all()


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    photos, shelf = tmp_path / "photos", tmp_path / "shelf"
    for folder in (photos, shelf):
        folder.mkdir()
    for file in (photos / "b.png", shelf / "a.png"):
        Image.new("RGB", (8, 8)).save(file)
    (photos / "a").symlink_to(shelf)
    (photos / "c").symlink_to(shelf)
    (shelf / "back").symlink_to(photos)
    assert images_below(photos) == [photos / name for name in ("a/a.png", "b.png", "c/a.png")]
    assert images_below(tmp_path / "nowhere") == []


def test_a_folder_that_may_not_be_read_is_named(
    make_category: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, iterdir = make_category(), Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:  # as the system does, though not to root
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for closed, act in (
        (root, find_categories),
        (root / "train", scan_category),
        (root / "train" / "good", scan_category),
        (root / "test" / "hole", scan_category),
        (root / "test" / "hole", images_below),
    ):
        with pytest.raises(InputError, match=f"{closed} cannot be read: Permission denied"):
            act(root)


@pytest.mark.parametrize("closed", ["", "train", "test", "test/hole", "ground_truth/hole"])
def test_a_folder_that_may_not_be_entered_is_named(
    closed: str, make_category: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names may be read, but all that they name looks as if it were not there."""
    root = make_category()
    folder, access = root / closed, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    with pytest.raises(InputError, match=f"{folder} may not be entered"):
        scan_category(root, to_train=False)
    if not closed:
        with pytest.raises(InputError, match=f"{folder} may not be entered"):
            find_categories(root)


def test_two_files_of_one_name_do_not_share_a_mask(make_category: Make) -> None:
    root = make_category()
    photo, mask = root / "test" / "hole" / "001.png", root / "ground_truth" / "hole"
    shutil.copy(photo, photo.with_suffix(".bmp"))
    with pytest.raises(InputError, match=r"001\.bmp and .*001\.png are both called 001"):
        scan_category(root)
    photo.with_suffix(".bmp").unlink()
    shutil.copy(mask / "001_mask.png", mask / "001.png")
    with pytest.raises(InputError, match=r"001\.png and .*001_mask\.png are both called 001"):
        scan_category(root)
    shutil.rmtree(root / "ground_truth")
    shutil.copy(photo, photo.with_suffix(".bmp"))
    assert len(scan_category(root).test) == 7  # without masks names do not matter


def test_a_mask_of_a_normal_image_is_to_be_empty(make_category: Make) -> None:
    root = make_category()
    folder = root / "ground_truth" / "good"
    folder.mkdir()
    for index in range(3):
        Image.new("L", (64, 64)).save(folder / f"{index:03}_mask.png")
    assert read_masks(scan_category(root).test, 32).any((1, 2)).sum() == 3
    Image.new("L", (64, 64), 255).save(folder / "001_mask.png")
    with pytest.raises(InputError, match=r"001_mask\.png marks a defect in an image of test/good"):
        read_masks(scan_category(root).test, 32)


def test_a_jpeg_mask_is_as_large_as_what_was_drawn(tmp_path: Path) -> None:
    """Compression leaves grey values of 1 to 3 around every edge."""
    y, x = np.mgrid[:128, :128]
    drawn = (y - 60) ** 2 + (x - 61) ** 2 <= 15**2
    for name, value in (("white.jpg", 255), ("label.jpg", 60), ("white.webp", 255)):
        Image.fromarray(drawn.astype(np.uint8) * value).save(tmp_path / name)
        found = int(read_mask(tmp_path / name, 128).sum())
        assert abs(found - drawn.sum()) < 0.02 * drawn.sum(), name


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_mask_of_small_labels_is_a_mask(dtype: type, tmp_path: Path) -> None:
    """Label 1 of 65535 would be lost if 16 bits were scaled to 8 first."""
    labels = np.zeros((32, 32), dtype)
    labels[4:20, 8:12] = 1
    Image.fromarray(labels).save(tmp_path / "mask.tif")
    assert np.array_equal(read_mask(tmp_path / "mask.tif", 32), labels > 0)


def test_a_mask_in_any_colour_is_a_mask(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[4:20, 8:12, 2] = 3
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", 32), pixels[..., 2] > 0)


def test_what_is_transparent_in_a_mask_is_no_defect(tmp_path: Path) -> None:
    """Drawing programs keep a colour where nothing is painted, often white."""
    pixels = np.full((32, 32, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[4:20, 8:12, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", 32), pixels[..., 3] > 0)


def _turned(path: Path, how: str) -> np.ndarray:
    """Save 4 rows of 8 pixels that ask for a quarter turn; returns what is then to be seen."""
    grey = np.arange(32, dtype=np.uint8).reshape(4, 8) * 5
    pixels = grey.astype(np.uint16) * 257 if how == "deep" else grey
    if how == "colour":
        pixels = np.stack([grey, grey, grey], axis=2)
    image, tags = Image.fromarray(pixels), Image.Exif()
    tags[0x0112] = 6
    if path.suffix != ".png" or how == "early":
        image.save(path, exif=tags)
    else:
        about = PngInfo()
        if how == "profile":  # as older programs write it
            data = b"Exif\0\0" + tags.tobytes().removeprefix(b"Exif\0\0")
            about.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
        elif how == "xmp":
            about.add_itxt("XML:com.adobe.xmp", '<a xmlns:tiff="t" tiff:Orientation="6"/>')
        image.save(path, pnginfo=about)
        if how == "late":  # behind the pixels
            data = tags.tobytes().removeprefix(b"Exif\0\0")
            chunk = b"eXIf" + data
            whole = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
            content, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
            path.write_bytes(content + whole + end)
    return np.rot90(grey, -1)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("photo.tif", "grey"), ("photo.tif", "deep"), ("photo.tif", "colour"),
        ("photo.png", "early"), ("photo.png", "profile"), ("photo.png", "xmp"),
        ("photo.png", "late"),
    ],
)  # fmt: skip
def test_photo_mask_and_size_are_turned_alike(name: str, how: str, tmp_path: Path) -> None:
    upright = _turned(tmp_path / name, how)
    assert np.array_equal(np.asarray(open_image(tmp_path / name))[..., 0], upright)
    assert size_of(tmp_path / name) == upright.shape[::-1] == (4, 8)
    large = Image.fromarray((upright > 0).astype(np.uint8) * 255)
    expected = np.asarray(large.resize((16, 16), Image.Resampling.BILINEAR)) > 127
    assert np.array_equal(read_mask(tmp_path / name, 16), expected)


@pytest.mark.parametrize("name", ["photo.tif", "photo.png"])
def test_a_size_is_known_without_decoding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands of images, and no bar has moved yet."""
    upright = _turned(tmp_path / name, "early")
    for kind in (TiffImageFile, PngImageFile):
        monkeypatch.setattr(kind, "load", lambda image: pytest.fail("decoded"))
    assert size_of(tmp_path / name) == upright.shape[::-1]


@pytest.mark.parametrize("palette", [False, True])
def test_what_is_transparent_in_a_photo_is_white(palette: bool, tmp_path: Path) -> None:
    """Cut-out photos keep what was cut out, unseen, or black."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 40, 40, 255)
    photo = Image.fromarray(pixels)
    if palette:
        photo = photo.quantize(2)
        assert photo.mode == "P"
    photo.save(tmp_path / "photo.png")
    read = np.asarray(open_image(tmp_path / "photo.png"))
    assert (read[:, :4] == (200, 40, 40)).all() and (read[:, 4:] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_channel_that_nobody_filled_in_hides_nothing(suffix: str, tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 40, 40, 0)).save(tmp_path / f"photo.{suffix}")
    assert open_image(tmp_path / f"photo.{suffix}").getpixel((0, 0)) == (200, 40, 40)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (100, 0, 255, 51)).save(tmp_path / "photo.png")  # a fifth
    read = open_image(tmp_path / "photo.png").getpixel((0, 0))
    assert read == (100 // 5 + 255 * 4 // 5, 255 * 4 // 5, 255)


def test_16_bit_grey_from_white_to_black_is_refused(tmp_path: Path) -> None:
    """Pillow reads the values as they are, so that the image would be judged as its negative."""
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    deep.save(tmp_path / "white.tif", tiffinfo={262: 0})
    deep.save(tmp_path / "black.tif")
    assert open_image(tmp_path / "black.tif").getpixel((0, 0)) == (156, 156, 156)  # 40000 / 257
    for read in (open_image, lambda path: read_mask(path, 4)):
        with pytest.raises(InputError, match=r"white\.tif counts its 16-bit values from white"):
            read(tmp_path / "white.tif")


@pytest.mark.parametrize("name", ["pages.tif", "pages.webp", "pages.png"])
def test_an_image_of_several_pages_is_refused(name: str, tmp_path: Path) -> None:
    """Only the first would be judged."""
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    for read in (open_image, lambda path: read_mask(path, 8)):
        with pytest.raises(InputError, match=rf"{name} has 2 pages"):
            read(tmp_path / name)


def test_a_phones_photo_with_a_preview_behind_it_is_read(tmp_path: Path) -> None:
    photo, preview = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (4, 4))
    photo.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[preview])
    assert open_image(tmp_path / "photo.jpg").getpixel((0, 0)) == (255, 255, 255)


def test_an_image_of_32_bit_integers_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=r"deep\.tif holds 32-bit numbers"):
        open_image(tmp_path / "deep.tif")


@pytest.mark.parametrize(("highest", "odd"), [(4080, True), (65535, False), (0, False)])
def test_12_bits_in_16_are_noticed(highest: int, odd: bool, tmp_path: Path) -> None:
    for name in ("a.tif", "b.png"):
        Image.fromarray(np.array([[0, highest]], np.uint16)).save(tmp_path / name)
    note = note_on_depth([tmp_path / "a.tif", tmp_path / "b.png"])
    assert (f"no value above {highest}" in note) == odd
    assert bool(note) == odd
    Image.new("L", (2, 2)).save(tmp_path / "c.png")
    assert note_on_depth([tmp_path / "c.png"]) == ""


def test_a_hidden_folder_is_no_category(make_category: Make, tmp_path: Path) -> None:
    make_category("all/metal")
    make_category("all/.old")
    assert [path.name for path in find_categories(tmp_path / "all")] == ["metal"]


def test_a_name_that_no_file_system_takes_is_no_folder() -> None:
    with pytest.raises(InputError, match="is not a folder"):
        find_categories(Path("a" * 300))


def test_a_photo_is_read_upright(tmp_path: Path) -> None:
    """A camera held upright writes its rows sideways and says so: 6 is a quarter to the right."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :10] = 255  # on the left as stored, so at the top when upright
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    upright = open_image(tmp_path / "photo.png")
    assert upright.size == size_of(tmp_path / "photo.png") == (30, 40)
    assert np.array_equal(np.asarray(upright), np.rot90(pixels, -1))


def test_floating_point_images_and_images_of_absurd_size_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.rand(8, 8).astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float.tif holds floating-point numbers"):
        open_image(tmp_path / "float.tif")
    Image.new("1", (20000, 10000)).save(tmp_path / "huge.png")
    with pytest.raises(
        InputError, match=r"huge.png has more than 178 million pixels: scale it down"
    ):
        open_image(tmp_path / "huge.png")


def test_good_with_a_capital_is_no_defect(make_category: Make) -> None:
    root = make_category()
    (root / "test" / "good").rename(root / "test" / "Good")
    with pytest.raises(InputError, match="test/Good would count as a defect: call it good"):
        scan_category(root)


def test_files_that_are_not_read_are_listed(make_category: Make) -> None:
    root = make_category()
    assert scan_category(root).passed_over == []
    for name in ("train/good/a.heic", "train/bad/b.png", "test/good/more/c.png", "test/d.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, format="PNG")
    passed_over = scan_category(root).passed_over
    assert [path.relative_to(root).as_posix() for path in passed_over] == [
        "train/bad/b.png", "train/good/a.heic", "test/d.png", "test/good/more/c.png",
    ]  # fmt: skip


def test_hidden_folders_are_no_defects(make_category: Make) -> None:
    root = make_category()
    before = scan_category(root)
    shutil.copytree(root / "test" / "good", root / "test" / ".thumbnails")
    assert scan_category(root) == before


def test_a_damaged_tag_is_named_whatever_pillow_makes_of_it(tmp_path: Path) -> None:
    """The strips' places are said to be text: Pillow fails with a TypeError."""
    file = tmp_path / "odd.tif"
    Image.new("RGB", (40, 40)).save(file)
    content = bytearray(file.read_bytes())
    tag = content.index(struct.pack("<HH", 273, 4))
    content[tag + 2] = 2
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"odd.tif cannot be read as an image"):
        open_image(file)


def test_a_category_has_the_name_of_its_link(make_category: Make, tmp_path: Path) -> None:
    make_category("store/one/images")
    link = tmp_path / "screw"
    link.symlink_to(tmp_path / "store" / "one" / "images")
    assert scan_category(link).name == "screw"


def test_a_damaged_tag_does_not_cost_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(image: Image.Image) -> Image.Image:
        raise TypeError("a tag of the wrong kind")

    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    assert open_image(tmp_path / "photo.jpg").size == (40, 30)
