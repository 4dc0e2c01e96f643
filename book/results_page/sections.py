"""All other sections: main tables, size and length, ablations, peers, thresholds, novelty."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from scipy.stats import ttest_1samp, ttest_ind

from dskd_lite.sweep import read_results, summary
from results_page.rows import (
    ABLATIONS,
    CATEGORIES,
    IMAGENET,
    MAPS,
    METRICS,
    RESULTS,
    TEACHERS,
    VARIANTS,
    Row,
    Rows,
    better_student,
    differences,
    figure_cells,
    fused_against,
    gaps_by_seed,
    markdown_table,
    mean_over,
    means_of,
    parts_of,
    row_parts,
    slashes,
    summary_table,
    title_of,
)
from results_page.text import NOISE, NOVELTY, SETS


def main_tables(rows: Rows) -> str:
    def label(row: Row) -> Sequence[str] | None:
        _, teacher, _, variant = parts_of(row)
        return None if variant else (TEACHERS[teacher], MAPS[row["map"]])

    order = list(TEACHERS)
    tables = []
    for category in CATEGORIES:
        chosen = [r for r in rows if r["category"] == category]
        chosen.sort(key=lambda r: (order.index(row_parts(r)[1]), row_parts(r)[0]))
        tables.append(
            f"### {title_of(category)}\n\n{summary_table(chosen, ('Teacher', 'Map'), label)}"
        )
    return "\n\n".join(tables)


def teacher_gap(rows: Rows) -> str:
    closed: dict[str, list[float]] = {m: [] for m in METRICS}
    parts = []
    for category in CATEGORIES:
        start, ours, imagenet = (
            better_student(mean_over(rows, (category,), teacher)) for teacher in TEACHERS
        )
        for m in METRICS:
            closed[m].append(100 * (ours[m] - start[m]) / (imagenet[m] - start[m]))
        figures = slashes([values[-1] for values in closed.values()], ".0f")
        parts.append(f"{figures} % on {category.replace('_', ' ')}")
    mean = slashes([statistics.mean(values) for values in closed.values()], ".0f")
    return (
        "Of the gap between a random start and ImageNet, with the better student in each column, the "
        f"offline teacher closes {' and '.join(parts)}: {mean} % on average (image AUROC / pixel "
        "AUROC / AUPRO)."
    )


def peer_gap(rows: Rows) -> str:
    parts = []
    for category in CATEGORIES:
        ours = means_of(rows, category, "dskd", IMAGENET)["fused"]
        theirs = means_of(rows, category, "rd4ad", IMAGENET)["rd4ad"]
        figures = {m: theirs[m][0] for m in METRICS}
        parts.append(f"{differences(ours, figures)} points on {category.replace('_', ' ')}")
    return (
        "DSKD, fused, against RD4AD with the same teacher file, epochs and seeds, image AUROC "
        f"/ pixel AUROC / AUPRO: {' and '.join(parts)}. The aim was maps at least level with RD4AD's on both sets, and "
        "better on one."
    )


def longer_training(rows: Rows, longer: Rows) -> str:
    """Both sets after 15 and after 60 epochs, and what the fused map of DSKD then is ahead of."""
    lines, verdicts = [], []
    for category in CATEGORIES:
        for name in ("forward", "reverse", "manual", "fused", "rd4ad"):
            method = "rd4ad" if name == "rd4ad" else "dskd"
            for epochs, own in (("15", rows), ("60", longer)):
                row = means_of(own, category, method, IMAGENET)[name]
                head = [title_of(category), MAPS[name], epochs]
                lines.append([*head, *figure_cells(row)])
        verdicts.append(f"- {title_of(category)}: {fused_against(longer, category)}.")
    return (
        markdown_table(["Set", "Map", "Epochs", *METRICS.values()], lines)
        + "\n\nAfter 60 epochs the fused map stands, in points:\n\n"
        + "\n".join(verdicts)
    )


def full_size(rows: Rows) -> str:
    """256 px and 200 epochs; methods are compared over the seeds that both ran with."""
    on_cpu = [r for r in rows if "NVIDIA" not in r.get("hardware", {"device": "NVIDIA"})["device"]]
    lines, verdicts = [], []
    for category in CATEGORIES:
        seeds = {}
        for method, names in (
            ("dskd", ("forward", "reverse", "manual", "fused")),
            ("rd4ad", ("rd4ad",)),
        ):
            own = [r for r in rows if r["category"] == category and row_parts(r)[0] == method]
            seeds[method] = sorted(row["config"]["seed"] for row in own)
            timed = [sum(row["seconds"].values()) for row in own if row not in on_cpu]
            table = means_of(rows, category, method, IMAGENET, "256")
            ran = ", ".join(map(str, seeds[method]))
            for name in names:
                figures = figure_cells(table[name])
                line = [title_of(category), MAPS[name], ran, *figures]
                lines.append([*line, f"{statistics.mean(timed):.0f}"])
        where = category.replace("_", " ")
        later = [r for r in on_cpu if r["category"] == category]
        if later:
            told = " and ".join(
                f"{'RD4AD' if row_parts(r)[0] == 'rd4ad' else 'DSKD'} with seed {r['config']['seed']}"
                for r in later
            )
            days = " and ".join(sorted({r["hardware"]["date"] for r in later}))
            cpu = later[0]["hardware"]["device"].replace("(R)", "")
            verdicts.append(
                f"On {where} {told} came later, by the code of {days}, from the images as they are, trained in "
                f"bf16 on a CPU ({cpu}); their seconds are not in the table."
            )
        both = sorted({*seeds["dskd"]} & {*seeds["rd4ad"]})
        paired = [row for row in rows if row["config"]["seed"] in both]
        apart = gaps_by_seed(
            paired, category, "aupro", ("dskd", "fused"), ("rd4ad", "rd4ad"), size="256"
        )
        some = seeds["dskd"] != both or seeds["rd4ad"] != both
        named = f"seed{'s' if len(both) > 1 else ''} {' and '.join(map(str, both))}"
        over = f" ({named}, with which both ran)" if some else ""
        verdicts.append(
            f"On {where} the fused map stands, in points, {fused_against(paired, category, '256')}{over}; "
            f"its AUPRO, seed by seed, is {apart} from RD4AD's."
        )
    return (
        "Computed on one NVIDIA H200 in bf16, six runs at a time (torch 2.11, CUDA 13), November 2026. Images and masks "
        "were reduced to 256 px beforehand, by the resizing that the runs begin with. Scored in float32, batch norm settled in random order. Under *s* stand a whole run's seconds, with "
        "evaluation, beside five others.\n\n"
        + markdown_table(["Set", "Map", "Seeds", *METRICS.values(), "s"], lines)
        + "\n\n"
        + " ".join(verdicts)
    )


def legacy_pro(rows: Rows) -> str:
    """The PRO of RD4AD's published code at full size on screw, for comparison with published ones."""
    screws = [row["scores"] for row in rows if row["category"] == "screw"]
    parts = []
    for name in ("fused", "rd4ad"):
        values = [100 * scores[name]["legacy_pro"] for scores in screws if name in scores]
        parts.append(
            f"{statistics.mean(values):.1f}\u00a0±\u00a0{statistics.stdev(values):.1f} ({MAPS[name]})"
        )
    return " and ".join(parts)


def development_table(rows: Rows) -> str:
    """One line for each map, mean over all categories and seeds of the deviations within each."""
    table = summary(rows)
    lines = []
    for name in ("forward", "reverse", "manual", "fused"):
        own = [row for row in table if row["map"] == name]
        means = [f"{statistics.mean(row[m][0] for row in own):.1f}" for m in METRICS]
        lines.append([MAPS[name], str(len(own)), str(own[0]["seeds"]), *means])
    return markdown_table(["Map", "Products", "Seeds", *METRICS.values()], lines)


def as_recommended(rows: Rows, seeds: Sequence[int]) -> Rows:
    """The rows with noise anywhere, which is the default, under the key of the recommended setting."""
    default = "_noise-on=anywhere"
    return [
        row | {"key": row["key"].replace(default, "")}
        for row in rows
        if row_parts(row)[3] == default[1:] and row["config"]["seed"] in seeds
    ]


def ablation_tables(rows: Rows) -> str:
    def label(row: Row) -> Sequence[str] | None:
        _, teacher, _, variant = parts_of(row)
        if teacher != IMAGENET:
            raise SystemExit(
                f"the text of the ablations names another teacher than {row['setting']}"
            )
        again = row["map"] == "forward" and variant in ABLATIONS[1:4]
        return None if again else (VARIANTS[variant], MAPS[row["map"]])

    def place(row: Row) -> int:
        return ABLATIONS.index(row_parts(row)[3])

    def of(size: str) -> Rows:
        return sorted((row for row in rows if row_parts(row)[2] == size), key=place)

    sizes = sorted({row_parts(row)[2] for row in rows}, key=int)
    return "\n\n".join(
        f"**{size} px**\n\n{summary_table(of(size), ('Variant', 'Map'), label, 'Runs')}"
        for size in sizes
    )


def ablation_gaps(rows: Rows) -> str:
    """Each variant against the recommended one. Unpaired: rounding alone moves a run as a seed does."""
    scores: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        _, _, size, variant = row_parts(row)
        scores.setdefault((size, variant), []).append(row["scores"])
    tables, marked, cells = [], 0, 0
    for size in sorted({key[0] for key in scores}, key=int):
        lines = []
        for variant, name in itertools.product(ABLATIONS[1:], ("reverse", "fused")):
            runs = scores[size, variant], scores[size, ""]
            line = [VARIANTS[variant], MAPS[name], f"{len(runs[0])}, {len(runs[1])}"]
            for metric in METRICS:
                ours, theirs = ([100 * run[name][metric] for run in side] for side in runs)
                error = sum(statistics.variance(side) / len(side) for side in (ours, theirs)) ** 0.5
                sure = ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05
                marked, cells = marked + sure, cells + 1
                gap = slashes([statistics.mean(ours) - statistics.mean(theirs)], "+.1f")
                figure = f"{gap}\u00a0±\u00a0{error:.1f}"
                line.append(f"**{figure}**" if sure else figure)
            lines.append(line)
        head = ["Variant", "Map", "Runs", *METRICS.values()]
        tables.append(f"**{size} px**\n\n{markdown_table(head, lines)}")
    return (
        "Differences of the means from *as recommended* in points, ± their standard error, over so many runs of the variant and "
        f"of the recommended setting. In bold is what Welch's t-test calls significant at 5 %: {marked} of {cells} cells, where chance "
        "alone would mark two or three.\n\n" + "\n\n".join(tables)
    )


def noise_places(rows: Rows) -> str:
    """The fused map for each place of the noise, in both forms of the fusion."""

    def label(row: Row) -> Sequence[str] | None:
        if row["map"] != "fused":
            return None
        variant = parts_of(row)[3]
        place = variant.removeprefix("fusion=paper_")
        return VARIANTS[place], "recommended" if place == variant else "as in the paper"

    def order(row: Row) -> tuple[bool, int]:
        variant = row_parts(row)[3]
        place = variant.removeprefix("fusion=paper_")
        return place != variant, list(VARIANTS).index(place)

    table = summary_table(sorted(rows, key=order), ("Noise", "Fusion"), label)
    return NOISE.format(table=table, changes=noise_changes(rows))


def noise_changes(rows: Rows) -> str:
    """Each place against noise anywhere. Paired: the runs of a seed have the same students."""
    fused: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        place, seed = row["config"]["noise_on"], row["config"]["seed"]
        fused.setdefault((row["config"]["fusion"], place), {})[seed] = row["scores"]["fused"]
    places = [v.removeprefix("noise-on=") for v in VARIANTS if v.startswith("noise-on=")]
    lines = []
    for form, place in itertools.product(("recommended", "paper"), places[1:]):
        ours, theirs = fused[form, place], fused[form, places[0]]
        line = [VARIANTS[f"noise-on={place}"], "as in the paper" if form == "paper" else form]
        for metric in METRICS:
            gaps = [100 * (ours[seed][metric] - theirs[seed][metric]) for seed in sorted(ours)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            figure = slashes([statistics.mean(gaps)], "+.1f") + f"\u00a0±\u00a0{error:.1f}"
            line.append(f"**{figure}**" if ttest_1samp(gaps, 0).pvalue < 0.05 else figure)
        lines.append(line)
    return markdown_table(["Noise", "Fusion", *METRICS.values()], lines)


def benchmark_table(rows: Rows) -> str:
    """A line for each detector: image AUROC of each product, then two means."""
    products = sorted({row["category"] for row in rows})
    lines: dict[str, dict[str, Row]] = {}
    for row in summary(rows):
        if parts_of(row)[1] == "offline-random":
            if row["map"] == "fused":
                lines.setdefault("DSKD, random teacher", {})[row["category"]] = row
        else:
            lines.setdefault(MAPS[row["map"]], {})[row["category"]] = row
    order = [MAPS[m] for m in ("pixel-statistics", "autoencoder")] + ["DSKD, random teacher"]
    order += [
        MAPS[m] for m in ("gaussian", "nearest-patches", "forward", "reverse", "manual", "fused")
    ]
    body, spreads = [], []
    for name in order:
        own = [lines[name][product] for product in products]
        image = [row["image_auroc"][0] for row in own]
        spreads += [row["image_auroc"][1] for row in own]
        others = (statistics.mean(row[m][0] for row in own) for m in ("pixel_auroc", "aupro"))
        body.append([name, *(f"{v:.1f}" for v in (*image, statistics.mean(image), *others))])
    table = markdown_table(["Detector", *products, "mean", "pixel", "AUPRO"], body)
    hardest: dict[str, list[str]] = {}
    for name, *cells in body:
        if name in order[3:]:  # those that ask a trained teacher
            values = [float(cell) for cell in cells[: len(products)]]
            hardest.setdefault(products[values.index(min(values))], []).append(name)
    named = "; ".join(f"{product} for {', '.join(names)}" for product, names in hardest.items())
    by_name = {name: cells for name, *cells in body}
    image, pro = (
        f"{by_name[order[3]][column]} against {by_name[MAPS['fused']][column]}"
        for column in (-3, -1)
    )
    return (
        f"{table}\n\nWith a trained teacher the hardest product is {named}. The Gaussian against the "
        f"fused map: {image} in image AUROC, {pro} in AUPRO.\n\nThe standard deviation over seeds of one product's image AUROC has a median of "
        f"{statistics.median(spreads):.1f} points and is {max(spreads):.1f} at most."
    )


def classical_table(rows: Rows) -> str:
    def label(row: Row) -> Sequence[str]:
        return title_of(row["category"]), MAPS[row["map"]]

    return summary_table(sorted(rows, key=lambda row: row["key"]), ("Set", "Method"), label)


def classical_verdict(rows: Rows, main: Rows) -> str:
    """Which of the older methods are ahead of DSKD with the same teacher, and in what."""
    parts = []
    for category in CATEGORIES:
        ours = means_of(main, category, "dskd", IMAGENET)["fused"]
        own = summary([row for row in rows if row["category"] == category])
        for m, title in METRICS.items():
            ahead = [MAPS[row["map"]] for row in own if row[m][0] > ours[m][0]]
            parts.append(
                f"- {title_of(category)}, {title}: {', '.join(ahead) or 'none'}"
                f" (DSKD {ours[m][0]:.1f})."
            )
    return (
        "Ahead of DSKD's fused map after 15 epochs (mean of three seeds, same teacher) are:\n\n"
        + "\n".join(parts)
    )


def threshold_table(rows: Rows) -> str:
    lines = []
    for category in CATEGORIES:
        own = [
            r["verdicts"]
            for r in rows
            if r["category"] == category and row_parts(r) == ("dskd", IMAGENET, "128", "")
        ]
        for kind in ("image", "pixel"):
            found = [verdicts[kind] for verdicts in own]
            names = ("false_positive_rate", "precision", "recall", "f1", "best_f1")
            cells = [f"{100 * statistics.mean(v[name] for v in found):.1f}" for name in names]
            lines.append([title_of(category), kind, str(len(found)), *cells])
    head = ["Set", "Of", "Seeds", "Normal ones flagged", "Precision", "Recall", "F1", "Best F1"]
    return markdown_table(head, lines)


def novelty_tables() -> str:
    tables = []
    for name, text in SETS.items():
        rows = read_results(RESULTS / f"novelty_{name}.jsonl")
        if not rows:
            continue
        lines = []
        groups: dict[str, Rows] = {}
        for row in rows:
            stride = "with stride" if row["config"]["stem_stride"] else "without stride"
            groups.setdefault(f"{stride}, {row['config']['epochs']} epochs", []).append(row)
        for group, own in groups.items():
            values = [
                f"{100 * statistics.mean(r['scores'][m]['image_auroc'] for r in own):.1f}"
                for m in ("forward", "reverse", "manual", "fused")
            ]
            lines.append([group, str(len(own)), *values])
        head = [
            "Stem",
            "Normal classes",
            *(MAPS[m] for m in ("forward", "reverse", "manual", "fused")),
        ]
        tables.append(f"{text}\n\n{markdown_table(head, lines)}")
    return NOVELTY.format(text="\n\n".join(tables)) if tables else ""
