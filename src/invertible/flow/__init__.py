"""Densities: a bijection and a base distribution, with `log_prob` and `sample`."""

from invertible.flow.base import (
    Base,
    ClassNormal,
    ConditionalNormal,
    DiagonalNormal,
    NormalMixture,
    StandardLogistic,
    StandardNormal,
)
from invertible.flow.dequantization import Dequantization, UniformDequantization, VariationalDequantization
from invertible.flow.distribution import FlowDistribution
from invertible.flow.fit import FitOptions, FitReport, InterruptedFit
from invertible.flow.flow import Flow
from invertible.flow.wrap import FixedBase, LearnedBase

__all__ = [
    "Base",
    "ClassNormal",
    "ConditionalNormal",
    "Dequantization",
    "DiagonalNormal",
    "FitOptions",
    "FitReport",
    "FixedBase",
    "Flow",
    "FlowDistribution",
    "InterruptedFit",
    "LearnedBase",
    "NormalMixture",
    "StandardLogistic",
    "StandardNormal",
    "UniformDequantization",
    "VariationalDequantization",
]
