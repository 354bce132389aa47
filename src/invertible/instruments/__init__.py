"""Instruments: functions that measure a network and leave it as it was."""

from invertible.instruments.result import Finding, Result
from invertible.instruments.reversibility import Reversibility, reversibility

__all__ = ["Finding", "Result", "Reversibility", "reversibility"]
