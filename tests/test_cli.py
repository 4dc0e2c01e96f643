from __future__ import annotations

import csv
import html
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dskd_lite import cli, experiment, plots, storage
from dskd_lite.baselines import make_detector
from dskd_lite.cli import main
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import read_mask, scan_category
from dskd_lite.detector import Thresholds
from dskd_lite.errors import InputError
from dskd_lite.evaluation import score_images
from dskd_lite.foreground import object_masks
from dskd_lite.prediction import predict
from dskd_lite.report import category_table, mean_scores
from dskd_lite.training import Step, split_holdout

FAST = (
    "--teacher offline --teacher-weights random --image-size 32 --epochs 2 --batch-size 4 "
    "--fusion-epochs 2 --smoothing-sigma 1 --device cpu --octaves 0 2"
).split()

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A category and the run that the command made of it."""
    base = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for split, count in (("train/good", 8), ("test/good", 3), ("test/hole", 3)):
        folder = base / "nuts" / split
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(100, 130, (48, 48, 3)).astype(np.uint8)
            if split == "test/hole":
                pixels[8:24, 8:24] = 255
                mask = np.zeros((48, 48), np.uint8)
                mask[8:24, 8:24] = 255
                masks = base / "nuts" / "ground_truth" / "hole"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{index}_mask.png")
            Image.fromarray(pixels).save(folder / f"{index}.png")
    assert main(["train", str(base / "nuts"), *FAST, "--out", str(base / "runs" / "r")]) == 0
    return base / "nuts", base / "runs" / "r"


def processor_names() -> str:
    """What other programs than Python know of the processor."""
    try:
        return subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no Linux
        return f"{platform.processor()} {platform.machine()}"


def test_train_writes_report_page_model_and_checkpoint(trained: tuple[Path, Path]) -> None:
    data, run = trained
    report = json.loads((run / "report.json").read_text())
    assert list(report["scores"]) == ["forward", "reverse", "manual", "fused"]
    for row in report["scores"].values():
        assert list(row) == ["image_auroc", "pixel_auroc", "aupro", "legacy_pro"]
        assert all(0 <= value <= 1 for value in row.values())
    assert report["data"] == str(data)
    assert report["config"]["epochs"] == 2 and report["config"]["seed"] == 0
    assert report["images"] == {"train": 7, "held_out": 1, "test": 6}
    assert {"torch", "dskd_lite"} <= report["versions"].keys()
    assert report["hardware"]["threads"] == torch.get_num_threads()
    assert report["hardware"]["device"] in processor_names()
    day = datetime.fromtimestamp((run / "report.json").stat().st_mtime, UTC).date()
    written = date.fromisoformat(report["hardware"]["date"])
    assert day - timedelta(days=1) <= written <= day
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    page = (run / "report.html").read_text()
    assert page.count("src='data:image/png;base64,") >= 4
    assert page.count("<img alt='") == page.count("<img ")
    assert "http" not in page
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint.safetensors", "model", "report.html", "report.json", "test_scores.csv",
    ]  # fmt: skip


def test_each_test_image_and_each_kind_of_defect_has_its_figures(
    trained: tuple[Path, Path],
) -> None:
    _, run = trained
    report = json.loads((run / "report.json").read_text())
    with (run / "test_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [
        f"test/{kind}/{number}.png" for kind in ("good", "hole") for number in range(3)
    ]
    truth = [row["defect"] == "hole" for row in rows]
    for method, scores in report["scores"].items():
        values = [float(row[method]) for row in rows]
        assert scores["image_auroc"] == pytest.approx(roc_auc_score(truth, values))
    flagged = [row["verdict"] == "anomalous" for row in rows]
    threshold = report["thresholds"]["image"]
    assert flagged == [float(row["fused"]) > threshold for row in rows]
    assert report["defects"] == {
        "hole": {
            "images": 3,
            "image_auroc": report["scores"]["fused"]["image_auroc"],
            "flagged": sum(flagged[3:]) / 3,
        }
    }
    page = (run / "report.html").read_text()
    assert "<tr><th>hole</th><td>3</td>" in page


def test_a_model_of_another_category_is_not_replaced(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(data, tmp_path / "bolts")
    before = (tmp_path / "run" / "model" / "model.json").read_bytes()
    command = [*FAST, "--out", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "bolts"), *command]) == 2
    assert "holds a model of nuts, not of bolts: give another --out" in capsys.readouterr().err
    (tmp_path / "several").mkdir()
    for name in ("bolts", "nuts"):
        shutil.copytree(data, tmp_path / "several" / name)
    assert main(["train", str(tmp_path / "several"), *command]) == 2
    assert "holds a model of nuts, not of several" in capsys.readouterr().err
    (tmp_path / "run").rename(tmp_path / "bolts_run")
    (tmp_path / "out").mkdir()
    (tmp_path / "bolts_run").rename(tmp_path / "out" / "bolts")
    command = [*FAST, "--out", str(tmp_path / "out")]
    assert main(["train", str(tmp_path / "several"), *command]) == 2
    assert "holds a model of nuts, not of bolts" in capsys.readouterr().err
    assert (tmp_path / "out" / "bolts" / "model" / "model.json").read_bytes() == before
    assert main(["train", str(tmp_path / "bolts"), *command]) == 2
    assert "holds models of several categories (bolts …)" in capsys.readouterr().err
    run = tmp_path / "out" / "bolts"
    (run / "model" / "model.json").write_text("damaged")
    assert main(["train", str(tmp_path / "bolts"), *FAST, "--out", str(run)]) == 0


def test_training_says_how_many_images_there_are_and_which_files_are_none(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "nuts"
    shutil.copytree(trained[0], root)
    command = ["train", str(root), *FAST, "--out", str(tmp_path / "run")]
    (root / "train" / "good" / "of_a_phone.heic").write_bytes(b"")
    (root / "train" / "good" / "more").mkdir()
    shutil.copy(root / "train" / "good" / "0.png", root / "train" / "good" / "more")
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "8 normal images to train on, 6 to test on" in shown
    first = root / "train" / "good" / "more" / "0.png"
    assert f"passed over, being no images that are read here: {first} and 1 more\n" in shown
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["images"] == {"train": 7, "held_out": 1, "test": 6}


def test_few_held_out_images_are_told_of_wherever_their_thresholds_are_used(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained
    photo = str(data / "test" / "good" / "0.png")
    note = "rest on 1 held-out normal image: of good pieces they may flag far more than the 5 %"
    for command in (
        ["evaluate", str(run), "--out", str(tmp_path / "report"), "--device", "cpu"],
        ["predict", str(run), photo, "--out", str(tmp_path / "photos"), "--device", "cpu"],
        ["export", str(run), "--out", str(tmp_path / "model.onnx")],
    ):
        assert main(command) == 0
        assert note in capsys.readouterr().out
    assert note in json.loads((run / "report.json").read_text())["notes"][0]
    assert note in (run / "report.html").read_text()


def test_a_test_set_of_one_kind_still_gets_verdicts(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained
    for kind, other in (("good", "hole"), ("hole", "good")):
        shutil.copytree(data, tmp_path / kind)
        shutil.rmtree(tmp_path / kind / "test" / other)
        shutil.rmtree(tmp_path / kind / "ground_truth")
        command = ["evaluate", str(run), "--data", str(tmp_path / kind), "--device", "cpu"]
        assert main([*command, "--out", str(tmp_path / "report")]) == 0
        printed = capsys.readouterr().out
        with (tmp_path / "report" / "test_scores.csv").open() as file:
            flagged = [row["verdict"] == "anomalous" for row in csv.DictReader(file)]
        share = f"{100 * sum(flagged) / len(flagged):.1f} %"
        named = "normal" if kind == "good" else "defective"
        assert f": flagged of the {named} images: {share}\n" in printed
        assert "precision" not in printed and "pixels above" not in printed


def test_several_processes_train_one_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """As `accelerate launch` starts them: one report, one table, the images of one run."""
    data, run = trained
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "dskd_lite.cli", "train", str(data), *FAST, "--out", str(tmp_path / "r")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == done.stdout.count("fused") == 1
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["images"] == json.loads((run / "report.json").read_text())["images"]
    assert (tmp_path / "r" / "model" / "model.safetensors").is_file()


def test_evaluate_says_what_is_odd_about_the_images(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise figures of other photos, or of a part of them, would look like figures of these."""
    root, run = trained
    other = tmp_path / "nuts"
    shutil.copytree(root, other)
    shutil.rmtree(other / "ground_truth")
    (other / "test" / "hole" / "more").mkdir()
    (other / "test" / "hole" / "0.png").rename(other / "test" / "hole" / "more" / "0.png")
    for path in (other / "test" / "good").iterdir():
        Image.open(path).crop((0, 0, 48, 20)).save(path)
    command = ["evaluate", str(run), "--data", str(other), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    told = capsys.readouterr().out, html.unescape((tmp_path / "out" / "report.html").read_text())
    for text in told:
        assert re.search(r"passed over, .*more/0.png", text)
        assert re.search(r"0.png, 48x20 pixels is another shape .*\(and 2 more images\)", text)


def test_predict_survives_a_link_to_itself(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, run = trained
    photos = tmp_path / "photos"
    shutil.copytree(root / "test" / "good", photos)
    (photos / "self").symlink_to("self")
    command = ["predict", str(run), str(photos), "--out", str(photos / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    assert len(list(photos.glob("out/*_overlay.png"))) == 3


def test_a_sweep_over_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep"]) == 2
    assert "name a category" in capsys.readouterr().err


def test_results_replace_no_files_of_other_origin(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained
    shutil.copytree(data, tmp_path / "own")
    truth = tmp_path / "own" / "ground_truth" / "hole"
    before = {path: path.read_bytes() for path in truth.iterdir()}
    assert before
    command = ["predict", str(run), str(tmp_path / "own" / "test" / "hole"), "--out"]
    assert main([*command, str(truth)]) == 2
    assert "_mask.png is from no earlier prediction" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in truth.iterdir()} == before
    for place in (run, run / "model"):
        assert main(["evaluate", str(run), "--out", str(place)]) == 2
        assert f"{place} holds the run with its own report" in capsys.readouterr().err
    report = (run / "report.html").read_bytes()
    assert main([*command, str(run)]) == 2
    assert "report.html is from no earlier prediction" in capsys.readouterr().err
    assert (run / "report.html").read_bytes() == report
    assert main([*command, str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "scores.csv").unlink()
    (tmp_path / "out" / "report.html").unlink()  # as when the first one was interrupted
    assert main([*command, str(tmp_path / "out")]) == 0
    assert main([*command, str(tmp_path / "out")]) == 0


def test_evaluate_gives_the_figures_of_training(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert not (run / ".cache").exists()  # training's serves
    assert (run.parent / ".cache" / "dskd_lite").is_dir()  # of its own: .cache may be everybody's
    again = json.loads((run / "evaluation" / "report.json").read_text())
    first = json.loads((run / "report.json").read_text())
    for method, scores in first["scores"].items():
        assert again["scores"][method] == pytest.approx(scores, abs=1e-4)  # float32 rounds
    fused = f"{100 * first['scores']['fused']['image_auroc']:.1f}"
    assert fused in capsys.readouterr().out
    assert main(["evaluate", str(run), "--device", "cpu", "--batch-size", "0"]) == 2
    assert "--batch-size 0 must be at least 1" in capsys.readouterr().err


def test_evaluate_believes_the_model_and_not_an_older_report(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """As a run leaves it that ends between saving its model and writing its report."""
    root, run = trained
    shutil.copytree(run, tmp_path / "run")
    old = {"data": str(tmp_path / "elsewhere"), "config": {"method": "dskd", "seed": 7}}
    (tmp_path / "run" / "report.json").write_text(json.dumps(old))
    content = experiment.evaluate_run(tmp_path / "run", None, tmp_path / "out", device="cpu")
    assert content["data"] == str(root)
    assert content["config"]["seed"] == 0
    model = tmp_path / "run" / "model"
    detector = experiment.load_run(model)
    detector.save(model)  # without a word about its training
    with pytest.raises(InputError, match="does not say how it was trained"):
        experiment.evaluate_run(tmp_path / "run", None, tmp_path / "out", device="cpu")


def test_a_page_does_not_outlive_its_report(tmp_path: Path) -> None:
    content = {"config": {"method": "dskd"}, "data": "x"}
    (tmp_path / "report.html").write_text("of an earlier run")
    experiment.write_report(tmp_path, content, [""])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_name_with_dollars_is_no_formula(make_category: Make, tmp_path: Path) -> None:
    root = make_category()
    for file in [*root.glob("test/*/000.png"), *root.glob("ground_truth/*/000_mask.png")]:
        file.rename(file.with_name(file.name.replace("000", "a$_$b")))
    assert main(["train", str(root), *FAST, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    picture = np.zeros((4, 4, 3), np.uint8)
    plots.picture_grid([[picture]], ["a$_$b"], ["a$_$b"]).savefig(io.BytesIO())


def test_predict_writes_overlays_masks_and_scores_and_skips_the_unreadable(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    photos = tmp_path / "photos"
    (photos / "shelf").mkdir(parents=True)
    Image.new("RGB", (90, 60), (115, 115, 115)).save(photos / "a.jpg")
    Image.new("L", (40, 70), 115).save(photos / "shelf" / "b.png")
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(["predict", str(run), str(photos), "--out", str(out), "--device", "cpu"]) == 0
    with (out / "scores.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a.jpg", "broken.png", "shelf/b.png"]
    assert rows["broken.png"]["verdict"] == "unreadable"
    assert "cannot be read" in rows["broken.png"]["note"]
    threshold = json.loads((run / "report.json").read_text())["thresholds"]["image"]
    for name in ("a.jpg", "shelf/b.png"):
        expected = "anomalous" if float(rows[name]["score"]) > threshold else "normal"
        assert rows[name]["verdict"] == expected
        assert 0 <= float(rows[name]["anomalous_area"]) <= 1
    assert Image.open(out / "a_overlay.png").size == (90, 60)
    assert Image.open(out / "shelf" / "b_mask.png").size == (40, 70)
    page = (out / "report.html").read_text()
    assert "<a href='shelf/b_overlay.png'>" in page
    assert page.index("a_overlay.png") < page.index("<td>unreadable</td>")
    assert "broken.png" in capsys.readouterr().out


def test_a_map_that_is_no_number_is_no_verdict(tmp_path: Path) -> None:
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    detector.thresholds = Thresholds(1.0, 1.0, 0.05)
    detector.mean.fill_(float("nan"))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"map of .*a\.png is not finite"):
        predict(detector, tmp_path, tmp_path / "out")


def test_names_that_differ_in_capitals_only_are_two_on_every_system(tmp_path: Path) -> None:
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    for name in ("A.png", "a.jpg", "b.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    verdicts = predict(detector, tmp_path, tmp_path / "out")
    names = {v.overlay.name for v in verdicts}
    assert names == {"A.png_overlay.png", "a.jpg_overlay.png", "b_overlay.png"}


def test_an_overlay_is_blended_in_bands_without_a_seam() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (600, 40, 3)).astype(np.uint8)
    heat = rng.random((600, 40), dtype=np.float32)
    whole = plots.overlay(image, heat, 0.5)
    rows = [plots.overlay(image[i : i + 1], heat[i : i + 1], 0.5) for i in range(600)]
    assert (whole == np.concatenate(rows)).all()
    large = np.zeros((2000, 2000, 3), dtype=np.uint8)
    tracemalloc.start()
    plots.overlay(large, np.zeros((2000, 2000), dtype=np.float32), 1.0)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2000 * 2000
    tracemalloc.stop()


def test_scores_that_hardly_differ_have_a_histogram() -> None:
    scores = np.float32([1, np.nextafter(np.float32(1), np.float32(2))])
    plots.score_histogram(scores, np.array([False, True]))
    object_masks((255 * np.ones((2, 32, 32, 3))).astype(np.uint8))


def test_curves_without_a_role_share_colours_once_they_run_out() -> None:
    figure = plots.line_chart(np.arange(3), {str(n): np.arange(3) for n in range(7)}, "x", "y")
    assert len(figure.axes[0].lines) == 7


def test_frames_of_a_moving_figure_can_have_one_scale() -> None:
    frames = [plots.line_chart(np.arange(3), {"a": k * np.arange(3)}, "x", "y", top=9.0)
              for k in (1, 4)]  # fmt: skip
    assert [frame.axes[0].get_ylim()[1] for frame in frames] == [9.0, 9.0]


def test_output_that_nobody_reads_on_is_no_error() -> None:
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m dskd_lite.cli info --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_photos_of_one_name_both_get_results_and_results_are_no_photos(tmp_path: Path) -> None:
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a.png", (32, 32)), ("a.jpg", (40, 40)), ("b.png", (32, 32))):
        Image.new("RGB", size).save(photos / name)
    (photos / "._a.png").write_bytes(b"what a Mac leaves on a stick")
    (photos / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(photos / ".thumbnails" / "a.png")
    out = photos / "results"
    for _ in range(2):
        verdicts = predict(detector, photos, out)
        assert [v.path.name for v in verdicts] == ["a.jpg", "a.png", "b.png"]
    assert Image.open(out / "a.jpg_overlay.png").size == (40, 40)
    assert Image.open(out / "a.png_overlay.png").size == (32, 32)
    assert (out / "b_overlay.png").is_file()
    Image.new("RGB", (50, 50)).save(photos / "a.png.bmp")  # without its suffix as another is named
    predict(detector, photos, out)
    assert Image.open(out / "a.png_overlay.png").size == (32, 32)
    assert Image.open(out / "a.png.bmp_overlay.png").size == (50, 50)
    (photos / "a.png.bmp").unlink()
    with pytest.raises(InputError, match="holds the photos: give another --out"):
        predict(detector, photos, photos)
    (photos / "b_mask.png").write_bytes(b"drawn by hand")  # of the photo's owner
    with pytest.raises(InputError, match="holds the photos: give another --out"):
        predict(detector, photos / "b.png", photos)
    (photos / "b_mask.png").unlink()
    assert len(predict(detector, photos / "b.png", out)) == 1
    with pytest.raises(InputError, match="--batch-size 0 must be at least 1"):
        predict(detector, photos, out, batch_size=0)
    above = predict(detector, photos, tmp_path)  # the photos lie within it, and stay photos
    assert {photos / "a.jpg", photos / "a.png", photos / "b.png"} == {v.path for v in above}


def test_a_name_too_long_for_results_costs_only_its_photo(tmp_path: Path) -> None:
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ["a" * 243 + ".png", "b" * 244 + ".png", "c.png"]  # "_overlay.png" has 12 more bytes
    for name in names:
        Image.new("RGB", (32, 32)).save(photos / name)
    verdicts = predict(detector, photos, tmp_path / "out")
    assert [v.verdict for v in verdicts] == ["unknown", "unreadable", "unknown"]
    assert "rename the photo" in verdicts[1].note
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 2


def test_files_that_are_no_photos_are_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0).save(tmp_path / "model")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.gif", "c.webp"):
        Image.new("RGB", (32, 32)).save(photos / name)
    command = ["predict", str(tmp_path / "model"), str(photos), "--out", str(photos / "results")]
    for _ in range(2):  # results of the first are not mentioned by the second
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert f"passed over, being no photos that are read here: {photos / 'b.gif'}\n" in printed
        assert "c.webp" in printed
    (photos / "d.png").symlink_to(photos / "gone.png")
    assert main(command) == 0
    assert "b.gif and 1 more\n" in capsys.readouterr().out


def test_earlier_results_among_the_photos_are_no_photos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0).save(tmp_path / "model")
    photos = tmp_path / "photos"
    (photos / "labelled").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(photos / "a.png")
    Image.new("RGB", (32, 32)).save(photos / "labelled" / "b.png")
    (photos / "labelled" / "scores.csv").write_text("image,score\nb.png,0.5\n")  # of its owner
    for results in ("monday", "tuesday"):
        out = photos / results
        assert main(["predict", str(tmp_path / "model"), str(photos), "--out", str(out)]) == 0
        with (out / "scores.csv").open() as file:
            assert [row["image"] for row in csv.DictReader(file)] == ["a.png", "labelled/b.png"]
    first = photos / "labelled" / "scores.csv"
    assert f"{first} and 4 more\n" in capsys.readouterr().out  # overlays, table, page of monday
    (photos / "monday" / "new").mkdir()
    Image.new("RGB", (32, 32)).save(photos / "monday" / "new" / "c.png")  # results lie above it
    verdicts = predict(experiment.load_run(tmp_path / "model"), photos, tmp_path / "out")
    assert [v.path.name for v in verdicts] == ["a.png", "b.png", "c.png"]


def test_results_of_photos_that_are_gone_are_mentioned(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained
    shutil.copytree(data / "test" / "hole", tmp_path / "photos")
    command = ["predict", str(run), str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "not judged now" not in printed
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    threshold = json.loads((run / "report.json").read_text())["thresholds"]["image"]
    assert [float(row["threshold"]) for row in rows] == pytest.approx([threshold] * 3, rel=1e-5)
    anomalous = sum(row["verdict"] == "anomalous" for row in rows)
    assert f"anomalous, above {threshold:.4g}: {anomalous} of 3\n" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<h1>Photos of photos: {anomalous} of 3 above {threshold:.4g}</h1>" in page
    by_score = sorted(rows, key=lambda row: -float(row["score"]))
    assert re.findall(r"src='(.)_overlay.png'", page) == [row["image"][0] for row in by_score]
    (tmp_path / "photos" / "1.png").unlink()
    assert main([*command, "--device", "cpu"]) == 0
    (tmp_path / "photos" / "0.png").write_bytes(b"no image any more")
    assert main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "results of photos that were not judged now: 1.png\n" in printed
    assert (tmp_path / "out" / "1_overlay.png").is_file()
    anomalous = sum(row["verdict"] == "anomalous" for row in rows if row["image"] == "2.png")
    assert f"{anomalous} of 1 (1 unreadable)\n" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<h1>Photos of photos: {anomalous} of 1 (1 unreadable) above" in page


def test_names_of_photos_reach_the_page_as_they_are(tmp_path: Path) -> None:
    class Page(HTMLParser):
        sources: ClassVar[list[str]] = []
        texts: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.sources += [value or "" for name, value in attributes if name == "src"]

        def handle_data(self, data: str) -> None:
            self.texts.append(data)

    folder = tmp_path / "a <i> & b"
    folder.mkdir()
    name = "it's <b> #1%20?.png"
    Image.new("RGB", (32, 32)).save(folder / name)
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    predict(detector, folder, tmp_path / "out")
    page = Page()
    page.feed((tmp_path / "out" / "report.html").read_text())
    (source,) = page.sources
    assert (tmp_path / "out" / unquote(source)).is_file()
    assert name in page.texts
    assert "Photos of a <i> & b" in page.texts


def test_photos_of_another_shape_than_the_training_images_get_a_note(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    data, run = trained
    assert experiment.photo_size(run) == (48, 48)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("alike", (96, 96)), ("rounded", (101, 100)), ("wide", (64, 48))):
        Image.new("RGB", size).save(photos / f"{name}.png")
    command = ["predict", str(run), str(photos), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    with (tmp_path / "out" / "scores.csv").open() as file:
        notes = {row["image"]: row["note"] for row in csv.DictReader(file)}
    assert notes.pop("wide.png") == (
        "64x48 pixels is another shape than the training images' 48x48: crop it alike"
    )
    assert set(notes.values()) == {""}
    mixed = ["train", str(data), *FAST, "--mixed-sizes", "--out", str(tmp_path / "mixed")]
    assert main(mixed) == 0
    assert experiment.photo_size(tmp_path / "mixed") is None


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_category_may_have_a_name_that_is_no_text(make_category: Make, tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    make_category("cafe").rename(root)
    for folder in (root / "test", root / "ground_truth"):
        (folder / "hole").rename(os.fsdecode(os.fsencode(folder) + b"/h\xe9le"))
    photo = root / "test" / "good" / "000.png"
    photo.rename(os.fsdecode(os.fsencode(photo.parent) + b"/\xe9.png"))
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "dskd_lite.cli", "train", root, *FAST, "--out", out]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9" in (out / "report.html").read_text(encoding="utf-8")
    assert json.loads((out / "report.json").read_text())["data"] == str(root)
    assert main(["evaluate", str(out), "--device", "cpu"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_name_that_is_no_text_goes_into_the_table(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path / "photos") + b"/caf\xe9.png")
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    detector.save(tmp_path / "model")
    command = ["predict", str(tmp_path / "model"), str(tmp_path / "photos")]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}  # strict, as where a shell sets it
    run = [sys.executable, "-m", "dskd_lite.cli", *command, "--out", str(tmp_path / "out")]
    assert b"caf\\udce9.png" in subprocess.run(run, capture_output=True, env=environment).stdout
    assert b"\ncaf\xe9.png," in (tmp_path / "out" / "scores.csv").read_bytes()


@pytest.mark.parametrize("threshold", [-2.0, 0.0])
def test_a_threshold_that_is_not_positive_still_gives_a_heatmap(
    threshold: float, tmp_path: Path
) -> None:
    """As a one-class SVM has one: its scores are distances from a boundary."""
    detector = make_detector("pixel-statistics", None, 32, smoothing_sigma=1.0)
    detector.thresholds = Thresholds(threshold, threshold, 0.05)
    photo = np.zeros((32, 32, 3), np.uint8)  # black is what an unfitted detector expects
    photo[4:16, 4:16] = 200
    photo[4:16, 20:28] = 50
    Image.fromarray(photo).save(tmp_path / "a.png")
    list(predict(detector, tmp_path / "a.png", tmp_path / "out"))
    overlay = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png")).astype(int)
    covered = np.abs(overlay - photo).max(2)
    assert covered[10, 10] > 30 and (covered[24:] == 0).all()
    hottest, warm = overlay[10, 10] / overlay[10, 10].max(), overlay[10, 24] / overlay[10, 24].max()
    assert np.abs(hottest - warm).max() > 0.2  # a quarter as far from black, another colour


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    data, run = trained
    weights = {}
    for seed in ("0", "1"):
        out = tmp_path / seed
        assert main(["train", str(data), *FAST, "--seed", seed, "--out", str(out)]) == 0
        weights[seed] = (out / "model" / "model.safetensors").read_bytes()
    assert weights["0"] == (run / "model" / "model.safetensors").read_bytes()
    assert weights["0"] != weights["1"]


def test_interrupted_run_resumes_to_the_same_model(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = trained
    out = tmp_path / "run"
    command = ["train", str(data), *FAST, "--out", str(out)]

    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dskd_lite.cli.Terminal.steps", lambda self, title: stop)
        assert main(command) == 130
    assert [p.name for p in out.iterdir()] == ["checkpoint.safetensors"]
    assert main([*command, "--resume"]) == 0
    expected = (run / "model" / "model.safetensors").read_bytes()
    assert (out / "model" / "model.safetensors").read_bytes() == expected


def test_another_false_positive_rate_needs_no_new_students(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nuts, run = trained
    out = tmp_path / "runs" / "r"
    shutil.copytree(run, out)
    steps: list[object] = []
    monkeypatch.setattr("dskd_lite.training.clip_grad_norm_", lambda *a: steps.append(a))
    options = ["--out", str(out), "--resume", "--false-positive-rate", "0.5"]
    assert main(["train", str(nuts), *FAST, *options]) == 0
    assert not steps
    before, after = (json.loads((f / "report.json").read_text()) for f in (run, out))
    assert after["scores"] == before["scores"]
    assert after["thresholds"]["pixel"] < before["thresholds"]["pixel"]
    assert after["thresholds"]["false_positive_rate"] == 0.5


def test_folder_of_categories_gets_one_report(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_category("data/a")
    make_category("data/b", masks=False)
    out = tmp_path / "run"
    assert main(["train", str(tmp_path / "data"), *FAST, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert list(report["categories"]) == ["a", "b"]
    single = [json.loads((out / name / "report.json").read_text()) for name in "ab"]
    mean = np.mean([s["scores"]["fused"]["image_auroc"] for s in single])
    assert report["scores"]["fused"]["image_auroc"] == pytest.approx(mean)
    assert report["scores"]["fused"]["pixel_auroc"] is None  # b has no masks
    assert single[0]["scores"]["fused"]["pixel_auroc"] is not None
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["image", "AUROC", "forward", "reverse", "manual", "fused"]
    scores = single[1]["scores"].values()
    assert printed[2] == ["b", *(f"{100 * row['image_auroc']:.1f}" for row in scores)]
    page = (out / "report.html").read_text()
    assert "<h2>a</h2>" in page and "<h2>b</h2>" in page
    assert "<tr><th>image AUROC</th><th style" in page and "<tr><th>b</th><td>" in page
    assert "No pixel metrics: ground_truth has no masks of hole." in page
    assert page.count("The thresholds rest on 1 held-out normal image:") == 2
    notes = [" ".join(line[:3]) for line in printed]
    assert "a: The thresholds" in notes and "b: The thresholds" in notes
    capsys.readouterr()
    assert main(["predict", str(out), str(tmp_path / "data" / "a" / "test")]) == 2
    assert f"name one, e.g. {out / 'a'}" in capsys.readouterr().err


def test_a_category_without_test_images_leaves_a_gap_in_the_table() -> None:
    scores = {"fused": {"image_auroc": 0.875}}
    lines = category_table({"plain": {}, "gear": scores}).splitlines()
    for tables in ([{}, scores], [scores, {}]):
        mean = mean_scores(tables)["fused"]
        assert (mean["image_auroc"], mean["pixel_auroc"]) == (0.875, None)
    assert [line.split() for line in lines] == [
        ["image", "AUROC", "fused"], ["plain", "–"], ["gear", "87.5"],
    ]  # fmt: skip


def test_category_without_test_images_trains(make_category: Make, tmp_path: Path) -> None:
    root = make_category("plain", good=0, defects=0)
    out = tmp_path / "run"
    assert main(["train", str(root), *FAST, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["scores"] == {} and "No test images" in report["notes"][0]
    assert (out / "model").is_dir() and not (out / "report.html").exists()


@pytest.mark.parametrize(
    "method",
    [
        "pixel-statistics",
        "one-class-svm",
        "pca",
        "gaussian",
        "nearest-patches",
        "autoencoder",
        "rd4ad",
    ],
)
def test_every_method_trains_is_evaluated_and_predicts(
    method: str, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = trained[0], tmp_path / "run"
    assert main(["train", str(data), *FAST, "--method", method, "--out", str(run)]) == 0
    first = json.loads((run / "report.json").read_text())
    assert list(first["scores"]) == [method]
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    again = json.loads((run / "evaluation" / "report.json").read_text())
    assert again["scores"][method] == pytest.approx(first["scores"][method], abs=1e-4)
    out = tmp_path / "out"
    photos = data / "test" / "hole"
    assert main(["predict", str(run), str(photos), "--out", str(out), "--device", "cpu"]) == 0
    with (out / "scores.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    category = scan_category(data)
    images = decoded_images([s.path for s in category.test if s.is_defective], 32, None)
    maps = score_images(experiment.load_run(run), images)[method]
    assert scores == pytest.approx(maps.max((1, 2)), rel=1e-4)
    page = (run / "report.html").read_text(encoding="utf-8").lower()
    assert f"<h1>{method} on {data.name}</h1>" in page
    if method != "rd4ad":
        capsys.readouterr()
        assert main(["export", str(run), "--out", str(tmp_path / "model.onnx")]) == 2
        assert "cannot be exported, only detectors with students" in capsys.readouterr().err


@pytest.mark.parametrize("fusion", ["recommended", "paper"])
def test_options_and_held_out_images_reach_training(
    fusion: str, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = {}
    for name in ("train_students", "train_fusion", "score_images", "fit_thresholds"):
        spies[name] = Mock(wraps=getattr(experiment, name))
        monkeypatch.setattr(experiment, name, spies[name])
    options = (
        "--epochs 3 --batch-size 5 --learning-rate 0.001 --loss flattened --seed 3 --holdout 0.4 "
        f"--fusion-epochs 4 --octaves 1 3 --opacity 0.3 0.6 --fusion {fusion} "
        "--false-positive-rate 0.2"
    ).split()
    out = str(tmp_path / "run")
    assert main(["train", str(trained[0]), *FAST, *options, "--out", out]) == 0
    images = decoded_images(scan_category(trained[0]).train, 32, None)
    fitted, held_out = split_holdout(len(images), 0.4, seed=3)
    assert len(held_out) == 3

    _, learned, epochs, batch_size, learning_rate, loss, seed, *_ = spies[
        "train_students"
    ].call_args[0]
    assert (epochs, batch_size, learning_rate, loss, seed) == (3, 5, 0.001, "flattened", 3)
    assert np.array_equal(learned, images[fitted])

    _, noised, noise, epochs, batch_size = spies["train_fusion"].call_args[0]
    assert (epochs, batch_size, spies["train_fusion"].call_args[1]["seed"]) == (4, 5, 3)
    assert np.array_equal(noised, images[fitted])
    assert (noise.octaves, noise.opacity) == ((1, 3), (0.3, 0.6))
    for_scales = spies["train_fusion"].call_args[1]["held_out"]
    if fusion == "paper":
        assert for_scales is None
    else:
        assert np.array_equal(for_scales, images[held_out])

    assert np.array_equal(spies["score_images"].call_args[0][1], images[held_out])
    maps, rate = spies["fit_thresholds"].call_args[0]
    assert (maps.shape, rate) == ((3, 32, 32), 0.2)
    nonnegative = experiment.load_run(tmp_path / "run").options["nonnegative_fusion"]
    assert nonnegative == (fusion == "recommended")


def test_noise_falls_on_the_object_or_where_a_mask_says(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = trained[0], tmp_path / "masks"
    folder.mkdir()
    given = np.zeros((8, 48, 48), np.uint8)
    for index, mask in enumerate(given):
        mask[:, 6 * index : 6 * index + 6] = 255
        Image.fromarray(mask).save(folder / f"{index}.png")
    seen: list[tuple[np.ndarray, np.ndarray | None]] = []

    def spy(detector: object, images: np.ndarray, *_: object, **options: object) -> None:
        seen.append((images, options["allowed"]))

    monkeypatch.setattr(experiment, "train_fusion", spy)
    for where in ("anywhere", "object", str(folder), str(folder / "0.png")):
        out = str(tmp_path / "run")
        assert main(["train", str(data), *FAST, "--noise-on", where, "--out", out]) == 0
    everywhere, on_object, by_folder, by_file = (allowed for _, allowed in seen)
    images = seen[0][0]
    assert everywhere is None
    assert np.array_equal(on_object, object_masks(images))
    train = decoded_images(scan_category(data).train, 32, None)
    chosen = [next(i for i, t in enumerate(train) if np.array_equal(t, image)) for image in images]
    for index, mask in zip(chosen, by_folder, strict=True):
        assert np.array_equal(mask, read_mask(folder / f"{index}.png", 32))
    assert (by_file == read_mask(folder / "0.png", 32)).all()

    (tmp_path / "masks" / "nuts").mkdir()  # of several categories: a subfolder with its name
    for index in range(8):
        Image.fromarray(255 - given[index]).save(tmp_path / "masks" / "nuts" / f"{index}.png")
    out = str(tmp_path / "run")
    assert main(["train", str(data), *FAST, "--noise-on", str(folder), "--out", out]) == 0
    inverse = read_mask(folder / "nuts" / f"{chosen[0]}.png", 32)
    assert np.array_equal(seen[-1][1][0], inverse)


def _damage(root: Path, tmp_path: Path, how: str) -> list[str]:
    """Prepare one kind of bad input; returns the options that meet it."""
    if how == "truncated image":
        victim = root / "train" / "good" / "001.png"
        victim.write_bytes(victim.read_bytes()[:100])
    if how == "sizes differ":
        Image.new("RGB", (64, 32)).save(root / "train" / "good" / "009.png")
    if how == "damaged mask":
        mask = root / "ground_truth" / "hole" / "001_mask.png"
        mask.write_bytes(mask.read_bytes()[:45])  # the header is whole
    if how == "mask size":
        Image.new("L", (10, 10)).save(root / "ground_truth" / "hole" / "001_mask.png")
    if how == "no train/good":
        (root / "train" / "good").rename(root / "train" / "bad")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pth").write_bytes(b"junk")
    return {
        "image size": ["--image-size", "16"],
        "odd image size": ["--image-size", "100"],
        "vast image size": ["--image-size", "32000"],
        "weights": ["--teacher-weights", str(tmp_path / "junk.pth")],
        "no textures": ["--textures", str(tmp_path / "empty")],
        "epochs": ["--epochs", "0"],
        "rate": ["--learning-rate", "-1"],
        "holdout": ["--holdout", "1.5"],
        "seed": ["--seed", "-1"],
        "device": ["--device", "cuda"],
        "unknown option": ["--epoch", "3"],
        "unknown preset": ["--preset", "fast"],
        "no masks": ["--noise-on", str(tmp_path / "empty")],
        "no such place": ["--noise-on", "objects"],
        "octaves": ["--octaves", "0", "6"],  # 64 cells in 32 pixels
        "out": ["--out", str(tmp_path / "junk.pth" / "run")],
    }.get(how, [])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated image", "001.png cannot be read"),
        ("sizes differ", "images differ in size"),
        ("mask size", "001_mask.png is 10x10 pixels"),
        ("damaged mask", "001_mask.png cannot be read"),
        ("no train/good", "no train/good"),
        ("image size", "multiple of 32"),
        ("odd image size", "multiple of 32"),
        ("vast image size", "at most 4096"),
        ("weights", "junk.pth is not a weights file"),
        ("no textures", "holds no image"),
        ("epochs", "--epochs 0 must be at least 1"),
        ("rate", "--learning-rate -1.0 must be above 0"),
        ("holdout", "--holdout 1.5 must lie between 0 and 1"),
        ("seed", "--seed -1 must be at least 0"),
        ("device", "no CUDA device"),
        ("unknown option", "unknown option --epoch"),
        ("unknown preset", "choose one of demo"),
        ("no masks", "has no mask for"),
        ("no such place", "--noise-on objects does not exist"),
        ("octaves", "room for octave 5 at most"),
        ("out", "junk.pth is a file; choose another --out"),
    ],
)
def test_bad_input_gets_one_line_status_2_and_leaves_nothing(
    how: str, words: str, make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_category()
    options = _damage(root, tmp_path, how)
    out = tmp_path / "run"
    assert main(["train", str(root), *FAST, "--out", str(out), *options]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("dskd: ") and words in message
    assert not out.exists()
    if how in ("epochs", "rate", "holdout", "octaves", "out"):  # seen before any image is read
        assert not (tmp_path / ".cache").exists()


def test_a_second_training_into_one_folder_is_refused(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(make_category()), *FAST, "--out", str(tmp_path / "run")]
    with storage.locked(tmp_path / "run"):
        assert main(command) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    assert f"{checkpoint} is of an earlier training: --resume" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.before.*"))  # it is done: nothing older is kept


def test_a_training_deletes_no_folder_of_somebody_else(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "project" / "model" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    command = ["train", str(make_category()), *FAST, "--out", str(tmp_path / "project")]
    assert main(command) == 2
    assert f"{thesis.parent} holds files that no training wrote" in capsys.readouterr().err
    assert thesis.read_text() == "years of work"
    thesis.rename(thesis.with_name(".DS_Store"))  # which a file browser leaves there
    assert main(command) == 0


def test_resuming_nothing_says_so(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(make_category()), *FAST, "--out", str(tmp_path / "typo"), "--resume"]
    assert main(command) == 0
    assert f"no {tmp_path / 'typo' / 'checkpoint.safetensors'} to resume" in capsys.readouterr().err
    assert main(command) == 0
    assert "to resume" not in capsys.readouterr().err


def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setitem(cli.COMMANDS, "info", (cli.COMMANDS["info"][0], exhausted))
    assert main(["info", "--teacher", "resnet18"]) == 2
    assert capsys.readouterr().err == "dskd: out of memory: lower --batch-size or --image-size\n"


def test_a_run_of_several_categories_and_one_of_them_do_not_meet(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_category("data/chip")
    make_category("data/gear")
    command = ["train", str(tmp_path / "data"), *FAST, "--out", str(tmp_path / "run")]
    with storage.locked(tmp_path / "run" / "gear"):  # as `dskd train data/gear --out run/gear` has
        assert main(command) == 2
    assert f"another process is writing {tmp_path / 'run' / 'gear'}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "chip").exists()


def test_a_folder_that_alone_may_be_written_is_enough(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, out = tmp_path / "closed", tmp_path / "closed" / "out"
    out.mkdir(parents=True)
    allowed, made = os.access, tempfile.mkstemp

    def access(path: Path, mode: int, **more: object) -> bool:  # root may write everywhere
        return Path(path) != closed and allowed(path, mode, **more)

    def make(*args: object, **options: object) -> tuple[int, str]:
        assert Path(options["dir"]) != closed
        return made(*args, **options)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(tempfile, "mkstemp", make)
    assert main(["train", str(make_category()), *FAST, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--device", "cpu"]) == 0
    assert [path.name for path in closed.iterdir()] == ["out"]


def test_a_test_set_needs_no_training_images(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nuts, run = trained
    for part in ("test", "ground_truth"):
        shutil.copytree(nuts / part, tmp_path / "nuts" / part)
    out = tmp_path / "evaluation"
    command = ["evaluate", str(run), "--data", str(tmp_path / "nuts"), "--out", str(out)]
    assert main([*command, "--device", "cpu"]) == 0
    scores = [json.loads((f / "report.json").read_text())["scores"] for f in (run, out)]
    assert scores[0] == scores[1]
    shutil.rmtree(tmp_path / "nuts" / "test")
    shutil.rmtree(tmp_path / "nuts" / "ground_truth")
    assert main(command) == 2
    assert "has no test images: put some in" in capsys.readouterr().err


def test_missing_folder_run_and_photo_get_status_2(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    nowhere = str(tmp_path / "nowhere")
    for command in (
        ["train", nowhere],
        ["evaluate", nowhere],
        ["evaluate", str(run), "--data", nowhere],
        ["predict", nowhere, str(tmp_path)],
        ["predict", str(run), nowhere],
        ["fly"],
    ):
        assert main(command) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("dskd: "), command


def test_full_disk_while_saving_the_model_keeps_the_old_run(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, _ = trained
    out = tmp_path / "run"
    assert main(["train", str(data), *FAST, "--out", str(out)]) == 0
    kept = ("model/model.safetensors", "model/model.json", "report.json", "report.html")
    before = [(out / name).read_bytes() for name in kept]
    flush = storage._flush_to_disk

    def full(path: Path) -> None:
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(storage, "_flush_to_disk", full)
    assert main(["train", str(data), *FAST, "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [(out / name).read_bytes() for name in kept] == before
    assert len(list((out / "model").iterdir())) == 2


def test_presets_change_defaults_and_options_still_win(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        experiment, "run", lambda config, display: seen.append(config) or {"scores": {}}
    )
    data = str(make_category())
    for preset in ("demo", "paper-128", "paper-256"):
        assert main(["train", data, "--preset", preset]) == 0
    assert main(["train", data, "--preset=paper-128", "--image-size", "64"]) == 0
    assert [c.image_size for c in seen] == [128, 128, 256, 64]
    assert [c.teacher for c in seen] == ["offline", *["wide_resnet50_2"] * 3]
    assert [c.epochs for c in seen[1:]] == [200, 200, 200]


def test_info_counts_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--teacher", "wide_resnet50_2", "--image-size", "256", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["parts"]["forward_student"]["parameters"] == 66_834_240
    assert info["parts"]["reverse_student"]["multiply_adds"] == pytest.approx(23e9, rel=0.03)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from dskd_lite.cli import main; main(['--help']); "
        "print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "dskd COMMAND" in result.stdout
    assert result.stdout.strip().endswith("False")


@pytest.mark.parametrize(("emulated_only", "expected"), [(True, "fp16"), (False, "bf16")])
def test_a_gpu_that_only_emulates_bf16_computes_in_fp16(
    emulated_only: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a T4 does: PyTorch says that it supports bf16, unless asked without emulation."""

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated_only

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert experiment.resolve("cuda", "auto") == (torch.device("cuda"), expected)


def test_a_page_is_written_where_no_score_is_above_zero() -> None:
    maps = {"one-class-svm": np.full((2, 8, 8), -3.0)}
    limits = plots.color_limits(maps)
    assert limits == {"one-class-svm": 0.0}
    images = np.zeros((2, 8, 8, 3), np.uint8)
    plots.heatmap_grid(images, None, maps, limits, ["a", "b"]).canvas.draw()


def test_a_report_that_fails_leaves_the_model(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise InputError("no")

    monkeypatch.setattr(experiment, "evaluate", fails)
    out = tmp_path / "run"
    assert main(["train", str(make_category()), *FAST, "--out", str(out)]) == 2
    assert experiment.load_run(out).thresholds is not None


def test_masks_that_cover_everything_give_a_note(make_category: Make, tmp_path: Path) -> None:
    root = make_category(good=0)
    for mask in (root / "ground_truth" / "hole").iterdir():
        Image.new("L", Image.open(mask).size, 255).save(mask)
    out = tmp_path / "run"
    assert main(["train", str(root), *FAST, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["scores"]["fused"]["pixel_auroc"] is None
    assert any("the masks cover every pixel" in note for note in report["notes"])


def test_a_mask_that_vanishes_gives_a_note(make_category: Make, tmp_path: Path) -> None:
    root = make_category()
    mask = next((root / "ground_truth").rglob("*_mask.png"))
    point = np.zeros(Image.open(mask).size[::-1], np.uint8)
    assert main(["train", str(root), *FAST, "--out", str(tmp_path / "before")]) == 0
    point[0, 0] = 255  # a pixel of an image that is made smaller
    Image.fromarray(point).save(mask)
    assert not read_mask(mask, 32).any()
    assert main(["train", str(root), *FAST, "--out", str(tmp_path / "after")]) == 0
    notes = [
        json.loads((tmp_path / name / "report.json").read_text())["notes"]
        for name in ("before", "after")
    ]
    assert not [note for note in notes[0] if "empty at this image size" in note]
    assert [note for note in notes[1] if "The masks of 1 defective images are empty" in note]


def test_a_category_that_is_too_small_stops_before_the_first_is_trained(
    make_category: Make, tmp_path: Path
) -> None:
    make_category("data/a")
    make_category("data/b", train=2)
    out = tmp_path / "run"
    assert main(["train", str(tmp_path / "data"), *FAST, "--out", str(out)]) == 2
    assert not out.exists()


def test_a_place_that_cannot_even_be_looked_at_is_named(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("x" * 300) / "run"
    assert main(["train", str(make_category()), *FAST, "--out", str(out)]) == 2
    assert "could not be written (File name too long)" in capsys.readouterr().err


def test_auto_never_takes_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert experiment.resolve("auto", "auto") == (torch.device("cpu"), "fp32")
    assert experiment.resolve("mps", "auto") == (torch.device("mps"), "fp32")
