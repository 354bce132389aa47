"""Models, one paper per file; `build` makes any of them from its name."""

from invertible.models.classifier import (
    Classifier,
    PoolingHead,
)
from invertible.models.ffjord import (
    ffjord,
    ffjord_2d,
    ffjord_digits,
    ffjord_table,
)
from invertible.models.glow import (
    glow,
    glow_digits,
    glow_fashion_mnist,
)
from invertible.models.glow_classifier import (
    glow_classifier,
)
from invertible.models.hybrid import (
    Hybrid,
    hybrid_digits,
    hybrid_fashion_mnist,
    hybrid_iresnet,
    hybrid_residual_flow,
)
from invertible.models.iresnet import (
    iresnet,
    iresnet164,
    iresnet_2d,
    iresnet_density,
    iresnet_density_digits,
    iresnet_density_fashion_mnist,
    iresnet_digits,
    iresnet_fashion_mnist,
    iresnet_table,
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
from invertible.models.mlp import (
    MLP,
    mlp,
)
from invertible.models.nf_regnet import (
    nf_regnet,
    nf_regnet_b0,
    nf_regnet_b1,
    nf_regnet_b2,
    nf_regnet_b3,
    nf_regnet_b4,
    nf_regnet_b5,
)
from invertible.models.nf_resnet import (
    NormalizerFreeNet,
    nf_resnet,
    nf_resnet50,
    nf_resnet101,
    nf_resnet152,
    nf_resnet200,
    nf_resnet288,
    nf_resnet600,
)
from invertible.models.nice import (
    nice,
    nice_digits,
    nice_fashion_mnist,
)
from invertible.models.normalizer_free import (
    NormalizerFree,
    normalizer_free,
)
from invertible.models.realnvp import (
    realnvp,
    realnvp_2d,
    realnvp_digits,
    realnvp_fashion_mnist,
    realnvp_table,
)
from invertible.models.registry import (
    build,
    names,
)
from invertible.models.residual_flow import (
    residual_flow,
    residual_flow_2d,
    residual_flow_digits,
    residual_flow_fashion_mnist,
    residual_flow_table,
)
from invertible.models.resnet import (
    ResNet,
    preact_resnet600,
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
from invertible.models.small_alexnet import (
    small_alexnet,
)
from invertible.models.small_inception import (
    small_inception,
)
from invertible.models.spline_flow import (
    spline_flow,
    spline_flow_digits,
)

__all__ = [
    "MLP",
    "Classifier",
    "Hybrid",
    "IRevNetBlock",
    "NormalizerFree",
    "NormalizerFreeNet",
    "PoolingHead",
    "ResNet",
    "RevNet",
    "build",
    "ffjord",
    "ffjord_2d",
    "ffjord_digits",
    "ffjord_table",
    "glow",
    "glow_classifier",
    "glow_digits",
    "glow_fashion_mnist",
    "hybrid_digits",
    "hybrid_fashion_mnist",
    "hybrid_iresnet",
    "hybrid_residual_flow",
    "iresnet",
    "iresnet164",
    "iresnet_2d",
    "iresnet_density",
    "iresnet_density_digits",
    "iresnet_density_fashion_mnist",
    "iresnet_digits",
    "iresnet_fashion_mnist",
    "iresnet_table",
    "irevnet",
    "irevnet_a",
    "irevnet_b",
    "irevnet_digits",
    "irevnet_fashion_mnist",
    "load_released_irevnet",
    "mlp",
    "names",
    "nf_regnet",
    "nf_regnet_b0",
    "nf_regnet_b1",
    "nf_regnet_b2",
    "nf_regnet_b3",
    "nf_regnet_b4",
    "nf_regnet_b5",
    "nf_resnet",
    "nf_resnet50",
    "nf_resnet101",
    "nf_resnet152",
    "nf_resnet200",
    "nf_resnet288",
    "nf_resnet600",
    "nice",
    "nice_digits",
    "nice_fashion_mnist",
    "normalizer_free",
    "preact_resnet600",
    "realnvp",
    "realnvp_2d",
    "realnvp_digits",
    "realnvp_fashion_mnist",
    "realnvp_table",
    "residual_flow",
    "residual_flow_2d",
    "residual_flow_digits",
    "residual_flow_fashion_mnist",
    "residual_flow_table",
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
    "small_alexnet",
    "small_inception",
    "spline_flow",
    "spline_flow_digits",
    "squeeze_permutation",
    "to_released_layout",
]
