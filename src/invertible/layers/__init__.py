"""Invertible layers, one idea per file."""

from invertible.layers.activations import LipSwish, MaxMin
from invertible.layers.actnorm import ActNorm
from invertible.layers.certify import MemberBound, ModelCertificate, certify
from invertible.layers.coupling import AdditiveCoupling, AffineCoupling, Coupling
from invertible.layers.elementwise import Scaling, SoftTails, Tanh
from invertible.layers.fields import ConvField, MLPField
from invertible.layers.gain import ScaledActivation, gain
from invertible.layers.invertible_linear import Invertible1x1
from invertible.layers.lipschitz import (
    Certificate,
    certificate,
    constrain,
    lipschitz_bound,
    register_lipschitz,
    unconstrain,
)
from invertible.layers.marginal import MarginalSpline
from invertible.layers.masks import Alternating, ChannelMask, Checkerboard, FixedMask, Mask
from invertible.layers.momentum import MomentumCoupling
from invertible.layers.multi_scale import OnFirst, multi_scale
from invertible.layers.ode import ContinuousFlow, OdeError, OdeReport, Solver
from invertible.layers.pad import InjectivePad
from invertible.layers.permute import Permute
from invertible.layers.preprocess import Logit, Standardize
from invertible.layers.reshape import Reshape
from invertible.layers.residual import Residual, estimator_error
from invertible.layers.sequential import ReversibleSequential, make_reversible
from invertible.layers.sigmoid_coupling import SigmoidCoupling
from invertible.layers.skip_init import SkipInit
from invertible.layers.spline_coupling import SplineCoupling
from invertible.layers.squeeze import Squeeze
from invertible.layers.squeeze_excite import SqueezeExcite
from invertible.layers.stochastic_depth import StochasticDepth
from invertible.layers.vector_field import ModuleField, VectorField
from invertible.layers.weight_standardization import (
    ScaledStdConv1d,
    ScaledStdConv2d,
    ScaledStdConv3d,
    ScaledStdLinear,
    WeightStandardization,
    standardize,
    unstandardize,
)

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Alternating",
    "Certificate",
    "ChannelMask",
    "Checkerboard",
    "ContinuousFlow",
    "ConvField",
    "Coupling",
    "FixedMask",
    "InjectivePad",
    "Invertible1x1",
    "LipSwish",
    "Logit",
    "MLPField",
    "MarginalSpline",
    "Mask",
    "MaxMin",
    "MemberBound",
    "ModelCertificate",
    "ModuleField",
    "MomentumCoupling",
    "OdeError",
    "OdeReport",
    "OnFirst",
    "Permute",
    "Reshape",
    "Residual",
    "ReversibleSequential",
    "ScaledActivation",
    "ScaledStdConv1d",
    "ScaledStdConv2d",
    "ScaledStdConv3d",
    "ScaledStdLinear",
    "Scaling",
    "SigmoidCoupling",
    "SkipInit",
    "SoftTails",
    "Solver",
    "SplineCoupling",
    "Squeeze",
    "SqueezeExcite",
    "Standardize",
    "StochasticDepth",
    "Tanh",
    "VectorField",
    "WeightStandardization",
    "certificate",
    "certify",
    "constrain",
    "estimator_error",
    "gain",
    "lipschitz_bound",
    "make_reversible",
    "multi_scale",
    "register_lipschitz",
    "standardize",
    "unconstrain",
    "unstandardize",
]
