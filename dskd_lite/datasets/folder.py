"""A category in MVTec layout: which images there are, what is normal, where the masks are."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dskd_lite.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"
_PNG_TAGS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # may say how it is turned
OTHER_SHAPE = 1.02  # ratio of two photos' aspect ratios that is more than a crop's rounding


@dataclass(frozen=True)
class Sample:
    """One test image: its file, the name of its folder, its mask if there is one."""

    path: Path
    defect: str
    mask: Path | None

    @property
    def is_defective(self) -> bool:
        return self.defect != GOOD


@dataclass(frozen=True)
class Category:
    """One folder in MVTec layout: ``train/good``, ``test/<defect>``, ``ground_truth/<defect>``."""

    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def passed_over(self) -> list[Path]:
        """Files in ``train``, ``test`` and ``ground_truth`` that are not read, by path."""
        masks = {sample.mask for sample in self.test}
        read = {*self.train, *(sample.path for sample in self.test), *masks}
        folders = (self.root / name for name in ("train", "test", "ground_truth"))
        return [path for folder in folders for path in files_below(folder) if path not in read]

    @property
    def has_masks(self) -> bool:
        """Whether every defective test image has a mask (and there is one)."""
        defective = [s for s in self.test if s.is_defective]
        return bool(defective) and all(s.mask is not None for s in defective)

    @property
    def checksum(self) -> int:
        """CRC-32 of the names and contents of all files; raises InputError if one is unreadable."""
        masks = [s.mask for s in self.test if s.mask is not None]
        return checksum((*self.train, *(s.path for s in self.test), *masks), self.root)


def checksum(files: Iterable[Path], root: Path) -> int:
    """CRC-32 of contents and of names relative to ``root``; raises InputError for one unread."""
    value = 0
    for file in files:
        name = file.relative_to(root).as_posix()
        value = zlib.crc32(name.encode("utf-8", "surrogateescape"), value)
        try:
            value = zlib.crc32(file.read_bytes(), value)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return value


def is_image_file(path: Path) -> bool:
    """Whether a path is a file that is named as an image, and not hidden."""
    suited = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return suited and os.path.isfile(path)


def list_images(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name."""
    return [path for path in _entries(folder) if is_image_file(path)]


def _entries(folder: Path) -> list[Path]:
    """What lies directly in a folder, by name; raises InputError if it may not be read."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    if not os.access(folder, os.X_OK):  # its names may be read, what they name may not
        raise InputError(f"{folder} may not be entered: give yourself the right to, or move it")
    return entries


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in a folder, by name; what is hidden is passed over.

    Raises InputError if the folder is there and may not be read.
    """
    if not os.path.isdir(folder):
        return []
    return [p for p in _entries(folder) if os.path.isdir(p) and not p.name.startswith(".")]


def by_stem(paths: Sequence[Path], ending: str = "") -> dict[str, Path]:
    """Files by their names without suffix, and without ``ending`` before it.

    Raises InputError if two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = path.stem.removesuffix(ending)
        if name in found:
            raise InputError(
                f"{found[name]} and {path} are both called {name}, the name that an image shares "
                "with its mask: rename one"
            )
        found[name] = path
    return found


def files_below(folder: Path) -> list[Path]:
    """Everything but folders at any depth below one, by path; what is hidden is passed over.

    Links to folders are followed, though not in a circle. Raises InputError for a folder that may
    not be read.
    """

    def walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        inside = above | {os.path.realpath(folder)}
        for path in _entries(folder):
            if path.name.startswith("."):
                continue
            if not os.path.isdir(path):
                yield path
            elif os.path.realpath(path) not in inside:
                yield from walk(path, inside)

    return sorted(walk(folder, frozenset())) if os.path.isdir(folder) else []


def first_of(paths: Sequence[Path | str]) -> str:
    """The first of some paths and how many more there are, for a message."""
    return f"{paths[0]} and {len(paths) - 1} more" if paths[1:] else f"{paths[0]}"


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth below a folder, by path; what is hidden is passed over."""
    return [path for path in files_below(folder) if is_image_file(path)]


def find_categories(root: Path) -> list[Path]:
    """The categories in a folder: itself, or its direct subfolders that hold ``train``.

    Raises InputError if the folder is missing, empty, or holds no category.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise InputError(f"{root} is not a folder: give a category in MVTec layout")
    entries = _entries(root)
    if os.path.isdir(root / "train"):
        return [root]
    if not entries:
        raise InputError(f"{root} is empty: put normal images in {root / 'train' / GOOD}")
    shown = [path for path in entries if not path.name.startswith(".")]
    categories = [path for path in shown if os.path.isdir(path / "train")]
    if not categories:
        raise InputError(
            f"{root} has no train/good folder: put normal images in {root / 'train' / GOOD}"
        )
    return categories


def scan_category(root: Path, to_train: bool = True) -> Category:
    """List the images of one category; test images and masks are optional.

    Raises InputError if ``train/good`` is missing or empty (unless not ``to_train``), if a mask has
    no image or not its size, if only some images of a defect have a mask, or if ``test/good`` is
    written with capitals.
    """
    root = Path(os.path.abspath(root))  # and not what a link points to: the name is the category's
    good = root / "train" / GOOD
    if os.path.isdir(root):
        _entries(root)  # one that may not be read is not to look like one without images
    if os.path.isdir(good.parent):
        _entries(good.parent)
    if to_train and not os.path.isdir(good):
        raise InputError(f"{root} has no train/good folder: put normal images in {good}")
    train = list_images(good) if os.path.isdir(good) else []
    if to_train and not train:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{good} holds no image: put normal images there ({kinds})")
    samples: list[Sample] = []
    for folder in subfolders(root / "test"):
        if folder.name != GOOD and folder.name.lower() == GOOD:
            raise InputError(f"{folder} would count as a defect: call it {GOOD} if it is none")
        masks = _masks_of(root / "ground_truth" / folder.name, folder)
        samples += [Sample(p, folder.name, masks.get(p.stem)) for p in list_images(folder)]
    _check_mask_sizes(samples)
    known = {s.defect for s in samples}
    for folder in subfolders(root / "ground_truth"):
        if folder.name not in known and list_images(folder):
            raise InputError(
                f"{folder} holds masks but {root / 'test' / folder.name} holds no image: "
                "add the images or take the masks away"
            )
    return Category(root, tuple(train), tuple(samples))


def _masks_of(folder: Path, images: Path) -> dict[str, Path]:
    """Masks by the stem of their image; ``000_mask.png`` and ``000.png`` both belong to ``000``."""
    if not os.path.isdir(folder) or not (files := list_images(folder)):
        return {}
    masks, photos = by_stem(files, "_mask"), by_stem(list_images(images))
    without_image = sorted(masks.keys() - photos.keys())
    without_mask = sorted(photos.keys() - masks.keys())
    if without_image:
        raise InputError(
            f"{masks[without_image[0]]} is a mask without an image in {images} "
            f"({len(without_image)} such masks): add the image or delete the mask"
        )
    if without_mask:
        raise InputError(
            f"{photos[without_mask[0]]} has no mask although others have ({len(without_mask)} such "
            f"images): add {folder / without_mask[0]}_mask.png, or remove {folder} to evaluate "
            "without pixel metrics"
        )
    return masks


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # Of a path Pillow would map grey TIFFs into memory, and scramble those of turned cameras.
        with path.open("rb") as file, Image.open(file) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # a phone's JPEG, a preview behind the photo
                raise InputError(
                    f"{path} has {pages} pages, of which only one would be looked at: save each as "
                    "a file of its own"
                )
            if image.mode.startswith("I;16") and _counts_from_white(image):
                raise InputError(
                    f"{path} counts its 16-bit values from white to black (WhiteIsZero): save it "
                    "as grey from black to white"
                )
            yield image
    except InputError:  # a ValueError as well, and says already what is wrong
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels: "
            "scale it down, or cut it into parts"
        ) from error
    except Exception as error:  # foreign bytes fail in Pillow in a dozen ways
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{path} cannot be read as an image ({reason}): replace or remove the file"
        ) from error


def _counts_from_white(image: Image.Image) -> bool:
    """Whether a TIFF's 0 is white; Pillow turns 8-bit values round, but not 16-bit ones."""
    tag = ExifTags.Base.PhotometricInterpretation
    return image.format == "TIFF" and image.getexif().get(tag) == 0


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; as it is where Pillow cannot make sense of the tag."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of many kinds
        return image


def open_image(path: Path) -> Image.Image:
    """Read a whole image as RGB, upright as its EXIF tag says, 16-bit grey scaled to 8.

    What is transparent shows white, as on a web page, and not the colours that are hidden there. An
    alpha channel that is 0 everywhere was never filled in, and is not looked at.

    Raises InputError if it is damaged, its values are floating-point or 32-bit numbers, 16-bit ones
    that count from white to black, or it has several pages.
    """
    with _opened(path) as image:
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
            kind = "floating-point" if image.mode == "F" else "32-bit"
            raise InputError(
                f"{path} holds {kind} numbers, whose range nobody knows: save it with 8 or 16 bits"
            )
        upright = _upright(image)
        if upright.mode.startswith("I"):
            values = np.asarray(upright, dtype=np.float64) / 257  # 65535 / 255
            return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
        if upright.has_transparency_data:
            clear = upright.convert("RGBA")
            if clear.getchannel("A").getextrema()[1] > 0:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, clear)
        return upright.convert("RGB")


def note_on_depth(paths: Sequence[Path], looked_at: int = 8) -> str:
    """What is odd about 16-bit images that use 12 bits or less; nothing where there is nothing.

    Looks at the first few. Raises InputError if one is damaged.
    """
    highest = 0
    for path in paths[:looked_at]:
        with _opened(path) as image:
            if not image.mode.startswith("I;16"):
                return ""
            highest = max(highest, int(np.asarray(image).max()))
    if not 0 < highest < 4096:
        return ""
    return (
        f"{paths[0].parent}: 16-bit images with no value above {highest}, so almost black; if the "
        "camera has 12 bits, multiply its values by 16"
    )


def note_on_passed_over(files: Sequence[Path]) -> str:
    """Says which files are not read, of which there is at least one."""
    return f"passed over, being no images that are read here: {first_of(files)}"


def notes_on_files(category: Category, images: Sequence[Path]) -> list[str]:
    """What a user should know of a category's files, and of those of its images that are read."""
    notes = []
    if others := category.passed_over:
        notes.append(note_on_passed_over(others))
    if deep := note_on_depth(images):
        notes.append(deep)
    return notes


def read_image(path: Path, size: int) -> np.ndarray:
    """Read an image, resized to a square by PIL's bilinear filter: (size, size, 3) uint8.

    Raises InputError if it is damaged.
    """
    return np.asarray(open_image(path).resize((size, size), Image.Resampling.BILINEAR))


def read_mask(path: Path, size: int) -> np.ndarray:
    """Read a mask (anything above 0 is defect), resized bilinearly, > 0.5: (size, size) bool.

    What is transparent is no defect. Of JPEG and WebP, which may leave faint grey around all edges,
    only what is lighter than half of the brightest is.

    Raises InputError if it is damaged, or has several pages.
    """
    with _opened(path) as image:
        upright = _upright(image)
        # Labels may be 1 of 65535, so nothing is scaled before it is compared with 0.
        deep = upright.mode.startswith(("I", "F"))
        values = np.asarray(upright if deep else upright.convert("RGBA"))
        lossy = image.format in ("JPEG", "MPO", "WEBP")
    if deep:
        defect = values > 0
    else:
        brightness = values[..., :3].max(axis=2)
        faint = brightness.max() // 2 if lossy else 0
        defect = (brightness > faint) & (values[..., 3] > 0)
    mask = Image.fromarray(defect.astype(np.uint8) * 255)
    return np.asarray(mask.resize((size, size), Image.Resampling.BILINEAR)) > 127


def read_masks(samples: Sequence[Sample], size: int) -> np.ndarray:
    """Masks of test images, (N, size, size) bool; all False for a normal image.

    Raises InputError if one is damaged, or marks a defect in a normal image.
    """
    masks = np.zeros((len(samples), size, size), dtype=bool)
    for index, sample in enumerate(samples):
        if sample.mask is not None:
            masks[index] = read_mask(sample.mask, size)
            if masks[index].any() and not sample.is_defective:
                raise InputError(
                    f"{sample.mask} marks a defect in an image of test/{GOOD}: move the image to "
                    "the folder of its defect, or delete the mask"
                )
    return masks


def _check_mask_sizes(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if sample.mask is None:
            continue
        image_size, mask_size = size_of(sample.path), size_of(sample.mask)
        if image_size != mask_size:
            raise InputError(
                f"{sample.mask} is {mask_size[0]}x{mask_size[1]} pixels but its image "
                f"{sample.path.name} is {image_size[0]}x{image_size[1]}, upright as its EXIF tag "
                "says: make them the same size"
            )


def check_sizes(paths: Sequence[Path]) -> None:
    """Refuse images of different sizes, of which resizing to one square would distort some.

    Raises InputError naming two images that differ, or one that is damaged.
    """
    sizes = {path: size_of(path) for path in paths}
    first, *others = paths
    for path in others:
        if sizes[path] != sizes[first]:
            (a, b), (c, d) = sizes[first], sizes[path]
            raise InputError(
                f"images differ in size: {first} is {a}x{b} pixels, {path} is {c}x{d}; crop them "
                "alike, or pass --mixed-sizes to resize each to the same square"
            )


def note_on_shape(size: tuple[int, int], trained_on: tuple[int, int] | None) -> str:
    """What is odd about an image's width and height beside those trained on, if anything is."""
    if trained_on is None:
        return ""
    ratio = size[0] * trained_on[1] / (size[1] * trained_on[0])
    if 1 / OTHER_SHAPE <= ratio <= OTHER_SHAPE:
        return ""
    (a, b), (c, d) = size, trained_on
    return f"{a}x{b} pixels is another shape than the training images' {c}x{d}: crop it alike"


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an upright image; raises InputError if it is damaged."""
    with _opened(path) as image:
        if image.format == "PNG" and "exif" not in image.info:
            # A tag may stand behind the pixels, and then Pillow has to decode them to find it.
            content = path.read_bytes()
            tagged = any(name in content for name in _PNG_TAGS)
            return _upright(image).size if tagged else image.size
        size = image.size
        try:
            if image.format == "TIFF":  # which newer versions of Pillow turn as they open it
                tags = image.tag_v2
                size = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
            else:
                tags = image.getexif()
            turned = tags.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # a quarter
        except Exception:  # of many kinds, as above
            turned = False
        return size[::-1] if turned else size
