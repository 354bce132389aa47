"""Restore a photograph: the Deep Image Prior, its operators, and what surrounds it."""

from invertible.restore.deep_decoder import DeepDecoder
from invertible.restore.engine import Progress
from invertible.restore.images import Photo, read_image, write_image
from invertible.restore.networks import NETWORKS
from invertible.restore.noise_level import estimate_sigma
from invertible.restore.operators import (
    Blur,
    Composed,
    Downsample,
    Identity,
    Jpeg,
    Mask,
    Operator,
    as_operator,
    gaussian_kernel,
)
from invertible.restore.prior import AsPrior, Prior
from invertible.restore.pyramid import Pyramid
from invertible.restore.restore import Restored, restore
from invertible.restore.settings import Settings
from invertible.restore.skip import ResidualNetwork, SkipNetwork
from invertible.restore.stopping import Discrepancy, MovingVariance, Sight, StoppingRule, WindowedVariance
from invertible.restore.tiles import tiled
from invertible.restore.trajectory import Trajectory

__all__ = [
    "NETWORKS",
    "AsPrior",
    "Blur",
    "Composed",
    "DeepDecoder",
    "Discrepancy",
    "Downsample",
    "Identity",
    "Jpeg",
    "Mask",
    "MovingVariance",
    "Operator",
    "Photo",
    "Prior",
    "Progress",
    "Pyramid",
    "ResidualNetwork",
    "Restored",
    "Settings",
    "Sight",
    "SkipNetwork",
    "StoppingRule",
    "Trajectory",
    "WindowedVariance",
    "as_operator",
    "estimate_sigma",
    "gaussian_kernel",
    "read_image",
    "restore",
    "tiled",
    "write_image",
]
