"""Places to listen: how they are found in networks of all kinds, and what is heard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from invertible._tap_points import TapPoints
from invertible.errors import ConfigError, DtypeError
from invertible.instruments import Tap, find_taps, listen
from invertible.instruments._residual_ends import find_residual_ends
from invertible.instruments.taps import residual_end
from invertible.models import glow, irevnet, resnet, revnet
from measured_networks import NETWORKS, Block, Net, Output, TupleNet


def names(model: nn.Module, layers: object = "auto") -> list[str]:
    return [tap.name for tap in find_taps(model, layers)]


def test_names_patterns_types_modules_and_sequences() -> None:
    net = Net()
    assert names(net, "blocks.1.conv") == ["blocks.1.conv"]
    assert names(net, "blocks.*.conv") == ["blocks.0.conv", "blocks.1.conv", "blocks.2.conv"]
    assert names(net, nn.Linear) == ["head"]
    assert names(net, net.stem) == ["stem"]
    assert names(net, ["head", "stem", nn.Linear]) == ["stem", "head"]
    assert names(net, "") == [""]


def test_what_is_unknown_gets_the_closest_names() -> None:
    with pytest.raises(ConfigError, match=r"no module 'block\.1\.conv'.*'blocks\.1\.conv'"):
        find_taps(Net(), "block.1.conv")
    with pytest.raises(ConfigError, match=r"no module's name matches 'layer\*'"):
        find_taps(Net(), "layer*")
    with pytest.raises(ConfigError, match=r"nothing of the type GRU.*3 Block"):
        find_taps(Net(), nn.GRU)
    with pytest.raises(ConfigError, match="nothing of that module"):
        find_taps(Net(), nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="no layers"):
        find_taps(Net(), [])


@pytest.mark.usefixtures("unchecked")
def test_layers_of_a_wrong_kind() -> None:
    with pytest.raises(DtypeError, match=r"layers say where to listen.*got a int"):
        find_taps(Net(), 3)


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3).eval()


class Attributes(nn.Module):
    """Stages as attributes, one block in each, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.layer1, self.layer2 = nn.Sequential(Block()), nn.Sequential(Block())
        self.fc = nn.Linear(4, 2)


class Inverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        unit = lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())  # noqa: E731
        self.conv = nn.Sequential(ConvUnit(), ConvUnit(), unit())


class ConvUnit(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())


AUTO = {
    "resnet": (lambda: resnet(n_blocks=(2, 2), channels=(4, 8), strides=(1, 2)), ["stages.0.0", "stages.1.1"], 4),
    "attributes": (Attributes, ["layer1.0", "layer2.0"], 2),
    "transformer": (transformer, ["layers.0", "layers.2"], 3),
    "module list": (TupleNet, ["layers.0", "layers.2"], 3),
    "units inside blocks": (lambda: nn.Sequential(ConvUnit(), *(Inverted() for _ in range(4))), ["1", "4"], 4),
    "sequentials": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))),
        ["0", "2"],
        3,
    ),
    "layers": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "2"], 2),
    "no repetition": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["0", "0"], 1),
    "one layer": (lambda: nn.Linear(2, 2), ["", ""], 1),
    "revnet": (lambda: revnet(n_blocks=(2, 2), channels=(4, 8), strides=(1, 2)), ["stages.0.0.0", "stages.1.0.1"], 6),
    "irevnet": (lambda: irevnet((1, 8, 8), 2, (2, 2), (1, 2), None, (4, 8), 2), ["body.1", None], None),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_finds_the_blocks(name: str) -> None:
    build, ends, n = AUTO[name]
    found = names(build())
    assert n is None or len(found) == n
    assert ends[1] is None or (found[0], found[-1]) == tuple(ends) or ends[0] in found
    assert not any(b.startswith(f"{a}.") for a in found for b in found)


class Declaring(nn.Module):
    def __init__(self, end: str = "conv") -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(4, 4, 1), end

    def tap_points(self) -> TapPoints:
        return TapPoints(self.end)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_blocks_that_declare_themselves_come_first() -> None:
    net = nn.Sequential(Block(), Block(), Block(), Declaring())
    taps = find_taps(net)
    assert [tap.name for tap in taps] == ["3"]
    assert residual_end(taps[0]).name == "3.conv"
    with pytest.raises(ConfigError, match="tap_points names no module of its: got 'cnov'"):
        residual_end(Tap("", Declaring("cnov")))


def test_each_call_is_heard_and_counted_anew_in_each_pass() -> None:
    shared = nn.Linear(2, 2)
    net, heard = nn.Sequential(shared, nn.ReLU(), shared), []
    with listen(net, find_taps(net, "0"), lambda h: heard.append((h.tap.name, h.call))):
        net(torch.zeros(1, 2))
        net(torch.zeros(1, 2))
    assert heard == [("0", 0), ("0", 1)] * 2


def test_what_is_heard_of_structures() -> None:
    out, heard = Output(None, torch.ones(2), (torch.zeros(1),)), []
    module = nn.Identity()
    with listen(module, [Tap("", module)], heard.append):
        module({"a": out, "b": [torch.tensor(1)]})
        module(torch.tensor(3))
    assert [tuple(t.shape) for t in heard[0].tensors] == [(2,), (1,), ()]
    assert heard[0].tensor is out.logits
    with pytest.raises(ConfigError, match="the network returns no real numbers"):
        _ = heard[1].tensor


def test_inputs_can_be_heard_too_also_those_passed_by_name() -> None:
    module, heard = Net(), []
    with listen(module, [Tap("stem", module.stem, "input"), Tap("", module, "input")], heard.append):
        module(x=torch.randn(2, 3, 6, 6))
    assert [h.tap.name for h in heard] == ["", "stem"]
    assert heard[0].tensor is heard[1].tensor


def test_hooks_come_off_also_after_an_exception() -> None:
    net = Net()

    def fail(_: object) -> None:
        raise KeyError("a callback of a user")

    with pytest.raises(KeyError, match="a callback"), listen(net, find_taps(net), fail):
        net(torch.randn(2, 3, 6, 6))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_modules_that_never_run_are_named() -> None:
    net = Net()
    net.spare = nn.Linear(1, 1)
    with listen(net, find_taps(net, ["spare", "stem"]), lambda _: None) as listener:
        net(torch.randn(2, 3, 6, 6))
    assert listener.silent == ["spare"]
    with pytest.raises(ConfigError, match=r"never ran in the forward pass.*spare"):
        listener.check_heard()


def test_memory_stays_constant() -> None:
    import weakref

    net, seen = Net(), []
    with listen(net, find_taps(net), lambda h: seen.append(weakref.ref(h.tensor))), torch.no_grad():
        net(torch.randn(2, 3, 6, 6))
    assert len(seen) == 3
    assert all(ref() is None for ref in seen)


def test_names_inside_wrappers() -> None:
    assert names(nn.DataParallel(Net())) == names(Net())


class Scaled(nn.Module):
    """A branch with a gain, a per-example factor and dropout behind its end."""

    def __init__(self) -> None:
        super().__init__()
        self.path = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
        self.gain, self.drop = nn.Parameter(torch.zeros(1)), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.ones(len(x), 1)
        return 0.2 * self.gain * self.drop(self.path(x)) * kept + x


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.down = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(nn.functional.relu(self.a(x)))
        y.mul_(2.0)
        y += self.down(x)
        return nn.functional.relu_(y)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.a(x))


class Wide(nn.Module):
    """Adds the outputs of two modules, then the input: both are ends, as in parallel transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.a(x) + self.b(x))


@pytest.mark.parametrize(
    ("block", "ends"),
    [(Scaled, ["path.1"]), (Inplace, ["b"]), (Functional, []), (Wide, ["a.1", "b"]), (lambda: nn.Linear(4, 4), [])],
)
def test_ends_of_residual_branches_are_found(block, ends: list[str]) -> None:
    net = nn.Sequential(block(), block())
    taps = find_taps(net, ["0", "1"])
    with torch.no_grad():
        found = find_residual_ends(net, taps, lambda: net(torch.randn(3, 4)))
    assert [tap.name for tap, _ in found["1"]] == [f"1.{end}" for end in ends]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_transformer_has_two_ends_per_block() -> None:
    net = transformer()
    with torch.no_grad():
        found = find_residual_ends(net, find_taps(net), lambda: net(torch.randn(2, 5, 8)))
    assert [tap.name for tap, _ in found["layers.1"]] == ["layers.1.self_attn", "layers.1.linear2"]


@pytest.mark.parametrize("name", ["RevNet", "blocks return tuples"])
def test_ends_in_tuples(name: str) -> None:
    net, shape = NETWORKS[name]()
    taps = find_taps(net)
    with torch.no_grad():
        found = find_residual_ends(net, taps, lambda: net(torch.randn(2, *shape)))
    assert all(len(found[tap.name]) == (0 if "transitions" in tap.name else 1) for tap in taps)


def test_compiled_networks_are_heard() -> None:
    net = Net()
    compiled = torch.compile(net, backend="eager")
    net.head = torch.compile(net.head, backend="eager")
    from invertible.instruments import signal_propagation

    assert names(compiled) == names(net)
    found = signal_propagation(compiled, (4, 3, 6, 6), mode="eval")
    assert [block.name for block in found.blocks[1:]] == ["blocks.0", "blocks.1", "blocks.2"]
    net.compile(backend="eager")
    assert signal_propagation(net, (4, 3, 6, 6), mode="eval").blocks == found.blocks


def test_flows_too() -> None:
    flow = glow((3, 8, 8))
    assert len(names(flow)) > 10
