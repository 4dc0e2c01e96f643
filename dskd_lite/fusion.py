"""Six score maps become one: by hand, or by six weights trained on synthetic noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STUDENT_MAPS = 3


def forward_map(score_maps: Tensor) -> Tensor:
    """Mean of the forward student's maps: (B, 6, H, W) gives (B, H, W)."""
    return score_maps[:, :STUDENT_MAPS].mean(1)


def reverse_map(score_maps: Tensor) -> Tensor:
    """Mean of the reverse student's maps: (B, 6, H, W) gives (B, H, W)."""
    return score_maps[:, STUDENT_MAPS:].mean(1)


def manual_fusion(score_maps: Tensor) -> Tensor:
    """Mix both students 1 : 3 by hand, the paper's MaFu: (B, 6, H, W) gives (B, H, W)."""
    return (forward_map(score_maps) + 3 * reverse_map(score_maps)) / 4


def manual_weights(input_scale: Tensor) -> Tensor:
    """Weights (6,), sum 1, that make the manual mix of maps divided by ``input_scale`` (6,)."""
    shares = input_scale.new_tensor([1.0] * STUDENT_MAPS + [3.0] * STUDENT_MAPS)
    return shares * input_scale / (shares * input_scale).sum()


def inverse_variance_weights(input_scale: Tensor, variances: Tensor) -> Tensor:
    """Weights (6,), sum 1, of maps divided by ``input_scale`` (6,): one over each one's variance.

    ``variances`` (6,) are those of the undivided maps on normal images, over images and positions.
    Of all mixes this one tells a defect best that raises every map by the same factor, if the maps
    vary independently of each other (Fisher's linear discriminant with a diagonal covariance).
    """
    weights = input_scale.square() / variances
    return weights / weights.sum()


def dice_loss(prediction: Tensor, mask: Tensor) -> Tensor:
    """Dice loss of Eq. (4), per image, then the mean: a scalar in [0, 1].

    ``1 - 2 sum(p g) / (sum(p^2) + sum(g^2))`` over the pixels of predictions p (B, H, W) in [0, 1]
    and masks g (B, H, W) in {0, 1}. Two empty images agree: their loss is 0.
    """
    p, g = prediction.flatten(1), mask.flatten(1)
    overlap, total = (p * g).sum(1), (p * p).sum(1) + (g * g).sum(1)
    tiny = torch.finfo(total.dtype).tiny
    return (1 - torch.where(total > 0, 2 * overlap / total.clamp_min(tiny), 1.0)).mean()


class ScoreMapFusion(nn.Module):
    """1x1 convolution over six score maps with relu and sigmoid: six weights, no bias.

    ``nonnegative`` reads the weights through their absolute value, so that no map counts against an
    anomaly. ``input_scale`` (6,), a buffer, divides each map first: 1 as in the paper, or each
    map's mean on normal images.
    """

    input_scale: Tensor

    def __init__(self, nonnegative: bool = False) -> None:
        super().__init__()
        self.nonnegative = nonnegative
        self.weight = nn.Parameter(torch.full((2 * STUDENT_MAPS,), 1 / (2 * STUDENT_MAPS)))
        self.register_buffer("input_scale", torch.ones(2 * STUDENT_MAPS))

    @property
    def map_weights(self) -> Tensor:
        """The factor (6,) by which each raw map counts."""
        weight = self.weight.abs() if self.nonnegative else self.weight
        return weight / self.input_scale

    def activation(self, score_maps: Tensor) -> Tensor:
        """The weighted sum after relu, (B, 6, H, W) to (B, H, W), before the sigmoid.

        It ranks pixels and images as the sigmoid would, but never rounds two scores to the same 1.
        """
        return torch.relu(torch.einsum("bkhw,k->bhw", score_maps, self.map_weights))

    def forward(self, score_maps: Tensor) -> Tensor:
        """Fuse (B, 6, H, W) to (B, H, W) in [0.5, 1): the sigmoid of something never negative."""
        return torch.sigmoid(self.activation(score_maps))


class MixLine(nn.Module):
    """Weights on the line, in logarithms, from one mix to another; both (6,), positive, sum 1.

    Trained are the place on it, 0 at ``first`` and 1 at ``second``, halfway at the start, and a
    common factor, which changes no ranking but lets the sigmoid reach its ends.
    """

    first: Tensor
    second: Tensor

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.register_buffer("first", first)
        self.register_buffer("second", second)
        self.place_logit = nn.Parameter(torch.zeros_like(first[0]))
        self.log_factor = nn.Parameter(torch.zeros_like(first[0]))

    @property
    def place(self) -> Tensor:
        """Where on the line, in (0, 1)."""
        return torch.sigmoid(self.place_logit)

    def mix(self) -> Tensor:
        """The weights (6,) at the place, sum 1."""
        return torch.softmax(torch.lerp(self.first.log(), self.second.log(), self.place), 0)

    def forward(self) -> Tensor:
        """The weights (6,) that dice is shown: the mix times the common factor."""
        return self.log_factor.exp() * self.mix()
