"""Every figure, in one hand: one colour per role, legible on light and dark pages.

Figures have a white ground of their own, so that a dark page does not swallow their text. The
colours are from Paul Tol's palettes for colour-blind readers.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dskd_lite import metrics

ROLE_COLORS = {
    "teacher": "#4477AA",
    "forward": "#EE7733",
    "reverse": "#228833",
    "manual": "#777777",
    "paper": "#44AA99",
    "fused": "#AA3377",
    "noise": "#BBBBBB",
}
NORMAL, DEFECTIVE = "#33BBEE", "#CC3311"
HEATMAP = "inferno"
OVERLAY_BAND = 256  # rows blended at once: in floats a photo of 48 megapixels would take 4 GB
PLAIN_COLORS = ("#332288", "#999933", "#882255", "#DDCC77", "#000000")  # for what has no role
MAP_NAMES = ("f1", "f2", "f3", "r1", "r2", "r3")  # the six score maps, in their order


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
    scores = scores.astype(np.float64)  # 30 bins have no room between neighbours in float32
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
    """Upper end of each method's colour scale, one for all images, so that normal looks normal.

    At least 0, where all scales begin: the scores of a one-class SVM may all lie below.
    """
    return {m: max(float(np.quantile(values, 0.9995)), 0.0) for m, values in maps.items()}


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
        label = title.replace("_", " ")
        axes[row, 0].set_ylabel(label, fontsize=8, parse_math=False)  # $ in a file's name
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

    blended = np.empty_like(image)
    for top in range(0, len(image), OVERLAY_BAND):
        band = slice(top, top + OVERLAY_BAND)
        heat = np.clip(anomaly_map[band] / max(limit, 1e-12), 0, 1)
        colors = matplotlib.colormaps[HEATMAP](heat)[..., :3]
        opacity = 0.75 * heat[..., None]
        blended[band] = np.round(image[band] * (1 - opacity) + 255 * colors * opacity)
    return blended


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    limits: tuple[float, float] = (0.0, 1.0),
    cmap: str = "gray",
) -> Figure:
    """Rows of pictures (H, W, 3), or of fields (H, W) all on one scale from limit to limit.

    ``titles`` stand over the columns (or, if there is one for each picture, over each picture),
    ``row_titles`` left of the rows.
    """
    columns = max(len(row) for row in rows)
    figure, axes = new_figure(len(rows), columns, 1.6 * columns, 1.62 * len(rows) + 0.2)
    for row, pictures in enumerate(rows):
        for column in range(columns):
            axis = axes[row, column]
            _bare(axis)
            if column < len(pictures):
                axis.imshow(pictures[column], cmap=cmap, vmin=limits[0], vmax=limits[1])
            number = row * columns + column if len(titles) > columns else column
            if number < len(titles) and (row == 0 or len(titles) > columns):
                title = titles[number].replace("_", " ")
                size = 9 if len(title) <= 20 else 7
                axis.set_title(title, fontsize=size, parse_math=False)  # $ in a file's name
        if row < len(row_titles):
            axes[row, 0].set_ylabel(row_titles[row], fontsize=9, parse_math=False)
    return figure


def perlin_lattice(angles: np.ndarray, noise: np.ndarray) -> Figure:
    """Perlin noise (H, W) under the gradients of its lattice, angles (cells + 1, cells + 1)."""
    cells, (height, width) = len(angles) - 1, noise.shape
    figure, axes = new_figure(1, 1, 4.6, 4.2)
    axis = axes[0, 0]
    shown = axis.imshow(noise, cmap="RdBu_r", vmin=-1, vmax=1)
    y, x = np.mgrid[: cells + 1, : cells + 1]
    axis.quiver(
        x * width / cells - 0.5, y * height / cells - 0.5, np.cos(angles), np.sin(angles),
        angles="xy", scale=1.6 * (cells + 1), width=0.008, pivot="tail",
    )  # fmt: skip
    lines = np.arange(cells + 1) * width / cells - 0.5
    axis.set(xticks=lines, yticks=lines, xticklabels=[], yticklabels=[])
    margin = 0.6 * width / cells  # an arrow on the border needs room
    axis.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), frame_on=False)
    axis.grid(color="black", linewidth=0.4, alpha=0.5)
    figure.colorbar(shown, label="noise", shrink=0.8)
    return figure


def line_chart(
    x: np.ndarray,
    lines: Mapping[str, np.ndarray],
    xlabel: str,
    ylabel: str,
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    marked: float | None = None,
    top: float | None = None,
) -> Figure:
    """Curves over ``x`` by name (a role's curve in its colour), and clouds of points beside them.

    ``marked`` draws a dashed vertical line. With ``top`` the vertical axis goes from 0 to there, so
    that a moving figure keeps its scale; by default it holds every value.
    """
    figure, axes = new_figure(1, 1, 5.4, 3.3)
    axis = axes[0, 0]
    for (name, values), color in zip(lines.items(), _other_colors(lines), strict=True):
        axis.plot(x, values, color=color, label=name)
    for name, (across, up) in (points or {}).items():
        size, alpha = (8, 1.0) if len(across) == 1 else (3, 0.5)  # one among curves is to be found
        axis.plot(across, up, "o", color="#333333", markersize=size, alpha=alpha, label=name)
    if marked is not None:
        axis.axvline(marked, color="black", linestyle="--", linewidth=0.9)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if top is not None:
        axis.set_ylim(-0.03 * top, top)  # what lies at 0 is seen whole
    if len(lines) + len(points or {}) > 1:
        axis.legend(frameon=False)
    return figure


def size_and_contrast(groups: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Scatter of how much of the image something covers, and how much it changes, by group."""
    figure, axes = new_figure(1, 1, 5.6, 3.8)
    axis = axes[0, 0]
    markers = ("o", "s", "^", "D", "v")
    colors = (*PLAIN_COLORS[: len(groups) - 1], DEFECTIVE)  # the real defects come last
    for (name, (share, change)), marker, color in zip(
        groups.items(), markers, colors, strict=False
    ):
        axis.plot(share, change, marker, color=color, alpha=0.65, markersize=4, label=name)
    axis.set(
        xscale="log", yscale="log", xlabel="share of the image covered",
        ylabel="mean change inside (image in 0–1)",
    )  # fmt: skip
    axis.legend(frameon=False, fontsize=8)
    return figure


def map_bars(groups: Mapping[str, np.ndarray], ylabel: str, base: float = 0.0) -> Figure:
    """Six bars for each group, one per score map: forward stages 1 to 3, reverse stages 1 to 3.

    Bars grow from ``base``. Stages of one student share its colour, from light to dark.
    """
    figure, axes = new_figure(1, len(groups), 2.3 * len(groups) + 0.6, 2.9)
    low = min(float(np.min(values)) for values in groups.values())
    high = max(float(np.max(values)) for values in groups.values())
    margin = 0.06 * (max(high, base) - min(low, base))
    for axis, (name, values) in zip(axes[0], groups.items(), strict=True):
        for index, value in enumerate(values):
            role, stage = ("forward", "reverse")[index // 3], index % 3
            axis.bar(
                index + 0.5 * (index // 3), value - base, bottom=base, color=role_color(role),
                alpha=(0.45, 0.7, 1.0)[stage],
            )  # fmt: skip
        axis.axhline(base, color="black", linewidth=0.8)
        axis.set(xticks=[0, 1, 2, 3.5, 4.5, 5.5], xticklabels=MAP_NAMES)
        axis.set(ylim=(min(low, base) - margin, max(high, base) + margin))
        axis.set_title(name, fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
        axis.label_outer()
    axes[0, 0].set_ylabel(ylabel)
    return figure


def fusion_mix(
    image: np.ndarray,
    mask: np.ndarray,
    mixed: np.ndarray,
    limit: float,
    shares: np.ndarray,
    values: np.ndarray,
    share: float,
) -> Figure:
    """One mix of two students: image, mask, mixed map (H, W), and the metric of all mixes.

    The dot stands at ``share`` on the curve of ``values`` over ``shares``.
    """
    figure = Figure(figsize=(7.2, 2.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.7))
    axes[0].imshow(image)
    axes[1].imshow(mask, cmap="gray", vmin=0, vmax=1)
    axes[2].imshow(mixed, cmap=HEATMAP, vmin=0, vmax=limit)
    for axis, name in zip(axes[:3], ("image", "mask", "mixed map"), strict=True):
        _bare(axis)
        axis.set_title(name, fontsize=9)
    axes[3].plot(shares, values, color=role_color("manual"))
    axes[3].plot(share, np.interp(share, shares, values), "o", color=role_color("fused"))
    axes[3].set_xlabel("share of the reverse student", fontsize=9)
    axes[3].set_ylabel("image AUROC", fontsize=9)
    return figure


def _other_colors(lines: Mapping[str, np.ndarray]) -> list[str]:
    """Roles in their own colour, the others in turn."""
    known = {**ROLE_COLORS, "normal": NORMAL, "defects": DEFECTIVE}
    taken = {known[name] for name in lines if name in known}
    spare = itertools.cycle([color for color in PLAIN_COLORS if color not in taken])
    return [known[name] if name in known else next(spare) for name in lines]


def feature_colors(features: np.ndarray) -> np.ndarray:
    """Features (N, C, h, w) as colours (N, h, w, 3) in [0, 1]: their three principal components.

    Positions of the same colour have similar features, in all N images alike.
    """
    count, channels, height, width = features.shape
    vectors = features.transpose(0, 2, 3, 1).reshape(-1, channels)
    vectors = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-8)  # as a cosine sees
    vectors = vectors - vectors.mean(0)
    axes = np.linalg.eigh(vectors.T @ vectors)[1][:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(3)])  # the same sign everywhere
    low, high = np.quantile(colors := vectors @ axes, (0.01, 0.99), axis=0)
    spread = np.maximum(high - low, 1e-12)  # features may all be alike
    return np.clip((colors - low) / spread, 0, 1).reshape(count, height, width, 3)


def score_bars(
    scores: Mapping[str, Mapping[str, float]],
    ylabel: str,
    base: float = 0.0,
    shades_of: str | None = None,
) -> Figure:
    """Bars by method within each group: ``scores[method][group]``, growing from ``base``.

    Methods that are variants of one role are drawn in ``shades_of`` its colour, the last full.
    """
    groups = list(next(iter(scores.values())))
    figure, axes = new_figure(1, 1, 6.2, 3.0)
    axis, width = axes[0, 0], 0.8 / len(scores)
    colors = _other_colors({method: np.zeros(0) for method in scores})
    alphas = np.ones(len(scores))
    if shades_of is not None:
        colors, alphas = [role_color(shades_of)] * len(scores), np.linspace(0.35, 1, len(scores))
    for index, (method, values) in enumerate(scores.items()):
        x = np.arange(len(groups)) + (index - (len(scores) - 1) / 2) * width
        heights = [values[group] - base for group in groups]
        axis.bar(
            x, heights, 0.92 * width, bottom=base, color=colors[index], alpha=alphas[index],
            label=method,
        )  # fmt: skip
    axis.set(ylabel=ylabel, xticks=range(len(groups)))
    axis.set_xticklabels([group.replace("_", "\n") for group in groups], fontsize=9)
    axis.set_ylim(top=1.0 if max(max(v.values()) for v in scores.values()) <= 1 else None)
    figure.legend(loc="outside upper center", ncols=len(scores), frameon=False, fontsize=9)
    return figure


LADDER = {
    "teacher": "teacher alone", "forward": "forward student", "reverse": "reverse student",
    "manual": "both, 1 : 3 by hand", "fused": "both, trained fusion",
}  # fmt: skip
PARTS = {"teacher": "teacher", "forward": "forward\nstudent", "reverse": "reverse\nstudent",
         "noise": "synthetic\nnoise", "fused": "fusion"}  # fmt: skip


def ablation_ladder(
    rungs: Mapping[str, Mapping[str, float]],
    lit: str | None = None,
    open_rung: str = "not measured yet",
) -> Figure:
    """What each part added so far: DSKD with the part ``lit`` in colour, and the rungs measured.

    ``rungs[rung][metric]``, metrics in [0, 1]; rungs of ``LADDER`` that are missing are left open
    with the words ``open_rung``, and others, which are no part of DSKD, stand above those under
    their own names. ``lit`` is one of ``PARTS``, the last rung by default; a rung that is no part
    lights none.
    """
    lit = lit or list(rungs)[-1]
    metric_names = list(next(iter(rungs.values())))
    names = [*(rung for rung in rungs if rung not in LADDER), *LADDER]
    height = 2.75 + 0.25 * len(names)
    figure = Figure(figsize=(6.4, height), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, len(metric_names), height_ratios=(1, 1.5))
    axis = figure.add_subplot(grid[0, :])
    axis.axis("off")
    axis.set(xlim=(-0.3, 4.6), ylim=(-0.65, 0.65))
    places = {"teacher": (0.4, 0), "forward": (1.6, 0.36), "reverse": (1.6, -0.36),
              "noise": (4.0, -0.36), "fused": (3.1, 0.0)}  # fmt: skip
    for start, end in (("teacher", "forward"), ("teacher", "reverse"), ("forward", "fused"),
                       ("reverse", "fused"), ("noise", "fused")):  # fmt: skip
        axis.annotate("", places[end], places[start], zorder=1, arrowprops={
            "arrowstyle": "-", "color": "#999999", "linewidth": 1.2})  # fmt: skip
    for part, place in places.items():
        on = part == lit
        box = {"boxstyle": "round,pad=0.45", "linewidth": 1.5, "edgecolor": role_color(part),
               "facecolor": role_color(part) if on else "white"}  # fmt: skip
        ink = ("black" if part == "noise" else "white") if on else "#333333"
        axis.text(*place, PARTS[part], ha="center", va="center", fontsize=9, color=ink,
                  weight="bold" if on else "normal", bbox=box)  # fmt: skip
    for column, metric in enumerate(metric_names):
        axis = figure.add_subplot(grid[1, column])
        for row, rung in enumerate(names):
            if rung in rungs:
                value = rungs[rung][metric]
                axis.barh(row, value, color=role_color(rung), alpha=1.0 if rung == lit else 0.55)
                axis.text(value + 0.02, row, f"{value:.3f}", va="center", fontsize=9)
            else:
                axis.text(0.02, row, open_rung, va="center", fontsize=8, color="#666666")
        axis.set(xlim=(0, 1.25), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
        axis.set_xticks([0, 0.5, 1])
        labels = [LADDER.get(name, name) for name in names] if column == 0 else []
        axis.set_yticklabels(labels, fontsize=9)
        axis.set_xlabel(metric, fontsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure


def moving_figure(
    frames: Sequence[Figure | np.ndarray],
    labels: Sequence[str],
    title: str,
    alt: str,
    start: int = 0,
) -> MovingFigure:
    """Frames under a slider that works with no kernel: on the static page, in Jupyter, on Colab.

    ``frames`` are figures or pictures (H, W, 3) uint8, ``labels`` what the slider says at each,
    ``title`` what it moves, ``alt`` what a reader who sees nothing should know. The frame ``start``
    is shown first and is all that print shows.
    """
    return MovingFigure([_pixels(frame) for frame in frames], labels, title, alt, start)


def _pixels(frame: Figure | np.ndarray) -> np.ndarray:
    if isinstance(frame, np.ndarray):
        return frame
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    frame.set_dpi(110)
    canvas = FigureCanvasAgg(frame)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


class MovingFigure:
    """HTML for pages and notebooks, a still PNG for print; made by ``moving_figure``."""

    def __init__(
        self, frames: list[np.ndarray], labels: Sequence[str], title: str, alt: str, start: int
    ) -> None:
        self.frames, self.labels, self.title, self.alt = frames, list(labels), title, alt
        self.start = start
        if len(frames) != len(self.labels):
            raise ValueError(f"{len(frames)} frames need as many labels, not {len(self.labels)}")

    def __repr__(self) -> str:
        return f"<a figure that moves: {self.title}>"

    def _repr_html_(self) -> str:
        first, last = html.escape(self.labels[self.start]), len(self.frames) - 1
        pictures = "".join(
            f'<img src="data:image/jpeg;base64,{_encoded(frame, "JPEG")}" '
            f'alt="{html.escape(f"{self.alt} Shown: {label}.")}" '
            f'style="max-width:100%;display:{"block" if index == self.start else "none"}">'
            for index, (frame, label) in enumerate(zip(self.frames, self.labels, strict=True))
        )
        # the handler stands in the tag: it needs no name of its own and runs wherever HTML does
        move = (
            "const f=this.closest('.moving-figure'),i=+this.value,"
            "l=JSON.parse(f.dataset.labels)[i];"
            "f.querySelectorAll('img').forEach((p,k)=>p.style.display=k===i?'block':'none');"
            "f.querySelector('output').textContent=l;this.setAttribute('aria-valuetext',l);"
        )
        return (
            f'<div class="moving-figure" data-labels="{html.escape(json.dumps(self.labels))}">'
            f'<label style="display:block;margin:0.4em 0">{html.escape(self.title)}: '
            f'<output style="font-weight:600">{first}</output><br>'
            f'<input type="range" min="0" max="{last}" value="{self.start}" step="1" '
            f'autocomplete="off" aria-label="{html.escape(self.title)}" aria-valuetext="{first}" '
            f'style="width:22em;max-width:100%" oninput="{html.escape(move)}"></label>'
            f"{pictures}</div>"
        )

    def _repr_png_(self) -> bytes:
        return base64.b64decode(_encoded(self.frames[self.start], "PNG"))


def live_figure(
    draw: Callable[..., Figure | np.ndarray], alt: str, **choices: Sequence[Any]
) -> LiveFigure:
    """A figure that is drawn anew at every move of its controls, where a kernel runs.

    Each of ``choices`` names an argument of ``draw`` and the values it may take: words make a menu,
    numbers a slider. They start at the arguments' defaults, and that figure is what a static page
    and print show.
    """
    return LiveFigure(draw, alt, choices)


class LiveFigure:
    """Widgets for a kernel with ipywidgets, a still picture for all else; see ``live_figure``."""

    def __init__(
        self, draw: Callable[..., Figure | np.ndarray], alt: str, choices: dict[str, Sequence[Any]]
    ) -> None:
        self.draw, self.alt = draw, alt
        self.choices = {name: list(values) for name, values in choices.items()}
        parameters = inspect.signature(draw).parameters
        self.start = {name: parameters[name].default for name in choices}
        for name, value in self.start.items():
            if value not in self.choices[name]:
                raise ValueError(f"{name} starts at {value!r}, which is not among its choices")

    def picture(self, **values: Any) -> str:
        """The figure drawn for these values, as an HTML image with its text."""
        data = _encoded(_pixels(self.draw(**values)), "JPEG")
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        return (
            f'<img src="data:image/jpeg;base64,{data}" style="max-width:100%" '
            f'alt="{html.escape(f"{self.alt} Shown: {shown}.")}">'
        )

    def widget(self) -> Any:
        """The controls above the picture, as one ipywidgets box."""
        import ipywidgets

        picture = ipywidgets.HTML(self.picture(**self.start))
        controls = {}
        for name, values in self.choices.items():
            words = isinstance(values[0], str)
            kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
            more = {} if words else {"continuous_update": False}
            controls[name] = kind(
                options=values, value=self.start[name], description=name.replace("_", " "), **more
            )

        def redraw(_: Any) -> None:
            values = {name: control.value for name, control in controls.items()}
            picture.value = self.picture(**values)

        for control in controls.values():
            control.observe(redraw, "value")
        return ipywidgets.VBox([*controls.values(), picture])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        still = self.picture(**self.start)
        bundle = {
            "text/plain": f"<a figure with controls: {', '.join(self.choices)}>",
            "text/html": f'<div class="live-figure">{still}<br><em>A still picture; its controls '
            "need a running kernel.</em></div>",
            "image/jpeg": still.split("base64,")[1].split('"')[0],
        }
        try:
            model = self.widget().model_id
        except ImportError:
            return bundle
        view = {"version_major": 2, "version_minor": 0, "model_id": model}
        return {"application/vnd.jupyter.widget-view+json": view, **bundle}


def _encoded(pixels: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=85, subsampling=0, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
