"""Deep networks that lose nothing, and instruments that measure what any network keeps."""

from invertible import data, flow, instruments, layers, models
from invertible.bijection import Bijection, Inverse, VolumePreserving
from invertible.chain import Chain, Each
from invertible.errors import InvertibleError
from invertible.flow import Flow
from invertible.layers import ReversibleSequential, make_reversible
from invertible.solve import FixedPointSolver, SolveReport, solve_linear, solve_residual
from invertible.streams import Split

__version__ = "0.1.0"

__all__ = [
    "Bijection",
    "Chain",
    "Each",
    "FixedPointSolver",
    "Flow",
    "Inverse",
    "InvertibleError",
    "ReversibleSequential",
    "SolveReport",
    "Split",
    "VolumePreserving",
    "data",
    "flow",
    "instruments",
    "layers",
    "make_reversible",
    "models",
    "solve_linear",
    "solve_residual",
]
