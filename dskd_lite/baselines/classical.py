"""Classical detectors on the teacher's features: nothing is trained by gradient descent.

Each reads *patches*: at every position of E2's grid the features of E1, E2 and E3 around it, one
vector of C values. ``fit(images)`` learns what is normal; ``maps_by_method(images)`` gives the
distance from it. What ``fit`` learned are arrays, which is all that a saved detector holds of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from sklearn.svm import OneClassSVM
from torch import Tensor
from torch.nn import functional as F

from dskd_lite.anomaly_maps import COMPARED_STAGES
from dskd_lite.detector import Prediction, StoredDetector
from dskd_lite.errors import InputError
from dskd_lite.teacher import Teacher
from dskd_lite.training import to_tensor

BATCH = 16
LEARNED = "learned."


class PatchDetector(StoredDetector):
    """Turns images into patches, and distances of patches into a smooth map at image size.

    ``image_size``: side in pixels, a multiple of 32. ``smoothing_sigma``: Gaussian filter on the
    map, in pixels. ``seed``: of every random choice; ``options``: the subclass's own. A subclass
    has a ``name`` and defines ``fit``, which fills ``learned``, and ``distances``, which reads it.
    Raises InputError for an image size or a sigma that does not fit.
    """

    name: str
    teacher: Teacher

    def __init__(
        self, teacher: Teacher, image_size: int, smoothing_sigma: float, seed: int, **options: Any
    ) -> None:
        super().__init__(
            teacher, image_size=image_size, smoothing_sigma=smoothing_sigma, seed=seed, **options
        )
        self.seed = seed
        self.learned: dict[str, np.ndarray] = {}

    def fit(self, images: np.ndarray) -> None:
        """Learn from normal images, uint8 (N, H, W, 3); InputError if there are fewer than two."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        learned = {LEARNED + name: torch.from_numpy(a) for name, a in self.learned.items()}
        return self.state_dict() | learned

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.learned = {
            name.removeprefix(LEARNED): tensor.numpy().copy()  # and not the mapped file
            for name, tensor in tensors.items()
            if name.startswith(LEARNED)
        }
        super().restore({n: t for n, t in tensors.items() if not n.startswith(LEARNED)})

    def distances(self, patches: np.ndarray) -> np.ndarray:
        """Turn patches (B, h*w, C) into distances from normality, (B, h*w)."""
        raise NotImplementedError

    def patches(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) in [0, 1] into patches (B, h, w, C) on E2's grid.

        E1 and E3 are resized bilinearly; each vector is the mean over 3x3 positions, so that it
        knows its surroundings (the "locally aware" patches of PatchCore, Roth et al., 2022).
        """
        with self.mixed_precision():
            features = self.teacher(images.to(self.teacher.mean.device), stages=COMPARED_STAGES)
        grid = features[1].shape[-2:]
        resized = [
            F.interpolate(f.float(), grid, mode="bilinear", align_corners=False) for f in features
        ]
        mean = F.avg_pool2d(torch.cat(resized, 1), 3, 1, padding=1, count_include_pad=False)
        return mean.permute(0, 2, 3, 1)

    def read(self, images: np.ndarray, keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What ``keep`` leaves of the patches (B, h*w, C) of each batch, all batches in one array.

        ``images`` are uint8 (N, H, W, 3). Raises InputError if there are fewer than two.
        """
        if len(images) < 2:
            raise InputError(f"{len(images)} normal images are not enough: give at least two")
        kept = []
        for start in range(0, len(images), BATCH):
            batch = self.patches(to_tensor(images[start : start + BATCH]))
            kept.append(keep(batch.flatten(1, 2).cpu().numpy()))
        return np.concatenate(kept)

    def random_patches(self, images: np.ndarray, most: int) -> np.ndarray:
        """Patches (M, C) drawn at random, as many from each image, ``most`` in all (rounded up)."""
        rng, share = np.random.default_rng(self.seed), -(-most // max(len(images), 1))

        def draw(patches: np.ndarray) -> np.ndarray:
            chosen = [rng.permutation(patches.shape[1])[:share] for _ in patches]
            return np.concatenate([p[c] for p, c in zip(patches, chosen, strict=True)])

        return self.read(images, draw)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1] by one map; InputError before ``fit``."""
        if not self.learned:
            raise InputError(f"the detector {self.name} knows no normal image yet: call fit first")
        patches = self.patches(images)
        distances = self.distances(patches.flatten(1, 2).cpu().numpy()).astype(np.float32)
        grid = torch.from_numpy(distances).to(patches.device).view(patches.shape[:3])
        size = images.shape[-2:]
        maps = F.interpolate(grid.unsqueeze(1), size, mode="bilinear", align_corners=False)
        smooth = self.smoothing(maps)
        return Prediction(smooth, smooth.squeeze(1), smooth.flatten(1).amax(1))

    def maps_by_method(self, images: Tensor) -> dict[str, Tensor]:
        """One map (B, H, W) of images (B, 3, H, W) in [0, 1], under the detector's name."""
        return {self.name: self(images).fused_map}


class OneClassSVMDetector(PatchDetector):
    """One-class support vector machine (Schölkopf et al., 2001) on each image's mean feature.

    It judges whole images, so that its map is constant: it says how odd, never where. 0 is the
    machine's own border; about a share ``nu`` of the normal images lies above it.
    """

    name = "one-class-svm"

    def __init__(
        self,
        teacher: Teacher,
        image_size: int,
        smoothing_sigma: float = 4.0,
        seed: int = 0,
        nu: float = 0.1,
    ) -> None:
        super().__init__(teacher, image_size, smoothing_sigma, seed, nu=nu)
        self.nu = nu

    def fit(self, images: np.ndarray) -> None:
        features = self.read(images, lambda patches: patches.mean(1)).astype(np.float64)
        scaler = StandardScaler().fit(features)
        scaled = scaler.transform(features)
        gamma = 1 / max(scaled.shape[1] * scaled.var(), 1e-12)  # scikit-learn's "scale"
        machine = OneClassSVM(nu=self.nu, gamma=gamma).fit(scaled)
        self.learned = {
            "mean": scaler.mean_,
            "scale": scaler.scale_,
            "gamma": np.array([gamma]),
            "vectors": machine.support_vectors_,
            "coefficients": machine.dual_coef_[0],
            "offset": machine.intercept_,
        }

    def distances(self, patches: np.ndarray) -> np.ndarray:
        known = self.learned
        scaled = (patches.mean(1) - known["mean"]) / known["scale"]
        kernel = rbf_kernel(scaled, known["vectors"], float(known["gamma"][0]))
        oddness = -(kernel @ known["coefficients"] + known["offset"])
        return np.broadcast_to(oddness[:, None], patches.shape[:2])


class PCADetector(PatchDetector):
    """Principal components of normal patches; the distance is what they cannot reconstruct.

    The singular vectors that hold a share ``variance`` of the variance of at most ``most_patches``
    normal patches span a plane; an abnormal patch lies off it, at Euclidean distance
    ``||x - mean - V V^T (x - mean)||``.
    """

    name = "pca"

    def __init__(
        self,
        teacher: Teacher,
        image_size: int,
        smoothing_sigma: float = 4.0,
        seed: int = 0,
        variance: float = 0.9,
        most_patches: int = 20_000,
    ) -> None:
        super().__init__(
            teacher, image_size, smoothing_sigma, seed, variance=variance, most_patches=most_patches
        )
        self.variance, self.most_patches = variance, most_patches

    def fit(self, images: np.ndarray) -> None:
        pca = PCA(self.variance).fit(self.random_patches(images, self.most_patches))
        self.learned = {"mean": pca.mean_, "components": pca.components_}

    def distances(self, patches: np.ndarray) -> np.ndarray:
        centred = patches.reshape(-1, patches.shape[-1]) - self.learned["mean"]
        components = self.learned["components"]
        off_plane = centred - centred @ components.T @ components
        return np.linalg.norm(off_plane, axis=1).reshape(patches.shape[:2])


class GaussianDetector(PatchDetector):
    """A Gaussian at each position and the Mahalanobis distance from it, after PaDiM (Defard, 2020).

    Simpler than PaDiM: on E2's grid instead of E1's, and smoothed over 3x3 positions beforehand.
    Keeps ``channels`` of the C channels, drawn at random. Each covariance is shrunk by the formula
    of Ledoit and Wolf, which keeps it invertible with fewer images than channels, and grows by
    ``FLOOR`` times the mean variance, without which a ground of one colour would be infinitely
    sure of itself. At most ``most_images`` are read, so that memory stays bounded.
    """

    FLOOR = 1e-2  # PaDiM adds the number itself
    name = "gaussian"

    def __init__(
        self,
        teacher: Teacher,
        image_size: int,
        smoothing_sigma: float = 4.0,
        seed: int = 0,
        channels: int = 100,
        most_images: int = 500,
    ) -> None:
        super().__init__(
            teacher, image_size, smoothing_sigma, seed, channels=channels, most_images=most_images
        )
        self.most_images = most_images
        rng = np.random.default_rng(seed)
        self.kept = rng.permutation(sum(teacher.channels[:COMPARED_STAGES]))[:channels]

    def fit(self, images: np.ndarray) -> None:
        chosen = np.random.default_rng(self.seed).permutation(len(images))[: self.most_images]
        patches = self.read(images[np.sort(chosen)], lambda patches: patches[..., self.kept])
        fits = [LedoitWolf().fit(patches[:, position]) for position in range(patches.shape[1])]
        covariances = np.stack([fit.covariance_ for fit in fits])
        variance = np.trace(covariances, axis1=1, axis2=2).mean() / covariances.shape[-1]
        floor = max(self.FLOOR * variance, np.finfo(np.float32).tiny)  # all images may be alike
        self.learned = {
            "kept": self.kept,
            "means": np.stack([fit.location_ for fit in fits]),
            "precisions": np.linalg.inv(covariances + floor * np.eye(covariances.shape[-1])),
        }

    def distances(self, patches: np.ndarray) -> np.ndarray:
        known = self.learned
        centred = patches[..., known["kept"]] - known["means"]
        centred = centred.swapaxes(0, 1)  # (h*w, B, channels)
        squared = ((centred @ known["precisions"]) * centred).sum(-1)
        return np.sqrt(squared.clip(0)).T


class NearestPatchesDetector(PatchDetector):
    """Distance to the nearest normal patches, after PatchCore (Roth et al., 2022).

    Simpler than PatchCore: E1 is read too, the memory is chosen from a random part of the patches,
    and an image's score is its map's largest value, not weighed by the neighbours' density.
    Of at most ``most_patches`` normal patches it remembers ``remembered``, chosen greedily so that
    every other one is near; the distance is the mean over the ``neighbours`` nearest of those.
    """

    name = "nearest-patches"

    def __init__(
        self,
        teacher: Teacher,
        image_size: int,
        smoothing_sigma: float = 4.0,
        seed: int = 0,
        neighbours: int = 1,
        remembered: int = 2_000,
        most_patches: int = 20_000,
    ) -> None:
        super().__init__(
            teacher, image_size, smoothing_sigma, seed,
            neighbours=neighbours, remembered=remembered, most_patches=most_patches,
        )  # fmt: skip
        self.neighbours, self.remembered = neighbours, remembered
        self.most_patches = most_patches

    def fit(self, images: np.ndarray) -> None:
        patches = self.random_patches(images, self.most_patches)
        self.learned = {"memory": patches[greedy_coreset(patches, self.remembered, self.seed)]}

    def distances(self, patches: np.ndarray) -> np.ndarray:
        memory = NearestNeighbors(n_neighbors=self.neighbours).fit(self.learned["memory"])
        distances, _ = memory.kneighbors(patches.reshape(-1, patches.shape[-1]))
        return distances.mean(1).reshape(patches.shape[:2])


def greedy_coreset(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices (``count``,) into points (N, C), each next one the farthest from all before.

    This greedy choice covers all points with balls at most twice as large as the best choice would
    (Gonzalez, 1985). Distances are measured after a random projection to 128 dimensions, as in
    PatchCore, where C is larger. If there are no more than ``count`` points, all are chosen.
    """
    if len(points) <= count:
        return np.arange(len(points))
    if points.shape[1] > 128:
        projection = GaussianRandomProjection(128, random_state=seed % 2**32)  # NumPy's old bound
        points = projection.fit_transform(points)
    chosen = [int(np.random.default_rng(seed).integers(len(points)))]
    lengths = (points**2).sum(1)
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        nearest = np.minimum(nearest, lengths - 2 * points @ points[last] + lengths[last])
        nearest[last] = -np.inf  # rounding must not choose it again
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)
