"""Every figure, in one hand: one colour per role, legible on light and dark pages.

Figures have a white ground of their own, so that a dark page does not swallow their text. The
colours are from Paul Tol's palettes for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dskd_lite import metrics

ROLE_COLORS = {
    "teacher": "#4477AA",
    "forward": "#EE7733",
    "reverse": "#228833",
    "manual": "#777777",
    "fused": "#AA3377",
    "noise": "#BBBBBB",
}
NORMAL, DEFECTIVE = "#4477AA", "#CC3311"
HEATMAP = "inferno"


def role_color(role: str) -> str:
    """Colour of a role or method; dark grey for one that has none of its own."""
    return ROLE_COLORS.get(role, "#333333")


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes (rows, columns); width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False)


def score_histogram(
    scores: np.ndarray, labels: np.ndarray, threshold: float | None = None, method: str = "fused"
) -> Figure:
    """Histogram of image scores (N,), normal against defective (labels (N,) bool)."""
    figure, axes = new_figure(1, 1, 5.2, 3.2)
    axis = axes[0, 0]
    bins = np.histogram_bin_edges(scores, bins=30)
    axis.hist(scores[~labels], bins, color=NORMAL, alpha=0.75, label="normal")
    axis.hist(scores[labels], bins, color=DEFECTIVE, alpha=0.6, label="defective")
    if threshold is not None:
        axis.axvline(threshold, color="black", linestyle="--", label="threshold")
    axis.set(xlabel=f"image score, {method}", ylabel="test images")
    axis.legend(frameon=False)
    return figure


def roc_curves(maps: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Image-level ROC of each method from its maps (N, H, W) and labels (N,)."""
    figure, axes = new_figure(1, 1, 4.2, 3.8)
    axis = axes[0, 0]
    for method, values in maps.items():
        fpr, tpr = metrics.roc_curve(values.max(axis=(1, 2)), labels)
        axis.plot(fpr, tpr, color=role_color(method), label=method)
    axis.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, linestyle=":")
    axis.set(xlabel="false-positive rate, images", ylabel="true-positive rate", title="ROC")
    axis.legend(frameon=False)
    return figure


def pro_curves(maps: Mapping[str, np.ndarray], masks: np.ndarray, max_fpr: float = 0.3) -> Figure:
    """Per-region overlap of each method from its maps (N, H, W) and masks (N, H, W)."""
    figure, axes = new_figure(1, 1, 4.2, 3.8)
    axis = axes[0, 0]
    for method, values in maps.items():
        fpr, pro = metrics.pro_curve(values, masks, max_fpr)
        axis.plot(fpr, pro, color=role_color(method), label=method)
    axis.set(
        xlabel="false-positive rate, pixels", ylabel="per-region overlap", title="PRO",
        xlim=(0, max_fpr), ylim=(0, 1),
    )  # fmt: skip
    axis.legend(frameon=False)
    return figure


def color_limits(maps: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Upper end of each method's colour scale, one for all images, so that normal looks normal."""
    return {method: float(np.quantile(values, 0.9995)) for method, values in maps.items()}


def heatmap_grid(
    images: np.ndarray,
    masks: np.ndarray | None,
    maps: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    titles: Sequence[str],
) -> Figure:
    """Rows of image, mask and each method's map, on colour scales from 0 to ``limits``.

    ``images`` (N, H, W, 3) uint8, ``masks`` and each of ``maps`` (N, H, W), ``titles`` one a row.
    """
    columns = 1 + (masks is not None) + len(maps)
    figure, axes = new_figure(len(images), columns, 1.55 * columns, 1.62 * len(images) + 0.2)
    for row, title in enumerate(titles):
        cells: list[tuple[str, np.ndarray, dict[str, object]]] = [("image", images[row], {})]
        if masks is not None:
            cells.append(("mask", masks[row], {"cmap": "gray", "vmin": 0, "vmax": 1}))
        for method, values in maps.items():
            scale = {"cmap": HEATMAP, "vmin": 0, "vmax": limits[method]}
            cells.append((method, values[row], scale))
        for axis, (name, content, style) in zip(axes[row], cells, strict=True):
            axis.imshow(content, **style)
            _bare(axis)
            if row == 0:
                axis.set_title(name, fontsize=9, color=role_color(name))
        axes[row, 0].set_ylabel(title, fontsize=7)
    return figure


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, limit: float) -> np.ndarray:
    """Blend a heatmap over an image: (H, W, 3) uint8 and (H, W), scale 0 to ``limit``, to uint8.

    What is cold stays as photographed, what is hot is covered.
    """
    import matplotlib

    heat = np.clip(anomaly_map / max(limit, 1e-12), 0, 1)
    colors = matplotlib.colormaps[HEATMAP](heat)[..., :3]
    opacity = 0.75 * heat[..., None]
    return np.uint8(np.round(image * (1 - opacity) + 255 * colors * opacity))
