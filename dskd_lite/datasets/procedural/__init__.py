"""The embedded benchmark: five inspection tasks in MVTec layout, drawn by code from a seed.

``exact`` holds the arithmetic (the same bits everywhere), ``surface`` the relief, the defects that
can happen to any surface and the camera, ``textures`` and ``objects`` the categories, and this file
the catalogue, one shot, and the folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dskd_lite.datasets.procedural.exact import SIZE, Draws
from dskd_lite.datasets.procedural.objects import chip, gear
from dskd_lite.datasets.procedural.surface import Camera, Defect, Surface
from dskd_lite.datasets.procedural.textures import fabric, metal, terrazzo
from dskd_lite.errors import InputError

VERSION = 1  # of the pixels: any change to them makes another benchmark, with another number
TRAIN, GOOD, DEFECTIVE = 120, 30, 10  # images: normal to train on, normal to test, of each defect
VISIBLE = 5  # levels of 255 by which a pixel must change to be part of a defect's mask
MARKER = "benchmark.json"


@dataclass(frozen=True)
class Category:
    """What is inspected, its defects with a sentence on each, and how much its light varies."""

    description: str
    defects: dict[str, str]
    scene: Callable[[Draws, Defect | None], Surface]
    light_turns: float = 0.04
    unevenness: float = 0.12
    grain: float = 0.035


CATEGORIES = {
    "fabric": Category(
        "Plain-woven cloth of blue and grey threads, slightly turned, of uneven thickness.",
        {
            "hole": "threads cut and frayed over a round patch",
            "broken_thread": "one warp thread missing for a stretch",
            "stain": "a dried drop, from dark to barely darker than the cloth",
            "misweave": "warp threads that float over the weft instead of passing under it",
        },
        fabric,
    ),
    "metal": Category(
        "A brushed steel plate: streaks, broad reflections, light from changing sides.",
        {
            "scratch": "a straight groove across the brushing, deep to hair-thin",
            "dent": "a shallow round hollow that shows only by its shading",
            "rust": "a brown crust, thick to a breath of colour",
            "hair": "a fibre that lies on the plate",
        },
        metal,
    ),
    "terrazzo": Category(
        "Floor tile of stone chips in cement, no two alike.",
        {
            "crack": "a dark branchless crack through chips and cement",
            "pit": "a hollow where material broke out",
            "stain": "a dried drop over chips and cement alike",
            "foreign_chip": "one chip of a colour that the stone never has",
        },
        terrazzo,
    ),
    "gear": Category(
        "A steel gear on a dark mat, a little turned and shifted.",
        {
            "missing_tooth": "a tooth broken off, wholly or at its tip",
            "bent_tooth": "a tooth that leans to one side",
            "blocked_hole": "one of the five windows too small, or not there",
            "scratch": "a groove across the face",
        },
        gear,
    ),
    "chip": Category(
        "A 12-pin chip soldered to a board, with a printed name and a changing lot number.",
        {
            "missing_pin": "a pin cut short or not there",
            "bent_pin": "a pin that leaves its pad to one side",
            "solder_bridge": "solder between two pins",
            "misprint": "the name worn away in part",
        },
        chip,
    ),
}


class Shot(NamedTuple):
    """One photograph, the pixels that its defect changed, and the same photograph without it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    without_defect: NDArray[np.uint8]


def splits(category: str) -> dict[str, int]:
    """The folders of a category (``train/good``, ``test/good``, ``test/<defect>``) and their sizes.

    Raises InputError for an unknown category.
    """
    defects = {f"test/{kind}": DEFECTIVE for kind in _category(category).defects}
    return {"train/good": TRAIN, "test/good": GOOD, **defects}


def render(category: str, split: str, index: int, seed: int = 0) -> Shot:
    """Take one photograph: image (128, 128, 3) in 0 .. 255, mask (128, 128), image without defect.

    ``split`` is one of ``splits(category)``. The same arguments give the same pixels everywhere.
    Defects grow harder to see with their index, from 0 (obvious) to 9 (hard).
    Outside the mask the two images are equal. Raises InputError for an unknown category or split.
    """
    known = splits(category)
    if split not in known:
        raise InputError(f"{category} has no {split!r}: choose one of {', '.join(known)}")
    name = f"{seed}/{category}/{split}/{index}"
    normal = _photograph(category, name, None)
    if split.endswith("/good"):
        return Shot(normal, np.zeros((SIZE, SIZE), bool), normal)
    draws = Draws(f"{name}/defect")
    difficulty = (index % DEFECTIVE + draws.uniform(0, 1)) / DEFECTIVE
    defective = _photograph(category, name, Defect(Path(split).name, difficulty, draws))
    change = np.abs(defective.astype(np.int64) - normal).max(axis=-1)
    mask = _close(change >= VISIBLE)
    return Shot(np.where(mask[..., None], defective, normal), mask, normal)


def write_benchmark(
    out: Path,
    seed: int = 0,
    categories: Sequence[str] | None = None,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> list[Path]:
    """Write categories (all by default) into ``out`` in MVTec layout; return their folders.

    A category appears whole or not at all. One that is there already, of the same seed and version,
    is left alone. ``progress`` wraps the list of images to write, as ``tqdm`` does.

    Raises InputError if a category is unknown, if its folder exists and is anything else, or if
    ``out`` cannot be written.
    """
    names = list(CATEGORIES) if categories is None else list(categories)
    for name in names:
        _category(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if not _is_complete(out / name, seed)]
        with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
            shots = [
                Path(unfinished, name, split, f"{index:03}.png")
                for name in missing
                for split, count in splits(name).items()
                for index in range(count)
            ]
            # a large block, taken and given back, makes glibc keep freed memory from then on: it
            # would hand each array back to the system and fetch it again, for 40 % of the time
            np.empty(1 << 23, np.uint8)
            for path in progress(shots):
                _write_shot(path, seed)
            for name in missing:
                marker = {"benchmark": name, "version": VERSION, "seed": seed}
                Path(unfinished, name, MARKER).write_text(json.dumps(marker) + "\n")
                try:
                    Path(unfinished, name).rename(out / name)
                except OSError:
                    if not _is_complete(out / name, seed):  # by another process, meanwhile
                        raise
    except OSError as error:
        raise InputError(
            f"the benchmark cannot be written to {out} ({error.strerror}): choose another folder"
        ) from error
    return [out / name for name in names]


def _category(name: str) -> Category:
    if name not in CATEGORIES:
        raise InputError(
            f"the benchmark has no category {name!r}: choose from {', '.join(CATEGORIES)}"
        )
    return CATEGORIES[name]


def _photograph(category: str, name: str, defect: Defect | None) -> NDArray[np.uint8]:
    entry = CATEGORIES[category]
    camera = Camera.draw(
        Draws(f"{name}/camera"), entry.light_turns, entry.unevenness, entry.grain
    )  # fmt: skip
    return camera.shoot(entry.scene(Draws(f"{name}/scene"), defect))


def _close(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill gaps of up to two pixels, where a defect happens to have the colour that was there."""
    grown = ~_shrink(~np.pad(mask, 1))
    return _shrink(grown)[1:-1, 1:-1]


def _shrink(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the pixels whose eight neighbours are set; outside the array counts as set."""
    padded = np.pad(mask, 1, constant_values=True)
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]


def _write_shot(path: Path, seed: int) -> None:
    """Render the shot that belongs at ``<category>/<split>/<index>.png``, and its mask."""
    category = path.parents[2]
    split = path.parent.relative_to(category)
    shot = render(category.name, split.as_posix(), int(path.stem), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shot.image).save(path, compress_level=1)
    if split.name != "good":
        truth = category / "ground_truth" / split.name / f"{path.stem}_mask.png"
        truth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shot.mask.astype(np.uint8) * 255).save(truth)


def _is_complete(folder: Path, seed: int) -> bool:
    """Whether the category is there; InputError if something else is."""
    if not folder.exists():
        return False
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        marker = None
    wanted = {"benchmark": folder.name, "version": VERSION, "seed": seed}
    if marker != wanted:
        found = f"holds {marker}" if marker else "is not part of a benchmark"
        raise InputError(
            f"{folder} exists and {found}, not {wanted}: remove it or choose another folder"
        )
    return True
