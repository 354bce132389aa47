"""Images inside a result: as short in JSON as they can be, and the same to the bit when they are read back."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """An image.

    Args:
        shape: Of it.
        content: Its numbers as little-endian float32, in base64.

    Example:
        >>> picture = Picture.of(torch.tensor([[0.5, 1.0]]))
        >>> picture.content, picture.tensor
        ('AAAAPwAAgD8=', tensor([[0.5000, 1.0000]]))
    """

    shape: tuple[int, ...]
    content: str

    @classmethod
    def of(cls, image: Tensor) -> Picture:
        """Keep an image.

        Args:
            image: Any shape; it is kept as float32.

        Returns:
            The picture.
        """
        numbers = image.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4")
        return cls(tuple(image.shape), base64.b64encode(numbers.tobytes()).decode("ascii"))

    @property
    def tensor(self) -> Tensor:
        """The image again, float32.

        Raises:
            ValueError: If the content does not fit the shape.
        """
        numbers = np.frombuffer(base64.b64decode(self.content), dtype="<f4").astype(np.float32)
        if numbers.size != math.prod(self.shape):
            raise ValueError(f"{numbers.size} numbers where {self.shape} should be")
        return torch.from_numpy(numbers).reshape(self.shape)
