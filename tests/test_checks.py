"""Each check lets the good pass and says of the bad what was expected, what came and what to try."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from invertible import Inverse, VolumePreserving, _checks
from invertible.errors import ConvergenceError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.layers import Permute

NAN, INF = float("nan"), float("inf")


# --- the tests' own check of annotations ---


def test_annotations_are_enforced_on_arguments() -> None:
    with pytest.raises(TypeCheckError, match="parameter 'n_channels'"):
        Permute.reverse("3")


class Listed(VolumePreserving):
    """Returns no tensor, which no argument's annotation can tell."""

    def _forward(self, x, context):
        return x

    def _inverse(self, y, context):
        return [y]


def test_annotations_are_enforced_on_results() -> None:
    with pytest.raises(TypeCheckError, match="return value"):
        Inverse(Listed())._forward(torch.zeros(1, 4), None)


def test_annotations_of_the_core_are_all_enforced(not_enforced: list[str]) -> None:
    core = ("errors", "_checks", "bijection", "layers", "logdet", "solve", "lattice", "reversible", "flow")
    assert [name for name in not_enforced if name.split(".")[1] in core] == []


@pytest.mark.usefixtures("unchecked")
def test_annotations_can_be_switched_off() -> None:
    with pytest.raises(TypeError, match=r"unsupported operand") as caught:
        Permute.reverse("3")
    assert not isinstance(caught.value, TypeCheckError)


# --- describe ---


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 3), "shape (2, 3) and dtype float32"),
        (torch.zeros((), dtype=torch.uint8), "shape () and dtype uint8"),
        ((1, 2), "a tuple of 2"),
        ([], "a list of 0"),
        (None, "a NoneType"),
        (np.zeros(3), "a ndarray"),
        ("text", "a str"),
    ],
)
def test_describe(value: object, words: str) -> None:
    assert _checks.describe(value) == words


# --- dtype ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_passes(dtype: torch.dtype) -> None:
    _checks.check_floating(torch.zeros(2, dtype=dtype), "net")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_do_not(dtype: torch.dtype) -> None:
    words = r"^net takes real numbers: expected a floating-point tensor, got shape .*Try: x\.float\(\) / 255"
    with pytest.raises(DtypeError, match=words):
        _checks.check_floating(torch.zeros(2, dtype=dtype), "net")


@pytest.mark.parametrize("value", [[1.0], 1.0, None, np.zeros(2)])
def test_no_tensor(value: object) -> None:
    with pytest.raises(
        DtypeError, match=r"^net takes tensors: expected a torch\.Tensor, got a .*Try: torch\.as_tensor"
    ):
        _checks.check_floating(value, "net")


# --- shape ---


@pytest.mark.parametrize("n_dims", [2, 4])
def test_right_rank_passes(n_dims: int) -> None:
    _checks.check_n_dims(torch.zeros([1] * n_dims), n_dims, "net")


@pytest.mark.parametrize(
    ("shape", "n_dims", "words"),
    [
        (
            (3, 8, 8),
            4,
            r"expected 4 dimensions \(batch, channels, \.\.\.\), got .*Try: x\.unsqueeze\(0\)",
        ),
        ((3,), 2, r"expected 2 dimensions \(batch, channels\), got .*Try: x\.unsqueeze\(0\)"),
        ((8, 8), 4, r"got shape \(8, 8\) and dtype float32$"),
        ((1, 1, 1, 3, 8), 4, r"got shape \(1, 1, 1, 3, 8\) and dtype float32$"),
    ],
)
def test_wrong_rank(shape: tuple[int, ...], n_dims: int, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        _checks.check_n_dims(torch.zeros(shape), n_dims, "net")


def test_right_number_of_channels_passes() -> None:
    _checks.check_channels(torch.zeros(2, 3), 3, "net")
    _checks.check_channels(torch.zeros(2, 5, 3), 3, "net", dim=2)
    _checks.check_channels(torch.zeros(0, 3), 3, "net")


@pytest.mark.parametrize(("shape", "dim"), [((2, 4), 1), ((3,), 1), ((2, 3), 2), ((2, 3, 4), 2)])
def test_wrong_number_of_channels(shape: tuple[int, ...], dim: int) -> None:
    words = f"^net got the wrong number of channels: expected size 3 in dimension {dim}, got .*Try: check the"
    with pytest.raises(ShapeError, match=words):
        _checks.check_channels(torch.zeros(shape), 3, "net", dim)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_right_event_shape_passes(batch: int) -> None:
    _checks.check_event_shape(torch.zeros(batch, 3, 8, 6), (3, 8, 6), "net")


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 8, 6), "x.unsqueeze(0) adds the batch dimension"),
        ((5, 8, 6, 3), "x.permute(0, 3, 1, 2), the channels come before height and width"),
        ((5, 3, 6, 8), "resize or convert the input, or build the model for this shape (in_shape=...)"),
        ((5, 1, 3, 8, 6), "resize or convert the input, or build the model for this shape (in_shape=...)"),
        ((), "resize or convert the input, or build the model for this shape (in_shape=...)"),
    ],
)
def test_wrong_event_shape(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ShapeError) as caught:
        _checks.check_event_shape(torch.zeros(shape), (3, 8, 6), "net")
    got = f"shape {shape} and dtype float32"
    assert str(caught.value) == f"net got the wrong shape: expected shape (batch, 3, 8, 6), got {got}. Try: {hint}"


# --- values ---


@pytest.mark.parametrize("x", [torch.ones(3), torch.tensor([1e38, -1e38]), torch.zeros(0), torch.tensor([1, 2])])
def test_finite_passes(x: torch.Tensor) -> None:
    _checks.check_finite(x, "the loss")


@pytest.mark.parametrize(
    ("values", "n_bad", "first"),
    [([[0.0, 1.0], [NAN, 2.0]], 1, (1, 0)), ([[0.0, INF], [-INF, NAN]], 3, (0, 1))],
)
def test_not_finite(values: list[list[float]], n_bad: int, first: tuple[int, int]) -> None:
    with pytest.raises(NonFiniteError) as caught:
        _checks.check_finite(torch.tensor(values), "the loss")
    assert str(caught.value) == (
        "the loss must be finite: expected only finite values, "
        f"got {n_bad} NaN or infinite of 4, the first at index {first}. "
        "Try: torch.nan_to_num(x), or find where they come from"
    )


def test_not_finite_scalar() -> None:
    with pytest.raises(NonFiniteError, match=r"1 NaN or infinite of 1, the first at index \(\)"):
        _checks.check_finite(torch.tensor(NAN), "the loss")


# --- placement ---


def test_right_placement_passes() -> None:
    _checks.check_placement(torch.zeros(2), nn.Linear(2, 2), "net")
    _checks.check_placement(torch.zeros(2).double(), nn.Linear(2, 2).double(), "net")
    _checks.check_placement(torch.zeros(2).double(), nn.Tanh(), "net")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _checks.check_placement(torch.zeros(2).bfloat16(), nn.Linear(2, 2), "net")


def test_wrong_dtype() -> None:
    with pytest.raises(DtypeError) as caught:
        _checks.check_placement(torch.zeros(2).double(), nn.Linear(2, 2), "net")
    assert str(caught.value) == (
        "net got a tensor of another dtype: expected torch.float32, got torch.float64. "
        "Try: x.to(torch.float32) or module.to(torch.float64)"
    )


def test_wrong_device() -> None:
    with pytest.raises(DtypeError) as caught:
        _checks.check_placement(torch.zeros(2, device="meta"), nn.Linear(2, 2), "net")
    assert str(caught.value) == (
        "net got a tensor on another device: expected cpu, got meta. Try: x.to('cpu') or module.to('meta')"
    )


def test_explained_prefers_our_own_words() -> None:
    ours, torchs, linear = ConvergenceError("ours"), RuntimeError("mat1 and mat2"), nn.Linear(2, 2)
    assert _checks.explained(ours, torch.zeros(2), linear, "net") is ours
    assert isinstance(_checks.explained(torchs, torch.zeros(2).double(), linear, "net"), DtypeError)
    assert _checks.explained(torchs, torch.zeros(2), linear, "net") is torchs
    assert torchs.__notes__ == ["net called its network Linear on a tensor of shape (2,) and dtype float32."]


def test_labels() -> None:
    _checks.check_labels(torch.tensor([0, 2]), 3, "net")
    _checks.check_labels(torch.tensor([], dtype=torch.int64), 3, "net")
    with pytest.raises(RangeError, match="net got labels out of range: expected labels 0 to 2, got -1 to 3"):
        _checks.check_labels(torch.tensor([3, -1]), 3, "net")
    with pytest.raises(DtypeError, match="int64"):
        _checks.check_labels(torch.tensor([0.0]), 3, "net")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_is_finite_sees_every_value_that_is_not(value: float) -> None:
    assert _checks.is_finite(torch.tensor([1e38, 1e38, 1e38, 1e38]))  # though their sum overflows
    assert not _checks.is_finite(torch.tensor([0.0, value, -value]))
    assert _checks.is_finite(torch.tensor([value], device="meta"))
    assert _checks.is_finite(torch.zeros(0))


def test_every_function_is_under_test() -> None:
    """A check added to _checks.py has to show up here."""
    public = [name for name, value in vars(_checks).items() if callable(value) and name.startswith("check_")]
    text = Path(__file__).read_text()
    assert [name for name in public if f"_checks.{name}(" not in text] == []
