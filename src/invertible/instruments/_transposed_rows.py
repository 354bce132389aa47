"""What the transposed reconstruction says of one layer."""

from __future__ import annotations

from dataclasses import dataclass

from invertible.instruments.result import Row


@dataclass(frozen=True)
class Control:
    """Errors with other weights in the layer.

    Args:
        error: Mean relative squared error, at the scale of theory.
        scaled: The same at the best scale.
        scaled_low: Smallest of all draws.
        scaled_high: Largest.
    """

    error: float
    scaled: float
    scaled_low: float
    scaled_high: float


@dataclass(frozen=True)
class Reconstruction:
    """How far relu(W^T y + b) is from the input, in squares, relative to the input's squares.

    Args:
        keep: Which share of the outputs y was kept; the others were dropped at random.
        error: At the scale of theory, 2 / (rho n s^2) for a layer without bias.
        active: The part of it on inputs that are not zero.
        scaled: At the scale that fits the data best: 1 minus the squared cosine between input and reconstruction.
        predicted: What theory expects of `error` for random weights, with this input and these biases.
        predicted_active: What it expects of `active`.
        predicted_scaled: What it expects of `scaled`.
        gaussian: Independent Gaussian weights with the variance of each row.
        permuted: The entries of each row in random order.
    """

    keep: float
    error: float
    active: float
    scaled: float
    predicted: float
    predicted_active: float
    predicted_scaled: float
    gaussian: Control
    permuted: Control

    def row(self) -> Row:
        """As part of a row of the table.

        Returns:
            Column names and plain values.
        """
        own: Row = {key: value for key, value in vars(self).items() if not isinstance(value, Control)}
        for name, control in (("gaussian", self.gaussian), ("permuted", self.permuted)):
            own |= {f"{name}_{key}": value for key, value in vars(control).items()}
        return own


@dataclass(frozen=True)
class TransposedLayer:
    """One layer with a ReLU behind it.

    Args:
        name: Of the layer.
        kind: Its class.
        end: Name of the module whose output the ReLU gets: the layer, or the norm behind it.
        n_inputs: m: inputs per output.
        n_outputs: n: outputs per input, on average.
        share_active: Share of the inputs that are not zero: k / m.
        is_clipped: Whether the reconstruction has a ReLU: it does where no input is negative.
        mean_error: The error of giving each input its mean over the examples; None for one example.
        reconstructions: One per share that is kept.
    """

    name: str
    kind: str
    end: str
    n_inputs: int
    n_outputs: float
    share_active: float
    is_clipped: bool
    mean_error: float | None
    reconstructions: tuple[Reconstruction, ...]

    @property
    def whole(self) -> Reconstruction:
        """With the most outputs kept."""
        return max(self.reconstructions, key=lambda found: found.keep)

    def rows(self) -> list[Row]:
        """All of it: one row per share that is kept.

        Returns:
            Column names and plain values.
        """
        own: Row = {key: value for key, value in vars(self).items() if key != "reconstructions"}
        return [own | found.row() for found in self.reconstructions]
