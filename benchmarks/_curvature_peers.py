"""Who computes curvature in `curvature.py`: ours, curvlinops, PyHessian; each is left out where it is not installed."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from _curvature_subjects import Subject
from invertible.instruments import curvature, top_eigenvectors

ACCURATE = 1e-4
"""Relative to the largest eigenvalue: what everybody is to reach."""
Values = dict[str, Callable[[], list[float]]]


def _curvlinops() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import curvlinops  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("curvlinops is not installed: pip install --no-deps curvlinops-for-pytorch, see pyproject.toml")
        return None
    return curvlinops


def _pyhessian() -> Any:
    try:
        import pyhessian  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("pyhessian is not installed: pip install --no-deps pyhessian")
        return None
    return pyhessian


def operator(one: Subject, kind: str) -> Any:
    """Their linear operator; None where it is not installed. Its costly self-checks are off."""
    theirs = _curvlinops()
    if theirs is None:
        return None
    make = theirs.HessianLinearOperator if kind == "hessian" else theirs.GGNLinearOperator
    more = {"check_deterministic": False}
    return make(one.net, nn.CrossEntropyLoss(), list(one.net.parameters()), [one.data], **more)


def largest(one: Subject, kind: str, k: int) -> Values:
    """The k largest eigenvalues, descending, by each."""
    found: Values = {
        "invertible": lambda: [
            pair.value
            for pair in top_eigenvectors(one.net, one.data, n_largest=k, matrix=kind).eigenvalues  # pyright: ignore
        ]
    }
    act = operator(one, kind)
    if act is not None:
        found["curvlinops"] = lambda: _eigsh(act, k, "LA", ACCURATE)[::-1]
    theirs = _pyhessian() if kind == "hessian" else None
    if theirs is not None:
        tolerance = _tolerance_of(theirs, one, k)
        found["pyhessian"] = lambda: _power(theirs, one, k, tolerance)
    return found


def both_ends(one: Subject, k: int) -> Values:
    """The k largest, descending, and the k smallest, ascending."""

    def ours() -> list[float]:
        return [p.value for p in top_eigenvectors(one.net, one.data, n_largest=k, n_smallest=k).eigenvalues]

    found: Values = {"invertible": ours}
    act = operator(one, "hessian")
    if act is not None:
        found["curvlinops"] = lambda: [*_eigsh(act, k, "LA", ACCURATE)[::-1], *_eigsh(act, k, "SA", ACCURATE)]
    return found


def _eigsh(act: Any, k: int, which: str, tol: float) -> list[float]:
    from scipy.sparse.linalg import eigsh

    settings: dict[str, Any] = {"tol": tol, "return_eigenvectors": False}
    found: Any = eigsh(act.to_scipy(), k=k, which=which, **settings)
    return sorted(found.tolist())


def _power(theirs: Any, one: Subject, k: int, tolerance: float) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        matrix = theirs.hessian(one.net, nn.CrossEntropyLoss(), data=one.data, cuda=False)
        values, _ = matrix.eigenvalues(maxIter=2000, tol=tolerance, top_n=k)
    one.net.zero_grad()
    return sorted((float(value) for value in values), reverse=True)


def _tolerance_of(theirs: Any, one: Subject, k: int) -> float:
    # The loosest with which it is accurate enough, or the last.
    exact = one.exact["hessian"].flip(0)[:k].tolist()
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        found = _power(theirs, one, k, tolerance)
        if error_of(found, exact) <= ACCURATE:
            return tolerance
    return 1e-6


def error_of(found: list[float], exact: list[float]) -> float:
    """Largest error, over the largest eigenvalue."""
    return max(abs(a - b) for a, b in zip(found, exact, strict=True)) / max(map(abs, exact))


Density = tuple[np.ndarray, np.ndarray]


def densities(one: Subject, n_probes: int, n_steps: int) -> dict[str, Callable[[], Density]]:
    """Smoothed spectral densities on grids of their own: values, density."""

    def ours() -> Density:
        options: dict[str, Any] = {"n_largest": 1, "n_smallest": 1, "n_trace": 1, "tolerance": 0.1, "dense_up_to": 0}
        found = curvature(one.net, one.data, n_probes=n_probes, n_steps=n_steps, quiet=True, **options)
        at, mean, *_ = found.density(1024)
        return np.array(at), np.array(mean)

    found: dict[str, Callable[[], Density]] = {"invertible": ours}
    theirs, act = _curvlinops(), operator(one, "hessian")
    if act is not None:

        def spectrum() -> Density:
            at, density = theirs.lanczos_approximate_spectrum(act, n_steps, num_repeats=n_probes)
            return at.numpy(), density.numpy()

        found["curvlinops"] = spectrum
    return found


def traces(one: Subject, n_products: int) -> dict[str, Callable[[int], float]]:
    """Estimates of the trace, each from a seed, all by the same number of products or about."""
    n_lanczos = 2 * n_products // 3

    def ours(seed: int) -> float:
        options: dict[str, Any] = {"n_largest": 5, "n_smallest": 1, "n_probes": 1, "tolerance": 0.05, "dense_up_to": 0}
        n_left = max(n_products - n_lanczos - 6, 4)
        return curvature(
            one.net, one.data, n_steps=n_lanczos, n_trace=n_left, seed=seed, quiet=True, **options
        ).trace.value

    found: dict[str, Callable[[int], float]] = {"invertible": ours}
    theirs, act = _curvlinops(), operator(one, "hessian")
    if act is not None:
        methods = {"hutchinson": theirs.hutchinson_trace, "hutch++": theirs.hutchpp_trace, "xtrace": theirs.xtrace}
        for name, method in methods.items():
            n = n_products - n_products % 6
            found[f"curvlinops-{name}"] = lambda seed, method=method, n=n: _seeded(seed, lambda: method(act, n))
    return found


def _seeded(seed: int, act: Callable[[], Any]) -> float:
    torch.manual_seed(seed)
    return float(act())
