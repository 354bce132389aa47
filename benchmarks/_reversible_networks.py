"""The one network of `reversible.py`, built with every implementation. A block is y1 = x1 + F(x2), y2 = x2 + G(y1)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata, util
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from invertible import Chain
from invertible.layers import AdditiveCoupling

CHANNELS, SIZE, BATCH = 64, 16, 32
Streams = tuple[Tensor, Tensor]


def residual(channels: int) -> nn.Sequential:
    """F: BatchNorm, ReLU, 3x3 convolution, twice."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    return nn.Sequential(*layers)


def residuals(n_blocks: int, device: str) -> list[nn.Sequential]:
    """F and G of every block in turn; the same weights whenever it is called."""
    torch.manual_seed(0)
    return [residual(CHANNELS // 2).to(device) for _ in range(2 * n_blocks)]


@contextmanager
def counted(networks: list[nn.Sequential]) -> Iterator[list[int]]:
    """Count evaluations, at the last layers: memcnn goes past the hooks of the networks themselves."""
    counts = [0]

    def count(*_: Any) -> None:
        counts[0] += 1

    handles = [network[-1].register_forward_pre_hook(count) for network in networks]
    yield counts
    for handle in handles:
        handle.remove()


class Block(nn.Module):
    """Two couplings, by hand."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, streams: Streams) -> Streams:
        """Change both streams in turn."""
        x1, x2 = streams
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


class ByHand(nn.Module):
    """The network as one would write it without any library; `run` takes the blocks and the streams."""

    def __init__(self, networks: list[nn.Sequential], run: Callable[[nn.ModuleList, Streams], Streams]) -> None:
        super().__init__()
        self.blocks, self.run = nn.ModuleList(Block(f, g) for f, g in pairs(networks)), run

    def forward(self, x: Tensor) -> Tensor:
        """Split, run, join."""
        x1, x2 = x.chunk(2, dim=1)
        return torch.cat(self.run(self.blocks, (x1, x2)), dim=1)


class First(nn.Module):
    """A network's first result: FrEIA returns its log-determinant too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The output alone."""
        return self.network(x)[0]


def pairs(networks: list[nn.Sequential]) -> list[tuple[nn.Sequential, nn.Sequential]]:
    return list(zip(networks[::2], networks[1::2], strict=True))


def run_plain(blocks: nn.ModuleList, streams: Streams) -> Streams:
    for block in blocks:
        streams = block(streams)
    return streams


def run_checkpoint(blocks: nn.ModuleList, streams: Streams) -> Streams:
    for block in blocks:
        streams = checkpoint(block, streams, use_reentrant=False)
    return streams


def run_checkpoint_sqrt(blocks: nn.ModuleList, streams: Streams) -> Streams:
    return checkpoint_sequential(list(blocks), round(len(blocks) ** 0.5), streams, use_reentrant=False)


def memcnn(networks: list[nn.Sequential]) -> nn.Module:
    lib = importlib.import_module("memcnn")
    return nn.Sequential(*(lib.InvertibleModuleWrapper(lib.AdditiveCoupling(f, g)) for f, g in pairs(networks)))


def revtorch(networks: list[nn.Sequential]) -> nn.Module:
    lib = importlib.import_module("revtorch")
    return lib.ReversibleSequence(nn.ModuleList(lib.ReversibleBlock(f, g) for f, g in pairs(networks)))


def revlib(networks: list[nn.Sequential]) -> nn.Module:
    return importlib.import_module("revlib").ReversibleSequential(*networks)


def freia(networks: list[nn.Sequential]) -> nn.Module:
    framework, modules = (importlib.import_module(f"FrEIA.{name}") for name in ("framework", "modules"))
    net, rest = framework.SequenceINN(CHANNELS, SIZE, SIZE), iter(networks)
    for _ in pairs(networks):
        net.append(modules.NICECouplingBlock, subnet_constructor=lambda *_: next(rest))
    return First(net)


def ours(**options: Any) -> Callable[[list[nn.Sequential]], nn.Module]:
    def build(networks: list[nn.Sequential]) -> nn.Module:
        couplings = [AdditiveCoupling(f, "second" if i % 2 else "first") for i, f in enumerate(networks)]
        return Chain(*couplings, **options)

    return build


def by_hand(run: Callable[[nn.ModuleList, Streams], Streams]) -> Callable[[list[nn.Sequential]], nn.Module]:
    return lambda networks: ByHand(networks, run)


class Implementation(NamedTuple):
    """How to build the network, and the distribution and import name it needs, or options of our `Chain`."""

    build: Callable[[list[nn.Sequential]], nn.Module]
    needs: tuple[str, str] | None = None
    options: tuple[str, ...] = ()


IMPLEMENTATIONS = {
    "plain": Implementation(by_hand(run_plain)),
    "checkpoint": Implementation(by_hand(run_checkpoint)),
    "checkpoint-sqrt": Implementation(by_hand(run_checkpoint_sqrt)),
    "memcnn": Implementation(memcnn, ("memcnn", "memcnn")),
    "revtorch": Implementation(revtorch, ("revtorch", "revtorch")),
    "revlib": Implementation(revlib, ("revlib", "revlib")),
    "freia": Implementation(freia, ("FrEIA", "FrEIA")),
    "invertible-store": Implementation(ours()),
    "invertible-reconstruct": Implementation(ours(memory="reconstruct"), options=("memory",)),
    "invertible-exact": Implementation(ours(memory="reconstruct", exact=True), options=("memory", "exact")),
}


def missing(name: str) -> str | None:
    """Why an implementation cannot be measured here, or None."""
    found = IMPLEMENTATIONS[name]
    lacking = [option for option in found.options if option not in inspect.signature(Chain.__init__).parameters]
    if lacking:
        return f"this version's Chain takes no {' and no '.join(lacking)}"
    if found.needs is None or util.find_spec(found.needs[1]) is not None:
        return None
    # memcnn's training scripts, not its layers, want torchvision, and a wrong build of that breaks other imports.
    command = "pip install --no-deps memcnn" if name == "memcnn" else "pip install -e '.[bench]'"
    return f"not installed: {command}"


def version(name: str) -> str:
    """The version of whoever does the work."""
    needs = IMPLEMENTATIONS[name].needs
    package = needs[0] if needs else "invertible" if name.startswith("invertible") else "torch"
    return f"{package} {metadata.version(package)}"
