"""Decoded images in a memory-mapped file, so that only the first run pays for decoding."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from dskd_lite.datasets.folder import read_image
from dskd_lite.errors import InputError
from dskd_lite.storage import whole_file

LEFT_OVER_AFTER = 24 * 3600  # seconds without a change
RESIZE = "PIL bilinear to a square, upright, on white"


def decoded_images(
    paths: Sequence[Path],
    size: int,
    cache_dir: Path | None,
    progress: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Read images as uint8 (N, size, size, 3), from the cache if it holds exactly these.

    The cache is one file per set of images in ``cache_dir``, named after a hash of the files'
    content, the size and the way of resizing, and mapped into memory read-only; ``None`` keeps the
    images in memory instead. Two processes may fill the same cache at once: each writes a file of
    its own, and the last to finish puts it in place. A damaged file is noticed by its checksum and
    made again. ``progress`` is told how many images each step has read.

    Raises InputError if an image cannot be read, or the cache cannot be written.
    """
    if not paths:
        return np.empty((0, size, size, 3), dtype=np.uint8)
    if cache_dir is None:
        return np.stack(list(_decode(paths, size, progress)))
    file = cache_dir / f"{_key(paths, size)}.images"
    shape = (len(paths), size, size, 3)
    cached = _open(file, shape)
    if cached is not None:
        progress(len(paths))
        return cached
    _remove_left_over(cache_dir)
    checksum = 0
    try:
        with whole_file(file) as temporary, temporary.open("wb") as out:
            for image in _decode(paths, size, progress):
                checksum = zlib.crc32(image, checksum)
                out.write(image)
            out.write(_trailer(shape, checksum))
    except InputError:
        # Windows replaces no file that another process, which was faster, has mapped.
        if (cached := _open(file, shape)) is None:
            raise
        return cached
    cached = _open(file, shape)
    if cached is None:
        raise InputError(f"{file} was damaged while it was written: check the disk, then try again")
    return cached


def _remove_left_over(cache_dir: Path) -> None:
    """Delete what a process that was killed left half written; others may still be writing."""
    for file in cache_dir.glob(".*.tmp"):
        with suppress(OSError):  # gone meanwhile
            if time.time() - file.stat().st_mtime > LEFT_OVER_AFTER:
                file.unlink()


def _decode(
    paths: Sequence[Path], size: int, progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor() as pool:  # PIL releases the interpreter lock while it decodes
        for image in pool.map(lambda path: read_image(path, size), paths):
            progress(1)
            yield np.ascontiguousarray(image)


def _key(paths: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"{RESIZE} {size}".encode())
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:32]


def _trailer(shape: tuple[int, ...], checksum: int) -> bytes:
    return json.dumps({"shape": shape, "crc32": checksum}).encode().rjust(128)


def _open(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        images = np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
        with file.open("rb") as stored:
            stored.seek(images.size)
            trailer = stored.read()
    except (OSError, ValueError):
        return None
    whole = trailer == _trailer(shape, zlib.crc32(images.reshape(-1)))
    return images if whole else None
