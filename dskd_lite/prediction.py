"""Verdicts on new photos: a score, an overlay and a mask for each."""

from __future__ import annotations

import csv
import html
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image

from dskd_lite import plots
from dskd_lite.datasets.folder import (
    IMAGE_SUFFIXES,
    files_below,
    is_image_file,
    note_on_shape,
    open_image,
)
from dskd_lite.detector import StoredDetector, verdict_on
from dskd_lite.errors import InputError
from dskd_lite.report import page
from dskd_lite.storage import whole_file, write_table
from dskd_lite.training import to_tensor

SCORES_FILE, PAGE = "scores.csv", "report.html"
OVERLAY, MASK = "overlay", "mask"
LONGEST_NAME = 255  # bytes, on nearly all file systems


@dataclass(frozen=True)
class Verdict:
    """What is said about one photo."""

    path: Path
    score: float | None
    """None if the photo could not be read."""
    verdict: str
    """``normal``, ``anomalous``, ``unknown`` without a threshold, or ``unreadable``."""
    anomalous_area: float | None
    """Share of pixels above the pixel threshold, in [0, 1]."""
    note: str = ""
    overlay: Path | None = None
    """The file of the overlay."""


def find_photos(source: Path, out: Path) -> tuple[Path, list[Path], list[Path]]:
    """The folder that names are relative to, the photos, and the files that are none.

    Photos are one file, or all images below a folder but overlays and masks of an earlier
    prediction. What lies in ``out``, the folder for results, is neither. Raises InputError if there
    is no photo, or ``out`` is the folder of the photos.
    """
    if not os.path.exists(source):
        raise InputError(f"{source} does not exist: give an image or a folder of images")
    single = os.path.isfile(source)
    folder = source.parent if single else source
    results, place = (Path(os.path.realpath(path)) for path in (out, folder))
    if results == place:  # files of its owner may have the results' names
        raise InputError(f"{out} holds the photos: give another --out for overlays and masks")
    if single:
        return folder, [source], []
    files = files_below(source)
    if results.is_relative_to(place):
        files = [p for p in files if not Path(os.path.realpath(p)).is_relative_to(results)]
    tables = {path.parent for path in files if path.name == SCORES_FILE} - {source}
    earlier = {place for place in tables if (place / PAGE) in files and judged_before(place)}
    ours = (f"_{OVERLAY}", f"_{MASK}")
    results_before = {p for p in files if earlier & {*p.parents} and p.stem.endswith(ours)}
    photos = [path for path in files if is_image_file(path) and path not in results_before]
    if not photos:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{source} holds no image: put photos there ({kinds})")
    return source, photos, sorted({*files} - {*photos})


def predict(
    detector: StoredDetector,
    source: Path,
    out: Path,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda count: None,
    trained_on: tuple[int, int] | None = None,
) -> list[Verdict]:
    """Score photos; write an overlay and a mask of each, scores.csv, and report.html of all.

    They are ``<name>_overlay.png`` and ``<name>_mask.png``, of the photo's name without its suffix,
    or with it where another photo has that name too.
    Overlays have the photo's own size and one colour scale for all: from 0 to twice the pixel
    threshold stored with the model, so that the threshold lies in the middle; without a positive
    one, to the photo's own maximum. A photo that cannot be read, or whose name is too long for
    results beside it, is reported in its verdict and skipped. Photos become squares; one whose
    sides have another ratio than ``trained_on``, the width and height of the training images, is
    squeezed otherwise than those, and gets a note.

    Raises InputError if there is no photo, ``batch_size`` is under 1, a map is not finite, ``out``
    cannot be written, or it holds files of other origin that the results would replace.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} must be at least 1")
    root, paths, _ = find_photos(source, out)
    names = _result_names(root, paths)
    _check_replaced(out, names.values())
    detector = detector.for_scoring()
    verdicts: list[Verdict] = []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        photos: list[tuple[Path, Image.Image]] = []
        unreadable: list[Verdict] = []
        for path in batch:
            try:
                _check_length(path, names[path])
                photos.append((path, open_image(path)))
            except InputError as error:
                unreadable.append(Verdict(path, None, "unreadable", None, str(error)))
        verdicts += unreadable + list(_judge(detector, photos, names, out, device, trained_on))
        progress(len(batch))
    verdicts.sort(key=lambda v: v.path)
    threshold = detector.thresholds.image if detector.thresholds else None
    lines = [["image", "score", "threshold", "verdict", "anomalous_area", "note"]]
    for v in verdicts:
        score, limit, area = (
            "" if x is None else f"{x:.6g}" for x in (v.score, threshold, v.anomalous_area)
        )
        lines.append([v.path.relative_to(root).as_posix(), score, limit, v.verdict, area, v.note])
    write_table(out / SCORES_FILE, lines)
    with whole_file(out / PAGE) as temporary:
        # Of a name that is no text the page shows the bytes.
        text = _page(root, out, verdicts, threshold)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return verdicts


def _page(root: Path, out: Path, verdicts: Sequence[Verdict], threshold: float | None) -> str:
    """All photos on one page, those with the highest scores first, those unread last."""
    rows = []
    for v in sorted(verdicts, key=lambda v: -np.inf if v.score is None else v.score, reverse=True):
        picture = ""
        if v.overlay is not None:
            address = quote(os.fsencode(v.overlay.relative_to(out).as_posix()))
            picture = (
                f"<a href='{address}'><img loading='lazy' src='{address}' alt='Overlay "
                f"of {html.escape(v.path.name, quote=True)}'></a>"
            )
        area = "" if v.anomalous_area is None else f"{100 * v.anomalous_area:.1f} %"
        score = "" if v.score is None else f"{v.score:.4g}"
        cells = [v.path.relative_to(root).as_posix(), score, v.verdict, area, v.note]
        rows.append(
            f"<tr><td>{picture}</td>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
        )
    head = ("", "photo", "score", "verdict", "area above the pixel threshold", "note")
    told = "" if threshold is None else f": {tally(verdicts)} above {threshold:.4g}"
    return page(
        f"Photos of {root.resolve().name}{told}",
        "<table class='photos'><tr>" + "".join(f"<th>{title}</th>" for title in head) + "</tr>"
        + "\n".join(rows) + "</table>",
    )  # fmt: skip


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many photos are anomalous, of those that could be read."""
    unreadable = sum(v.score is None for v in verdicts)
    anomalous = sum(v.verdict == "anomalous" for v in verdicts)
    told = f"{anomalous} of {len(verdicts) - unreadable}"
    return told + (f" ({unreadable} unreadable)" if unreadable else "")


def judged_before(out: Path) -> set[str]:
    """Names of the photos in the table that an earlier prediction left in ``out``."""
    try:
        with (out / SCORES_FILE).open(encoding="utf-8", errors="surrogateescape") as file:
            return {row["image"] for row in csv.DictReader(file) if row.get("image")}
    except (OSError, csv.Error):  # there is none
        return set()


def _check_replaced(out: Path, names: Iterable[Path]) -> None:
    """Raise InputError if results would replace what no prediction wrote, as masks drawn by hand.

    What an interrupted prediction left may be replaced: it has no table yet, but an overlay beside
    each mask.
    """
    if judged_before(out):
        return
    results = [[_result_file(out, name, kind) for kind in (OVERLAY, MASK)] for name in names]
    masks = (mask for overlay, mask in results if not overlay.exists())
    for path in (out / SCORES_FILE, out / PAGE, *masks):
        if path.exists():
            raise InputError(
                f"{path} is from no earlier prediction: give another --out, or move it"
            )


def _result_file(out: Path, name: Path, kind: str) -> Path:
    return out / name.parent / f"{name.name}_{kind}.png"


def _result_names(root: Path, photos: list[Path]) -> dict[Path, Path]:
    """What the results of each photo are named after, relative to ``root``; no two are alike.

    Nor are two alike but for capitals, which are one file on Windows and most Macs.
    """

    def plain(path: Path) -> str:
        return str(path).casefold()

    photos_of = Counter(plain(photo.with_suffix("")) for photo in photos)
    # a.png.bmp is not to be called a.png beside a photo of that name
    photos_of.update(plain(photo) for photo in photos)
    return {
        photo: (
            photo if photos_of[plain(photo.with_suffix(""))] > 1 else photo.with_suffix("")
        ).relative_to(root)
        for photo in photos
    }


def _check_length(photo: Path, name: Path) -> None:
    if len(os.fsencode(f"{name.name}_{OVERLAY}.png")) > LONGEST_NAME:
        raise InputError(
            f"the name of {photo} is too long for one of its overlay: rename the photo"
        )


@torch.no_grad()
def _judge(
    detector: StoredDetector,
    photos: list[tuple[Path, Image.Image]],
    names: dict[Path, Path],
    out: Path,
    device: torch.device | str,
    trained_on: tuple[int, int] | None,
) -> Iterator[Verdict]:
    if not photos:
        return
    size = (detector.image_size, detector.image_size)
    squares = [np.asarray(photo.resize(size, Image.Resampling.BILINEAR)) for _, photo in photos]
    prediction = detector(to_tensor(np.stack(squares), device))
    maps, scores = prediction.fused_map.float().cpu().numpy(), prediction.score.tolist()
    if not np.isfinite(maps).all():
        spoilt = next(
            path for (path, _), m in zip(photos, maps, strict=True) if not np.isfinite(m).all()
        )
        raise InputError(
            f"the detector's map of {spoilt} is not finite: train it again if the model is "
            "damaged, or give --precision fp32"
        )
    thresholds = detector.thresholds
    for (path, photo), values, score in zip(photos, maps, scores, strict=True):
        limit = 2 * thresholds.pixel if thresholds else 0.0
        if limit <= 0:  # no threshold, or scores that go below zero, as a one-class SVM's
            limit = max(float(values.max()), 0.0)
        full = Image.fromarray(values).resize(photo.size, Image.Resampling.BILINEAR)
        overlay = plots.overlay(np.asarray(photo), np.asarray(full), limit)
        overlay_file = _write(overlay, out, names[path], OVERLAY)
        area = None
        if thresholds is not None:
            mask = np.asarray(full) > thresholds.pixel
            area = float(mask.mean())
            _write(mask.astype(np.uint8) * 255, out, names[path], MASK)
        note = note_on_shape(photo.size, trained_on)
        yield Verdict(path, score, verdict_on(score, thresholds), area, note, overlay_file)


def _write(pixels: np.ndarray, out: Path, name: Path, kind: str) -> Path:
    path = _result_file(out, name, kind)
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    return path
