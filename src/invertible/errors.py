"""The one vocabulary of errors: each says what was expected, what came, and what to try."""

from __future__ import annotations


class InvertibleError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        problem: What is wrong, in one clause.
        expected: What the caller should have passed.
        got: What came instead.
        hint: What to try.

    Example:
        >>> print(ShapeError("bad batch", expected="(batch, 3, 8, 8)", got="(3, 8, 8)", hint="x.unsqueeze(0)"))
        bad batch: expected (batch, 3, 8, 8), got (3, 8, 8). Try: x.unsqueeze(0)
    """

    def __init__(self, problem: str, *, expected: object = None, got: object = None, hint: str = "") -> None:
        self.problem, self.expected, self.got, self.hint = problem, expected, got, hint
        super().__init__(problem)

    def __str__(self) -> str:
        pairs = (("expected", self.expected), ("got", self.got))
        details = ", ".join(f"{word} {value}" for word, value in pairs if value is not None)
        text = f"{self.problem}: {details}" if details else self.problem
        return f"{text}. Try: {self.hint}" if self.hint else text


class ShapeError(InvertibleError, ValueError):
    """A tensor's shape does not fit."""


class DtypeError(InvertibleError, TypeError):
    """A tensor's dtype or device does not fit, or something is no tensor at all."""


class ContextError(InvertibleError, TypeError):
    """A context is missing where one is needed, or given where none is used."""


class RangeError(InvertibleError, ValueError):
    """A value lies outside the range it must lie in."""


class NonFiniteError(InvertibleError, ValueError):
    """NaN or infinity in data, activations or a loss."""


class NotInImageError(InvertibleError, ValueError):
    """A point has no preimage: an injective map never produces it."""


class ReconstructionError(InvertibleError, RuntimeError):
    """What an inverse gives back is not what went in."""


class ConvergenceError(InvertibleError, RuntimeError):
    """An iterative solver did not reach its tolerance."""


class ConfigError(InvertibleError, ValueError):
    """A recipe, an option or a constructor argument is wrong."""


class DataError(InvertibleError, OSError):
    """A data file is missing, truncated, corrupt or not what it claims to be."""


class CheckpointError(InvertibleError, OSError):
    """A run folder, checkpoint or weight file is missing, incomplete or does not fit the model."""
