from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor

from dskd_lite.baselines import DETECTORS, make_detector
from dskd_lite.baselines.autoencoder import AutoencoderDetector
from dskd_lite.baselines.classical import (
    GaussianDetector,
    NearestPatchesDetector,
    OneClassSVMDetector,
    PatchDetector,
    PCADetector,
    greedy_coreset,
)
from dskd_lite.baselines.pixels import PixelStatisticsDetector
from dskd_lite.baselines.rd4ad import RD4AD, RD4ADStudent
from dskd_lite.config import Config
from dskd_lite.datasets.cache import decoded_images
from dskd_lite.datasets.folder import scan_category
from dskd_lite.detector import DSKD, Thresholds
from dskd_lite.errors import InputError
from dskd_lite.evaluation import evaluate
from dskd_lite.experiment import new_detector
from dskd_lite.teacher import Backbone, Teacher
from dskd_lite.training import Step, to_tensor, train_students

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher("offline", "random")


def _count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# --- RD4AD ---------------------------------------------------------------------------------------


def test_rd4ad_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        student = RD4ADStudent("wide_resnet50_2")
    bottleneck = _count(student.bottleneck)
    never_called = 4096 * 2048 + 2 * 2048  # 1x1 convolution without bias, batch norm
    assert bottleneck / 1e6 == pytest.approx(58.89, abs=0.005)
    assert (bottleneck + never_called) / 1e6 == pytest.approx(67.28, abs=0.005)
    decoder = _count(student.decoder1, student.decoder2, student.decoder3)
    assert decoder / 1e6 == pytest.approx(24.9, abs=0.05)
    assert _count(student) == bottleneck + decoder


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet50", "resnet34", "resnet18", "offline"])
def test_rd4ad_returns_the_shapes_of_the_teacher(name: str) -> None:
    with torch.device("meta"):
        features = Backbone(name)(torch.empty(2, 3, 64, 96))
        student = RD4ADStudent(name)
        assert student.bottleneck(features[:3]).shape == features[3].shape
        assert [d.shape for d in student(features)] == [f.shape for f in features[:3]]


def test_rd4ad_reads_three_stages_and_trains_every_parameter() -> None:
    torch.manual_seed(0)
    features = [f.detach() for f in Backbone("offline")(torch.rand(2, 3, 64, 64))]
    student = RD4ADStudent("offline")
    sum(d.mean() for d in student(features)).backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []
    student.eval()
    expected = student(features)
    for stage in range(4):
        others = [torch.rand_like(f) if s == stage else f for s, f in enumerate(features)]
        assert torch.equal(student(others)[0], expected[0]) == (stage == 3)


def test_rd4ad_sums_the_distances_of_three_stages(teacher: Teacher) -> None:
    detector = RD4AD(teacher, 32).eval()
    for sign, distance in ((1, 0), (-1, 2)):

        class Stub(torch.nn.Module):
            def forward(self, features: list[Tensor], sign: int = sign) -> list[Tensor]:
                return [sign * f for f in features]

        detector.student = Stub()
        (name, maps), *more = detector.maps_by_method(to_tensor(IMAGES)).items()
        assert name == "rd4ad" and not more
        torch.testing.assert_close(maps, torch.full((6, 32, 32), 3.0 * distance))


def test_rd4ad_starts_from_its_seed_and_leaves_the_global_generator(teacher: Teacher) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    weights = [RD4AD(teacher, 32, seed=s).student.state_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    key = "decoder1.0.conv1.weight"
    assert torch.equal(weights[0][key], weights[1][key])
    assert not torch.equal(weights[0][key], weights[2][key])


def test_rd4ad_learns_and_resumes_bit_for_bit(teacher: Teacher, tmp_path: Path) -> None:
    losses: list[float] = []

    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    detector, file = RD4AD(teacher, 32), tmp_path / "checkpoint.safetensors"
    train_students(detector, IMAGES, 6, batch_size=4, report=lambda s: losses.append(s.loss))
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    with pytest.raises(KeyboardInterrupt):
        train_students(RD4AD(teacher, 32), IMAGES, 6, 4, checkpoint=file, report=stop)
    resumed = RD4AD(teacher, 32)
    train_students(resumed, IMAGES, 6, 4, checkpoint=file, resume=True)
    fitted = RD4AD(teacher, 32, epochs=6, batch_size=4)
    fitted.fit(IMAGES)
    for key, value in detector.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[key]), key
        assert torch.equal(value, fitted.student.state_dict()[key]), key


def test_rd4ad_save_and_load_give_the_same_detector(teacher: Teacher, tmp_path: Path) -> None:
    detector = RD4AD(teacher, 32, smoothing_sigma=2.0, loss="flattened", seed=3).eval()
    detector.thresholds = Thresholds(1.5, 0.5, 0.05)
    detector.save(tmp_path / "rd4ad")
    loaded = RD4AD.load(tmp_path / "rd4ad")
    images = to_tensor(IMAGES)
    assert torch.equal(detector.score_maps(images), loaded.score_maps(images))
    assert loaded.thresholds == detector.thresholds and loaded.options == detector.options
    with pytest.raises(InputError, match=r"class RD4AD, not DSKD: load it with RD4AD\.load"):
        DSKD.load(tmp_path / "rd4ad")


# --- classical detectors -------------------------------------------------------------------------


def _plant(detector: PatchDetector, patches: np.ndarray) -> np.ndarray:
    """Make the detector read these patches (N, h, w, C) off the images (N, H, W, 3) returned."""
    tensor = torch.from_numpy(patches)
    detector.patches = lambda images: tensor[(images[:, 0, 0, 0] * 255).round().long()]
    index = np.arange(len(patches), dtype=np.uint8)[:, None, None, None]
    size = detector.image_size
    return np.broadcast_to(index, (len(patches), size, size, 3))


def test_patches_are_means_over_three_by_three_positions(teacher: Teacher) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    e1, e2, e3 = (f.numpy() for f in teacher(images, stages=3))
    patches = PCADetector(teacher, 64).patches(images).numpy()
    c1, c2 = e1.shape[1], e2.shape[1]
    assert patches.shape == (2, 8, 8, c1 + c2 + e3.shape[1])
    halved = e1.reshape(2, c1, 8, 2, 8, 2).mean((3, 5))
    for stage, expected in ((slice(0, c1), halved), (slice(c1, c1 + c2), e2)):
        mean = ndimage.uniform_filter(expected, (0, 0, 3, 3)).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(
            patches[:, 1:-1, 1:-1, stage], mean[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-5
        )
    corner = e2[:, :, :2, :2].mean((2, 3))  # at the border: the mean over those that exist
    np.testing.assert_allclose(patches[:, 0, 0, c1 : c1 + c2], corner, rtol=1e-4, atol=1e-5)


def test_pca_measures_the_distance_from_the_plane(teacher: Teacher) -> None:
    directions, _ = np.linalg.qr(RNG.normal(size=(8, 3)))
    plane, normal = directions[:, :2], directions[:, 2]
    origin = RNG.normal(size=8)

    def on_plane(*shape: int) -> np.ndarray:
        return (RNG.normal(size=(*shape, 2)) @ plane.T + origin).astype(np.float32)

    detector = PCADetector(teacher, 32, variance=0.999)
    detector.fit(_plant(detector, on_plane(20, 4, 4)))
    assert detector.learned["components"].shape == (2, 8)
    patches = on_plane(3, 16)
    np.testing.assert_allclose(detector.distances(patches), 0, atol=1e-5)
    height = RNG.uniform(-5, 5, (3, 16, 1)).astype(np.float32)
    off_plane = detector.distances(patches + height * normal.astype(np.float32))
    np.testing.assert_allclose(off_plane, np.abs(height[..., 0]), atol=1e-4)


def test_gaussian_measures_mahalanobis_at_each_position(teacher: Teacher) -> None:
    detector = GaussianDetector(teacher, 32, channels=10)
    total = sum(teacher.channels[:3])
    assert len(set(detector.kept)) == 10 and 0 <= min(detector.kept) and max(detector.kept) < total
    spread = RNG.normal(size=(2, 2, total, 4))  # other correlations at each position
    factors = RNG.normal(size=(30, 2, 2, 4, 1))
    patches = ((spread @ factors)[..., 0] + RNG.normal(size=(30, 2, 2, total))).astype(np.float32)
    images = _plant(detector, patches)
    detector.fit(images[:25])
    distances = detector.distances(patches[25:].reshape(5, 4, total))
    at_positions = patches.reshape(30, 4, total)[..., detector.kept].swapaxes(0, 1)
    covariances = [ledoit_wolf(at_position[:25])[0] for at_position in at_positions]
    floor = 1e-2 * np.mean([covariance.diagonal() for covariance in covariances])
    for position, (at_position, covariance) in enumerate(
        zip(at_positions, covariances, strict=True)
    ):
        inverse, mean = np.linalg.inv(covariance + floor * np.eye(10)), at_position[:25].mean(0)
        expected = [mahalanobis(x, mean, inverse) for x in at_position[25:]]
        np.testing.assert_allclose(distances[:, position], expected, rtol=1e-4)


def test_gaussian_is_not_infinitely_sure_of_a_ground_of_one_colour() -> None:
    images = np.zeros((12, 256, 256, 3), dtype=np.uint8)
    for index, image in enumerate(images):  # a square whose grey differs, on black
        image[100:150, 100:150] = 100 + 10 * index
    detector = GaussianDetector(Teacher("offline"), 256, smoothing_sigma=1.0, channels=20)
    detector.fit(images[:10])
    assert (np.trace(detector.learned["precisions"], axis1=1, axis2=2) > 0).all()
    touched = images[10:].copy()
    touched[:, 20, 20] = 1  # of 255
    spotted = images[10:].copy()
    spotted[:, 20:28, 20:28] = 60
    plain, less, more = (detector(to_tensor(i)).score for i in (images[10:], touched, spotted))
    assert (less < 3 * plain).all() and (more > 50 * less).all()


def test_gaussian_of_equal_images_is_finite() -> None:
    detector = GaussianDetector(Teacher("offline"), 32, smoothing_sigma=1.0)
    detector.fit(np.full((3, 32, 32, 3), 7, dtype=np.uint8))
    assert detector(to_tensor(IMAGES)).fused_map.isfinite().all()


def test_statistics_do_not_hang_on_the_file_they_were_read_from(tmp_path: Path) -> None:
    detector = make_detector("pca", Teacher("offline", "random"), 32, smoothing_sigma=1.0)
    detector.fit(IMAGES)
    detector.save(tmp_path / "model")
    loaded = PCADetector.load(tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("rb+") as file:
        file.write(bytes(file.seek(0, 2)))  # appends
        file.seek(0)
        file.write(bytes(1 << 20))
    scores = [d(to_tensor(IMAGES)).score for d in (detector, loaded)]
    torch.testing.assert_close(*scores, rtol=1e-6, atol=0)


def test_seeds_beyond_32_bits_choose_as_well() -> None:
    chosen = greedy_coreset(RNG.normal(size=(50, 200)), 5, seed=2**40 + 1)
    assert len(set(chosen.tolist())) == 5


def test_gaussian_reads_no_more_images_than_told(teacher: Teacher) -> None:
    detector = GaussianDetector(teacher, 32, most_images=7)
    images = _plant(detector, RNG.normal(size=(20, 1, 1, sum(teacher.channels[:3]))))
    read = detector.patches
    seen: list[int] = []

    def spy(batch: Tensor) -> Tensor:
        seen.extend((batch[:, 0, 0, 0] * 255).round().int().tolist())
        return read(batch)

    detector.patches = spy
    detector.fit(images)
    assert len(seen) == len(set(seen)) == 7 and seen != list(range(7))


@pytest.mark.parametrize("neighbours", [1, 3])
def test_nearest_patches_are_those_of_brute_force(teacher: Teacher, neighbours: int) -> None:
    detector = NearestPatchesDetector(teacher, 32, neighbours=neighbours)
    patches = RNG.normal(size=(12, 4, 4, 20)).astype(np.float32)
    images = _plant(detector, patches)
    detector.fit(images[:9])
    distances = detector.distances(patches[9:].reshape(3, 16, 20))
    all_distances = cdist(patches[9:].reshape(-1, 20), patches[:9].reshape(-1, 20))
    expected = np.sort(all_distances, axis=1)[:, :neighbours].mean(1)
    np.testing.assert_allclose(distances.ravel(), expected, rtol=1e-4)


def test_coreset_takes_the_farthest_point_each_time() -> None:
    points = RNG.normal(size=(60, 5)).astype(np.float32)
    chosen = greedy_coreset(points, 12, seed=1)
    between = cdist(points, points)
    for count in range(1, 12):
        assert chosen[count] == between[:, chosen[:count]].min(1).argmax()
    assert np.array_equal(greedy_coreset(points, 60, 0), np.arange(60))
    same = greedy_coreset(np.ones((30, 5), np.float32), 10, seed=0)
    assert len(set(same)) == 10


def test_projected_coreset_covers_rare_points() -> None:
    """Many copies of one place and a few far ones: the far ones are chosen."""
    crowd = RNG.normal(size=(400, 300)).astype(np.float32) * 0.01
    rare = RNG.normal(size=(8, 300)).astype(np.float32) * 10
    chosen = greedy_coreset(np.concatenate([crowd, rare]), 9, seed=0)
    assert set(range(400, 408)) <= set(chosen)


def test_patches_are_drawn_evenly_and_once(teacher: Teacher) -> None:
    detector = NearestPatchesDetector(teacher, 32)
    patches = np.arange(5 * 16, dtype=np.float32).reshape(5, 4, 4, 1)
    images = _plant(detector, patches)
    drawn = detector.random_patches(images, most=12).ravel()
    assert len(set(drawn)) == len(drawn) == 15  # three of each, for two would be too few
    assert np.bincount(drawn.astype(int) // 16).tolist() == [3] * 5
    assert np.array_equal(drawn, detector.random_patches(images, most=12).ravel())
    assert sorted(detector.random_patches(images, most=1000).ravel()) == list(range(80))


def test_one_class_svm_is_scikit_learns_on_mean_features(teacher: Teacher) -> None:
    detector = OneClassSVMDetector(teacher, 32, nu=0.2)
    patches = RNG.normal(size=(40, 2, 2, 6)).astype(np.float32)
    images = _plant(detector, patches)
    detector.fit(images[:30])
    pooled = patches.mean((1, 2))
    scaler = StandardScaler().fit(pooled[:30])
    machine = OneClassSVM(nu=0.2).fit(scaler.transform(pooled[:30]))
    expected = -machine.decision_function(scaler.transform(pooled[30:]))
    maps = detector.maps_by_method(to_tensor(images[30:]))["one-class-svm"].numpy()
    np.testing.assert_allclose(maps.max((1, 2)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.ptp(maps, axis=(1, 2)), 0, atol=1e-5)


def test_map_shows_a_patch_where_it_is(teacher: Teacher) -> None:
    detector = PCADetector(teacher, 64, smoothing_sigma=1.0)
    detector.learned = {"mean": np.zeros(1)}  # anything: the distances are given below
    detector.patches = lambda images: torch.zeros(1, 8, 8, 1)
    hot = np.zeros((8, 8))
    hot[2, 5] = 1.0
    detector.distances = lambda patches: hot.reshape(1, 64)
    map_ = detector.maps_by_method(torch.zeros(1, 3, 64, 64))["pca"][0].numpy()
    nearest = np.repeat(np.repeat(hot, 8, 0), 8, 1)
    np.testing.assert_allclose(
        ndimage.center_of_mass(map_), ndimage.center_of_mass(nearest), atol=0.01
    )


# --- pixel statistics ----------------------------------------------------------------------------


def test_pixel_statistics_are_z_scores() -> None:
    rng = np.random.default_rng(0)
    normal = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    detector = PixelStatisticsDetector(32, smoothing_sigma=0)
    detector.fit(normal)
    judged = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    scores = np.abs(judged - normal.mean(0)) / (normal.std(0) + 1)
    found = detector.maps_by_method(to_tensor(judged))["pixel-statistics"].numpy()
    np.testing.assert_allclose(found, scores.mean(-1), rtol=1e-4)
    with pytest.raises(InputError, match="at least two"):
        detector.fit(normal[:1])


def test_a_pixel_that_never_changed_makes_a_change_large_but_finite() -> None:
    detector = PixelStatisticsDetector(32, smoothing_sigma=0)
    detector.fit(np.full((800, 32, 32, 3), 201, np.uint8))
    changed = np.full((1, 32, 32, 3), 201, np.uint8)
    changed[0, 5, 6] = 231
    expected = np.zeros((32, 32))
    expected[5, 6] = 30
    found = detector(to_tensor(changed)).fused_map[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_methods_on_pixels_need_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dskd_lite.teacher._pretrained_state", lambda name: pytest.fail("read"))
    for method in ("pixel-statistics", "autoencoder"):
        new_detector(Config(data=Path("x"), image_size=64, method=method))


# --- autoencoder ---------------------------------------------------------------------------------


def test_autoencoder_learns_plain_images_and_no_others() -> None:
    plain = np.full((16, 32, 32, 3), (200, 100, 50), np.uint8)
    detector = AutoencoderDetector(32, epochs=60, batch_size=8)
    before = detector.maps_by_method(to_tensor(plain[:1]))["autoencoder"].max()
    detector.fit(plain)
    after = detector.maps_by_method(to_tensor(plain[:1]))["autoencoder"].max()
    assert after < 1e-3 < before
    changed = plain[:1].copy()
    changed[0, 8:16, 8:16] = 0
    map_ = detector.maps_by_method(to_tensor(changed))["autoencoder"][0]
    row, column = divmod(int(map_.argmax()), 32)
    assert map_.max() > 0.01 and 8 <= row < 16 and 8 <= column < 16


def test_autoencoder_maps_are_the_smoothed_squared_error() -> None:
    detector = AutoencoderDetector(32, smoothing_sigma=2.0).eval()
    images = to_tensor(IMAGES)
    error = ((detector.redraw(images) - images) ** 2).mean(1).detach().numpy()
    expected = np.stack([ndimage.gaussian_filter(e, 2.0, mode="mirror") for e in error])
    maps = detector.maps_by_method(images)["autoencoder"].numpy()
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


# --- all alike -----------------------------------------------------------------------------------


def test_unknown_names_and_sizes_are_refused(teacher: Teacher) -> None:
    with pytest.raises(InputError, match="called 'magic': choose one of pixel-stat"):
        make_detector("magic", teacher, 64)
    for name in DETECTORS:
        for size, sigma in ((100, 4.0), (32, 8.0), (32, -1.0)):
            with pytest.raises(InputError, match=r"image size|smoothing sigma"):
                make_detector(name, teacher, size, smoothing_sigma=sigma)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", ["one-class-svm", "pca", "gaussian", "nearest-patches"])
def test_one_image_is_not_enough_for_statistics(name: str, count: int, teacher: Teacher) -> None:
    with pytest.raises(InputError, match=f"{count} normal images are not enough"):
        make_detector(name, teacher, 32).fit(IMAGES[:count])


OPTIONS: dict[str, dict[str, int]] = {"rd4ad": {"epochs": 8, "batch_size": 4}}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_finds_a_white_square(name: str, make_category: Callable[..., Path]) -> None:
    category = scan_category(make_category(train=12))
    normal = decoded_images(category.train, 64, None)
    test = decoded_images([s.path for s in category.test], 64, None)
    detector = make_detector(name, Teacher("offline"), 64, **OPTIONS.get(name, {}))
    detector.fit(normal)
    evaluation = evaluate(detector, category, test)
    assert list(evaluation.maps) == [name]
    assert evaluation.maps[name].shape == (6, 64, 64)
    scores = evaluation.scores[name]
    assert scores.image_auroc is not None and scores.pixel_auroc is not None
    assert scores.image_auroc > 0.9
    if name != "one-class-svm":  # which judges whole images
        assert scores.pixel_auroc > 0.9


CLASSES = {
    cls.name: cls
    for cls in (OneClassSVMDetector, PCADetector, GaussianDetector, NearestPatchesDetector)
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_detector_without_images_says_so(name: str, teacher: Teacher) -> None:
    with pytest.raises(InputError, match=f"the detector {name} knows no normal image"):
        make_detector(name, teacher, 32)(to_tensor(IMAGES))


@pytest.mark.parametrize("stem_stride", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_saved_statistics_score_as_before(name: str, stem_stride: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Teacher("offline", "random", stem_stride)
    detector = make_detector(name, teacher, 32, seed=3, smoothing_sigma=1.0)
    detector.fit(IMAGES)
    detector.thresholds = Thresholds(1.5, 0.5, 0.05)
    detector.save(tmp_path / "model")
    loaded = CLASSES[name].load(tmp_path / "model")
    for mine, theirs in zip(detector(to_tensor(IMAGES)), loaded(to_tensor(IMAGES)), strict=True):
        assert torch.equal(mine, theirs)
    assert loaded.thresholds == detector.thresholds and loaded.options == detector.options


def test_a_saved_autoencoder_holds_no_teacher(tmp_path: Path) -> None:
    detector = AutoencoderDetector(32, smoothing_sigma=1.0, code=4, epochs=1)
    detector.fit(IMAGES)
    detector.save(tmp_path / "model")
    loaded = AutoencoderDetector.load(tmp_path / "model")
    assert torch.equal(loaded(to_tensor(IMAGES)).score, detector(to_tensor(IMAGES)).score)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size < 4 * _count(detector) + 20_000  # statistics of batch norm, and the names


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_reproducible_from_its_seed(name: str, teacher: Teacher) -> None:
    maps = []
    options = {"epochs": 1} if name in ("rd4ad", "autoencoder") else {}
    for _ in range(2):
        detector = make_detector(name, teacher, 32, seed=4, **options)
        detector.fit(IMAGES)
        maps.append(detector.maps_by_method(to_tensor(IMAGES[:2]))[name])
    assert torch.equal(*maps)
