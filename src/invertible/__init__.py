"""Deep networks that lose nothing, and instruments that measure what any network keeps."""

from invertible import data, instruments, layers, models
from invertible.bijection import Bijection, Inverse, VolumePreserving
from invertible.chain import Chain, Each
from invertible.errors import InvertibleError
from invertible.layers import ReversibleSequential, make_reversible
from invertible.streams import Split

__version__ = "0.1.0"

__all__ = [
    "Bijection",
    "Chain",
    "Each",
    "Inverse",
    "InvertibleError",
    "ReversibleSequential",
    "Split",
    "VolumePreserving",
    "data",
    "instruments",
    "layers",
    "make_reversible",
    "models",
]
