"""The frozen teacher: a ResNet, pretrained, cut into the four stages E1..E4."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from http.client import HTTPException
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from dskd_lite._torchvision import torchvision
from dskd_lite.errors import InputError

BasicBlock = torchvision.models.resnet.BasicBlock
Bottleneck = torchvision.models.resnet.Bottleneck

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OFFLINE_WEIGHTS = "offline_teacher.safetensors"
SMALLEST_IMAGE = 32


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one ResNet from another, in torchvision's terms."""

    block: type[nn.Module]
    layers: tuple[int, int, int, int]
    width_per_group: int = 64

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of E1..E4."""
        c1, c2, c3, c4 = (64 * 2**stage * self.block.expansion for stage in range(4))
        return c1, c2, c3, c4


ARCHITECTURES = {
    "wide_resnet50_2": Architecture(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "offline": Architecture(BasicBlock, (2, 2, 2, 2)),
}


def architecture(name: str) -> Architecture:
    """Look an architecture up by its name; raises InputError for a name that does not exist."""
    if name not in ARCHITECTURES:
        raise InputError(f"no teacher is called {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


class Backbone(nn.Module):
    """A ResNet without its classifier that returns the output of each stage.

    The parameters carry torchvision's names, so that its weight files load as they are.
    ``stem_stride`` False takes the stride out of the stem, the first convolution's and the
    max-pool, with the same weights: every feature is then four times as high and as wide.
    """

    def __init__(self, name: str, stem_stride: bool = True) -> None:
        super().__init__()
        arch = architecture(name)
        net = torchvision.models.ResNet(
            arch.block, list(arch.layers), width_per_group=arch.width_per_group
        )
        if not stem_stride:
            net.conv1.stride, net.maxpool = (1, 1), nn.Identity()
        self.channels = arch.channels
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4

    def forward(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """Return the first ``stages`` features: stage t is (B, C_t, H / 2^(t+1), W / 2^(t+1)).

        Without stride in the stem (B, C_t, H / 2^(t-1), W / 2^(t-1)).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[:stages]:
            x = layer(x)
            features.append(x)
        return features


class Teacher(nn.Module):
    """Frozen pretrained backbone that turns images into the features E1..E4.

    ``name`` is one of ``ARCHITECTURES``. ``weights`` is ``"pretrained"`` (torchvision's
    ``IMAGENET1K_V1``, downloaded once; for ``offline`` the file that ships with the package),
    ``"random"``, ``"unset"`` (for a caller that loads a state dict next), or the path of a
    safetensors or torchvision ``.pth`` file. A file that holds only the shortcut of stage 4
    (``layer4.0.downsample``) gives ``E4 = relu(downsample(E3))`` and says so in a warning; E1..E3,
    which are all that is ever compared, are complete. ``stem_stride`` False is for images of about
    32 pixels, of which the stem of ImageNet's networks leaves 8: see ``Backbone``.

    Always in eval mode, whatever ``train()`` is told, and without gradients.

    Raises InputError for an unknown name, or a file that is missing, unreadable or of another
    architecture.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "wide_resnet50_2",
        weights: str | Path = "pretrained",
        stem_stride: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.stem_stride = stem_stride
        self.backbone = Backbone(name, stem_stride)
        self.channels = self.backbone.channels
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        if str(weights) == "pretrained":
            self.load_backbone(_pretrained_state(name), source=f"pretrained {name}")
        elif str(weights) not in ("random", "unset"):
            state = read_weights(Path(weights))
            self.load_backbone(state, source=str(weights))
            if self.has_shortcut_stage_4:
                warnings.warn(
                    f"{weights} lacks the residual branch of layer4: E4 = relu(downsample(E3)). "
                    "E1..E3, which are all that is compared, are complete.",
                    stacklevel=2,
                )
        self.requires_grad_(False)
        self.eval()

    @property
    def has_shortcut_stage_4(self) -> bool:
        """Whether stage 4 is the shortcut alone, because the weights hold no more."""
        return isinstance(self.backbone.layer4, ShortcutStage)

    def load_backbone(self, state: dict[str, Tensor], source: str) -> None:
        """Load torchvision-named weights; ``source`` names them in an error."""
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        shortcut_only = not any(k.startswith("layer4.0.conv") for k in state)
        if shortcut_only and not self.has_shortcut_stage_4:
            self.backbone.layer4 = ShortcutStage(self.backbone.layer4[0].downsample)
        expected = self.backbone.state_dict()
        counters = {k for k in expected if k.endswith("num_batches_tracked")}
        missing = sorted(expected.keys() - state.keys() - counters)
        unknown = sorted(state.keys() - expected.keys())
        shapes = sorted(k for k in expected.keys() & state.keys()
                        if expected[k].shape != state[k].shape)  # fmt: skip
        if missing or unknown or shapes:
            kinds = {"lacks": missing, "has unknown": unknown, "has another shape for": shapes}
            first = [f"{kind} {keys[0]}" for kind, keys in kinds.items() if keys]
            raise InputError(
                f"{source} does not fit the teacher {self.name}: it {', '.join(first)}. "
                "Name the architecture that the file was saved from with --teacher."
            )
        self.backbone.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a teacher whose statistics drift is no fixed reference."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """Turn images (B, 3, H, W) in [0, 1] into E1..E ``stages``, (B, C_t, H/2^(t+1), W/2^(t+1)).

        Without stride in the stem they are (B, C_t, H/2^(t-1), W/2^(t-1)).
        H and W are multiples of 32 (so that the reverse student's doublings meet each stage).
        Raises InputError for another size.
        """
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST_IMAGE or height % 32 or width % 32:
            raise InputError(
                f"images of {height}x{width} pixels do not fit the backbone: "
                "height and width must be multiples of 32, and at least 32"
            )
        return self.backbone((images - self.mean) / self.std, stages)


class ShortcutStage(nn.Module):
    """Stage 4 reduced to its shortcut: ``relu(downsample(E3))``, with torchvision's names."""

    def __init__(self, downsample: nn.Module) -> None:
        super().__init__()
        self.add_module("0", nn.Module())
        self.get_submodule("0").add_module("downsample", downsample)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.get_submodule("0.downsample")(features))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or torch file without unpickling code.

    Raises InputError if the file is missing or holds no state dict.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes fail in the readers in a dozen ways
        raise InputError(_not_weights(path)) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(_not_weights(path))
    return state


def _not_weights(path: Path) -> str:
    return f"{path} is not a weights file: give a .safetensors or a torchvision .pth state dict"


def _pretrained_state(name: str) -> dict[str, Tensor]:
    if name == "offline":
        with resources.as_file(resources.files("dskd_lite") / "weights" / OFFLINE_WEIGHTS) as path:
            return read_weights(path)
    weights = torchvision.models.get_model_weights(name)[
        "IMAGENET1K_V1"
    ]  # what RD4AD used; DEFAULT would be V2
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, HTTPException) as error:
        raise InputError(
            f"the weights of {name} could not be downloaded ({error}): go online, give a file with "
            "--teacher-weights, or use --teacher offline"
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise InputError(
            f"the weights of {name} are damaged ({error}): delete {kept} if it is there, and try "
            "again"
        ) from error
