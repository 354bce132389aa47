"""Models, one paper per file; `build` makes any of them from its name."""

from invertible.models.classifier import (
    Classifier,
    PoolingHead,
)
from invertible.models.irevnet import (
    IRevNetBlock,
    irevnet,
    irevnet_a,
    irevnet_b,
    irevnet_digits,
    irevnet_fashion_mnist,
)
from invertible.models.irevnet_weights import (
    load_released_irevnet,
    squeeze_permutation,
    to_released_layout,
)
from invertible.models.registry import (
    build,
    names,
)
from invertible.models.resnet import (
    ResNet,
    resnet,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
    resnet164,
)
from invertible.models.revnet import (
    RevNet,
    revnet,
    revnet38,
    revnet56,
    revnet104,
    revnet110,
    revnet164,
)

__all__ = [
    "Classifier",
    "IRevNetBlock",
    "PoolingHead",
    "ResNet",
    "RevNet",
    "build",
    "irevnet",
    "irevnet_a",
    "irevnet_b",
    "irevnet_digits",
    "irevnet_fashion_mnist",
    "load_released_irevnet",
    "names",
    "resnet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "revnet",
    "revnet38",
    "revnet56",
    "revnet104",
    "revnet110",
    "revnet164",
    "squeeze_permutation",
    "to_released_layout",
]
