"""Invertible layers, one idea per file."""

from invertible.layers.coupling import AdditiveCoupling, AffineCoupling, Coupling
from invertible.layers.momentum import MomentumCoupling
from invertible.layers.pad import InjectivePad
from invertible.layers.permute import Permute
from invertible.layers.sequential import ReversibleSequential, make_reversible
from invertible.layers.squeeze import Squeeze

__all__ = [
    "AdditiveCoupling",
    "AffineCoupling",
    "Coupling",
    "InjectivePad",
    "MomentumCoupling",
    "Permute",
    "ReversibleSequential",
    "Squeeze",
    "make_reversible",
]
