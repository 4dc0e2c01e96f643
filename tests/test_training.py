from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim import Adam

from dskd_lite import graphs, training
from dskd_lite.baselines.rd4ad import RD4AD
from dskd_lite.detector import DSKD, DistillationDetector
from dskd_lite.errors import InputError
from dskd_lite.fusion import inverse_variance_weights, manual_weights
from dskd_lite.parallel import new_accelerator
from dskd_lite.seeding import generator
from dskd_lite.synthetic_noise import SyntheticNoise
from dskd_lite.teacher import Teacher
from dskd_lite.training import (
    Step,
    normal_statistics,
    settle_batch_norm,
    split_holdout,
    to_tensor,
    train_fusion,
    train_students,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype(np.uint8)


def _detector() -> DSKD:
    torch.manual_seed(0)
    return DSKD(Teacher("offline", "random"), 32, smoothing_sigma=1.0)


def _two_alike(method: str) -> list[DistillationDetector]:
    detectors: list[DistillationDetector] = []
    for _ in range(2):
        teacher = Teacher("offline")
        torch.manual_seed(0)
        detectors.append(
            (DSKD if method == "dskd" else RD4AD)(teacher, 32, smoothing_sigma=1.0).double()
        )
    return detectors


def _assert_same(first: DSKD, second: DSKD) -> None:
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_to_tensor_keeps_values_and_order() -> None:
    batch = to_tensor(IMAGES[:2])
    assert batch.shape == (2, 3, 32, 32)
    assert batch[1, 2, 5, 7].item() == pytest.approx(IMAGES[1, 5, 7, 2] / 255)


def test_loss_falls_and_the_teacher_stays() -> None:
    detector, losses = _detector(), []
    teacher = {k: v.clone() for k, v in detector.teacher.state_dict().items()}
    train_students(detector, IMAGES, 8, batch_size=5, report=lambda s: losses.append(s.loss))
    assert len(losses) == 16
    assert losses[-1] < 0.6 * losses[0]
    for key, value in detector.teacher.state_dict().items():
        assert torch.equal(value, teacher[key]), key
    assert not detector.training


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_resume_gives_the_weights_of_an_uninterrupted_run(stop_after: int, tmp_path: Path) -> None:
    """Bit for bit, stopped at the end of an epoch (3) or in its middle (2, 5)."""

    def stop(step: Step) -> None:
        if step.step == stop_after:
            raise KeyboardInterrupt

    whole = _detector()
    train_students(whole, IMAGES, 3, batch_size=4, seed=3)
    file = tmp_path / "checkpoint.safetensors"
    stopped = _detector()
    with pytest.raises(KeyboardInterrupt):
        train_students(stopped, IMAGES, 3, 4, seed=3, checkpoint=file, report=stop)
    with pytest.raises(AssertionError):
        _assert_same(whole, stopped)
    resumed, steps = _detector(), []
    torch.manual_seed(99)  # whatever the global generator has drawn since
    train_students(resumed, IMAGES, 3, 4, seed=3, checkpoint=file, resume=True, report=steps.append)
    assert [s.step for s in steps] == list(range(stop_after + 1, 10))
    _assert_same(whole, resumed)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[int]] = []
    values = np.arange(10, dtype=np.uint8)
    numbered = np.broadcast_to(values[:, None, None, None], (10, 32, 32, 3)).copy()

    def spy(images: np.ndarray, device: object = "cpu") -> torch.Tensor:
        seen.append(images[:, 0, 0, 0].tolist())
        return to_tensor(images)

    monkeypatch.setattr(training, "to_tensor", spy)
    train_students(_detector(), numbered, 2, batch_size=4)
    first, second = seen[3:6], seen[6:9]  # seen[:3] went to the teacher once
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == list(range(10))
        assert [len(batch) for batch in epoch] == [4, 3, 3]
    assert first != second


@pytest.mark.parametrize("method", ["dskd", "rd4ad"])
def test_cached_features_and_memory_order_change_nothing_but_rounding(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against steps written out plainly: teacher each time, contiguous memory, plain Adam."""
    monkeypatch.setattr(training, "to_tensor", lambda i, d="cpu": to_tensor(i, d).double())
    fast, plain = _two_alike(method)
    train_students(fast, IMAGES, 2, batch_size=5, seed=3)
    plain.to(memory_format=torch.contiguous_format).train()
    students = torch.nn.ModuleList(plain.students)
    parameters = [p for p in students.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.999))
    for epoch in range(2):
        order = torch.randperm(10, generator=generator(3, training.ORDER, epoch))
        for chosen in (order[:5], order[5:]):
            batch = to_tensor(IMAGES[chosen.sort().values]).double()
            features = plain.teacher(batch)
            given = (batch, features) if method == "dskd" else (features,)
            loss = sum(
                training.distillation_loss(features[:3], student(x))
                for student, x in zip(students, given, strict=True)
            )
            optimizer.zero_grad()
            loss.backward()
            for student in students:
                torch.nn.utils.clip_grad_norm_(student.parameters(), 0.1)
            optimizer.step()
    others = torch.nn.ModuleList(fast.students).parameters()
    for (name, value), other in zip(students.named_parameters(), others, strict=True):
        torch.testing.assert_close(
            other, value, rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_batch_norm_ends_with_the_statistics_of_the_final_weights() -> None:
    detector = _detector()
    train_students(detector, IMAGES, 3, batch_size=5)
    student = detector.forward_student.backbone
    with torch.no_grad():
        activations = student.conv1(to_tensor(IMAGES))
    torch.testing.assert_close(student.bn1.running_mean, activations.mean((0, 2, 3)))
    assert student.bn1.momentum == 0.1


def test_resume_refuses_another_run_and_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 1, batch_size=5, checkpoint=file)
    with pytest.raises(InputError, match="its batch_size is 5, not 4"):
        train_students(_detector(), IMAGES, 2, batch_size=4, checkpoint=file, resume=True)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged"):
        train_students(_detector(), IMAGES, 2, batch_size=5, checkpoint=file, resume=True)


@pytest.mark.parametrize(
    ("images", "epochs", "teacher", "skip", "words"),
    [
        (255 - IMAGES, 2, "random", True, "its image content is"),
        (IMAGES[:, ::2, ::2].repeat(4, 1).repeat(4, 2), 2, "random", True, "its image content is"),
        (IMAGES, 2, "pretrained", True, "its teacher is"),
        (IMAGES, 2, "random", False, "its weights is"),
        (IMAGES, 1, "random", True, "has trained for 4 steps, but 1 epochs are 2: give --epochs 2"),
    ],
    ids=["other images", "another size", "another teacher", "other students", "fewer epochs"],
)
def test_resume_refuses_what_would_give_another_model(
    images: np.ndarray, epochs: int, teacher: str, skip: bool, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 2, batch_size=5, checkpoint=file)
    torch.manual_seed(0)
    size = images.shape[1]
    other = DSKD(Teacher("offline", teacher), size, skip, smoothing_sigma=1.0)
    with pytest.raises(InputError, match=words):
        train_students(other, images, epochs, batch_size=5, checkpoint=file, resume=True)


def test_no_batch_has_a_single_image() -> None:
    train_students(_detector(), IMAGES[:5], 1, batch_size=2)  # [2, 2, 1] would stop batch norm


def test_resume_refuses_another_stem(tmp_path: Path) -> None:
    """Weights, images and teacher are the same, and the features four times as high and wide."""
    file = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 1, batch_size=5, checkpoint=file)
    torch.manual_seed(0)
    other = DSKD(Teacher("offline", "random", stem_stride=False), 32, smoothing_sigma=1.0)
    with pytest.raises(InputError, match="its stem_stride is True, not False"):
        train_students(other, IMAGES, 2, batch_size=5, checkpoint=file, resume=True)


def test_resume_names_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="is damaged"):
        train_students(_detector(), IMAGES, 2, batch_size=5, checkpoint=file, resume=True)


def test_ctrl_c_within_an_update_leaves_a_checkpoint_that_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights have moved and the step has not been counted: that state is not saved."""
    whole = _detector()
    train_students(whole, IMAGES, 2, batch_size=4, seed=3)
    file = tmp_path / "checkpoint.safetensors"

    def interrupted(self: Adam, *arguments: object) -> None:
        update(self, *arguments)
        updates.append(1)
        if len(updates) == 5:
            raise KeyboardInterrupt

    update, updates = Adam.step, []
    monkeypatch.setattr(Adam, "step", interrupted)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_students(_detector(), IMAGES, 2, batch_size=4, seed=3, checkpoint=file)
    monkeypatch.undo()
    resumed = _detector()
    train_students(resumed, IMAGES, 2, batch_size=4, seed=3, checkpoint=file, resume=True)
    _assert_same(whole, resumed)


def test_an_earlier_checkpoint_stays_until_the_training_that_replaces_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, aside = tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint.before.safetensors"
    train_students(_detector(), IMAGES, 2, batch_size=4, seed=3, checkpoint=file)
    days = file.read_bytes()

    def interrupted(step: training.Step) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_students(
            _detector(), IMAGES, 2, batch_size=4, seed=5, checkpoint=file, report=interrupted
        )
    assert aside.read_bytes() == days
    assert file.read_bytes() != days
    train_students(_detector(), IMAGES, 2, batch_size=4, seed=5, checkpoint=file, resume=True)
    assert not aside.exists()


def test_settled_variance_is_that_of_all_images_however_the_files_are_sorted() -> None:
    """Photographs that darken file by file: within neighbours the light hardly varies."""
    rng = np.random.default_rng(0)
    light = np.linspace(40, 220, 64)[:, None, None, None]
    images = (light + rng.normal(0, 8, (64, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    detector = _detector()
    settle_batch_norm(detector, images, batch_size=16)
    first = detector.forward_student.backbone
    with torch.no_grad():
        expected = first.conv1(to_tensor(images)).var((0, 2, 3))
    ratio = first.bn1.running_var / expected
    assert 0.8 < ratio.min() and ratio.max() < 1.2


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 1, batch_size=5, checkpoint=file)
    before = file.read_bytes()
    broken = _detector()
    with torch.no_grad():
        broken.forward_student.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss became nan in epoch 1, step 1 of 2.*checkpoint"):
        train_students(broken, IMAGES, 1, batch_size=5, checkpoint=file)
    assert file.read_bytes() == before


def test_ctrl_c_before_a_loss_is_looked_at_saves_no_broken_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is counted, and what moved the weights was not finite."""
    file = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 1, batch_size=5, checkpoint=file)
    before = file.read_bytes()

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    broken, accelerator = _detector(), new_accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "reduce", interrupted)
    with torch.no_grad():
        broken.forward_student.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(KeyboardInterrupt):
        train_students(broken, IMAGES, 1, 5, checkpoint=file, accelerator=accelerator)
    assert file.read_bytes() == before


def test_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 1, batch_size=5, checkpoint=file)
    before = file.read_bytes()

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "save_tensors", full)
    with pytest.raises(InputError, match="No space left on device"):
        train_students(_detector(), IMAGES, 2, batch_size=5, checkpoint=file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_holdout_is_a_split() -> None:
    fitted, held = split_holdout(50, 0.1, seed=0)
    assert len(held) == 5
    assert sorted([*fitted, *held]) == list(range(50))
    assert not np.array_equal(held, split_holdout(50, 0.1, seed=1)[1])
    assert len(split_holdout(3, 0.01, 0)[1]) == 1
    assert len(split_holdout(10, 0.99, 0)[0]) == 2
    for count, share in ((2, 0.1), (10, 0.0), (10, 1.0)):
        with pytest.raises(InputError):
            split_holdout(count, share, 0)


def test_normal_statistics_do_not_depend_on_the_batches() -> None:
    detector = _detector().eval()
    with torch.no_grad():
        maps = detector.score_maps(to_tensor(IMAGES)).double()
    means, variances = normal_statistics(detector, IMAGES, batch_size=3)
    torch.testing.assert_close(means.double(), maps.mean((0, 2, 3)), rtol=1e-5, atol=0)
    expected = maps.var((0, 2, 3), correction=0)
    # the maps themselves are float32, and rounded by another order of sums in other batches
    torch.testing.assert_close(variances.double(), expected, rtol=1e-3, atol=0)


def _noise() -> SyntheticNoise:
    textures = [torch.rand(3, 32, 32, generator=generator(i)) for i in range(4)]
    return SyntheticNoise(textures, (32, 32), octaves=(0, 2))


def test_fusion_lowers_dice_and_leaves_the_students() -> None:
    detector, losses = _detector(), []
    train_students(detector, IMAGES, 6, batch_size=5)
    students = {k: v.clone() for k, v in detector.state_dict().items() if "student" in k}
    train_fusion(detector, IMAGES, _noise(), 30, report=lambda s: losses.append(s.loss))
    assert losses[-1] < losses[0]
    for key, value in students.items():
        assert torch.equal(value, detector.state_dict()[key]), key


def test_fusion_is_reproducible_from_its_seed() -> None:
    weights = []
    for seed in (0, 0, 1):
        detector = _detector()
        train_fusion(detector, IMAGES, _noise(), 3, seed=seed)
        weights.append(detector.fusion.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_textures_are_read_once_however_many_epochs() -> None:
    class Counted(list):
        reads = 0

        def __getitem__(self, index: int) -> torch.Tensor:
            Counted.reads += 1
            return super().__getitem__(index)

    textures = Counted(torch.rand(4, 3, 32, 32))
    noise = SyntheticNoise(textures, (32, 32), octaves=(0, 2))
    train_fusion(_detector(), IMAGES, noise, epochs=5)
    assert Counted.reads == len(IMAGES)


def test_fusion_keeps_no_more_maps_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which images are left out depends on the seed; places where noise may fall go with them."""
    size = IMAGES.shape[1]
    monkeypatch.setattr(training, "MAX_CACHED_MAPS", 2 * 5 * 7 * 4 * size * size)
    places = np.zeros(IMAGES.shape[:3], bool)
    for index, place in enumerate(places):
        place[index] = True  # one row each
    drawn: list[list[int]] = []

    class Watching(SyntheticNoise):
        def __call__(
            self, images: torch.Tensor, rng: torch.Generator, allowed: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            rows = allowed.any(2).int().argmax(1)
            torch.testing.assert_close(images, to_tensor(IMAGES[rows.numpy()]))
            drawn[-1] += rows.tolist()
            return super().__call__(images, rng, allowed)

    noise = Watching(torch.rand(4, 3, size, size), (size, size), octaves=(0, 2))
    for seed in (0, 0, 1):
        drawn.append([])
        train_fusion(_detector(), IMAGES, noise, 1, 2, seed=seed, rounds=2, allowed=places)
    assert [len(d) for d in drawn] == [10, 10, 10]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][:5] == drawn[0][5:] and len(set(drawn[0])) == 5


def test_recommended_fusion_stays_on_its_line() -> None:
    """In logarithms the weights differ from the mix by hand by one direction and one constant."""
    detector, losses = _detector(), []
    train_fusion(
        detector, IMAGES, _noise(), 30, held_out=IMAGES[:4], report=lambda s: losses.append(s.loss)
    )
    assert losses[-1] < losses[0]
    means, variances = normal_statistics(detector, IMAGES[:4])
    torch.testing.assert_close(detector.fusion.input_scale, means)
    by_hand = manual_weights(means).log()
    direction = inverse_variance_weights(means, variances).log() - by_hand
    weight = detector.fusion.weight.detach()
    assert weight.sum().item() == pytest.approx(1)
    moved = weight.log() - by_hand
    basis = torch.stack([direction, torch.ones(6)], 1)
    place = torch.linalg.lstsq(basis, moved[:, None]).solution
    torch.testing.assert_close(basis @ place, moved[:, None], atol=1e-4, rtol=0)
    assert 0 < place[0, 0] < 1


@pytest.mark.parametrize("signal_in", ["steady maps", "restless maps"])
def test_recommended_fusion_goes_to_the_end_that_sees_the_noise(signal_in: str) -> None:
    """Stages 3 of both students vary little on normal images, the other four maps much."""
    steady = torch.tensor([False, False, True, False, False, True])
    seeing = steady if signal_in == "steady maps" else ~steady

    class Maps(DSKD):
        def score_maps(self, images: torch.Tensor) -> torch.Tensor:
            changed = (images - 0.5).abs().amax(1, keepdim=True)
            spread = torch.where(steady, 0.05, 0.3).view(6, 1, 1)
            random = torch.rand(len(images), 6, 32, 32, generator=generator(len(images)))
            return 1 + spread * (2 * random - 1) + seeing.view(6, 1, 1) * 2 * changed

    images = np.full((32, 32, 32, 3), 127, np.uint8)
    detector = Maps(Teacher("offline", "random"), 32, smoothing_sigma=1.0)
    noise = SyntheticNoise([torch.ones(3, 32, 32)], (32, 32), octaves=(0, 2), opacity=(0.5, 0.5))
    train_fusion(detector, images, noise, 60, held_out=images[:16])
    weights = detector.fusion.map_weights.detach()
    share = (weights[steady].sum() / weights.sum()).item()
    # by hand they have a third of the weight, by the inverse variances 0.95
    assert share > 0.8 if signal_in == "steady maps" else share < 0.55


def test_gradients_are_clipped_without_the_scale_of_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scale is a power of 2 that doubles, so the weights are the same to the last digit."""
    monkeypatch.setattr(training, "MAX_GRADIENT_NORM", 0.5)  # less than most gradients have
    scaled, plain = _detector(), _detector()
    accelerator = new_accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    monkeypatch.setattr(  # as Accelerate does in fp16, which a CPU has not
        accelerator,
        "unscale_gradients",
        lambda optimizer: accelerator.scaler.unscale_(optimizer.optimizer),
    )
    train_students(scaled, IMAGES, 2, 4, accelerator=accelerator)
    train_students(plain, IMAGES, 2, 4, accelerator=new_accelerator(cpu=True))
    _assert_same(scaled, plain)


def test_features_that_do_not_fit_are_computed_in_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    class Counting(Teacher):
        def forward(self, images: torch.Tensor, *arguments: int) -> tuple[torch.Tensor, ...]:
            calls.append(len(images))
            return super().forward(images, *arguments)

    # Once for the cache, once to settle batch norm; without a cache a try, and in each epoch.
    for room, expected in ((10**9, 10 + 10), (0, 4 + 2 * 10 + 10)):
        monkeypatch.setattr(training, "MAX_CACHED_FEATURES", room)
        detector = DSKD(Counting("offline", "random"), 32, smoothing_sigma=1.0)
        calls.clear()
        train_students(detector, IMAGES, 2, 4)
        assert sum(calls) == expected


def test_resume_goes_on_with_the_scale_of_the_loss(tmp_path: Path) -> None:
    """fp16 scales the loss by a factor that moves; here a CPU does, every second step."""

    def train(detector: DSKD, **options: object) -> None:
        accelerator = new_accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        train_students(detector, IMAGES, 2, 4, accelerator=accelerator, **options)

    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    whole, resumed, file = _detector(), _detector(), tmp_path / "checkpoint.safetensors"
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, checkpoint=file, report=stop)
    train(resumed, checkpoint=file, resume=True)
    _assert_same(whole, resumed)


def test_students_trained_in_bf16_score_in_float32(tmp_path: Path) -> None:
    """Unless told otherwise: a stored threshold is for the maps of the detector that is loaded."""
    detector = _detector()
    accelerator = new_accelerator(cpu=True, precision="bf16")
    train_students(detector, IMAGES, 1, batch_size=5, accelerator=accelerator)
    detector.save(tmp_path / "model")
    loaded = DSKD.load(tmp_path / "model")
    images = to_tensor(IMAGES)
    with torch.no_grad():
        assert torch.equal(detector.score_maps(images), loaded.score_maps(images))


def test_an_accelerator_keeps_no_detector_alive() -> None:
    """One trains all categories of a folder, and memory must not grow with their number."""
    accelerator, detector = new_accelerator(cpu=True), _detector()
    train_students(detector, IMAGES, 1, batch_size=5, accelerator=accelerator)
    assert all(p.grad is None for p in detector.parameters())
    trained = weakref.ref(detector.forward_student)
    del detector
    gc.collect()
    assert trained() is None


def test_ctrl_c_before_the_first_step_leaves_plain_students_and_an_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate's autocast must not stay around their forward pass.

    Nor are hours of training to be replaced by none, where --resume was forgotten.
    """
    checkpoint = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 1, checkpoint=checkpoint)
    older = checkpoint.read_bytes()

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_cached_features", interrupted)
    detector = _detector()
    bf16 = new_accelerator(cpu=True, precision="bf16")
    with pytest.raises(KeyboardInterrupt):
        train_students(detector, IMAGES, 2, accelerator=bf16, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == older
    images, untouched = to_tensor(IMAGES), _detector()
    for found, plain in zip(
        detector.eval().forward_student(images),
        untouched.eval().forward_student(images),
        strict=True,
    ):
        assert torch.equal(found, plain)


def test_a_refused_checkpoint_leaves_plain_students(tmp_path: Path) -> None:
    """Accelerate's autocast must not stay around their forward pass here either."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    train_students(_detector(), IMAGES, 2, checkpoint=checkpoint)
    detector, plain = _detector(), _detector()
    accelerator = new_accelerator(cpu=True, precision="bf16")
    with pytest.raises(InputError, match="give --epochs 2 or more"):
        train_students(
            detector, IMAGES, 1, accelerator=accelerator, checkpoint=checkpoint, resume=True
        )
    plain.load_state_dict(detector.state_dict())
    images = to_tensor(IMAGES)
    for found, expected in zip(
        detector.eval().forward_student(images), plain.eval().forward_student(images), strict=True
    ):
        assert torch.equal(found, expected)


def _record_with(stand_in: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let steps be recorded as on a GPU, by a stand-in; returns the streams that are set."""

    class Recorder(training.StudentsStep):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            self.records = True

    streams: list[str] = []
    monkeypatch.setattr(training, "StudentsStep", Recorder)
    monkeypatch.setattr(graphs, "RecordedStep", stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    return streams


def test_training_goes_on_where_no_graph_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights as without the attempt; a CUDA device says so with a RuntimeError."""

    def refuse(*arguments: object) -> None:
        tries.append(gc.isenabled())
        raise RuntimeError("operation failed due to a previous error during capture")

    whole, tried = _detector(), _detector()
    train_students(whole, IMAGES, 2, 4)
    tries: list[bool] = []
    streams = _record_with(refuse, monkeypatch)
    with pytest.warns(UserWarning, match="without CUDA graphs.*during capture"):
        train_students(tried, IMAGES, 2, 4)
    assert (tries, streams, gc.isenabled()) == ([False], ["stream before"], True)
    _assert_same(whole, tried)


def test_recorded_steps_alternate_with_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4, 3 and 3 images: those of 3 are replayed, by a stand-in for a CUDA graph."""

    class StandIn:
        def __init__(self, step: Callable[..., torch.Tensor], given: list[torch.Tensor]) -> None:
            self.step, self.given = step, [tensor.clone() for tensor in given]

        give = graphs.RecordedStep.give

        def replay(self) -> torch.Tensor:
            sizes.append(len(self.given[0]))
            return self.step(*self.given)

    whole, replayed = _detector(), _detector()
    train_students(whole, IMAGES, 2, 4)
    sizes: list[int] = []
    _record_with(StandIn, monkeypatch)
    train_students(replayed, IMAGES, 2, 4)
    assert sizes == [3] * 3  # of four such batches the first has to run as it is
    _assert_same(whole, replayed)


def test_compiled_blocks_train_alike_and_leave_plain_students() -> None:
    """Batches of 4, which are compiled, and of 3, which are not; Adam makes much of rounding."""
    plain, quick = _detector(), _detector()
    losses: list[list[float]] = [[], []]
    for detector, found, compiled in ((plain, losses[0], False), (quick, losses[1], True)):
        train_students(
            detector, IMAGES[:7], 2, 4, report=lambda s, to=found: to.append(s.loss),
            compile=compiled,
        )  # fmt: skip
    assert len(losses[0]) == 4
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert not any("forward" in vars(module) for module in quick.modules())


def test_only_batches_of_one_size_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def stand_in(plain: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        def run(*given: torch.Tensor) -> torch.Tensor:
            compiled.append(len(given[0]))
            return plain(*given)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    train_students(_detector(), IMAGES, 2, 4, compile=True)  # batches of 4, 3 and 3
    assert set(compiled) == {3}


@pytest.mark.parametrize(
    "error",
    [
        torch._dynamo.exc.BackendCompilerFailed(torch.compile, RuntimeError("none found"), None),
        torch._dynamo.exc.TorchDynamoException("none found"),  # as where Triton is missing
        RuntimeError("none found"),  # of torch.compile itself, on a Python that is too new for it
    ],
)
def test_compiling_without_a_compiler_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(*given: torch.Tensor) -> None:
        raise error

    def refusing(plain: object, dynamic: bool) -> Callable[..., None]:
        if type(error) is RuntimeError:
            raise error
        return none_here

    monkeypatch.setattr(torch, "compile", refusing)
    detector = _detector()
    with pytest.raises(InputError, match=r"none found.*without --compile"):
        train_students(detector, IMAGES, 1, 5, compile=True)
    assert not any("forward" in vars(module) for module in detector.modules())


def test_training_goes_on_after_a_recording_that_broke_off_half_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With scaled losses, whose gradients the broken recording has unscaled in name only."""

    def break_off(step: Callable[..., torch.Tensor], given: list[torch.Tensor]) -> None:
        def broken(*arguments: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        with monkeypatch.context() as patch:
            patch.setattr(training, "clip_grad_norm_", broken)
            step(*given)

    def train() -> list[float]:
        losses: list[float] = []
        accelerator = new_accelerator(cpu=True)
        scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        # As Accelerate does in fp16, which it takes on a GPU only.
        accelerator.unscale_gradients = lambda optimizer: scaler.unscale_(optimizer.optimizer)
        train_students(
            _detector(), IMAGES, 2, 5, accelerator=accelerator,
            report=lambda s: losses.append(s.loss),
        )  # fmt: skip
        return losses

    whole = train()
    _record_with(break_off, monkeypatch)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert train() == pytest.approx(whole, rel=1e-3)


def test_an_interrupted_training_keeps_no_gradients(tmp_path: Path) -> None:
    """They lie in a CUDA graph's memory, which would stay as long as the detector."""

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    detector = _detector()
    with pytest.raises(KeyboardInterrupt):
        train_students(detector, IMAGES, 1, 5, report=stop)
    assert all(p.grad is None for p in detector.parameters())
