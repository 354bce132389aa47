"""What of two depth profiles can be drawn on one axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from invertible.instruments._compare_plot import Curve
from invertible.instruments._depth_rows import Depth


def curves_of(depths: Sequence[Depth]) -> dict[str, Curve]:
    """Make the curves.

    Args:
        depths: The places, in order.

    Returns:
        By name; the first is what is drawn unasked.
    """
    along: dict[str, tuple[str, Callable[[Depth], float]]] = {
        "SVM": ("accuracy, linear SVM", lambda depth: depth.trained.svm.mean),
        "nearest neighbour": ("accuracy, nearest neighbour", lambda depth: depth.trained.nearest.mean),
        "SVM after projection": ("accuracy after random projection", lambda depth: depth.projected.svm.mean),
        "nearest neighbour after projection": (
            "accuracy after random projection",
            lambda depth: depth.projected.nearest.mean,
        ),
        "ratio": ("squared distance within / between classes", lambda depth: depth.ratio),
        "CKA to the input": ("debiased CKA", lambda depth: depth.cka_input.value if depth.cka_input else math.nan),
        "CKA to the output": ("debiased CKA", lambda depth: depth.cka_output.value if depth.cka_output else math.nan),
    }
    numbers = tuple(float(i) for i in range(len(depths)))
    found = {
        name: Curve(numbers, tuple(value(depth) for depth in depths), "depth (0: input)", label)
        for name, (label, value) in along.items()
    }
    last = depths[-1].components
    counts = tuple(float(components.n) for components in last)
    for name, values in {
        "SVM on components": tuple(components.svm.mean for components in last),
        "nearest neighbour on components": tuple(components.nearest.mean for components in last),
    }.items():
        found[name] = Curve(counts, values, f"principal components at {depths[-1].name}", "accuracy")
    return found
