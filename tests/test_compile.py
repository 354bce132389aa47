"""`torch.compile(fullgraph=True)` gives what eager gives: for a few cases always, for all with `-m compile_all`.

A full graph is not possible for `InjectivePad.inverse`: whether the padding is zero decides whether an error is
raised, so a value is looked at. There the graph breaks; the function compiles around it and still raises.

Annotations are off (`unchecked`): dynamo cannot trace beartype.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.exc import Unsupported, UserError

from cases import CASES, Call, Case
from invertible import Bijection, Chain
from invertible.errors import NotInImageError
from invertible.layers import InjectivePad, Squeeze

pytestmark = [
    pytest.mark.usefixtures("unchecked", "_fresh_compiler"),
    # Inductor's own import warns.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

A_FEW = ["squeeze-2d", "additive-first", "affine-conv-2d", "affine-context", "chain-stages"]
METHODS = ["forward", "inverse", "forward_with_logdet", "inverse_with_logdet"]


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    """Nothing compiled before counts towards the recompilation limit."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_is_eager(case: Case, method: str) -> None:
    function = Call(case.make(torch.float32), method)
    z = (case.y if method.startswith("inverse") else case.x)(dtype=torch.float32)
    args = (z, *case.args(dtype=torch.float32))
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(*args), function(*args), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", A_FEW)
@pytest.mark.parametrize("method", METHODS[:3])
def test_full_graph(name: str, method: str) -> None:
    assert_compiled_is_eager(CASES[name], method)


def is_full_graph(case: Case, method: str) -> bool:
    return case.traceable and (case.onto or method.startswith("forward"))


@pytest.mark.compile_all
@pytest.mark.parametrize(
    ("name", "method"), [(name, m) for name, case in CASES.items() for m in METHODS if is_full_graph(case, m)]
)
def test_full_graph_of_every_case(name: str, method: str) -> None:
    assert_compiled_is_eager(CASES[name], method)


def test_gradients_of_a_compiled_chain() -> None:
    case = CASES["chain-stages"]
    grads = []
    for compiled in (False, True):
        b, x = case.make(torch.float32), case.x(dtype=torch.float32).requires_grad_()
        f = Call(b, "forward_with_logdet")
        y, logdet = (torch.compile(f, fullgraph=True) if compiled else f)(x)
        (y.square().sum() - logdet.sum()).backward()
        grads.append([x.grad, *(p.grad for p in b.parameters())])
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-5)


def test_one_graph_serves_other_batch_sizes() -> None:
    """The second size may recompile, with the batch as a variable; the third and later ones may not."""
    case = CASES["chain-stages"]
    b = case.make(torch.float32)
    compiled = torch.compile(b, fullgraph=True, backend="eager")
    compiled(case.x(3, torch.float32))
    compiled(case.x(5, torch.float32))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (4, 7):
            x = case.x(batch, torch.float32)
            torch.testing.assert_close(compiled(x), b(x))


@pytest.mark.parametrize("outer", [InjectivePad(2, 2), Chain(InjectivePad(2, 2), Squeeze(1))], ids=["pad", "chain"])
def test_inverse_of_padding_compiles_with_a_graph_break_and_still_raises(outer: Bijection) -> None:
    inverse = Call(outer, "inverse")
    y = outer(torch.randn(3, 2, 4, 4))
    compiled = torch.compile(inverse)
    assert torch.equal(compiled(y), inverse(y))
    with pytest.raises(NotInImageError, match="InjectivePad cannot be undone"):
        compiled(y + 1)
    assert torch.equal(compiled(y), inverse(y))


def test_inverse_of_padding_is_no_full_graph() -> None:
    """Once it is, the docstring above is out of date."""
    y = InjectivePad(2, 2)(torch.randn(3, 2))
    with pytest.raises((Unsupported, UserError), match=r"[Dd]ata-dependent"):
        torch.compile(Call(InjectivePad(2, 2), "inverse"), fullgraph=True, backend="eager")(y)
