"""The report of a run: numbers for programs (JSON), one page for people (HTML)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dskd_lite import plots
from dskd_lite.detector import Thresholds, verdict_on
from dskd_lite.evaluation import Evaluation, Scores

EXAMPLES_PER_GROUP = 4
METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "legacy_pro": "PRO, RD4AD's form",
}


ScoreTable = dict[str, dict[str, float | None]]
VerdictTable = dict[str, dict[str, float | None]]


def as_json(scores: dict[str, Scores]) -> ScoreTable:
    """Scores by method and metric, as plain dictionaries."""
    return {method: asdict(row) for method, row in scores.items()}


def verdicts_as_json(evaluation: Evaluation, thresholds: Thresholds) -> VerdictTable:
    """Verdicts of the last method, which is the one in use, as plain dictionaries."""
    if not evaluation.maps:
        return {}
    verdicts = evaluation.verdicts(list(evaluation.maps)[-1], thresholds)
    return {kind: asdict(verdict) for kind, verdict in verdicts.items()}


def defects_as_json(
    evaluation: Evaluation, thresholds: Thresholds | None
) -> dict[str, dict[str, float | None]]:
    """Each kind of defect by the last method, which is the one in use, as plain dictionaries."""
    if not evaluation.maps:
        return {}
    defects = evaluation.by_defect(list(evaluation.maps)[-1], thresholds)
    return {kind: asdict(scores) for kind, scores in defects.items()}


def image_table(evaluation: Evaluation, thresholds: Thresholds | None) -> list[list[str]]:
    """Lines of a table: each test image, its folder, its score by each method, and the verdict."""
    scores = {method: evaluation.image_scores(method) for method in evaluation.maps}
    lines = [["image", "defect", *scores, "verdict"]]
    for index, sample in enumerate(evaluation.category.test):
        own = [float(values[index]) for values in scores.values()]
        name = sample.path.relative_to(evaluation.category.root).as_posix()
        verdict = verdict_on(own[-1], thresholds)
        lines.append([name, sample.defect, *(f"{value:.6g}" for value in own), verdict])
    return lines


def mean_scores(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Mean over the categories with test images, by method and metric; None where one lacks it."""
    means: ScoreTable = {}
    measured = [table for table in tables if table]  # a category without test images has none
    for method in measured[0] if measured else ():
        rows = [table.get(method, {}) for table in measured]
        means[method] = {}
        for metric in METRICS:
            values = [row.get(metric) for row in rows]
            means[method][metric] = None if None in values else float(np.mean(values))
    return means


def table(scores: ScoreTable, metrics: Sequence[str] = tuple(METRICS)) -> str:
    """Ablation table in plain text: one row a method, percent with one decimal."""
    header = f"{'':<10}" + "".join(f"{METRICS[m]:>19}" for m in metrics)
    rows = [
        f"{method:<10}" + "".join(f"{_percent(row[m]):>19}" for m in metrics)
        for method, row in scores.items()
    ]
    return "\n".join([header, *rows])


def category_table(categories: dict[str, ScoreTable]) -> str:
    """Image AUROC in plain text, percent with one decimal: a row a category, a column a method."""
    lines = _by_category(categories)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])])
        for name, *values in lines
    )


def _by_category(categories: dict[str, ScoreTable]) -> list[list[str]]:
    methods = max(categories.values(), key=len)  # a category without test images has none
    metric = "image_auroc"
    return [
        [METRICS[metric], *methods],
        *(
            [name, *(_percent(scores.get(method, {}).get(metric)) for method in methods)]
            for name, scores in categories.items()
        ),
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def html_page(title: str, report: dict[str, Any], sections: Sequence[str]) -> str:
    """One page that needs no other file: scores, what ``section`` made, and the settings."""
    overall = ""
    if len(sections) > 1:
        overall = f"<h2>Mean of {len(sections)} categories</h2>{_html_table(report['scores'])}"
        overall += _html_rows(_by_category(report["categories"]))
    settings = "".join(
        f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in {**report["config"], **report["versions"], **report["hardware"]}.items()
    )
    return page(
        title,
        "<p>Figures in percent, over the whole test set. AUPRO is exact, to a false-positive rate "
        f"of 0.3. Heatmaps of one method share one colour scale.</p>\n{overall}\n"
        + "\n".join(sections)
        + "\n<h2>Settings</h2><details><summary>options, versions and hardware</summary>"
        f"<table>{settings}</table></details>",
    )


def page(title: str, body: str) -> str:
    """An HTML page in the look of all pages, of a title in plain text and a body in HTML."""
    return _PAGE.format(title=html.escape(title), body=body)


def verdict_lines(verdicts: VerdictTable) -> list[str]:
    """One sentence for images and one for pixels: what the stored threshold gets right."""
    lines = []
    for kind, v in verdicts.items():
        parts = []
        if v["f1"] is not None:
            parts.append(
                f"precision {_percent(v['precision'])}, recall {_percent(v['recall'])}, F1 "
                f"{_percent(v['f1'])} (best possible on this test set: {_percent(v['best_f1'])})"
            )
        elif v["recall"] is not None:
            parts.append(f"flagged of the defective {kind}s: {_percent(v['recall'])} %")
        if v["false_positive_rate"] is not None:
            share = _percent(v["false_positive_rate"])
            parts.append(f"flagged of the normal {kind}s: {share} %")
        if v["on_normal_images"] is not None:
            parts[-1] += f" ({_percent(v['on_normal_images'])} % on normal images)"
        lines.append(f"{kind}s above {v['threshold']:.4g}: {'; '.join(parts)}")
    return lines


def section(evaluation: Evaluation, thresholds: Thresholds | None) -> str:
    """HTML of one category: tables, histogram, curves, and heatmaps of hits and misses."""
    name = html.escape(evaluation.category.name)
    labels, method = evaluation.labels, list(evaluation.maps)[-1]
    threshold = thresholds.image if thresholds else None
    notes = list(evaluation.notes)
    if thresholds is not None:
        notes += verdict_lines(verdicts_as_json(evaluation, thresholds))
    parts = [f"<h2>{name}</h2>", _html_table(as_json(evaluation.scores))]
    if labels.any():
        parts.append(_html_rows(_defect_lines(defects_as_json(evaluation, thresholds), method)))
    parts += [f"<p class='note'>{html.escape(note)}</p>" for note in notes]
    both_classes = bool(labels.any() and not labels.all())
    figures: list[tuple[Figure, str]] = []
    histogram = plots.score_histogram(evaluation.image_scores(method), labels, threshold, method)
    figures.append((histogram, f"Histogram of {method} image scores, normal against defective."))
    if both_classes:
        roc = plots.roc_curves(evaluation.maps, labels)
        figures.append((roc, "ROC curve of each method over the test images."))
    if evaluation.masks is not None:
        pro = plots.pro_curves(evaluation.maps, evaluation.masks)
        figures.append((pro, "Per-region overlap of each method up to 30 % false positives."))
    parts.append("<div class='row'>" + "".join(_img(f, alt) for f, alt in figures) + "</div>")
    limits = plots.color_limits(evaluation.maps)
    for heading, chosen in _examples(evaluation, method, threshold).items():
        if len(chosen) == 0:
            continue
        figure = plots.heatmap_grid(
            evaluation.images[chosen],
            None if evaluation.masks is None else evaluation.masks[chosen],
            {m: values[chosen] for m, values in evaluation.maps.items()},
            limits,
            [_caption(evaluation, i) for i in chosen],
        )
        alt = f"{heading}: image, mask and the map of each method, on one scale for all images."
        parts.append(f"<h3>{html.escape(heading)}</h3>{_img(figure, alt)}")
    return f"<section>{''.join(parts)}</section>"


def _defect_lines(defects: dict[str, dict[str, float | None]], method: str) -> list[list[str]]:
    head = [f"defect, by {method}", "images", METRICS["image_auroc"], "flagged"]
    rows = [
        [kind, f"{row['images']}", _percent(row["image_auroc"]), _percent(row["flagged"])]
        for kind, row in defects.items()
    ]
    return [head, *rows]


def _examples(
    evaluation: Evaluation, method: str, threshold: float | None
) -> dict[str, np.ndarray]:
    """Clearest hits, worst misses, worst false alarms, by score against the threshold."""
    scores, labels = evaluation.image_scores(method), evaluation.labels
    if threshold is None:
        threshold = float(np.median(scores))
    order = np.argsort(-scores, kind="stable")
    flagged = scores > threshold
    hits = [i for i in order if labels[i] and flagged[i]]
    spread = np.linspace(0, len(hits) - 1, min(len(hits), EXAMPLES_PER_GROUP)).astype(int)
    misses = [i for i in order[::-1] if labels[i] and not flagged[i]]
    alarms = [i for i in order if not labels[i] and flagged[i]]
    normal = [i for i in order[::-1] if not labels[i] and not flagged[i]]
    return {
        "Hits: defects above the threshold, from clear to narrow": np.array(hits, int)[spread],
        "Misses: defects under the threshold, the worst first": np.array(misses, int)[:4],
        "False alarms: normal images above the threshold, the worst first": np.array(alarms, int)[
            :EXAMPLES_PER_GROUP
        ],
        "Normal images that look normal": np.array(normal, int)[:2],
    }


def _caption(evaluation: Evaluation, index: int) -> str:
    sample = evaluation.category.test[index]
    text = f"{sample.defect}/{sample.path.stem}"
    return text.encode("utf-8", "backslashreplace").decode()  # a name that is no text


def _html_table(scores: ScoreTable) -> str:
    lines = [[method, *(_percent(row[m]) for m in METRICS)] for method, row in scores.items()]
    return _html_rows([["", *METRICS.values()], *lines])


def _html_rows(lines: list[list[str]]) -> str:
    head, *body = lines
    rows = "".join(
        f"<tr>{_head(name)}" + "".join(f"<td>{value}</td>" for value in values) + "</tr>"
        for name, *values in body
    )
    return f"<table><tr>{''.join(map(_head, head))}</tr>{rows}</table>"


def _head(text: str) -> str:
    color = plots.ROLE_COLORS.get(text)  # of a method; other text follows light and dark mode
    style = f" style='color:{color}'" if color else ""
    return f"<th{style}>{html.escape(text)}</th>"


def _img(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem; }}
img {{ max-width: 100%; height: auto; border-radius: 6px; background: white; }}
.row {{ display: flex; flex-wrap: wrap; gap: .5rem;
  align-items: flex-start; }}
.row img {{ flex: 1 1 300px; min-width: 0; }}
table {{ border-collapse: collapse; margin: .5rem 0 1rem; display: block; overflow-x: auto; }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #8885; }}
th:first-child {{ text-align: left; }}
.photos th, .photos td {{ text-align: left; }}
.photos img {{ width: 200px; max-width: none; }}
.note {{ border-left: 4px solid #EE7733; padding-left: .6rem; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
