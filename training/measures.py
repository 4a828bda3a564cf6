"""The measures of the bundled model; each is a small function of pictures or of features."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.augment import load_images
from training.dataset import Picture

SIDE_PX = 512


@dataclass(frozen=True, slots=True)
class Crop:
    """A 512 px crop of a real picture, float (3, 512, 512) in [-1, 1]."""

    image: Tensor
    picture: Picture


def crop_real(pictures: list[Picture], device: torch.device, every: bool) -> list[Crop]:
    """The middle crop of each picture, or `every` crop of a 512 px grid; smaller pictures are enlarged."""
    crops: list[Crop] = []
    for picture, image in zip(pictures, load_images(pictures, device), strict=True):
        enlarged = _enlarge(image.float() / 127.5 - 1)
        crops += [Crop(crop, picture) for crop in _cut_grid(enlarged, every)]
    return crops


def _enlarge(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    if min(height, width) >= SIDE_PX:
        return image
    scale = SIDE_PX / min(height, width)
    size = (max(SIDE_PX, round(height * scale)), max(SIDE_PX, round(width * scale)))
    return functional.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0].clamp(-1, 1)


def _cut_grid(image: Tensor, every: bool) -> list[Tensor]:
    height, width = image.shape[1:]
    if not every:
        top, left = (height - SIDE_PX) // 2, (width - SIDE_PX) // 2
        return [image[:, top : top + SIDE_PX, left : left + SIDE_PX]]
    corners = [
        (top, left)
        for top in range(0, height - SIDE_PX + 1, SIDE_PX)
        for left in range(0, width - SIDE_PX + 1, SIDE_PX)
    ]
    return [image[:, top : top + SIDE_PX, left : left + SIDE_PX] for top, left in corners]


def measure_psnr(restored: Tensor, original: Tensor) -> Tensor:
    """Decibels of each picture, full scale 1; inputs in [-1, 1], (B, 3, H, W)."""
    return -10 * ((restored - original) / 2).square().mean(dim=(1, 2, 3)).log10()


def measure_kid(generated: Tensor, real: Tensor) -> float:
    """Kernel inception distance: the unbiased squared MMD of a cubic kernel (Binkowski et al. 2018, equation 3).

    Args:
        generated: features (N, D).
        real: features (M, D).
    """
    generated, real = generated.double(), real.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(square: Tensor) -> Tensor:
        count = len(square)
        return (square.sum() - square.diagonal().sum()) / (count * (count - 1))

    cross = kernel(generated, real).mean()
    return float(
        mean_off_diagonal(kernel(generated, generated)) + mean_off_diagonal(kernel(real, real)) - 2 * cross
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear classifier of standardised features; names are the categories."""

    names: list[str]
    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Logits, (N, categories)."""
        return (features - self.mean) / self.spread @ self.weight + self.bias

    def share_named(self, features: Tensor, categories: list[str]) -> float:
        """How often the most probable category is the wanted one."""
        wanted = torch.tensor([self.names.index(name) for name in categories], device=features.device)
        return (self.score(features).argmax(1) == wanted).float().mean().item()


def fit_probe(
    features: Tensor, categories: list[str], names: list[str] | None = None, steps: int = 400
) -> Probe:
    """Multinomial logistic regression with balanced classes, full batches; `names` may be more than occur."""
    names = names or sorted(set(categories))
    labels = torch.tensor([names.index(name) for name in categories], device=features.device)
    counts = torch.bincount(labels, minlength=len(names)).clamp(min=1).float()
    mean, spread = features.mean(0), features.std(0) + 1e-6
    x = (features - mean) / spread
    weight = torch.zeros(x.shape[1], len(names), device=x.device, requires_grad=True)
    bias = torch.zeros(len(names), device=x.device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=0.3)
    for _ in range(steps):
        loss = functional.cross_entropy(x @ weight + bias, labels, weight=counts**-0.5)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return Probe(names, mean, spread, weight.detach(), bias.detach())
