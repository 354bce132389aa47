"""Models, one paper per file."""

from invertible.models.classifier import Classifier, PoolingHead
from invertible.models.irevnet import (
    irevnet,
    irevnet_a,
    irevnet_b,
    irevnet_digits,
    irevnet_fashion_mnist,
)

__all__ = [
    "Classifier",
    "PoolingHead",
    "irevnet",
    "irevnet_a",
    "irevnet_b",
    "irevnet_digits",
    "irevnet_fashion_mnist",
]
