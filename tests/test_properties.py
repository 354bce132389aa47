"""What every bijection promises, checked on every case in cases.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from cases import CASES, TOLERANCE, Call, Case
from invertible import Bijection

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def some_cases(wanted: Callable[[Case], bool]) -> pytest.MarkDecorator:
    chosen = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


# --- values ---


@every_case
@every_dtype
def test_round_trip(case: Case, dtype: torch.dtype) -> None:
    b, x, args = case.make(dtype), case.x(dtype=dtype), case.args(dtype=dtype)
    y = b(x, *args)
    back = b.inverse(y, *args)
    assert y.dtype == back.dtype == dtype
    case.assert_close(back, x)


@some_cases(lambda case: case.onto)
@every_dtype
def test_round_trip_from_the_output(case: Case, dtype: torch.dtype) -> None:
    b, y, args = case.make(dtype), case.y(dtype=dtype), case.args(dtype=dtype)
    x = b.inverse(y, *args)
    again = b(x, *args)
    assert x.dtype == again.dtype == dtype
    case.assert_close(again, y)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision_agrees_with_float64(case: Case, dtype: torch.dtype) -> None:
    exact, rough = case.make(), case.make(dtype)
    y, logdet = rough.forward_with_logdet(case.x(dtype=dtype), *case.args(dtype=dtype))
    exact_y, exact_logdet = exact.forward_with_logdet(case.x(), *case.args())
    case.assert_close(y, exact_y)
    case.assert_close(logdet, exact_logdet)


@every_case
def test_with_logdet_gives_the_same_values(case: Case) -> None:
    b, x, y, args = case.make(), case.x(), case.y(), case.args()
    assert torch.equal(b.forward_with_logdet(x, *args)[0], b(x, *args))
    assert torch.equal(b.inverse_with_logdet(y, *args)[0], b.inverse(y, *args))


@every_case
@every_dtype
def test_logdet_is_one_number_per_element_in_the_dtype_of_the_input(case: Case, dtype: torch.dtype) -> None:
    b, args = case.make(dtype), case.args(dtype=dtype)
    _, forward = b.forward_with_logdet(case.x(dtype=dtype), *args)
    _, backward = b.inverse_with_logdet(case.y(dtype=dtype), *args)
    for logdet in (forward, backward):
        assert logdet.shape == (3,)
        assert logdet.dtype == dtype


@every_case
def test_logdet_is_that_of_the_dense_jacobian(case: Case) -> None:
    b, x, args = case.make(), case.x(), case.args()
    _, logdet = b.forward_with_logdet(x, *args)
    case.assert_close(logdet, dense_logdet(b.forward, x, args))


@every_case
def test_inverse_logdet_is_that_of_the_dense_jacobian(case: Case) -> None:
    b, y, args = case.make(), case.y(), case.args()
    _, logdet = b.inverse_with_logdet(y, *args)
    case.assert_close(logdet, dense_logdet(b.inverse, y, args))


@every_case
def test_inverse_logdet_is_minus_the_forward_one_at_the_preimage(case: Case) -> None:
    b, x, args = case.make(), case.x(), case.args()
    y, forward = b.forward_with_logdet(x, *args)
    back, backward = b.inverse_with_logdet(y, *args)
    case.assert_close(back, x)
    case.assert_close(backward, -forward)


def dense_logdet(f: Callable[..., Tensor], x: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    """log|det J| of each element; log det(J^T J) / 2 if J is tall, log det(J J^T) / 2 if it is wide."""
    rows = []
    for i in range(len(x)):
        context = [a[i : i + 1] for a in args]
        j = jacobian(lambda row, context=context: f(row, *context).flatten(), x[i : i + 1]).flatten(1)
        if j.shape[0] == j.shape[1]:
            rows.append(torch.linalg.slogdet(j).logabsdet)
        else:
            gram = j.T @ j if j.shape[0] > j.shape[1] else j @ j.T
            rows.append(torch.linalg.slogdet(gram).logabsdet / 2)
    return torch.stack(rows)


# --- batches and layouts ---


@every_case
def test_empty_batch(case: Case) -> None:
    b, args = case.make(), case.args(0)
    y, forward = b.forward_with_logdet(case.x(0), *args)
    x, backward = b.inverse_with_logdet(case.y(0), *args)
    assert y.shape == (0, *case.y().shape[1:])
    assert x.shape == (0, *case.shape)
    assert forward.shape == backward.shape == (0,)


@every_case
def test_elements_of_a_batch_do_not_see_each_other(case: Case) -> None:
    b, x, args = case.make(), case.x(), case.args()
    y, logdet = b.forward_with_logdet(x, *args)
    back = b.inverse(y, *args)
    for i in range(3):
        row = [a[i : i + 1] for a in args]
        y_i, logdet_i = b.forward_with_logdet(x[i : i + 1], *row)
        case.assert_close(y_i, y[i : i + 1])
        case.assert_close(logdet_i, logdet[i : i + 1])
        case.assert_close(b.inverse(y_i, *row), back[i : i + 1])


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": lambda x: torch.stack([x, x + 1], dim=-1)[..., 0],
    "every-second": lambda x: torch.stack([x, x + 1], dim=1).flatten(0, 1)[::2],
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels-last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


@every_case
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_does_not_matter(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    b, args = case.make(), case.args()
    for f, z in ((b.forward_with_logdet, layout(case.x())), (b.inverse_with_logdet, layout(case.y()))):
        out, logdet = f(z, *args)
        expected, expected_logdet = f(z.contiguous(), *args)
        case.assert_close(out, expected)
        case.assert_close(logdet, expected_logdet)


def test_the_layouts_are_what_they_say() -> None:
    x = torch.randn(3, 2, 4, 5)
    for name, layout in LAYOUTS.items():
        assert not layout(x).is_contiguous(), name
    assert LAYOUTS["channels-last"](x).is_contiguous(memory_format=torch.channels_last)


# --- gradients ---


@every_case
def test_gradients(case: Case) -> None:
    """Through both directions and both log-determinants, with respect to inputs, context and parameters."""
    b = case.make()
    names, weights = list(dict(b.named_parameters())), [p.detach() for p in b.parameters()]
    args = case.args()

    def both_ways(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
        context, parameters = rest[: len(args)], dict(zip(names, rest[len(args) :], strict=True))
        image, forward = call(b, parameters, "forward_with_logdet", x, *context)
        # Off the image an injective map has no inverse, nor a finite difference: go there through the map.
        back, backward = call(b, parameters, "inverse_with_logdet", y if case.onto else image, *context)
        return torch.cat([image.flatten(1), forward[:, None], back.flatten(1), backward[:, None]], dim=1)

    inputs = [z.requires_grad_() for z in (case.x(2), case.y(2), *case.args(2), *weights)]
    assert torch.autograd.gradcheck(both_ways, inputs, fast_mode=True)


def call(b: Bijection, parameters: dict[str, Tensor], method: str, *args: Tensor) -> tuple[Tensor, ...]:
    renamed = {f"bijection.{name}": value for name, value in parameters.items()}
    return torch.func.functional_call(Call(b, method), renamed, args)


@some_cases(lambda case: case.context is not None)
def test_gradient_reaches_the_context(case: Case) -> None:
    b, (context,) = case.make(), case.args()
    for z, method in ((case.x(), b.forward), (case.y(), b.inverse)):
        leaf = context.clone().requires_grad_()
        method(z, leaf).square().sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().min() > 0


@every_case
def test_gradient_of_the_input_undone_by_the_inverse(case: Case) -> None:
    """d inverse(forward(x)) / dx is the identity."""
    b, x, args = case.make(), case.x().requires_grad_(), case.args()
    weights = torch.randn_like(x)
    (b.inverse(b(x, *args), *args) * weights).sum().backward()
    assert x.grad is not None
    case.assert_close(x.grad, weights)


# --- modules ---


@every_case
def test_state_dict_round_trip(case: Case, tmp_path: Path) -> None:
    saved, fresh = case.make(seed=0), case.make(seed=1)
    x, args = case.x(), case.args()
    if list(saved.parameters()):
        assert not torch.equal(fresh(x, *args), saved(x, *args))
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(fresh(x, *args), saved(x, *args))
    assert torch.equal(fresh.inverse(case.y(), *args), saved.inverse(case.y(), *args))


@every_case
def test_deepcopy_is_equal_and_independent(case: Case) -> None:
    b, x, args = case.make(), case.x(), case.args()
    twin, before = copy.deepcopy(b), b(x, *args)
    assert torch.equal(twin(x, *args), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert torch.equal(b(x, *args), before)


@every_case
def test_nothing_is_touched(case: Case) -> None:
    """Not the input, nor the weights, nor the global random state."""
    b = case.make()
    for z, method in ((case.x(), b.forward_with_logdet), (case.y(), b.inverse_with_logdet)):
        args = case.args()
        watched = [z, *args, torch.get_rng_state(), *b.state_dict().values()]
        before = [t.clone() for t in watched]
        method(z, *args)
        after = [z, *args, torch.get_rng_state(), *b.state_dict().values()]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def exports() -> list[object]:
    """All cases, and in dynamo's slower, strict way one of each kind and all chains; `-m compile_all` runs the rest."""
    found: list[object] = []
    kinds: set[str] = set()
    for name, case in CASES.items():
        if case.traceable:
            kind = name.partition("-")[0]
            is_extra = kind in kinds and kind not in ("chain", "multi", "on")
            found.append(pytest.param(case, False, id=f"non-strict-{name}"))
            found.append(pytest.param(case, True, id=f"strict-{name}", marks=[pytest.mark.compile_all] * is_extra))
            kinds.add(kind)
    return found


@pytest.mark.parametrize(("case", "strict"), exports())
@pytest.mark.usefixtures("unchecked")
def test_export(case: Case, strict: bool) -> None:
    b, args = case.make(), (case.x(), *case.args())
    any_batch = tuple({0: torch.export.Dim("batch")} for _ in args)
    program = torch.export.export(b, args, dynamic_shapes=any_batch, strict=strict)
    case.assert_close(program.module()(*args), b(*args))
    other = (case.x(5), *case.args(5))
    case.assert_close(program.module()(*other), b(*other))


@every_case
def test_streams_in_streams_out(case: Case) -> None:
    b, args = case.make(), case.args()
    for z, method, here, there in (
        (case.x(), "forward", b.split_in, b.split_out),
        (case.y(), "inverse", b.split_out, b.split_in),
    ):
        streams = here.part(z) if here else (z,)
        out, whole = getattr(b, method)(streams, *args), getattr(b, method)(z, *args)
        out2, logdet = getattr(b, f"{method}_with_logdet")(streams, *args)
        _, expected_logdet = getattr(b, f"{method}_with_logdet")(z, *args)
        for parts in (out, out2):
            assert isinstance(parts, tuple)
            assert len(parts) == (there.n_streams if there else 1)
            assert torch.equal(there.merge(parts) if there else parts[0], whole)
        assert torch.equal(logdet, expected_logdet)


@some_cases(lambda case: case.traceable)
def test_vmap(case: Case) -> None:
    b, sets = case.make(), [(case.x(2, seed=s), *case.args(2)) for s in (5, 6)]
    y, logdet = torch.func.vmap(b.forward_with_logdet)(*map(torch.stack, zip(*sets, strict=True)))
    for i, args in enumerate(sets):
        expected, expected_logdet = b.forward_with_logdet(*args)
        case.assert_close(y[i], expected)
        case.assert_close(logdet[i], expected_logdet)


@some_cases(lambda case: case.context is None)
def test_inside_sequential(case: Case) -> None:
    b, x = case.make(), case.x()
    assert torch.equal(nn.Sequential(b, nn.Flatten())(x), b(x).flatten(1))
