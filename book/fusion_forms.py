"""Which form of the fusion do noise and normal images choose, and what would each have found?

    python book/fusion_forms.py RUN [RUN ...] --textures DTD

RUN is a folder that `dskd train` or `dskd sweep` wrote, of DSKD on one category whose images are
still in their place. Its students stay as they are. Each form finds six weights on noise over the
images that trained them, filled from the first half of DTD's classes. The forms are judged on
held-out normal images under noise from the other half, and of other kinds: the even images give
the scales and variances, the odd ones are judged. Last, each form is shown the test images, which
choose nothing.

What was settled before any figure was seen: the form chosen is the one with the best mean of pixel
AUROC and AUPRO over the kinds of noise, the seeds and the categories. Rows go to --out, one a run;
those that it holds are passed over.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dskd_lite import metrics
from dskd_lite.config import Config
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import read_masks, scan_category
from dskd_lite.datasets.textures import TextureFolder
from dskd_lite.detector import DSKD, about_saved, versions
from dskd_lite.evaluation import MAX_FPR
from dskd_lite.experiment import MODEL, load_run
from dskd_lite.fusion import (
    STUDENT_MAPS,
    MixLine,
    ScoreMapFusion,
    inverse_variance_weights,
    manual_weights,
)
from dskd_lite.hardware import hardware
from dskd_lite.sweep import add_result, portable, read_results
from dskd_lite.synthetic_noise import SyntheticNoise, Textures
from dskd_lite.training import (
    fit_fusion,
    noised_maps,
    normal_statistics,
    split_holdout,
    to_tensor,
)

OUT = Path(__file__).resolve().parent / "results" / "fusion_forms.jsonl"
# Octaves and opacity of the noise that weights are trained on, epochs, and whether on smooth maps.
TRAINED_ON = {
    "paper": ((0, 5), (0.15, 1.0), 20, True),
    "large": ((0, 2), (0.15, 1.0), 20, True),
    "faint": ((0, 5), (0.15, 0.5), 20, True),
    "five times as long": ((0, 5), (0.15, 1.0), 100, True),
    "smoothed afterwards": ((0, 5), (0.15, 1.0), 20, False),
}
# Octaves, opacity and filling of the noise that forms are judged on.
JUDGED_ON = {
    "blobs": ((0, 2), (0.15, 1.0), "texture"),
    "specks": ((3, 5), (0.15, 1.0), "texture"),
    "faint": ((0, 5), (0.15, 0.4), "texture"),
    "colour": ((0, 3), (0.5, 1.0), "colour"),
    "moved": ((0, 3), (0.5, 1.0), "moved"),
}
DRAWS, JUDGE_SEED, BATCH = 4, 1000, 16


def halves(folder: str, size: int) -> tuple[TextureFolder, TextureFolder]:
    """Textures of the first and of the second half of the classes, which are subfolders."""
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    parts = classes[: len(classes) // 2], classes[len(classes) // 2 :]
    if not parts[0]:
        raise SystemExit(f"{folder} has fewer than two subfolders: give DTD's folder `images`")
    first, second = (TextureFolder(folder, size) for _ in parts)
    for textures, names in zip((first, second), parts, strict=True):
        textures.paths = [p for p in textures.paths if p.relative_to(folder).parts[0] in names]
    return first, second


def filling(kind: str, textures: Textures, normal: np.ndarray) -> Textures:
    """What noise is filled with: textures, plain colours, or normal images moved by half."""
    size = normal.shape[1]
    if kind == "texture":
        return textures
    if kind == "colour":
        colours = torch.rand(200, 3, generator=torch.Generator().manual_seed(JUDGE_SEED))
        return [colour.view(3, 1, 1).expand(3, size, size) for colour in colours]
    return list(to_tensor(np.roll(normal, (size // 2, size // 2), axis=(1, 2))))


def untrained(means: Tensor, variances: Tensor) -> dict[str, Tensor]:
    """Weights (6,) of the raw maps, by form, that no noise is needed for."""
    first = torch.tensor([1.0] * STUDENT_MAPS + [0.0] * STUDENT_MAPS)
    return {
        "forward": first,
        "reverse": 1 - first,
        "manual": 3 - 2 * first,
        "scaled": 1 / means,
        "inverse variance": inverse_variance_weights(means, variances) / means,
    }


def trained(
    banks: Sequence[tuple[Tensor, Tensor]], means: Tensor, variances: Tensor, epochs: int
) -> Iterator[tuple[str, Tensor]]:
    """Weights (6,) of the raw maps, by form, that are fitted to maps under noise."""
    forms = {
        "free": (False, False, None),
        "non-negative": (True, False, None),
        "scaled, free": (False, True, None),
        "scaled, non-negative": (True, True, None),
        "scaled, non-negative, from manual": (True, True, manual_weights(means)),
    }
    for name, (nonnegative, scaled, start) in forms.items():
        fusion = ScoreMapFusion(nonnegative)
        with torch.no_grad():
            if scaled:
                fusion.input_scale.copy_(means)
            if start is not None:
                fusion.weight.copy_(start)
        fit_fusion(fusion, banks, epochs)
        yield name, fusion.map_weights.detach()
    fusion = ScoreMapFusion(nonnegative=True)
    fusion.input_scale.copy_(means)
    line = MixLine(manual_weights(means), inverse_variance_weights(means, variances))
    fit_fusion(fusion, banks, epochs, line)
    yield "line", fusion.map_weights.detach()


def quality(
    maps: Tensor, masks: np.ndarray, labels: np.ndarray, weights: Tensor
) -> dict[str, float]:
    """The three metrics of one mix of score maps (N, 6, H, W)."""
    fused = torch.relu(torch.einsum("nkhw,k->nhw", maps, weights)).numpy()
    return {
        "image_auroc": metrics.auroc(fused.max(axis=(1, 2)), labels),
        "pixel_auroc": metrics.auroc(fused, masks),
        "aupro": metrics.aupro(fused, masks, MAX_FPR),
    }


@torch.no_grad()
def score_maps(detector: DSKD, images: np.ndarray) -> Tensor:
    """Six maps of each image: uint8 (N, H, W, 3) gives (N, 6, H, W)."""
    starts = range(0, len(images), BATCH)
    return torch.cat([detector.score_maps(to_tensor(images[s : s + BATCH])) for s in starts])


def study(run: Path, textures: str) -> dict[str, Any]:
    """The row of one run: for each form its weights, and its quality on noise and on the test."""
    about = about_saved(run / MODEL)
    config = Config(**about["config"])
    detector = load_run(run).for_scoring().eval()
    if not isinstance(detector, DSKD):
        raise SystemExit(f"{run} is no run of DSKD")
    size = config.image_size
    category = scan_category(Path(about["data"]))
    normal = decoded_images(category.train, size, None)
    fitted, held_out = split_holdout(len(normal), config.holdout, config.seed)
    for_scales, judged = normal[held_out[::2]], normal[held_out[1::2]]
    to_fit, to_judge = halves(textures, size)

    forms = untrained(*normal_statistics(detector, for_scales))
    smoothing = detector.smoothing
    for name, (octaves, opacity, epochs, smooth) in TRAINED_ON.items():
        detector.smoothing = smoothing if smooth else nn.Identity()
        noise = SyntheticNoise(to_fit, (size, size), opacity, octaves)
        banks = noised_maps(detector, normal[fitted], noise, BATCH, config.seed)
        scales = normal_statistics(detector, for_scales)
        for form, weights in trained(banks, *scales, epochs):
            forms[f"{form} | {name}"] = weights
    detector.smoothing = smoothing
    del banks  # of memory they take most

    scores: dict[str, Any] = {
        form: {"weights": (weights / weights.abs().sum()).tolist(), "noise": {}}
        for form, weights in forms.items()
    }
    clean = score_maps(detector, judged)
    for number, (kind, (octaves, opacity, filled)) in enumerate(JUDGED_ON.items()):
        noise = SyntheticNoise(filling(filled, to_judge, normal[fitted]), (size, size), opacity,
                               octaves)  # fmt: skip
        pairs = noised_maps(detector, judged, noise, BATCH, JUDGE_SEED + number, DRAWS)
        maps = torch.cat([clean, *(maps for maps, _ in pairs)])
        masks = torch.cat([torch.zeros_like(clean[:, 0]), *(mask for _, mask in pairs)]).numpy() > 0
        for form, weights in forms.items():
            scores[form]["noise"][kind] = quality(maps, masks, masks.any(axis=(1, 2)), weights)
    test = decoded_images([sample.path for sample in category.test], size, None)
    maps, masks = score_maps(detector, test), read_masks(category.test, size)
    labels = np.array([sample.is_defective for sample in category.test])
    for form, weights in forms.items():
        scores[form]["test"] = quality(maps, masks, labels, weights)
    return {
        "key": run.name, "category": category.name, "scores": scores, "versions": versions(),
        "hardware": hardware(torch.device("cpu")), "config": portable(about["config"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--textures", required=True, help="DTD's folder images")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a teacher without layer4's branch says so once too often
    done = {row["key"] for row in read_results(options.out)}
    for run in options.runs:
        if run.name in done:
            print(f"{run.name}: done before", flush=True)
            continue
        row = study(run, options.textures)
        add_result(options.out, row)
        print(f"{run.name}: done", flush=True)


if __name__ == "__main__":
    main()
