"""Instruments: functions that measure a network and leave it as it was."""

from invertible._tap_points import HasTapPoints, TapPoints
from invertible.instruments._batch import Batch
from invertible.instruments.depth_profile import DepthProfile, depth_profile
from invertible.instruments.interpolation import Interpolation, interpolation
from invertible.instruments.jacobian_spectrum import JacobianSpectrum, jacobian_spectrum
from invertible.instruments.provenance import Provenance
from invertible.instruments.registry import INSTRUMENTS, Instrument, instrument
from invertible.instruments.result import Finding, Result
from invertible.instruments.reversibility import Reversibility, reversibility
from invertible.instruments.signal_propagation import SignalPropagation, signal_propagation
from invertible.instruments.signal_recorder import SignalHistory, SignalPropagationRecorder
from invertible.instruments.taps import Heard, Tap, find_taps, listen
from invertible.instruments.transposed_reconstruction import TransposedReconstruction, transposed_reconstruction
from invertible.instruments.untouched import measuring, untouched
from invertible.instruments.weight_spectrum import WeightSpectrum, weight_spectrum

__all__ = [
    "INSTRUMENTS",
    "Batch",
    "DepthProfile",
    "Finding",
    "HasTapPoints",
    "Heard",
    "Instrument",
    "Interpolation",
    "JacobianSpectrum",
    "Provenance",
    "Result",
    "Reversibility",
    "SignalHistory",
    "SignalPropagation",
    "SignalPropagationRecorder",
    "Tap",
    "TapPoints",
    "TransposedReconstruction",
    "WeightSpectrum",
    "depth_profile",
    "find_taps",
    "instrument",
    "interpolation",
    "jacobian_spectrum",
    "listen",
    "measuring",
    "reversibility",
    "signal_propagation",
    "transposed_reconstruction",
    "untouched",
    "weight_spectrum",
]
