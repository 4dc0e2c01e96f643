"""The chapters' shared ground: images, detectors trained once, rungs, figures that move."""

from __future__ import annotations

import ast
import base64
import html.parser
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from dskd_lite import course, plots
from dskd_lite.datasets import procedural
from dskd_lite.detector import DSKD
from dskd_lite.errors import InputError
from dskd_lite.training import Step

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CHAPTERS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def small_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty course folder, and a benchmark of few images."""
    monkeypatch.setenv("DSKD_COURSE_DIR", str(tmp_path))
    for name, count in (("TRAIN", 8), ("GOOD", 2), ("DEFECTIVE", 1)):
        monkeypatch.setattr(procedural, name, count)
    return tmp_path


def test_setup_makes_random_numbers_repeat() -> None:
    device = course.setup(seed=3)
    first = torch.rand(4), np.random.rand(4)
    assert course.setup(seed=3) == device
    assert torch.equal(torch.rand(4), first[0])
    assert np.array_equal(np.random.rand(4), first[1])


def test_category_agrees_with_the_benchmark_itself(small_course: Path) -> None:
    data = course.category("gear")
    assert data.train.shape == (8, 128, 128, 3) and data.train.dtype == np.uint8
    assert data.labels.sum() == 4 and data.masks.dtype == bool
    for index, kind in enumerate(data.defects):
        assert data.labels[index] == (kind != "good") == data.masks[index].any()
    shot = procedural.render("gear", "test/scratch", 0)
    (scratch,) = data.find("scratch")
    assert np.array_equal(data.test[scratch], shot.image)
    assert np.array_equal(data.masks[scratch], shot.mask)


def test_only_the_category_asked_for_is_drawn(small_course: Path) -> None:
    course.category("gear", image_size=32)
    assert [path.name for path in (small_course / "images").iterdir()] == ["gear"]
    with pytest.raises(InputError, match="no category 'bolt'"):
        course.category("bolt")


def test_a_detector_is_trained_once(small_course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = course.trained_detector("gear", epochs=2, image_size=32, smoothing_sigma=1.0)
    assert torch.equal(torch.rand(1), expected), "training disturbed the notebook's own numbers"
    title, losses = capsys.readouterr().out.splitlines()
    assert title == "gear: students, loss of 2 epochs:"
    assert re.fullmatch(r" \d\.\d\d \d\.\d\d", losses)
    again = course.trained_detector("gear", epochs=2, image_size=32, smoothing_sigma=1.0)
    assert "loss" not in capsys.readouterr().out
    assert not first.training and not again.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_other_options_make_another_detector(small_course: Path) -> None:
    options = {"epochs": 1, "image_size": 32, "smoothing_sigma": 1.0}
    course.trained_detector("gear", **options)
    without = course.trained_detector("gear", skip=False, **options)
    assert isinstance(without, DSKD) and without.options["skip"] is False
    assert len(list((small_course / "detectors").iterdir())) == 2
    with pytest.raises(TypeError):
        course.trained_detector("gear", colour="red")


def test_fusion_is_trained_on_the_same_students(small_course: Path) -> None:
    options = {"epochs": 1, "image_size": 32, "smoothing_sigma": 1.0, "fusion_epochs": 1}
    plain = course.trained_detector("gear", **options)
    fused = course.trained_detector("gear", fusion=True, **options)
    assert plain.thresholds is None and fused.thresholds is not None
    assert not torch.equal(plain.fusion.map_weights, fused.fusion.map_weights)
    before, after = plain.state_dict(), fused.state_dict()
    for name in before:
        if name.startswith(("forward_student", "reverse_student", "teacher")):
            assert torch.equal(before[name], after[name]), name
    loaded = course.trained_detector("gear", fusion=True, **options)
    assert loaded.thresholds == fused.thresholds


def test_rungs_come_back_in_the_order_of_the_ladder(small_course: Path) -> None:
    course.record_rung("gear", "reverse", {"AUPRO": np.float64(0.7)})
    rungs = course.record_rung("gear", "teacher", {"AUPRO": 0.5})
    assert list(rungs) == ["teacher", "reverse"] and rungs["reverse"] == {"AUPRO": 0.7}
    assert course.record_rung("fabric", "forward", {"AUPRO": 0.6}) == {"forward": {"AUPRO": 0.6}}


class MovingPage(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.slider: dict[str, str | None] = {}
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        if tag == "input":
            self.slider = given
        if tag == "div":
            self.labels = json.loads(given["data-labels"] or "[]")


def test_a_moving_figure_holds_every_frame_and_shows_one() -> None:
    frames = [np.full((8, 8, 3), 40 * k, np.uint8) for k in range(4)]
    figure = plots.moving_figure(frames, ["a", 'b "<"', "c", "d"], "step", "squares", start=2)
    page = MovingPage(figure._repr_html_())
    shades = []
    for image in page.images:
        data = base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))
        shades.append(int(np.asarray(Image.open(io.BytesIO(data))).mean().round()))
    assert shades == pytest.approx([0, 40, 80, 120], abs=2)
    shown = ["display:block" in (image["style"] or "") for image in page.images]
    assert shown == [False, False, True, False]
    assert all((image["alt"] or "").startswith("squares") for image in page.images)
    assert page.labels == ["a", 'b "<"', "c", "d"]
    assert (page.slider["min"], page.slider["max"], page.slider["value"]) == ("0", "3", "2")
    still = np.asarray(Image.open(io.BytesIO(figure._repr_png_())))
    assert np.array_equal(still, frames[2])


def test_frames_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match="2 frames"):
        plots.moving_figure([np.zeros((2, 2, 3), np.uint8)] * 2, ["one"], "step", "squares")


def test_a_live_figure_redraws_at_every_move_and_has_a_still() -> None:
    def draw(shade: int = 40, name: str = "left") -> np.ndarray:
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, :4] += np.uint8(shade * (name == "left"))
        pixels[:, 4:] += np.uint8(shade * (name == "right"))
        return pixels

    def halves(text: str) -> list[int]:
        data = re.findall(r'base64,([^"]+)"', text)[0]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        return [int(pixels[:, side].mean().round()) for side in (slice(0, 4), slice(4, 8))]

    figure = plots.live_figure(draw, "halves", shade=(0, 40, 200), name=("left", "right"))
    bundle = figure._repr_mimebundle_()
    assert halves(bundle["text/html"]) == pytest.approx([40, 0], abs=4)
    assert 'alt="halves Shown: shade 40, name left."' in bundle["text/html"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    shade, name, picture = figure.widget().children
    shade.value, name.value = 200, "right"
    assert halves(picture.value) == pytest.approx([0, 200], abs=4)
    with pytest.raises(ValueError, match="shade starts at 40"):
        plots.live_figure(draw, "halves", shade=(0, 1))


def test_a_live_figure_is_still_without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    figure = plots.live_figure(lambda k=1: np.zeros((4, 4, 3), np.uint8), "black", k=(1, 2))
    assert set(figure._repr_mimebundle_()) == {"text/plain", "text/html", "image/jpeg"}


def test_the_ladder_shows_peers_above_its_own_rungs() -> None:
    scores = {"image AUROC": 0.5, "AUPRO": 0.4}
    figure = plots.ablation_ladder({"forward": scores, "a peer": scores}, open_rung="not here")
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["a peer", *plots.LADDER.values()]
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts.count("not here") == len(plots.LADDER) - 1


def test_feature_colors_tell_regions_apart() -> None:
    rng = np.random.default_rng(0)
    regions = np.arange(64).reshape(8, 8) // 32  # an upper and a lower half
    directions = rng.normal(size=(2, 16))
    features = directions[regions] + 0.01 * rng.normal(size=(8, 8, 16))
    colors = plots.feature_colors(features.transpose(2, 0, 1)[None])[0]
    assert colors.min() >= 0 and colors.max() <= 1
    upper, lower = colors[regions == 0], colors[regions == 1]
    assert abs(upper.mean(0) - lower.mean(0)).max() > 5 * max(upper.std(0)[0], lower.std(0)[0])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_notebooks_are_committed_whole(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert path.stat().st_size < 4_000_000
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|tmp|Users)/|site-packages", text)
    setup = code[0].source.splitlines()
    assert len(setup) <= 5 and setup[-1] == "device = course.setup(seed=0)"
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= 30 and max(map(len, lines)) <= 88, cell.source
        for node in ast.walk(ast.parse(re.sub(r"^ *%.*", "    pass", cell.source, flags=re.M))):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno and node.end_lineno - node.lineno < 25, cell.source
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if any("text/html" not in o["data"] for o in pictures):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), cell.source


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_its_rhythm(path: Path) -> None:
    """Promise; predict, run, interpret; break something; exercises; promises kept; the ladder."""
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for part in ("**At the end you will be able to**", "**You need**", "**It takes**", "Break it",
                 "## Exercises", "## Promises kept"):  # fmt: skip
        assert part in prose, part
    assert prose.count("**Predict:**") >= 4 and prose.count("**Read it:**") >= 4
    assert "assert_close" in code and "moving_figure(" in code and "live_figure(" in code
    assert "ablation_ladder" in cells[-1].source
    for number in (1, 2, 3):
        (place,) = [k for k, cell in enumerate(cells) if f"**{number}. " in cell.source]
        solution = cells[place + 1]
        assert "*Expected" in cells[place].source
        assert solution.source.startswith("# @title Solution") and "assert" in solution.source
        assert "hide-cell" in solution.metadata.tags


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_live_figures_bring_their_widgets_and_a_still(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (state,) = notebook.metadata.widgets.values()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    views = [o.data for o in outputs if WIDGET_VIEW in o.get("data", {})]
    assert views
    for view in views:
        assert view[WIDGET_VIEW]["model_id"] in state["state"]
        assert "image/jpeg" in view and 'alt="' in view["text/html"]


def test_cleaning_leaves_no_trace_of_the_machine(
    load_script: Callable[[str], ModuleType],
) -> None:
    execute = load_script("notebooks/execute.py")
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("one\n", "two\n")
    ]
    cell = nbformat.v4.new_code_cell("print()", outputs=outputs)
    cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00"}
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.2"}
    execute.clean(notebook)
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert "execution" not in cell.metadata
    assert [output.text for output in cell.outputs] == ["one\ntwo\n"]


def test_losses_are_printed_as_means_in_lines_that_fit_a_phone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = course.each_epoch("cloth", 8)
    for epoch in range(8):
        for step in (1, 2):  # losses 2e and 2e + 1: their mean is 2e + 0.5
            number = 2 * epoch + step
            report(Step(epoch, number, 16, 4, 64, loss=number - 1.0))
    title, first, second = capsys.readouterr().out.splitlines()
    assert title == "cloth, loss of 8 epochs:"
    assert first == " 0.50 2.50 4.50 6.50 8.50 10.50 12.50"
    assert second == " 14.50"
