"""What a product of n variables costs with and without depth (Lin, Tegmark and Rolnick 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from invertible.instruments._product_networks import Smooth
from invertible.instruments.cheap_learning import CheapLearning, cheap_learning


@dataclass
class ProductOptions:
    """Options of `products`; see `invertible.instruments.cheap_learning`.

    Args:
        n_variables: How many are multiplied.
        activation: "softplus", "sigmoid", "tanh" or "exp".
        shift: Bias of all hidden units.
        n_points: Inputs.
        seed: Of the inputs.
    """

    n_variables: list[int] = field(default_factory=lambda: [2, 3, 4, 6, 8, 10])
    activation: Smooth = "softplus"
    shift: float = 1.0
    n_points: int = 256
    seed: int = 0


def products(options: ProductOptions, *, out: Path | None = None, quiet: bool = False) -> CheapLearning:
    """Multiply with written weights: in one layer, and in a tree of gates. It takes seconds.

    Args:
        options: How many variables, with which neurons.
        out: Not needed.
        quiet: Nothing is shown.

    Returns:
        Errors, neurons and depths.

    Source: Lin, Tegmark and Rolnick 2017, "Why does deep and cheap learning work so well?", section II.D, appendix A.

    Example:
        >>> [row["neurons"] for row in products(ProductOptions([2, 4], n_points=8)).table]
        [4, 4, 16, 12]
    """
    return cheap_learning(
        options.n_variables, activation=options.activation, shift=options.shift, n_points=options.n_points,
        seed=options.seed,
    )  # fmt: skip
