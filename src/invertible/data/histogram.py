"""How often each pixel value occurs: all that means and deviations need, exact and the same in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from invertible.data.source import ImageSource

CHUNK = 4096  # images held at once


def count_values(data: ImageSource) -> Tensor:
    """Count the pixel values of each channel.

    Args:
        data: Images of shape (channels, height, width).

    Returns:
        int64 counts, shape (channels, 256), on the CPU.

    Example:
        >>> from invertible.data import load
        >>> count_values(load("digits"))[0, :4].tolist()
        [42179, 3055, 2472, 2177]
    """
    n_channels = data.shape[0]
    counts = torch.zeros(n_channels, 256, dtype=torch.int64)
    for start in range(0, len(data), CHUNK):
        images = data.batch(range(start, min(start + CHUNK, len(data)))).cpu()
        for channel in range(n_channels):
            counts[channel] += torch.bincount(images[:, channel].flatten(), minlength=256)
    return counts
