"""Rows of the results files, their names on the page, and tables and comparisons of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dskd_lite.sweep import summary

BOOK = Path(__file__).resolve().parent.parent
RESULTS = BOOK / "results"
METRICS = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "aupro": "AUPRO"}
CATEGORIES = ("screw", "magnetic_tile")
TEACHERS = {
    "offline-random": "random start",
    "offline": "offline teacher",
    "resnet18-teacher_resnet18_imagenet": "ResNet-18, ImageNet",
}
IMAGENET = "resnet18-teacher_resnet18_imagenet"
MAPS = {
    "forward": "forward student",
    "reverse": "reverse student",
    "manual": "manual, 1\u00a0:\u00a03",
    "fused": "fused",
    "rd4ad": "RD4AD",
    "pixel-statistics": "pixel statistics",
    "one-class-svm": "one-class SVM",
    "pca": "PCA reconstruction",
    "gaussian": "Gaussian (after PaDiM)",
    "nearest-patches": "patches (after PatchCore)",
    "autoencoder": "autoencoder on pixels",
}
VARIANTS = {
    "": "as recommended",
    "no-skip": "without skip connections",
    "no-attention": "without attention",
    "no-skip_no-attention": "without both",
    "loss=flattened": "flattened loss",
    "noise-on=anywhere": "anywhere",
    "noise-on=object": "on the object",
    "noise-on=disc.png": "on a disc drawn by hand",
    "noise-on=background": "on the background alone",
    "noise-on=other": "in another screw's place",
    "noise-on=half": "on a random half",
}
ABLATIONS = ("", "no-skip", "no-attention", "no-skip_no-attention", "loss=flattened")
Row = dict[str, Any]
Rows = list[Row]


def parts_of(row: Row) -> tuple[str, str, str, str]:
    """Method, teacher, size and variant of a summary row: CATEGORY_METHOD_TEACHER_SIZE_eN_…"""
    rest = row["setting"].removeprefix(f"{row['category']}_")
    for teacher in sorted(TEACHERS, key=len, reverse=True):
        method, found, options = rest.partition(f"_{teacher}_")
        if found:
            size, _, *variant = options.split("_")
            return method, teacher, size, "_".join(variant)
    raise SystemExit(f"a row of book/results has an unknown teacher: {row['setting']}")


def row_parts(row: Row) -> tuple[str, str, str, str]:
    return parts_of(row | {"setting": row["key"].rsplit("_s", 1)[0]})


def title_of(category: str) -> str:
    return category.replace("_", " ").capitalize()


def slashes(values: Sequence[float], form: str) -> str:
    """Figures with a true minus sign, and no sign before a zero."""
    texts = (format(value, form) for value in values)
    return " / ".join(
        text[1:] if float(text) == 0 and text[0] in "+-" else text.replace("-", "−")
        for text in texts
    )


def figure_cells(row: Row) -> list[str]:
    spread = row["seeds"] > 1
    return [
        "–" if row[m] is None else f"{row[m][0]:.1f}" + f"\u00a0±\u00a0{row[m][1]:.1f}" * spread
        for m in METRICS
    ]


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(line) + " |" for line in (head, *lines)]
    rows.insert(1, "|---" * len(head) + "|")
    return "\n".join([":::{table}", ":class: stack", "", *rows, "", ":::"])


def summary_table(
    rows: Rows,
    columns: Sequence[str],
    label: Callable[[Row], Sequence[str] | None],
    count: str = "Seeds",
) -> str:
    """A table of the summary; ``label`` gives the cells before the figures, or drops the row."""
    found = [(label(row), row) for row in summary(rows)]
    lines = [
        [*cells, str(row["seeds"]), *figure_cells(row)] for cells, row in found if cells is not None
    ]
    return markdown_table([*columns, count, *METRICS.values()], lines)


def means_of(
    rows: Rows, category: str, method: str, teacher: str, size: str = "128", variant: str = ""
) -> dict[str, Row]:
    """Summary rows by map of one setting, as recommended unless a variant is named."""
    wanted = (method, teacher, size, variant)
    own = [r for r in rows if r["category"] == category and row_parts(r) == wanted]
    return {row["map"]: row for row in summary(own)}


def gaps_by_seed(
    rows: Rows,
    category: str,
    metric: str,
    first: tuple[str, str],
    second: tuple[str, str],
    teacher: str = IMAGENET,
    size: str = "128",
) -> str:
    """Differences of two maps, each (method, map), in points, one a seed in their order."""
    found: list[dict[int, float]] = [{}, {}]
    for row in rows:
        for side, (method, name) in zip(found, (first, second), strict=True):
            wanted = (method, teacher, size, "")
            if row["category"] == category and row_parts(row) == wanted:
                side[row["config"]["seed"]] = 100 * row["scores"][name][metric]
    ours, theirs = found
    return ", ".join(slashes([ours[s] - theirs[s]], "+.1f") for s in sorted(ours))


def mean_over(
    rows: Rows, categories: Sequence[str], teacher: str, size: str = "128", variant: str = ""
) -> dict[str, dict[str, float]]:
    """Means of each map over the seeds, then over the categories."""
    tables = [means_of(rows, category, "dskd", teacher, size, variant) for category in categories]
    return {
        name: {m: statistics.mean(table[name][m][0] for table in tables) for m in METRICS}
        for name in ("forward", "reverse", "manual", "fused")
    }


def better_student(maps: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each metric the better student's figure."""
    return {m: max(maps[name][m] for name in ("forward", "reverse")) for m in METRICS}


def differences(ours: Row, theirs: dict[str, float]) -> str:
    return slashes([ours[m][0] - theirs[m] for m in METRICS], "+.1f")


def fusion_against(
    rows: Rows, categories: Sequence[str], teacher: str, size: str = "128"
) -> list[str]:
    """How far the fused map is ahead of the manual mix, and of the better student."""
    maps = mean_over(rows, categories, teacher, size)
    return [
        slashes([maps["fused"][m] - other[m] for m in METRICS], "+.1f")
        for other in (maps["manual"], better_student(maps))
    ]


def fused_against(rows: Rows, category: str, size: str = "128") -> str:
    manual, student = fusion_against(rows, (category,), IMAGENET, size)
    peer = means_of(rows, category, "rd4ad", IMAGENET, size)["rd4ad"]
    ours = means_of(rows, category, "dskd", IMAGENET, size)["fused"]
    return (
        f"{student} against the better student (taken anew in each column), {manual} "
        f"against the manual mix, {differences(ours, {m: peer[m][0] for m in METRICS})} against RD4AD"
    )
