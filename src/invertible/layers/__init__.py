"""Invertible layers, one idea per file."""

from invertible.layers.coupling import AdditiveCoupling, AffineCoupling
from invertible.layers.pad import InjectivePad
from invertible.layers.permute import Permute
from invertible.layers.squeeze import Squeeze

__all__ = ["AdditiveCoupling", "AffineCoupling", "InjectivePad", "Permute", "Squeeze"]
