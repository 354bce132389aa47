"""The reversibility report against dense Jacobians, closed forms and networks known to break."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, TOLERANCE, WithContext, add, add_given, affine, affine_given, mlp
from invertible import Bijection, Chain, Inverse, Split
from invertible.chain import Each
from invertible.errors import ConfigError, ContextError, DtypeError, NonFiniteError, ShapeError
from invertible.instruments import Reversibility, reversibility
from invertible.layers import AdditiveCoupling, InjectivePad, Permute, Squeeze
from invertible.models import irevnet
from invertible.models.classifier import Classifier

EXACTLY = {"n_iterations": 3000, "lipschitz_tolerance": 1e-6}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Diagonal(Bijection):
    """x -> x * scale, elementwise."""

    def __init__(self, *scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def _forward(self, x, context):
        return x * self.scale

    def _inverse(self, y, context):
        return y / self.scale

    def _forward_with_logdet(self, x, context):
        raise NotImplementedError

    def _inverse_with_logdet(self, y, context):
        raise NotImplementedError


class OffBy(Diagonal):
    """The identity, whose forward pass is off by `amount` in the first coordinate unless it runs in float64."""

    def __init__(self, amount: float) -> None:
        super().__init__(1.0)
        self.amount = amount

    def _forward(self, x, context):
        error = torch.zeros_like(x)
        error[:, 0] = self.amount if x.dtype != torch.float64 else 0.0
        return x + error


class Failing(Diagonal):
    """The identity, whose inverse raises `error`, below float64 or always."""

    def __init__(self, error: Exception, always: bool = False) -> None:
        super().__init__(1.0)
        self.error, self.always = error, always

    def _inverse(self, y, context):
        if self.always or y.dtype != torch.float64:
            raise self.error
        return y


def singular_values(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Largest singular value of d function(x)[i] / d x[i] for each example i."""
    values = []
    for row in x.split(1):
        jacobian = torch.autograd.functional.jacobian(function, row)
        values.append(torch.linalg.matrix_norm(jacobian.reshape(-1, row.numel()), 2))
    return torch.stack(values)


def sentences(report: Reversibility, severity: str = "") -> list[str]:
    return [finding.sentence for finding in report.findings if severity in ("", finding.severity)]


# --- Lipschitz constants ---

SINGLE = [name for name in CASES if name.split("-")[0] in ("squeeze", "pad", "permute", "additive", "affine")]


@pytest.mark.parametrize("name", SINGLE)
def test_constants_are_the_dense_jacobians_largest_singular_values(name: str) -> None:
    case = CASES[name]
    bijection, x = case.make(), case.x()
    context = case.args()[0] if case.args() else None
    report = reversibility(bijection, x, context, dtypes=(), **EXACTLY)

    def forward(row: Tensor) -> Tensor:
        i = int((x == row).flatten(1).all(1).nonzero())
        return bijection(row, None if context is None else context[i : i + 1])

    with torch.no_grad():
        y = bijection(x, context)

    def inverse(row: Tensor) -> Tensor:
        i = int((y == row).flatten(1).all(1).nonzero())
        return bijection.inverse(row, None if context is None else context[i : i + 1])

    there, back = singular_values(forward, x), singular_values(inverse, y)
    (block,) = report.blocks
    assert block.name == block.kind == type(bijection).__name__
    assert block.converged
    assert not block.ties_examples
    measured = [block.lipschitz_mean, block.lipschitz_max, block.inverse_mean, block.inverse_max]
    measured += [block.condition_mean, block.condition_max]
    expected = [f(values).item() for values in (there, back, there * back) for f in (torch.mean, torch.max)]
    assert measured == pytest.approx(expected, rel=1e-6)


def test_linear_additive_coupling_in_closed_form() -> None:
    # [[1, 0], [A, 1]] with A = diag(a) has the singular values of [[1, 0], [a, 1]], as has its inverse.
    network = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.diag(torch.tensor([0.5, 4.0, -2.0])))
    (block,) = reversibility(AdditiveCoupling(network), normal(2, 6), dtypes=(), **EXACTLY).blocks
    expected = 2 + math.sqrt(5)  # sigma - 1 / sigma = a = 4
    assert [block.lipschitz_max, block.inverse_max, block.inverse_mean] == pytest.approx([expected] * 3, rel=1e-6)
    assert block.condition_max == pytest.approx(expected**2, rel=1e-6)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_inverse_that_expands_300_fold_is_named(where: int) -> None:
    members = [add(2, 2), Permute.reverse(4)]
    members.insert(where, Diagonal(1 / 300, 1.0, 2.0, 0.5))
    report = reversibility(Chain(*members), normal(3, 4), **EXACTLY)
    block = report.blocks[where]
    assert (block.lipschitz_max, block.inverse_max, block.condition_max) == pytest.approx((2, 300, 600), rel=1e-6)
    (warning,) = sentences(report, "warning")
    assert warning == (f"Block {where}'s inverse expands 300-fold (Diagonal): exploding inverse; bound its weights.")
    assert report.findings[sentences(report).index(warning)].row == where
    assert all(other.inverse_max < 10 for i, other in enumerate(report.blocks) if i != where)


def test_inverses_swap_the_constants() -> None:
    (block,) = reversibility(Inverse(Diagonal(1 / 300, 1.0, 2.0, 0.5)), normal(3, 4), **EXACTLY).blocks
    assert block.kind == "Inverse(Diagonal)"
    assert (block.lipschitz_max, block.inverse_max) == pytest.approx((300, 2), rel=1e-6)


def in_training() -> Chain:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    return Chain(AdditiveCoupling(network), Permute.reverse(4))


def test_batch_norm_in_training_mode_makes_the_batch_one_point() -> None:
    chain, x = in_training(), normal(5, 4)
    report = reversibility(chain, x, dtypes=("float32",), **EXACTLY)
    jacobian = torch.autograd.functional.jacobian(chain[0], x).reshape(20, 20)
    expected = torch.linalg.matrix_norm(jacobian, 2).item()
    block = report.blocks[0]
    assert (block.ties_examples, report.blocks[1].ties_examples) == (True, False)
    assert (block.lipschitz_mean, block.lipschitz_max) == pytest.approx((expected, expected), rel=1e-6)
    assert "Examples depend on each other in block 0" in sentences(report)[-1]


def test_batch_norm_in_eval_mode_leaves_examples_apart() -> None:
    chain, x = in_training().eval(), normal(5, 4)
    (block, _) = reversibility(chain, x, dtypes=(), **EXACTLY).blocks
    assert not block.ties_examples
    assert block.lipschitz_mean == pytest.approx(singular_values(chain[0], x).mean().item(), rel=1e-6)
    assert block.lipschitz_mean < block.lipschitz_max


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (0, 5), (3, 6), (2, 6)])
def test_any_two_tied_examples_are_noticed(pair: tuple[int, int]) -> None:
    class Mix(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros_like(x)
            out[pair[0]] = x[pair[1]]
            return out

    (block,) = reversibility(AdditiveCoupling(Mix()), normal(7, 4), dtypes=()).blocks
    assert block.ties_examples


def test_kinks_are_seen_from_both_sides() -> None:
    # At 0 the derivative of ReLU is that of its flat side; beside it half the channels have slope 50.
    network = nn.Sequential(nn.ReLU(), nn.Linear(8, 8, bias=False)).double()
    nn.init.eye_(network[1].weight).data.mul_(50)
    x = torch.cat([torch.zeros(4, 8), normal(4, 8)], dim=1).double()
    (block,) = reversibility(AdditiveCoupling(network), x, dtypes=(), **EXACTLY).blocks
    assert block.inverse_max == pytest.approx(25 + math.sqrt(626), rel=1e-6)


def test_a_constant_that_is_still_rising_is_said_to_be() -> None:
    diagonal = Diagonal(*torch.linspace(0.99, 1.0, 40).tolist())
    report = reversibility(Chain(diagonal), normal(2, 40), n_iterations=10, lipschitz_tolerance=1e-5)
    assert not report.blocks[0].converged
    assert report.blocks[0].n_iterations == 10
    assert report.blocks[0].lipschitz_max < 1.0
    assert any("constants of block 0 are still rising: raise n_iterations" in s for s in sentences(report, "note"))


class Once(torch.autograd.Function):
    """tanh, which can be differentiated once only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / ctx.saved_tensors[0].cosh() ** 2


def test_what_cannot_be_differentiated_twice_is_measured_without_constants() -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)

    report = reversibility(Chain(add(2, 2), AdditiveCoupling(Network()), add(2, 2)), normal(3, 4))
    first, second, third = report.blocks
    assert math.isnan(second.inverse_max)
    assert math.isnan(second.drift["float32"].expected)
    assert math.isnan(first.drift["float32"].upper)
    assert first.inverse_max > 1
    assert third.drift["float32"].expected > 0
    assert 0 < first.drift["float32"].error_max < 1e-5
    (warning,) = sentences(report, "warning")
    assert warning.startswith("No Lipschitz constants for block 1, hence no prediction before block 1: RuntimeError")


class Wrapper(Diagonal):
    """Runs a chain inside, forward only."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(1.0)
        self.chain = chain

    def _forward(self, x, context):
        return self.chain(x)


def test_a_chain_hidden_in_a_block_saves_no_memory_while_it_is_measured() -> None:
    torch.manual_seed(1)
    # Reconstruction would call the inverse, which raises.
    chain, x = Chain(add(2, 2), Failing(NonFiniteError("no"), always=True)).double(), normal(3, 4)
    expected = singular_values(chain, x).max().item()
    chain.memory = "reconstruct"
    (block,) = reversibility(Wrapper(chain), x, dtypes=(), **EXACTLY).blocks
    assert block.failure == ""
    assert block.lipschitz_max == pytest.approx(expected, rel=1e-6)
    assert chain.memory == "reconstruct"


# --- errors, measured and predicted ---


def test_drift_in_closed_form() -> None:
    # Exact but for an error of 2^-10 in one coordinate, which the inverse of block 0 expands 256-fold.
    chain = Chain(Diagonal(2.0**-8, 1.0), OffBy(2.0**-10), Diagonal(2.0, 2.0))
    x = torch.tensor([[3.0, 4.0], [0.0, 12.0]], dtype=torch.float64)
    report = reversibility(chain, x, dtypes=("float32",), tolerance=0.02)
    before = torch.tensor([[3 / 256, 4.0], [0.0, 12.0]])
    error = 2.0**-10 * math.sqrt(2)  # in both examples
    drifts = [block.drift["float32"] for block in report.blocks]
    assert [drift.error_rms for drift in drifts] == pytest.approx([256 * error / 13, error / before.norm().item(), 0])
    assert [drift.error_max for drift in drifts] == pytest.approx([0.25 / 12, 2.0**-10 / 12, 0])
    assert [drift.expected for drift in drifts] == pytest.approx([drift.error_rms for drift in drifts], rel=1e-9)
    assert [drift.upper for drift in drifts] == pytest.approx([drift.error_rms for drift in drifts], rel=1e-6)
    assert report.first_broken("float32") == "0"


@pytest.mark.parametrize(("tolerance", "block"), [(1.0, None), (0.1, "0"), (1e-3, "1"), (1e-5, "2")])
def test_the_first_block_that_breaks_is_the_first_the_inversion_meets(tolerance: float, block: str | None) -> None:
    chain = Chain(Diagonal(2.0**-6, 1.0), OffBy(2.0**-8), OffBy(2.0**-12))
    report = reversibility(chain, torch.ones(2, 2), dtypes=("float32",), tolerance=tolerance)
    assert report.first_broken("float32") == block
    assert bool(sentences(report, "error")) == (block is not None)
    assert re.search("breaks at block 2" if block == "2" else "float32", sentences(report)[0])


def coupled(n: int, make: Callable[..., Bijection], exact: bool = False) -> Chain:
    torch.manual_seed(1)
    targets = ["first" if i % 2 else "second" for i in range(n)]
    return Chain(*(make(6, 6, target=target) for target in targets), exact=exact)


@pytest.mark.parametrize("make", [add, affine])
def test_measured_drift_is_what_was_predicted_at_depth_64(make: Callable[..., Bijection]) -> None:
    report = reversibility(coupled(64, make), normal(8, 12))
    for dtype in report.dtypes:
        for block in report.blocks:
            drift = block.drift[dtype]
            assert drift.expected <= drift.upper
            assert drift.error_rms <= drift.upper
        for block in report.blocks[:48]:  # the last blocks' few rounding errors scatter
            drift = block.drift[dtype]
            # What a coupling divides by is to the bit what it multiplied by: part of the roundings cancels.
            assert drift.expected / (5 if make is add else 40) < drift.error_rms < 5 * drift.expected
    ratio = report.blocks[0].drift["bfloat16"].error_rms / report.blocks[0].drift["float32"].error_rms
    assert 2**14 < ratio < 2**18  # of their roundings: 2^16


@pytest.mark.parametrize("make", [add, affine])
def test_errors_are_those_of_inverting_by_hand(make: Callable[..., Bijection]) -> None:
    chain, x = coupled(5, make), normal(8, 12)
    report = reversibility(chain, x, dtypes=("float32",))
    assert next(chain.parameters()).dtype == torch.float32
    streams = Split().part(x.float())
    for i, block in enumerate(report.blocks):
        with torch.no_grad():
            back = chain[i:].inverse(chain[i:](streams))
        before, after = (torch.cat(each, dim=1).double() for each in (streams, back))
        error, drift = after - before, block.drift["float32"]
        assert drift.error_max == (error.abs().max() / before.abs().max()).item()
        assert drift.error_rms == pytest.approx((error.norm() / before.norm()).item(), rel=1e-12, abs=0)
        with torch.no_grad():
            streams = chain[i](streams)
    assert report.blocks[0].drift["float32"].error_rms > 0


CHAINS = [
    name for name, case in CASES.items() if name.split("-")[0] in ("chain", "inverse") and case.tolerance == TOLERANCE
]


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_all_kinds(name: str) -> None:
    case = CASES[name]
    chain, x = case.make(), case.x()
    context = case.args()[0] if case.args() else None
    report = reversibility(chain, x, context, dtypes=("float64", "float32"), **EXACTLY)
    modules = dict(chain.named_modules())
    for block in report.blocks:
        module = modules.get(block.name, chain)
        assert not isinstance(module, (Chain, Inverse)) or module is chain
        assert block.kind.endswith(type(module).__name__ + ")" * block.kind.count(")")) or module is chain
        assert block.failure == ""
        assert 1 - 1e-9 < block.condition_max < 100
        assert block.drift["float64"].error_max < 1e-13
        assert block.drift["float32"].error_max < 1e-4
    leaves = [m for m in chain.modules() if isinstance(m, Bijection) and not isinstance(m, (Chain, Inverse))]
    assert len(report.blocks) == len(leaves)


def test_names_and_order_in_nested_and_inverted_chains() -> None:
    inner = Chain(add(2, 2), Permute.reverse(4))
    report = reversibility(Chain(affine(2, 2), Chain(inner), Inverse(inner)), normal(2, 4))
    names = ["0", "1.0.0", "1.0.1", "2.bijection.1", "2.bijection.0"]
    assert [block.name for block in report.blocks] == names
    assert [block.kind for block in report.blocks][3:] == ["Inverse(Permute)", "Inverse(AdditiveCoupling)"]
    assert report.blocks[1].lipschitz_max == pytest.approx(report.blocks[4].inverse_max, rel=0.05)


def test_maps_that_only_move_data_make_no_error_and_none_is_predicted() -> None:
    chain = Chain(Squeeze(2), Permute.random(8), InjectivePad(8, 2), Inverse(Squeeze(1)))
    report = reversibility(chain, normal(3, 2, 4, 4))
    for block in report.blocks:
        assert (block.lipschitz_max, block.inverse_max) == pytest.approx((1, 1), abs=1e-12)
        assert all((d.error_max, d.error_rms, d.expected, d.upper) == (0, 0, 0, 0) for d in block.drift.values())
    assert sentences(report) == [f"{dtype}: every reconstruction is exact to the last bit." for dtype in report.dtypes]


def test_an_empty_chain_has_no_blocks() -> None:
    report = reversibility(Chain(), normal(3, 2))
    assert report.table == []
    assert sentences(report) == ["There is nothing to invert: no blocks."]
    assert report.first_broken("float32") is None
    assert report.plot().get_title()


# --- contexts ---


def test_contexts_reach_the_members_that_take_them() -> None:
    chain, x, context = Chain(add(2, 2), affine_given(2), Chain(add_given(2))), normal(3, 4), normal(3, 2, seed=2)
    given = reversibility(chain, x, context.float(), **EXACTLY)
    other = reversibility(chain, x, 3 * context, **EXACTLY)
    assert given.blocks[1].lipschitz_max != pytest.approx(other.blocks[1].lipschitz_max, rel=1e-3)
    assert given.blocks[0].lipschitz_max == pytest.approx(other.blocks[0].lipschitz_max, rel=1e-6)
    assert given.blocks[0].drift["bfloat16"].error_max < 0.1


def test_each_member_its_own_context() -> None:
    chain, x = Chain(affine_given(2), Chain(affine_given(2)), add(2, 2)), normal(3, 4)
    a, b = normal(3, 2, seed=2), normal(3, 2, seed=3)
    each = reversibility(chain, x, Each(a, b, None), **EXACTLY)
    same = reversibility(chain, x, a, **EXACTLY)
    assert each.blocks[0].lipschitz_max == same.blocks[0].lipschitz_max
    assert each.blocks[1].lipschitz_max != pytest.approx(same.blocks[1].lipschitz_max, rel=1e-6)
    with pytest.raises(ContextError, match="one per member"):
        reversibility(chain, x, Each(a, b))


def test_contexts_of_other_kinds_are_converted_too() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = WithContext(mlp(2, 2), 2, 2)

        def forward(self, x: Tensor, context: Any) -> Tensor:
            assert context["pair"][1][0].dtype == torch.int64
            return self.inner(x, context["pair"][0]) * context["factor"]

    chain = Chain(AdditiveCoupling(Network(), takes_context=True))
    context = {"pair": (normal(3, 2), [torch.tensor(3)]), "factor": 2}
    assert reversibility(chain, normal(3, 4), context).blocks[0].drift["bfloat16"].error_max < 0.1


# --- exact chains ---


def test_exact_chains_come_back_to_the_last_bit() -> None:
    report = reversibility(coupled(40, add, exact=True), normal(8, 12).mul(3))
    assert report.is_exact
    for block in report.blocks:
        drift = block.drift["float32"]
        assert (drift.error_max, drift.error_rms, drift.expected, drift.upper) == (0, 0, 0, 0)
        assert block.inverse_max > 1
    assert "float32: every reconstruction is exact to the last bit, as the lattice promises." in sentences(report)
    assert sentences(report, "error") == []
    assert "bfloat16: block 0's forward raised DtypeError: exact mode has no bits to spare" in sentences(report)[1]


def test_an_exact_padded_network_in_training_mode_is_exact_though_its_inverses_explode() -> None:
    report = reversibility(padded(exact=True), torch.rand(8, 1, 8, 8), dtypes=("float32",))
    assert max(block.inverse_max for block in report.blocks) > 100
    assert all(block.drift["float32"].error_max == 0 for block in report.blocks)
    assert sentences(report, "error") == sentences(report, "warning") == []
    assert "; on the lattice there is no error to expand." in " ".join(sentences(report, "note"))


def test_an_exact_part_of_a_chain_rounds_what_comes_in() -> None:
    chain = Chain(Permute.reverse(12), coupled(4, add, exact=True))
    report = reversibility(chain, normal(8, 12), dtypes=("float64",))
    errors = [block.drift["float64"].error_max for block in report.blocks]
    assert errors[2:] == [0, 0, 0]
    assert 0 < errors[1] < 2.0**-18
    assert not report.is_exact


def test_values_outside_the_lattice_are_a_finding() -> None:
    report = reversibility(coupled(3, add, exact=True), normal(8, 12).mul(100), dtypes=("float32",))
    (error,) = sentences(report, "error")
    assert "RangeError" in error
    assert "a smaller k" in error


# --- what breaks ---


def padded(exact: bool = False) -> Bijection:
    """i-RevNet with channels of zeros, in training mode: BatchNorm blows rounding errors in them up."""
    torch.manual_seed(0)
    sizes = {"n_blocks": (4, 4), "strides": (1, 2), "channels": (8, 32), "init_squeeze": 2}
    return irevnet((1, 8, 8), **sizes, dropout=0.0, exact=exact).body


def test_padding_under_batch_norm_in_training_mode() -> None:
    torch.manual_seed(0)
    body, x = padded(), torch.rand(8, 1, 8, 8)
    report = reversibility(body, x)
    assert (report.is_training, report.is_exact) == (True, False)
    assert report.blocks[1].kind == "InjectivePad"
    worst = report.blocks[2]  # the first block behind the padding
    assert worst.inverse_max == max(block.inverse_max for block in report.blocks) > 1000
    assert report.first_broken("float32") == "2"
    drifts = [block.drift["float32"] for block in report.blocks]
    assert drifts[1].failure.startswith("inverse raised NotInImageError: InjectivePad cannot be undone")
    assert drifts[1].error_max == math.inf
    assert math.isnan(drifts[0].error_max)
    assert drifts[0].failure == ""
    for drift in drifts[2:-1]:  # although exploding, and at kinks of ReLU
        assert drift.expected / 10 < drift.error_rms < 10 * drift.expected
    error = sentences(report, "error")[0]
    assert "float32: the inversion first breaks at block 2" in error
    assert "-fold; use exact=True or a dtype with more bits" in error
    assert "Block 1's inverse raised NotInImageError" in error
    warning = sentences(report, "warning")[0]
    assert re.match(
        r"Block 2's inverse expands [\d,]+-fold \(IRevNetBlock\): exploding inverse; use exact=True", warning
    )
    assert "eval()" in warning


def test_the_same_network_in_eval_mode_holds() -> None:
    report = reversibility(padded().eval(), torch.rand(8, 1, 8, 8))
    assert not report.is_training
    assert max(block.inverse_max for block in report.blocks) < 2
    assert sentences(report, "error") == sentences(report, "warning") == []
    assert report.first_broken("float32") is None


def test_exploding_affine_couplings_are_told_to_bound_their_scale() -> None:
    chain = coupled(4, lambda n, m, target: affine(n, m, target=target, scale_bound=None))
    with torch.no_grad():
        chain[2].network[2].bias[6:] = -6.0
    report = reversibility(chain, normal(4, 12), dtypes=("bfloat16",))
    (warning,) = sentences(report, "warning")
    assert re.match(r"Block 2's inverse expands \d\d\d-fold \(AffineCoupling\): exploding inverse; bound", warning)
    assert "scale_bound=..." in warning
    assert "exact=True" not in " ".join(sentences(report))


@pytest.mark.parametrize(
    "error", [NonFiniteError("no", hint="less"), ShapeError("odd")], ids=lambda error: type(error).__name__
)
def test_an_inverse_that_raises_is_a_row_and_a_finding(error: Exception) -> None:
    report = reversibility(Chain(add(2, 2), Failing(error), add(2, 2)), normal(3, 4))
    assert report.first_broken("float32") == "1"
    assert report.table[1]["float32_failure"] == f"inverse raised {type(error).__name__}: {error}"
    assert [block.drift["float32"].error_max for block in report.blocks][1:] == pytest.approx([math.inf, 0], abs=1e-6)
    assert math.isnan(report.blocks[0].drift["float32"].error_max)
    assert math.isnan(report.blocks[0].drift["float32"].expected)
    assert f"float32: block 1's inverse raised {type(error).__name__}" in sentences(report, "error")[0]


def test_an_inverse_that_always_raises_leaves_a_report() -> None:
    report = reversibility(Chain(add(2, 2), Failing(NonFiniteError("no"), always=True), add(2, 2)), normal(3, 4))
    assert math.isnan(report.blocks[1].inverse_max)
    assert report.blocks[0].inverse_max > 1
    assert report.blocks[1].failure == "NonFiniteError: no"


def test_overflow_in_half_precision_is_a_finding() -> None:
    report = reversibility(Chain(Diagonal(1e4), Diagonal(1e4)), torch.full((2, 1), 2.0), dtypes=("float16",))
    assert report.first_broken("float16") == "1"
    (error,) = sentences(report, "error")
    assert error.startswith("float16: block 1's forward raised NonFiniteError: the result in float16 must be finite")
    assert math.isnan(report.blocks[0].drift["float16"].error_max)


def test_an_operation_that_a_dtype_lacks_says_where() -> None:
    class Solve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.solve(torch.eye(2, dtype=x.dtype), x.T).T

    chain = Chain(add(2, 2), AdditiveCoupling(Solve()))
    with pytest.raises(RuntimeError) as caught:
        reversibility(chain, normal(3, 4))
    assert "While block '1' ran in torch.bfloat16; dtypes=... leaves that out." in caught.value.__notes__
    assert reversibility(chain, normal(3, 4), dtypes=("float32",)).blocks[1].inverse_max > 1


def test_an_inverse_that_bends_on_the_scale_of_the_error_is_noted() -> None:
    class Step(nn.Module):
        """Flat at the activations, but for rounding."""

        def forward(self, x: Tensor) -> Tensor:
            return ((x - x.detach().round()).abs() * 1e5).clamp(1.0, 1e3) * (x - x.detach().round())

    # Inputs on whole numbers; what comes back is off by 2^-10.
    chain = Chain(AdditiveCoupling(Step()), OffBy(2.0**-6))
    report = reversibility(chain, torch.ones(2, 2), dtypes=("float32",), tolerance=1e3)
    assert any("times worse than Jacobians tell" in sentence for sentence in sentences(report, "note"))


# --- nothing changes ---


def fingerprint(module: nn.Module, x: Tensor) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    found: list[Any] = [torch.get_rng_state(), x.clone(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    for name, part in module.named_modules():
        found += [name, id(part), part.training, *(list(getattr(part, hook).values()) for hook in hooks)]
        found += [sorted(key for key in vars(part) if not key.startswith("__"))]
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        found += [name, id(value), value._version, value.dtype, value.requires_grad, value.detach().clone()]
        found.append(None if value.grad is None else (id(value.grad), value.grad.clone()))
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def used() -> tuple[Chain, Tensor]:
    """A network half-way through training: gradients, statistics, hooks, mixed modes, a frozen part."""
    body, x = padded(), torch.rand(8, 1, 8, 8)
    assert isinstance(body, Chain)
    body.memory, body.check_every = "reconstruct", None
    body[3].eval()
    body[4].requires_grad_(False)
    body(x).square().sum().backward()
    body[2].register_forward_hook(lambda *_: None)
    return body, x.requires_grad_()


def test_the_fingerprint_sees_changes() -> None:
    body, x = used()
    before = fingerprint(body, x)
    assert same(before, fingerprint(body, x))
    with torch.no_grad():
        body(x)  # moves running statistics
    assert not same(before, fingerprint(body, x))
    before = fingerprint(body, x)
    torch.rand(1)
    assert not same(before, fingerprint(body, x))


def test_nothing_changes() -> None:
    body, x = used()
    before = fingerprint(body, x)
    report = reversibility(body, x)
    assert report.blocks[3].drift["float32"].expected > 0
    assert same(before, fingerprint(body, x))
    assert x.grad is None


class Trap(nn.Module):
    """A network that fails at its n-th call, after it has changed what it can."""

    calls = 0

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.norm = n, nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        Trap.calls += 1
        torch.rand(1)
        if Trap.calls == self.n:
            raise KeyError("trap")
        return self.norm(x)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_nothing_changes_after_an_exception(n: int) -> None:
    Trap.calls, x = 0, torch.randn(6, 4)
    chain = Chain(add(2, 2), AdditiveCoupling(Trap(n)), add(2, 2))
    before = fingerprint(chain, x)
    with pytest.raises(KeyError):
        reversibility(chain, x)
    assert same(before, fingerprint(chain, x))


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_callers_mode_makes_no_difference(mode: Callable[[], Any]) -> None:
    chain, x = coupled(3, affine), normal(3, 12)
    with mode():
        inside = reversibility(chain, x.clone())
    assert inside == reversibility(chain, x)


def test_the_same_seed_gives_the_same_report_whatever_the_random_state() -> None:
    chain, x = coupled(3, affine), normal(3, 12)
    first = reversibility(chain, x, seed=3)
    torch.rand(7)
    assert reversibility(chain, x, seed=3) == first
    assert reversibility(chain, x, seed=4) != first


# --- refusals ---


def test_dropout_in_training_mode_is_refused_and_in_eval_mode_is_not() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    chain = Chain(add(2, 2), AdditiveCoupling(network))
    with pytest.raises(ConfigError, match=r"no inverse.*block '1' \(AdditiveCoupling\).*call eval\(\)"):
        reversibility(chain, normal(8, 4))
    assert reversibility(chain.eval(), normal(8, 4)).first_broken("float32") is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("chain", "x", "context", "options", "error", "message"),
    [
        (Classifier(Chain(), nn.Flatten()), torch.ones(2, 2), None, {}, DtypeError, r"a Bijection.*classifier\.body"),
        (3, torch.ones(2, 2), None, {}, DtypeError, "a Bijection, got a int"),
        (Chain(), torch.ones(2, 2, dtype=torch.int64), None, {}, DtypeError, "floating-point"),
        (Chain(), (torch.ones(2, 2),), None, {}, DtypeError, "a tuple of 1"),
        (Chain(), torch.tensor([[math.nan]]), None, {}, NonFiniteError, "1 NaN"),
        (Chain(), torch.ones(2, 2), torch.ones(2), {}, ContextError, "expected no context"),
        (add_given(2), torch.ones(2, 4), None, {}, ContextError, "expected a context"),
        (Chain(add(2, 2)), torch.ones(2, 5), None, {}, ShapeError, "shape|size"),
        (Chain(), torch.ones(2, 2), None, {"dtypes": ("float8",)}, ConfigError, "float64, float32, float16"),
        (Chain(), torch.ones(2, 2), None, {"dtypes": "float32"}, ConfigError, r"as in dtypes=\('float32',\)"),
        (Chain(), torch.ones(2, 2), None, {"dtypes": ("float32", "float32")}, ConfigError, "bad dtypes"),
        (Chain(), torch.ones(2, 2), None, {"n_iterations": 9}, ConfigError, "n_iterations >= 10"),
        (Chain(), torch.ones(2, 2), None, {"tolerance": math.nan}, ConfigError, "tolerances > 0"),
        (Chain(), torch.ones(2, 2), None, {"lipschitz_tolerance": 0}, ConfigError, "tolerances > 0"),
    ],
)
def test_refusals(
    chain: Any, x: Any, context: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        reversibility(chain, x, context, **options)


def test_a_dtype_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="was not measured"):
        reversibility(Chain(add(2, 2)), normal(2, 4), dtypes=("float32",)).first_broken("bfloat16")


def test_what_cannot_be_copied_says_so() -> None:
    chain = Chain(add(2, 2))
    chain[0].network.made = torch.ones(2, requires_grad=True) * 2  # no leaf: deepcopy refuses it
    with pytest.raises(ConfigError, match="cannot be copied"):
        reversibility(chain, normal(2, 4))


# --- tables, files, pictures ---


def test_the_table_goes_to_csv() -> None:
    report = reversibility(padded(), torch.rand(8, 1, 8, 8))
    assert all(type(value) in (str, int, float, bool) for row in report.table for value in row.values())
    assert [row["name"] for row in report.table] == [str(i) for i in range(10)]
    assert {"float32_error_max", "bfloat16_expected", "inverse_max", "converged"} <= set(report.table[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(report.table[0]))
    writer.writerows(report.table)  # refuses rows with other columns
    assert len(text.getvalue().splitlines()) == 10


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    report = reversibility(padded(), torch.rand(8, 1, 8, 8))  # has NaN and infinity in it
    report.save(tmp_path / "a.json")
    assert "nan" in repr(report)
    assert repr(Reversibility.load(tmp_path / "a.json")) == repr(report)


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_picture_shows_errors_predictions_constants_and_the_break() -> None:
    import matplotlib.pyplot as plt

    report = reversibility(padded(), torch.rand(8, 1, 8, 8))
    figure, ax = plt.subplots()
    assert report.plot(ax) is ax
    assert ax.get_yscale() == "log"
    assert "float32 breaks at block 2" in labels(ax)
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    shown = lines["float32, measured"].get_ydata()
    assert list(shown[2:]) == [block.drift["float32"].error_rms for block in report.blocks[2:]]
    assert lines["float32 breaks at block 2"].get_xdata()[0] == 2
    (gains,) = (axes for axes in figure.axes if axes is not ax)
    heights = [bar.get_height() for bar in gains.patches]
    assert heights == [block.inverse_max for block in report.blocks]
    assert [label.get_text() for label in ax.get_xticklabels()] == [block.name for block in report.blocks]
    figure.canvas.draw()
    plt.close(figure)


def test_the_picture_of_an_exact_chain_says_so() -> None:
    import matplotlib.pyplot as plt

    ax = reversibility(coupled(3, add, exact=True), normal(3, 12)).plot()
    assert labels(ax)[:2] == ["float32, measured: exactly 0", "bfloat16 cannot run at block 0"]
    ax.figure.canvas.draw()
    plt.close("all")


def test_import_is_light() -> None:
    code = "import sys, invertible.instruments; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "scipy", "sklearn"} & set(done.stdout.split())


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ShapeError, match="something to measure"):
        reversibility(Chain(AdditiveCoupling(nn.Linear(2, 2))), torch.zeros(0, 4))
