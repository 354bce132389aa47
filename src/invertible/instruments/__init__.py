"""Instruments: functions that measure a network and leave it as it was."""

from invertible._tap_points import HasTapPoints, TapPoints
from invertible.instruments._batch import Batch
from invertible.instruments._information_bins import Bits, binned_information
from invertible.instruments._information_exact import binned_gaussian_information, linear_gaussian_information
from invertible.instruments._information_kde import kde_information
from invertible.instruments._information_measure import Sweep
from invertible.instruments.cheap_learning import CheapLearning, cheap_learning
from invertible.instruments.critical_points import CriticalPoints, critical_points
from invertible.instruments.curvature import Curvature, curvature
from invertible.instruments.depth_profile import DepthProfile, depth_profile
from invertible.instruments.example_memorization import ExampleMemorization, example_memorization
from invertible.instruments.fitting import Fit, Report, SGDFit
from invertible.instruments.forgetting import Forgetting, ForgettingRecorder
from invertible.instruments.information_plane import InformationPlane, information_plane
from invertible.instruments.information_recorder import (
    InformationLog,
    InformationPlaneRecorder,
    InformationTrajectory,
    log_schedule,
)
from invertible.instruments.interpolation import Interpolation, interpolation
from invertible.instruments.jacobian_spectrum import JacobianSpectrum, jacobian_spectrum
from invertible.instruments.kernel_interpolation import KernelInterpolation, interpolate
from invertible.instruments.loss_slice import LossSlice, loss_slice
from invertible.instruments.loss_spread import LossSpread, loss_spread
from invertible.instruments.memorization import Memorization, memorization
from invertible.instruments.memorizing_network import MemorizingNetwork, memorizing_network
from invertible.instruments.noise_impedance import NoiseImpedance, noise_impedance
from invertible.instruments.provenance import Provenance
from invertible.instruments.registry import INSTRUMENTS, Instrument, instrument
from invertible.instruments.result import Finding, Result
from invertible.instruments.reversibility import Reversibility, reversibility
from invertible.instruments.signal_propagation import SignalPropagation, signal_propagation
from invertible.instruments.signal_recorder import SignalHistory, SignalPropagationRecorder
from invertible.instruments.taps import Heard, Tap, find_taps, listen
from invertible.instruments.top_eigenvectors import Eigenvectors, top_eigenvectors
from invertible.instruments.transposed_reconstruction import TransposedReconstruction, transposed_reconstruction
from invertible.instruments.untouched import measuring, untouched
from invertible.instruments.weight_path import WeightPath
from invertible.instruments.weight_spectrum import WeightSpectrum, weight_spectrum

__all__ = [
    "INSTRUMENTS",
    "Batch",
    "Bits",
    "CheapLearning",
    "CriticalPoints",
    "Curvature",
    "DepthProfile",
    "Eigenvectors",
    "ExampleMemorization",
    "Finding",
    "Fit",
    "Forgetting",
    "ForgettingRecorder",
    "HasTapPoints",
    "Heard",
    "InformationLog",
    "InformationPlane",
    "InformationPlaneRecorder",
    "InformationTrajectory",
    "Instrument",
    "Interpolation",
    "JacobianSpectrum",
    "KernelInterpolation",
    "LossSlice",
    "LossSpread",
    "Memorization",
    "MemorizingNetwork",
    "NoiseImpedance",
    "Provenance",
    "Report",
    "Result",
    "Reversibility",
    "SGDFit",
    "SignalHistory",
    "SignalPropagation",
    "SignalPropagationRecorder",
    "Sweep",
    "Tap",
    "TapPoints",
    "TransposedReconstruction",
    "WeightPath",
    "WeightSpectrum",
    "binned_gaussian_information",
    "binned_information",
    "cheap_learning",
    "critical_points",
    "curvature",
    "depth_profile",
    "example_memorization",
    "find_taps",
    "information_plane",
    "instrument",
    "interpolate",
    "interpolation",
    "jacobian_spectrum",
    "kde_information",
    "linear_gaussian_information",
    "listen",
    "log_schedule",
    "loss_slice",
    "loss_spread",
    "measuring",
    "memorization",
    "memorizing_network",
    "noise_impedance",
    "reversibility",
    "signal_propagation",
    "top_eigenvectors",
    "transposed_reconstruction",
    "untouched",
    "weight_spectrum",
]
