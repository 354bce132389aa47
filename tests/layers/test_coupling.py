"""Couplings against their formulas, at the extremes, and their documented errors."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import Constant, add, affine, assert_close, conv, mlp
from invertible import Bijection, Chain
from invertible.errors import ConfigError, ContextError, DtypeError, InvertibleError, ShapeError
from invertible.layers import (
    AdditiveCoupling,
    AffineCoupling,
    Alternating,
    Checkerboard,
    MomentumCoupling,
    SigmoidCoupling,
    SplineCoupling,
)
from invertible.layers.coupling import Coupling


def test_additive_coupling_is_its_formula() -> None:
    network, x = mlp(2, 3), torch.randn(4, 5)
    assert torch.equal(AdditiveCoupling(network)(x)[:, 2:], x[:, 2:] + network(x[:, :2]))
    network = mlp(3, 2)
    assert torch.equal(AdditiveCoupling(network, target="first")(x)[:, :2], x[:, :2] + network(x[:, 2:]))


@pytest.mark.parametrize("bound", [2.0, 0.5, None])
def test_affine_coupling_is_its_formula(bound: float | None) -> None:
    network, x = mlp(2, 6), torch.randn(4, 5)
    out = network(x[:, :2])
    shift, raw = out[:, :3], out[:, 3:]
    s = raw if bound is None else bound * torch.tanh(raw / bound)
    y, logdet = AffineCoupling(network, scale_bound=bound).forward_with_logdet(x)
    assert torch.equal(y[:, :2], x[:, :2])
    assert_close(y[:, 2:], x[:, 2:] * torch.exp(s) + shift)
    assert_close(logdet, s.sum(1))


def test_scale_bound_holds_at_the_extremes() -> None:
    """log-scales of +-1e4 would overflow; bounded by b they are +-b, and the log-determinant is their sum."""
    x = torch.ones(1, 4)
    y, logdet = AffineCoupling(Constant(0, 0, 1e4, -1e4), scale_bound=2.0).forward_with_logdet(x)
    assert_close(y[0, 2:], torch.tensor([2.0, -2.0]).exp())
    assert logdet.item() == 0.0
    y, logdet = AffineCoupling(Constant(1, 1, 3, 2), scale_bound=None).forward_with_logdet(x)
    assert_close(y[0, 2:], torch.tensor([3.0, 2.0]).exp() + 1)
    assert logdet.item() == 5.0


def test_logdet_is_summed_in_float32_for_bfloat16() -> None:
    """A bfloat16 sum of 1000 log-scales of 1/1024 stops growing at 1/4; float32 gives 1000 / 1024."""
    coupling = AffineCoupling(Constant(*[0.0] * 1000, *[2**-10] * 1000), scale_bound=None)
    _, logdet = coupling.forward_with_logdet(torch.zeros(1, 2000, dtype=torch.bfloat16))
    assert logdet.item() == torch.tensor(1000 / 1024).bfloat16().item()


@given(st.integers(0, 4), st.integers(2, 9), st.data())
def test_coupling_of_any_shape(batch: int, channels: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, channels - 1), label="size of the first stream")
    second = data.draw(st.booleans(), label="the second stream is the target")
    n_in, n_out = (first, channels - first) if second else (channels - first, first)
    target = "second" if second else "first"
    x = torch.randn(batch, channels, dtype=torch.float64)
    sizes = (first, channels - first)
    for layer in (
        add(n_in, n_out, target=target, sizes=sizes),
        affine(n_in, n_out, target=target, sizes=sizes),
    ):
        layer.double()
        y = layer(x)
        kept, changed = (slice(None, first), slice(first, None)) if second else (slice(first, None), slice(None, first))
        assert torch.equal(y[:, kept], x[:, kept])
        assert batch == 0 or not torch.equal(y[:, changed], x[:, changed])
        assert_close(layer.inverse(y), x)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(add(3, 3), id="additive"),
        pytest.param(affine(3, 3), id="affine"),
    ],
)
def test_autocast_keeps_dtype_and_round_trip(layer: Bijection) -> None:
    """Only the network runs in bfloat16: it gives the same both ways, so float32 arithmetic undoes it."""
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, logdet = layer.forward_with_logdet(x)
        back = layer.inverse(y)
    assert y.dtype == logdet.dtype == back.dtype == torch.float32
    assert_close(back, x)


def test_a_network_runs_once_per_call() -> None:
    layer, calls = affine(2, 2), []
    layer.network.register_forward_hook(lambda *_: calls.append(1))
    for method in ("forward", "inverse", "forward_with_logdet", "inverse_with_logdet"):
        calls.clear()
        getattr(layer, method)(torch.randn(3, 4))
        assert len(calls) == 1, method


class Cubing(Coupling):
    """Value and derivative share the cube; the three hooks that would do without must not be called for both."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.calls: list[str] = []

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        self.calls.append("change")
        return target + target**3 + h

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        self.calls.append("restore")
        half = (target - h) / 2
        root = (half.square() + 1 / 27).sqrt()  # Cardano
        return (root + half).pow(1 / 3) - (root - half).pow(1 / 3)

    def _log_derivative(self, target: Tensor, h: Tensor) -> Tensor:
        self.calls.append("log")
        return torch.log1p(3 * target**2)

    def _change_with_log(self, target: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append("change with log")
        square = target**2
        return target + target * square + h, torch.log1p(3 * square)

    def _restore_with_log(self, target: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append("restore with log")
        old = Coupling._restore_with_log(self, target, h)
        self.calls = self.calls[:-2]  # what the default called
        return old


def test_value_and_log_derivative_from_one_evaluation() -> None:
    layer, x = Cubing(mlp(2, 2)).double(), torch.randn(3, 4, dtype=torch.float64)
    y, logdet = layer.forward_with_logdet(x)
    back, backward = layer.inverse_with_logdet(y)
    assert layer.calls == ["change with log", "restore with log"]
    assert_close(y, layer(x))
    assert_close(back, x, 1e-9)
    assert_close(backward, -logdet, 1e-9)
    assert_close(logdet, torch.log1p(3 * x[:, 2:] ** 2).sum(1))


def test_value_and_log_derivative_when_reconstructing() -> None:
    layer, x = Cubing(mlp(2, 2)).double(), torch.randn(3, 4, dtype=torch.float64)
    for method, expected in (
        ("forward", ["change", "restore", "change"]),
        ("forward_with_logdet", ["change with log", "restore", "change with log"]),
        ("inverse", ["restore", "change", "restore"]),
        ("inverse_with_logdet", ["restore with log", "change", "restore with log"]),
    ):
        grads = []
        for memory in ("reconstruct", "store"):
            chain, leaf = Chain(layer, memory=memory), x.clone().requires_grad_()
            layer.calls = []
            out = getattr(chain, method)(leaf)
            sum(t.square().sum() for t in (out if isinstance(out, tuple) else (out,))).backward()
            assert layer.calls == (expected if memory == "reconstruct" else expected[:1]), method
            grads.append(leaf.grad)
        assert_close(grads[0], grads[1], 1e-9)


def loud(network: nn.Module) -> nn.Module:
    """Weights fifty times their usual size."""
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(50)
    return network


HARD = {
    "additive": lambda: AdditiveCoupling(loud(mlp(2, 2))),
    "affine": lambda: AffineCoupling(loud(mlp(2, 4))),
    "sigmoid": lambda: SigmoidCoupling(loud(mlp(2, 4))),
    "momentum": lambda: MomentumCoupling(loud(mlp(2, 2))),
    "spline": lambda: SplineCoupling(loud(mlp(2, 46))),
    "affine-mask": lambda: AffineCoupling(loud(mlp(4, 8)), mask=Alternating()),
    "spline-mask": lambda: SplineCoupling(loud(mlp(4, 92)), mask=Alternating()),
    "affine-checkerboard": lambda: AffineCoupling(loud(conv(4, 8, 1)), mask=Checkerboard()),
}


@pytest.mark.parametrize("build", HARD.values(), ids=HARD)
@pytest.mark.parametrize("size", [0.0, 100.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_hard_inputs_stay_finite_both_ways(build, size: float, dtype: torch.dtype) -> None:
    layer, shape = build().to(dtype), (3, 4, 2) if "Conv" in repr(build()) else (3, 4)
    for method in (layer.forward_with_logdet, layer.inverse_with_logdet):
        x = (size * torch.randn(shape)).to(dtype).requires_grad_()
        y, logdet = method(x)
        grads = torch.autograd.grad(y.sum() + logdet.sum(), [x, *layer.parameters()])
        assert all(torch.isfinite(t).all() for t in (y, logdet, *grads))


@pytest.mark.parametrize("build", HARD.values(), ids=HARD)
def test_hard_inputs_come_back(build) -> None:
    """To within roundings of the largest number in the way, in float64."""
    layer, shape = build().double(), (3, 4, 2) if "Conv" in repr(build()) else (3, 4)
    x = torch.tensor([1.0, 100.0, 1e6], dtype=torch.float64).view(3, *[1] * (len(shape) - 1))
    x = x * torch.randn(shape, dtype=torch.float64)
    assert_close(layer.inverse(layer(x)), x, 1e-9)


# --- errors ---

COUPLINGS = [AdditiveCoupling, AffineCoupling]
both = pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: c.__name__)


@both
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "third"}, "bad target: expected 'first' or 'second', got 'third'"),
        ({"sizes": (1, 1, 2)}, r"two streams: expected 2 sizes, got \(1, 1, 2\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(coupling: type[Bijection], arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        coupling(nn.Linear(2, 2), **arguments)


@both
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 0}, "expected dim >= 1, got dim=0"),
        ({"sizes": (0, 4)}, r"expected positive sizes, got \(0, 4\)"),
        ({"sizes": (4,)}, r"needs two streams or more"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_that_make_no_split(coupling: type[Bijection], arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvertibleError, match=words):
        coupling(nn.Linear(2, 2), **arguments)


@both
@pytest.mark.parametrize("arguments", [{"dim": 0}, {"sizes": (0, 4)}])
def test_arguments_that_make_no_split_are_bad_arguments(coupling: type[Bijection], arguments: dict) -> None:
    with pytest.raises(ConfigError):
        coupling(nn.Linear(2, 2), **arguments)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_bad_scale_bound(bound: float) -> None:
    with pytest.raises(ConfigError, match=f"bad scale_bound: expected a number > 0 or None, got {bound}"):
        AffineCoupling(nn.Linear(2, 4), scale_bound=bound)


def test_infinite_scale_bound() -> None:
    with pytest.raises(ConfigError, match="scale_bound"):
        AffineCoupling(nn.Linear(2, 4), scale_bound=float("inf"))


@both
@pytest.mark.usefixtures("unchecked")
def test_network_that_is_no_module(coupling: type[Bijection]) -> None:
    with pytest.raises(
        DtypeError, match=r"expected an nn.Module, got a function. Try: wrap a function in a small nn.Module"
    ):
        coupling(lambda x: x)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (
            add(2, 3),
            (1, 4),
            r"AdditiveCoupling's network .*expected \(1, 2\), got shape \(1, 3\) and dtype float32. Try: ",
        ),
        (affine(2, 3), (1, 4), r"AffineCoupling's network .*expected \(1, 4\), got shape \(1, 6\)"),
        (
            AffineCoupling(mlp(2, 2)),
            (1, 4),
            r"AffineCoupling's network .*expected \(1, 4\), got shape \(1, 2\)",
        ),
        (
            AdditiveCoupling(nn.Conv2d(2, 2, 3)),
            (1, 4, 5, 5),
            r"expected \(1, 2, 5, 5\), got shape \(1, 2, 3, 3\)",
        ),
        (AdditiveCoupling(nn.Flatten(0)), (1, 4), r"expected \(1, 2\), got shape \(2,\)"),
    ],
)
def test_network_of_the_wrong_shape(layer: Bijection, shape: tuple[int, ...], words: str) -> None:
    for method in (layer.forward, layer.inverse, layer.forward_with_logdet, layer.inverse_with_logdet):
        with pytest.raises(ShapeError, match=words):
            method(torch.zeros(shape))


def test_network_that_broadcasts_is_no_accident_to_accept() -> None:
    """A shift of shape (1, 2) would broadcast over the batch, and nobody would notice."""
    with pytest.raises(ShapeError, match=r"expected \(3, 2\), got shape \(1, 2\)"):
        AdditiveCoupling(Constant(1.0, 2.0, n_rows=1))(torch.zeros(3, 4))


class Pair(nn.Module):
    """Returns no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@both
@pytest.mark.usefixtures("unchecked")
def test_network_that_returns_no_tensor(coupling: type[Bijection]) -> None:
    with pytest.raises(ShapeError, match="got a tuple of 2"):
        coupling(Pair())(torch.zeros(1, 4))


@both
@pytest.mark.parametrize(("network", "shape"), [(nn.Linear(2, 4), (1, 4)), (nn.Conv1d(2, 4, 1), (1, 4, 3))])
def test_float64_into_a_float32_network(coupling: type[Bijection], network: nn.Module, shape: tuple[int, ...]) -> None:
    layer, words = (
        coupling(network),
        "another dtype: expected torch.float32, got torch.float64. Try: x.to(torch.float32)",
    )
    for method in (layer.forward, layer.inverse):
        with pytest.raises(DtypeError, match=re.escape(words)):
            method(torch.zeros(shape, dtype=torch.float64))


class Scale(nn.Module):
    """A network that torch lets mix dtypes: float32 times float64 is float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def test_network_that_promotes() -> None:
    with pytest.raises(DtypeError):
        AdditiveCoupling(Scale())(torch.zeros(1, 4))


class Broken(nn.Module):
    """Fails for a reason of its own."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of memory, say")


@both
def test_error_inside_the_network_comes_through_with_a_note(coupling: type[Bijection]) -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory, say") as caught:
        coupling(Broken())(torch.zeros(1, 4))
    note = f"{coupling.__name__} called its network Broken on a tensor of shape (1, 2) and dtype float32."
    assert caught.value.__notes__ == [note]


def test_error_inside_the_network_is_not_its_own_cause() -> None:
    with pytest.raises(RuntimeError) as caught:
        AdditiveCoupling(Broken())(torch.zeros(1, 4))
    assert caught.value.__cause__ is not caught.value


@both
@pytest.mark.parametrize("shape", [(2, 1), (4,), ()])
def test_what_cannot_be_parted(coupling: type[Bijection], shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected") as caught:
        coupling(mlp(1, 1))(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_wrong_number_of_channels() -> None:
    with pytest.raises(ShapeError, match=r"expected size 5 in dimension 1, got shape \(2, 6\).*Try: .*InjectivePad"):
        AdditiveCoupling(mlp(2, 3), sizes=(2, 3))(torch.zeros(2, 6))


def test_streams_of_other_sizes_than_declared() -> None:
    with pytest.raises(ShapeError):
        AdditiveCoupling(mlp(3, 3), sizes=(2, 4))((torch.zeros(1, 3), torch.zeros(1, 3)))


@both
@pytest.mark.parametrize("with_gradient", [False, True])
def test_network_that_changes_its_input_in_place(coupling: type[Bijection], with_gradient: bool) -> None:
    n_out = 3 if coupling is AdditiveCoupling else 6
    layer = coupling(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, n_out)))
    with (
        torch.set_grad_enabled(with_gradient),
        pytest.raises(ConfigError, match=r"leave its input alone.*inplace=False"),
    ):
        layer(torch.randn(4, 6))


class Disagreeing(nn.Module):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x + context


def test_network_and_flag_disagree_about_the_context() -> None:
    with pytest.raises(ContextError, match=r"disagree about the context.*takes_context=True"):
        AdditiveCoupling(Disagreeing())(torch.zeros(1, 4))
    with pytest.raises(ContextError, match="disagree about the context"):
        AdditiveCoupling(nn.Linear(2, 2), takes_context=True)(torch.zeros(1, 4), torch.zeros(1, 2))


def test_repr_shows_the_roles() -> None:
    layer = AffineCoupling(mlp(1, 6), target="first", sizes=(3, 1), scale_bound=1.5)
    assert "target='first', sizes=(3, 1), dim=1, scale_bound=1.5" in repr(layer)
