"""What several tests share: a tiny category to train on, and the way to the real data."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]


# So that sums come in one order, and parallel runs do not collide: here for fixtures that outlive
# a test, below because some tests change it.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    AcceleratorState._reset_state()  # or one test's precision would be the next one's


@pytest.fixture
def make_category(tmp_path: Path) -> Callable[..., Path]:
    """Make a category in MVTec layout: grey noise, defects are a white square."""

    def make(
        name: str = "tiny", train: int = 6, good: int = 3, defects: int = 3, masks: bool = True,
        size: int = 64,
    ) -> Path:  # fmt: skip
        rng = np.random.default_rng(0)
        root = tmp_path / name

        def save(pixels: np.ndarray, path: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)

        def normal() -> np.ndarray:
            return rng.integers(100, 130, (size, size, 3)).astype(np.uint8)

        for index in range(train):
            save(normal(), root / "train" / "good" / f"{index:03}.png")
        for index in range(good):
            save(normal(), root / "test" / "good" / f"{index:03}.png")
        for index in range(defects):
            pixels, mask = normal(), np.zeros((size, size), np.uint8)
            area = (slice(10, 10 + size // 4), slice(12, 12 + size // 4))
            pixels[area], mask[area] = 255, 255
            save(pixels, root / "test" / "hole" / f"{index:03}.png")
            if masks:
                save(mask, root / "ground_truth" / "hole" / f"{index:03}_mask.png")
        return root

    return make


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Imports a script that belongs to no package: ``load_script("book/fusion_forms.py")``."""

    def load(place: str) -> ModuleType:
        path = REPOSITORY / place
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data: DSKD_DATA, or ``../shared/data`` beside the repository; else skip."""
    folder = Path(os.environ.get("DSKD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set DSKD_DATA to the folder that has it)")
    return folder
