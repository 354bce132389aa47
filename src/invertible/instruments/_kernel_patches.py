"""Features of a random convolutional layer: whitened patches as filters, thresholds, pooling (Coates and Ng)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from invertible.errors import ConfigError, ShapeError

_N_PATCHES = 20_000
_IMAGES, _FILTERS = 8, 256  # at a time: activations of 28x28 images that stay in a cache
_EPS_NORM, _EPS_WHITEN = 10 / 255**2, 0.1


class RandomConv:
    """x -> pool(max(0, |f * x| - threshold)) for both signs and each filter f, patches normalised and whitened.

    Filters are patches of the training images, drawn at random, whitened, of length 1. Nothing is learned from labels.

    Args:
        x: Training images with values of about 0 to 1, shape (n, channels, height, width).
        n_filters: How many.
        patch: Side of a patch, pixels; None: 6, or half of a smaller side.
        threshold: What is taken off the absolute response.
        pools: Cells per side that responses are averaged over; None: 4, less where there is no room.
        seed: Of the draws; the global random state is not touched.

    Raises:
        ShapeError: If these are no images.
        ConfigError: If a number is out of range.

    Source: Coates, Ng and Lee 2011, "An analysis of single-layer networks in unsupervised feature learning"; Coates and
        Ng 2011, "The importance of encoding versus training with sparse coding and vector quantization".

    Example:
        >>> x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> RandomConv(x, n_filters=5)(x).shape
        torch.Size([50, 160])
    """

    def __init__(
        self,
        x: Tensor,
        n_filters: int = 500,
        patch: int | None = None,
        threshold: float = 0.25,
        pools: int | None = None,
        seed: int = 0,
    ) -> None:
        if x.ndim != 4:
            hint = "x.unflatten(1, (channels, height, width)), or kernel='rbf'"
            raise ShapeError(
                "convolutions take images", expected="(n, channels, height, width)", got=x.shape, hint=hint
            )
        side = min(x.shape[2:])
        self.patch = min(6, max(1, side // 2)) if patch is None else patch
        pools = min(4, side - self.patch + 1) if pools is None else pools
        is_fine = n_filters >= 1 and 1 <= self.patch <= side and 1 <= pools <= side - self.patch + 1 and threshold >= 0
        if not is_fine:
            expected = f"n_filters >= 1, 1 <= patch <= {side}, pools that fit, threshold >= 0"
            got = f"n_filters={n_filters}, patch={self.patch}, pools={pools}, threshold={threshold}"
            raise ConfigError("no such convolution", expected=expected, got=got)
        self._threshold, self._pools = threshold, pools
        generator = torch.Generator().manual_seed(seed)
        patches = self._normalised(_draw(x, self.patch, max(_N_PATCHES, n_filters), generator))
        self._filters, self._bias = _whitening_filters(patches, n_filters, generator)
        self._filters = self._filters.unflatten(1, (x.shape[1], self.patch, self.patch)).to(x.dtype)
        self._bias = self._bias.to(x.dtype)
        self.n_features = n_filters * 2 * pools**2

    def __call__(self, x: Tensor) -> Tensor:
        """Compute.

        Args:
            x: Images, shape (n, channels, height, width).

        Returns:
            Shape (n, n_features), the dtype of x.
        """
        found = x.new_empty(len(x), self.n_features)
        for start in range(0, len(x), _IMAGES):
            found[start : start + _IMAGES] = self._few(x[start : start + _IMAGES])
        return found

    def _few(self, x: Tensor) -> Tensor:
        scale = self._local_scale(x)
        parts = []
        for filters, bias in zip(self._filters.split(_FILTERS), self._bias.split(_FILTERS), strict=True):
            response = F.conv2d(x, filters).div_(scale).sub_(bias[:, None, None])
            for signed in (response - self._threshold, response.neg_().sub_(self._threshold)):
                parts.append(F.adaptive_avg_pool2d(signed.relu_(), self._pools).flatten(1))
        return torch.cat(parts, 1)

    def _local_scale(self, x: Tensor) -> Tensor:
        # Patches are divided by their deviation; their mean is taken off by filters that sum to zero.
        mean = F.avg_pool2d(x.mean(1, keepdim=True), self.patch, 1)
        square = F.avg_pool2d(x.square().mean(1, keepdim=True), self.patch, 1)
        return ((square - mean.square()).clamp_(min=0) + _EPS_NORM).sqrt_()

    @staticmethod
    def _normalised(patches: Tensor) -> Tensor:
        centred = patches - patches.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + _EPS_NORM).sqrt()


def _draw(x: Tensor, size: int, n: int, generator: torch.Generator) -> Tensor:
    which = torch.randint(len(x), (n,), generator=generator)
    corners = [torch.randint(side - size + 1, (n,), generator=generator) for side in x.shape[2:]]
    inside = torch.arange(size)
    rows, columns = corners[0][:, None] + inside, corners[1][:, None] + inside
    patches = x[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (n, size, size, channels)
    return patches.permute(0, 3, 1, 2).flatten(1).double()


def _whitening_filters(patches: Tensor, n_filters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Filters u and numbers b with <u, p> - b = <w, whitened p> for filters w of length 1.

    Returns:
        u, shape (n_filters, d), each of sum zero; b, shape (n_filters,).
    """
    mean = patches.mean(0)
    variances, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    whiten = (axes * (variances.clamp(min=0) + _EPS_WHITEN).rsqrt()) @ axes.T
    chosen = torch.randperm(len(patches), generator=generator)[:n_filters]
    filters = F.normalize((patches[chosen] - mean) @ whiten, dim=1) @ whiten
    bias = filters @ mean
    return filters - filters.mean(1, keepdim=True), bias


def standardise(features: Tensor, of_test: Tensor) -> None:
    """Mean zero and variance 1 / D over the training points, in place.

    Args:
        features: Of training points, shape (n, D).
        of_test: Of test points.
    """
    mean, std = features.mean(0), features.std(0, correction=0)
    scale = torch.where(std > 1e-6 * std.max(), std, torch.full_like(std, torch.inf)) * features.shape[1] ** 0.5
    for x in (features, of_test):
        x.sub_(mean).div_(scale)
