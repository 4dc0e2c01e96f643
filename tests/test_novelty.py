from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dskd_lite import experiment
from dskd_lite.cli import main
from dskd_lite.datasets.one_class import class_folders
from dskd_lite.experiment import Silent
from dskd_lite.novelty import Novelty, fitted_to_size, image_scores, run_novelty, table
from dskd_lite.sweep import RESULTS, read_results, summary
from dskd_lite.training import Step

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
FAST = ("--teacher-weights random --epochs 1 --batch-size 4 --fusion-epochs 1 --device cpu").split()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Noise of three colours; red is only ever tested."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 4)):
        for name, colour in COLOURS.items():
            if (part, name) == ("train", "red"):
                continue
            folder = tmp_path / "colours" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "colours"


def test_each_class_in_turn_is_normal_and_one_that_is_done_is_not_run_again(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["novelty", str(classes), *FAST, "--out", str(out)]
    (classes / "loose.png").touch()  # beside train and test
    (classes / "train" / "loose.png").touch()
    assert main([*command, "--classes", "green"]) == 0
    printed = capsys.readouterr().err
    assert f"no images that are read here: {classes / 'train' / 'loose.png'}\n" in printed
    trained: list[str] = []
    train = experiment.train_detector
    monkeypatch.setattr(
        experiment,
        "train_detector",
        lambda config, *rest: trained.append(*config.classes) or train(config, *rest),
    )
    assert main(command) == 0
    assert trained == ["blue"]  # green was done, red has nothing to train on
    rows = {row["normal"]: row for row in read_results(out / RESULTS)}
    assert list(rows) == ["green", "blue"]
    assert list(rows["blue"]["scores"]) == ["forward", "reverse", "manual", "fused"]
    assert rows["blue"]["images"] == {"train": 5, "held_out": 1, "test": 12}
    assert rows["blue"]["hardware"]["threads"] == torch.get_num_threads()
    assert rows["blue"]["config"]["data"] == "colours" and "out" not in rows["blue"]["config"]
    assert len(summary(list(rows.values()))) == 2 * 4

    printed = capsys.readouterr().out.strip().splitlines()[-6:]
    assert printed[0] == "| normal class | forward | reverse | manual | fused |"
    for line, normal in zip(printed[2:4], ("blue", "green"), strict=True):
        figures = [100 * s["image_auroc"] for s in rows[normal]["scores"].values()]
        assert line == f"| {normal} | " + " | ".join(f"{f:.1f}" for f in figures) + " |"
    mean = sum(100 * row["scores"]["fused"]["image_auroc"] for row in rows.values()) / 2
    assert printed[4].startswith("| mean |") and printed[4].endswith(f"| {mean:.1f} |")

    assert main([*command, "--fusion", "paper"]) == 2
    assert "with fusion recommended, not paper" in capsys.readouterr().err
    image = sorted((classes / "test").rglob("*.png"))[0]
    Image.new("RGB", Image.open(image).size).save(image)
    assert main(command) == 2
    assert "of other images than" in capsys.readouterr().err


def test_an_interrupted_class_goes_on_from_its_checkpoint(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ["novelty", str(classes), *FAST, "--epochs", "3", "--classes", "green"]
    assert main([*command, "--out", str(whole)]) == 0
    steps: list[int] = []

    def stop(step: Step) -> None:
        steps.append(step.step)
        if step.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dskd_lite.cli.Terminal.steps", lambda self, title: stop)
        assert main([*command, "--out", str(out)]) == 130
    assert len(list(out.glob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(
            "dskd_lite.cli.Terminal.steps",
            lambda self, title: (
                lambda step: steps.append(step.step) if title == "students" else None
            ),
        )
        assert main([*command, "--out", str(out)]) == 0
    assert steps == [1, 2, 3, 4, 5, 6]  # nothing twice
    assert [path.name for path in out.glob("[!.]*")] == [RESULTS]
    (expected,), (found,) = read_results(whole / RESULTS), read_results(out / RESULTS)
    assert found["scores"] == expected["scores"]


@pytest.mark.parametrize("method", ["dskd", "pca"])
def test_figures_are_scikit_learns_on_the_maxima_of_the_maps(
    method: str, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    train = experiment.train_detector
    monkeypatch.setattr(
        experiment, "train_detector", lambda *rest: kept.append(train(*rest)) or kept[-1]
    )
    options = Novelty(
        classes, classes=("blue",), out=tmp_path / "out", method=method, teacher_weights="random",
        epochs=1, batch_size=4, fusion_epochs=1, device="cpu",
    )  # fmt: skip
    (row,) = run_novelty(options, Silent())
    detector = kept[0][0]
    task = class_folders(classes).task("blue")
    assert np.array_equal(task.images[:4].mean((0, 1, 2)).round() > 100, (False, False, True))
    images = np.array(task.images)
    scores = image_scores(detector, images, batch_size=5)
    maps = experiment.score_images(detector, images)
    for name, values in scores.items():
        assert np.allclose(values, [m.max() for m in maps[name]], rtol=1e-5)
        expected = roc_auc_score([0] * 4 + [1] * 8, values)
        assert row["scores"][name]["image_auroc"] == pytest.approx(expected)


def test_sigma_and_octaves_follow_the_size_unless_given() -> None:
    for size, sigma, octaves in ((32, 0.5, (0, 2)), (96, 1.5, (0, 3)), (256, 4.0, (0, 5))):
        options = fitted_to_size(Novelty(image_size=size))
        assert (options.smoothing_sigma, options.octaves) == (sigma, octaves)
    given = fitted_to_size(Novelty(smoothing_sigma=1.0, octaves=(1, 1)))
    assert (given.smoothing_sigma, given.octaves) == (1.0, (1, 1))


def test_digits_need_no_folder(tmp_path: Path) -> None:
    command = ["novelty", *FAST, "--method", "one-class-svm", "--classes", "0", "7"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    rows = read_results(tmp_path / RESULTS)
    assert [row["key"] for row in rows] == [
        f"digits_{n}_one-class-svm_offline-random_32_e1_s0" for n in (0, 7)
    ]
    assert {row["images"]["test"] for row in rows} == {599}
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "cat"], "no class is called 'cat': choose one of blue, green, red"),
        (["--classes", "red"], "class 'red' has no training images"),
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
        (["--image-size", "40"], "multiple of 32"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    options: list[str], words: str, classes: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert main(["novelty", str(classes), *FAST, *options, "--out", str(out)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("dskd: ") and words in message
    assert not out.exists()
    assert main(["novelty", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "nowhere/train is missing" in capsys.readouterr().err


def test_classes_without_both_parts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("train/a", "test/b", "test/c"):
        (tmp_path / "data" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / place / "0.png")
    command = ["novelty", str(tmp_path / "data"), *FAST, "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "has both training and test images" in capsys.readouterr().err


def test_a_class_too_small_stops_before_the_first_is_trained(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((classes / "train" / "green").iterdir())[2:]:
        path.unlink()
    out = tmp_path / "out"
    command = ["novelty", str(classes), *FAST, "--out", str(out), "--classes", "blue", "green"]
    assert main(command) == 2
    assert "class green: 2 normal images are not enough" in capsys.readouterr().err
    assert not out.exists()


def test_one_class_alone_has_no_mean() -> None:
    rows = [{"normal": "a", "scores": {"pca": {"image_auroc": 0.75}}}]
    assert table(rows) == "| normal class | pca |\n| --- | --- |\n| a | 75.0 |"
