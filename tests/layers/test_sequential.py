"""Other people's networks in two streams: the formula, its gradients, and everything an nn.Sequential is used for."""

from __future__ import annotations

import copy
import io
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import assert_close
from invertible.errors import ConfigError, ContextError, DtypeError, InvertibleError, ShapeError
from invertible.layers.sequential import ReversibleSequential, make_reversible

MEMORY = ["store", "checkpoint", "reconstruct"]
WIDTH = 6


class Block(nn.Module):
    """A transformer's block as people write it, its skips inside its own forward."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, width))

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm1(x)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    def think(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.think(x)


def halves(block: Block) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return block.attend, block.think


def functions(block: Block) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return lambda x: block.attend(x), lambda x: block.mlp(block.norm2(x))


def branch(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh())


def branches(n: int = 4, width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(*[branch(width) for _ in range(n)])


def by_hand(pairs: list[tuple[Any, Any]], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    for f, g in pairs:
        x1 = x1 + f(x2)
        x2 = x2 + g(x1)
    return x1, x2


def two_by_two(modules: nn.Sequential) -> list[tuple[Any, Any]]:
    return list(zip(list(modules)[::2], list(modules)[1::2], strict=True))


def gradients(y: Tensor, net: nn.Module, *others: Tensor) -> list[Tensor | None]:
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return list(torch.autograd.grad(loss, [*net.parameters(), *others], allow_unused=True))


def assert_same_gradients(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b)


# --- what it computes, and its gradients


@pytest.mark.parametrize("memory", MEMORY)
def test_duplicate_is_the_formula_and_so_are_its_gradients(memory: Any) -> None:
    modules, x = branches().double(), torch.randn(3, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    net = make_reversible(modules, memory=memory)
    y1, y2 = by_hand(two_by_two(modules), x, x)
    assert_close(net(x), (y1 + y2) / 2)
    assert_same_gradients(gradients(net(x), net, x), gradients((y1 + y2) / 2, modules, x))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("dim", "positive"), [(-1, 2), (2, 2), (-2, 1), (1, 1)])
def test_split_is_the_formula_and_so_are_its_gradients(memory: Any, dim: int, positive: int) -> None:
    width = 3 if positive == 2 else WIDTH
    modules, x = branches(width=width).double(), torch.randn(3, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    net = make_reversible(modules, streams="split", dim=dim, memory=memory)
    expected = torch.cat(by_hand(two_by_two(modules), *x.chunk(2, positive)), positive)
    assert_close(net(x), expected)
    assert_same_gradients(gradients(net(x), net, x), gradients(expected, modules, x))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("pair", [halves, functions])
def test_blocks_are_run_as_their_pairs(memory: Any, pair: Any) -> None:
    blocks, x = nn.Sequential(Block(), Block(), Block()).double(), torch.randn(2, 4, WIDTH, dtype=torch.float64)
    x.requires_grad_()
    net = make_reversible(blocks, pair, memory=memory)
    expected = sum(by_hand([pair(block) for block in blocks], x, x)) / 2
    assert_close(net(x), expected)
    assert_same_gradients(gradients(net(x), net, x), gradients(expected, blocks, x))


@pytest.mark.parametrize("memory", MEMORY)
def test_pairs_and_shared_modules(memory: Any) -> None:
    """One g serves every pair: its gradient is the sum over its places."""
    f, g, h = branch().double(), branch().double(), branch().double()
    net = make_reversible([(f, g), [h, g], nn.ModuleList([f, g])], memory=memory)
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    expected = sum(by_hand([(f, g), (h, g), (f, g)], x, x)) / 2
    assert_close(net(x), expected)
    assert_same_gradients(gradients(net(x), net), gradients(expected, nn.ModuleList([f, g, h])))
    assert_close(make_reversible(nn.Sequential(f, g, h, g, f, g), memory=memory)(x), expected)


@pytest.mark.parametrize("memory", MEMORY)
def test_batch_norm_of_convolutional_blocks_is_updated_once(memory: Any) -> None:
    def conv() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    modules, x = nn.Sequential(*[conv() for _ in range(4)]).double(), torch.randn(3, 8, 5, 5, dtype=torch.float64)
    plain = copy.deepcopy(modules)
    net = make_reversible(modules, streams="split", dim=1, memory=memory)
    expected = torch.cat(by_hand(two_by_two(plain), *x.chunk(2, 1)), 1)
    y = net(x)
    assert_same_gradients(gradients(y, net), gradients(expected, plain))
    for (name, ours), theirs in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("memory", MEMORY)
def test_dropout_draws_one_mask_for_both_passes(memory: Any) -> None:
    modules = nn.Sequential(*[nn.Sequential(branch(), nn.Dropout(0.5)) for _ in range(4)]).double()
    net, x = make_reversible(modules, memory=memory), torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    expected = gradients(sum(by_hand(two_by_two(modules), x, x)) / 2, modules, x)
    torch.manual_seed(3)
    assert_same_gradients(gradients(net(x), net, x), expected)


def test_activations_are_kept_only_where_they_are_stored() -> None:
    """What lies inside of the branches is gone after the forward pass, except with memory="store"."""
    alive: list[weakref.ref] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.linear(x))
            alive.append(weakref.ref(hidden.untyped_storage()))
            return torch.tanh(hidden)

    net = make_reversible([Watched() for _ in range(4)], memory="store")
    counts = {}
    for memory in MEMORY:
        net.memory = memory  # type: ignore[assignment]
        alive.clear()
        y = net(torch.randn(2, WIDTH))
        counts[memory] = sum(ref() is not None for ref in alive)
        y.sum().backward()
    assert counts == {"store": 4, "checkpoint": 0, "reconstruct": 0}


def test_exact_is_exact() -> None:
    net = make_reversible(branches(40, width=3), streams="split", exact=True)
    x = (torch.randn(8, WIDTH) * 256).round() / 256
    with torch.no_grad():
        assert torch.equal(net.inverse(net(x)), x)
        plain = make_reversible(list(net), streams="split")
        assert not torch.equal(plain.inverse(plain(x)), x)


# --- inverses


def test_split_has_an_inverse() -> None:
    net, x = make_reversible(branches(6, 3), streams="split").double(), torch.randn(4, 5, WIDTH, dtype=torch.float64)
    assert_close(net.inverse(net(x)), x)
    assert not torch.allclose(net(x), x, atol=1e-3)


def test_streams_go_both_ways() -> None:
    net = make_reversible(branches()).double()
    x1, x2 = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    y1, y2 = net.forward_streams(x1, x2)
    for back, x in zip(net.inverse_streams(y1, y2), (x1, x2), strict=True):
        assert_close(back, x)


def test_mean_has_no_inverse_and_says_so() -> None:
    net = make_reversible(branches())
    with pytest.raises(ConfigError, match=r"no inverse.*inverse_streams"):
        net.inverse(net(torch.randn(2, WIDTH)))


# --- in the place of an nn.Sequential


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d"]])
def test_state_dict_is_that_of_the_sequential(names: list[str] | None) -> None:
    modules = branches() if names is None else nn.Sequential(OrderedDict(zip(names, branches(), strict=True)))
    before = copy.deepcopy(modules.state_dict())
    net = make_reversible(modules)
    assert list(net.state_dict()) == list(before)
    other = make_reversible(nn.Sequential(OrderedDict((name, branch()) for name in modules._modules)))
    other.load_state_dict(before, strict=True)
    x = torch.randn(2, WIDTH)
    assert torch.equal(other(x), net(x))


def test_state_dict_of_blocks_and_of_pairs() -> None:
    blocks = nn.Sequential(Block(), Block())
    names = list(blocks.state_dict())
    assert list(make_reversible(blocks, halves).state_dict()) == names
    pairs = nn.Sequential(nn.ModuleList([branch(), branch()]), nn.ModuleList([branch(), branch()]))
    net = make_reversible([(branch(), branch()), (branch(), branch())])
    assert list(net.state_dict()) == list(pairs.state_dict())
    assert "0.1.1.weight" in net.state_dict()
    net.load_state_dict(pairs.state_dict(), strict=True)
    x = torch.randn(2, WIDTH)
    assert torch.equal(net(x), make_reversible(pairs)(x))


def test_modules_are_the_users_own() -> None:
    modules = branches()
    net = make_reversible(modules)
    net(torch.randn(2, WIDTH))
    assert (len(net), list(net), net[1], net[-1], net[1:3]) == (
        4,
        list(modules),
        modules[1],
        modules[3],
        [modules[1], modules[2]],
    )
    assert list(net.modules())[1:] == list(modules.modules())[1:]
    assert list(dict(net.named_parameters())) == list(dict(modules.named_parameters()))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("pair", [None, functions])
def test_copy_is_a_copy(pair: Any, memory: Any) -> None:
    """Functions made from a block hold on to it; those of a copy must use the copy's."""
    net = make_reversible(branches() if pair is None else nn.Sequential(Block(), Block()), pair, memory=memory)
    x = torch.randn(2, 3, WIDTH)
    y = net(x)
    other = copy.deepcopy(net)
    assert torch.equal(other(x), y)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(other(x), x)
    assert torch.equal(net(x), y)
    other(x).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert any(parameter.grad is not None for parameter in other.parameters())


def test_replaced_module_is_used() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    net, x = make_reversible(branches(2)), torch.randn(2, WIDTH)
    assert not torch.equal(net(x), x)
    net.add_module("0", Zero())
    net.add_module("1", Zero())
    assert torch.equal(net(x), x)
    pairs = make_reversible([(branch(), branch())])
    pairs(x)
    pairs[0][0], pairs[0][1] = Zero(), Zero()  # type: ignore[index]
    assert torch.equal(pairs(x), x)


def test_to_and_modes_reach_everything() -> None:
    net = make_reversible(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)).eval())
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    assert not net.training
    assert not net.chain(x).training
    assert torch.equal(net(x), net(x))
    assert net.train() is net
    assert net.chain(x).training
    assert all(member.training for member in net.chain(x).modules())
    assert not torch.equal(net(x), net(x))
    assert not net.eval().chain(x).training
    assert make_reversible(branches()).double()(x).dtype == torch.float64


@pytest.mark.parametrize("memory", MEMORY)
def test_hooks_on_the_users_modules_fire(memory: Any) -> None:
    net, calls = make_reversible(branches(2), memory=memory), []
    net[0].register_forward_hook(lambda *_: calls.append("f"))
    net[1].register_forward_hook(lambda *_: calls.append("g"))
    net(torch.randn(2, WIDTH))
    assert calls == ["f", "g"]


def test_functional_call_uses_the_given_weights() -> None:
    net, x = make_reversible(branches()), torch.randn(2, WIDTH)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    assert torch.equal(torch.func.functional_call(net, zeros, (x,)), x)
    assert not torch.equal(net(x), x)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("pair", [None, halves])
def test_under_ddp(memory: Any, pair: Any, tmp_path: Any) -> None:
    """One process; its reducer insists that each parameter becomes ready once, and that all do."""
    net = make_reversible(branches() if pair is None else nn.Sequential(Block(), Block()), pair, memory=memory)
    x = torch.randn(2, 3, WIDTH)
    expected = gradients(net(x), net)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):
            net.zero_grad()
            y = wrapped(x)
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        del wrapped
    finally:
        torch.distributed.destroy_process_group()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", [None, functions])
@pytest.mark.usefixtures("unchecked")
def test_under_compile(pair: Any) -> None:
    net = make_reversible(branches() if pair is None else nn.Sequential(Block(), Block()), pair, memory="store")
    x = torch.randn(2, 3, WIDTH)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager")
    assert_same_gradients(gradients(compiled(x), net), gradients(net(x), net))


def test_weights_survive_a_file() -> None:
    net, other = make_reversible(nn.Sequential(Block()), halves), make_reversible(nn.Sequential(Block()), halves)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, WIDTH)
    assert torch.equal(net(x), other(x))


@pytest.mark.usefixtures("unchecked")
def test_memory_is_settable_and_checked() -> None:
    net, x = make_reversible(branches()), torch.randn(2, WIDTH)
    assert net.memory == "reconstruct"
    net.memory = "store"
    assert net.chain(x).memory == "store"
    assert copy.deepcopy(net).chain(x).memory == "store"
    with pytest.raises(InvertibleError):
        net.memory = "nothing"  # type: ignore[assignment]
    assert net.memory == "store"
    assert "memory='store'" in repr(net)


# --- arguments besides x


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: Tensor, *, power: int = 1) -> Tensor:
        return torch.tanh(self.linear(x)) * scale**power


@pytest.mark.parametrize("memory", MEMORY)
def test_arguments_reach_the_branches_that_name_them(memory: Any) -> None:
    """A tensor, with a gradient, and a number; the second branch takes neither."""
    f, g = Scaled().double(), branch().double()
    net, x = make_reversible([f, g, f, g], memory=memory), torch.randn(3, WIDTH, dtype=torch.float64)
    scale = torch.randn(WIDTH, dtype=torch.float64, requires_grad=True)

    def given(x: Tensor) -> Tensor:
        return f(x, scale, power=2)

    expected = sum(by_hand([(given, g), (given, g)], x, x)) / 2
    y = net(x, scale=scale, power=2)
    assert_close(y, expected)
    assert_same_gradients(gradients(y, net, scale), gradients(expected, nn.ModuleList([f, g]), scale))


def test_each_branch_gets_its_own_arguments_only() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
            return torch.full_like(x, shift)

    f, x = Scaled(), torch.randn(3, WIDTH)
    scale = torch.ones(WIDTH)
    y1, y2 = make_reversible([f, Added()]).forward_streams(x, x, scale=scale, shift=2.0)
    assert torch.equal(y1, x + f(x, scale))
    assert torch.equal(y2, x + 2)


def test_arguments_go_into_the_inverse_too() -> None:
    net = make_reversible(nn.Sequential(Block(), Block()), halves).double()
    x1, x2 = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64)
    mask = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
    y1, y2 = net.forward_streams(x1, x2, mask=mask)
    assert not torch.allclose(y1, net.forward_streams(x1, x2)[0])
    assert_close(net.inverse_streams(y1, y2, mask=mask)[0], x1)


def test_mask_makes_attention_causal() -> None:
    net, x = make_reversible(nn.Sequential(Block(), Block()), halves), torch.randn(1, 4, WIDTH)
    mask = torch.full((4, 4), -torch.inf).triu(1)
    later = torch.cat([x[:, :2], torch.randn(1, 2, WIDTH)], 1)
    assert_close(net(x, mask=mask)[:, :2], net(later, mask=mask)[:, :2])
    assert not torch.allclose(net(x)[:, :2], net(later)[:, :2])


def test_open_signature_takes_every_argument() -> None:
    class Open(nn.Module):
        def forward(self, x: Tensor, **options: float) -> Tensor:
            return x * options.get("factor", 0.0)

    net, x = make_reversible([Open(), Open()]), torch.ones(1, 2)
    assert torch.equal(net(x), x)
    assert torch.equal(net(x, factor=1.0), torch.full((1, 2), 2.5))  # streams 2 and 3


# --- errors


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: make_reversible(branches(3)), ConfigError, "even number of branches.*got 3.*pair="),
        (lambda: make_reversible([]), ConfigError, "one pair of branches or more"),
        (lambda: make_reversible([branch(), torch.tanh]), DtypeError, "block '1'.*nn.Module"),
        (lambda: make_reversible([(branch(), torch.tanh)]), DtypeError, "block '0.1'.*nn.Module"),
        (lambda: make_reversible([(branch(), branch(), branch())]), ConfigError, "block '0' is no pair"),
        (lambda: make_reversible([(branch(), branch()), branch()]), ConfigError, "pairs only, or branches only"),
        (lambda: make_reversible(branches(), streams="three"), ConfigError, "'duplicate' or 'split'"),
        (lambda: make_reversible(branches(), dim=0), ConfigError, "leaves the batch whole"),
        (lambda: make_reversible(branches(), memory="none"), InvertibleError, "none"),
        (lambda: make_reversible(nn.Linear(2, 2)), DtypeError, "nn.Sequential"),
        (lambda: make_reversible(nn.ModuleDict({"a": branch()})), DtypeError, "nn.Sequential"),
        (lambda: make_reversible(branches(), lambda block: block), ConfigError, "block '0'.*two modules or functions"),
        (
            lambda: make_reversible(branches(), lambda block: (block, branch())),
            ConfigError,
            "block '0'.*the block's parameters.*__init__",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_made_reversible(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


class Picky(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (Picky(lambda x: x[..., :3]), ShapeError, r"branch '2' \(Picky\) changes the shape.*\(2, 6\).*\(2, 3\)"),
        (Picky(lambda x: (x, x)), DtypeError, r"branch '2' \(Picky\) returned no tensor.*\[0\]"),
        (Picky(lambda x: x.add_(1)), ConfigError, r"branch '2' \(Picky\) must leave its input alone"),
        (nn.MultiheadAttention(WIDTH, 2), ContextError, "branch '2'.*key=.*value=.*pair=lambda"),
    ],
)
def test_bad_branch_is_named(bad: nn.Module, error: type[Exception], words: str) -> None:
    net = make_reversible([branch(), branch(), bad, branch()])
    with torch.no_grad(), pytest.raises(error, match=words):
        net(torch.randn(2, WIDTH))


def test_failing_branch_is_named_in_a_note() -> None:
    net = make_reversible(branches(2), streams="split")  # branches of the full width
    with pytest.raises(RuntimeError) as caught:
        net(torch.randn(2, WIDTH))
    assert re.search(r"This was branch '0' \(Sequential\), on a tensor of shape \(2, 3\)", caught.value.__notes__[0])


def test_function_of_a_block_is_named() -> None:
    net = make_reversible(nn.Sequential(Block()), lambda block: (block.attend, lambda x: x[:1]))
    with pytest.raises(ShapeError, match=r"branch g of block '0' \(Block\) changes the shape"):
        net(torch.randn(2, 3, WIDTH))


@pytest.mark.parametrize("memory", MEMORY)
def test_foreign_parameter_is_noticed(memory: Any) -> None:
    """Reconstruction would give it no gradient and say nothing."""
    outside = nn.Parameter(torch.ones(WIDTH))
    net = make_reversible(nn.Sequential(Block()), lambda b: (lambda x: b.attend(x) * outside, b.think), memory=memory)
    with pytest.raises(ConfigError, match=r"branch f of block '0'.*foreign parameter.*shape \(6,\).*net\(x, name="):
        net(torch.randn(2, 3, WIDTH, requires_grad=True)).sum().backward()
    owned = make_reversible(nn.Sequential(Block()), lambda b: (lambda x, by: b.attend(x) * by, b.think), memory=memory)
    owned(torch.randn(2, 3, WIDTH).tanh().requires_grad_(), by=outside * 2).sum().backward()
    assert outside.grad is not None


def test_arguments_that_fit_nowhere() -> None:
    net, x = make_reversible(nn.Sequential(Block()), halves), torch.randn(2, 3, WIDTH)
    with pytest.raises(ContextError, match=r"no branch takes.*some of mask.*got maks"):
        net(x, maks=x)
    with pytest.raises(ContextError, match="no branch takes more than x"):
        make_reversible(branches())(x, mask=x)
    with pytest.raises(ContextError, match=r"branch '0'.*needs more than x.*scale="):
        make_reversible([Scaled(), branch()])(x)


def test_inputs_that_do_not_fit() -> None:
    split = make_reversible(branches(2, 3), streams="split")
    with pytest.raises(ShapeError, match="even size in dimension 1"):
        split(torch.randn(2, 5))
    with pytest.raises(ShapeError, match="after the batch"):
        split(torch.randn(6))
    with pytest.raises(ShapeError, match="dimension 3 after the batch"):
        make_reversible(branches(2, 3), streams="split", dim=3)(torch.randn(2, 5))
    with pytest.raises(DtypeError, match="real numbers"):
        split(torch.zeros(2, 6, dtype=torch.long))


def test_constructor_and_function_are_the_same() -> None:
    modules, x = branches(2, 3), torch.randn(2, WIDTH)
    net = ReversibleSequential(modules, streams="split", dim=1, memory="checkpoint", exact=12)
    assert torch.equal(net(x), make_reversible(modules, streams="split", dim=1, exact=12)(x))


def test_a_part_of_a_block_can_be_replaced() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)

    net = make_reversible([Block(), Block()], lambda block: (block.attn, block.mlp))
    block = net[0]
    block.mlp = nn.Linear(4, 4)
    net(torch.randn(2, 4)).sum().backward()
    assert block.mlp.weight.grad is not None
