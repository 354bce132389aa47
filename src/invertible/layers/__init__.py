"""Invertible layers, one idea per file."""

from invertible.layers.actnorm import ActNorm
from invertible.layers.coupling import AdditiveCoupling, AffineCoupling, Coupling
from invertible.layers.elementwise import Scaling, SoftTails, Tanh
from invertible.layers.invertible_linear import Invertible1x1
from invertible.layers.marginal import MarginalSpline
from invertible.layers.masks import Alternating, ChannelMask, Checkerboard, FixedMask, Mask
from invertible.layers.momentum import MomentumCoupling
from invertible.layers.multi_scale import OnFirst, multi_scale
from invertible.layers.pad import InjectivePad
from invertible.layers.permute import Permute
from invertible.layers.preprocess import Logit, Standardize
from invertible.layers.reshape import Reshape
from invertible.layers.sequential import ReversibleSequential, make_reversible
from invertible.layers.sigmoid_coupling import SigmoidCoupling
from invertible.layers.spline_coupling import SplineCoupling
from invertible.layers.squeeze import Squeeze

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Alternating",
    "ChannelMask",
    "Checkerboard",
    "Coupling",
    "FixedMask",
    "InjectivePad",
    "Invertible1x1",
    "Logit",
    "MarginalSpline",
    "Mask",
    "MomentumCoupling",
    "OnFirst",
    "Permute",
    "Reshape",
    "ReversibleSequential",
    "Scaling",
    "SigmoidCoupling",
    "SoftTails",
    "SplineCoupling",
    "Squeeze",
    "Standardize",
    "Tanh",
    "make_reversible",
    "multi_scale",
]
