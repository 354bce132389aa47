"""Two streams for any sequence of residual branches, so that another person's network trains in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, overload

from torch import Tensor, nn

from invertible._checks import check_floating, describe
from invertible.chain import Chain
from invertible.errors import ConfigError, ContextError, ShapeError
from invertible.layers._branch import Branch, Pair, children, read_blocks, read_pair
from invertible.layers.coupling import AdditiveCoupling
from invertible.reversible import Memory


class ReversibleSequential(nn.Module):
    """What `make_reversible` returns; it takes the same arguments and stands where the `nn.Sequential` stood.

    Length, iteration and indexing give the modules that it was made from, and the state-dict keys are theirs. The
    couplings around them are no submodules. They are built again whenever a module is replaced or the whole is copied.

    Attributes:
        streams: "duplicate" or "split".
        dim: The dimension that is split.
    """

    def __init__(
        self,
        blocks: Iterable[Any],
        pair: Pair | None = None,
        *,
        streams: Literal["duplicate", "split"] = "duplicate",
        dim: int = -1,
        memory: Memory = "reconstruct",
        exact: bool | int = False,
    ) -> None:
        super().__init__()
        if streams not in ("duplicate", "split"):
            raise ConfigError("bad streams", expected="'duplicate' or 'split'", got=repr(streams))
        if dim == 0:
            raise ConfigError("a split leaves the batch whole", expected="dim other than 0", got="dim=0")
        self.streams, self.dim, self._exact = streams, dim, exact
        self._memory: Memory = memory
        self._pair = pair
        self._built: tuple[int, list[nn.Module], Chain] | None = None
        for name, block in read_blocks(blocks, pair):
            self.add_module(name, block)
        if isinstance(blocks, nn.Module):
            self.training = blocks.training
        self._chain_along(1)  # what is wrong with the branches shows here, not in the first training step

    @property
    def memory(self) -> Memory:
        """What is kept for backward: "store", "checkpoint" or "reconstruct"; can be set at any time."""
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        if self._built is not None:
            self._built[2].memory = memory  # refuses what is none of the three
        self._memory = memory

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        """Apply the network.

        Args:
            x: Shape (batch, ...).
            **arguments: Each branch gets those that its signature names. Tensors among them get gradients.

        Returns:
            Shape of x.
        """
        first, second = self.forward_streams(*self._part(x), **arguments)
        return self._split(x).merge((first, second)) if self.streams == "split" else (first + second) / 2

    def inverse(self, y: Tensor, **arguments: Any) -> Tensor:
        """Undo `forward`. Only with `streams="split"`.

        Args:
            y: Shape (batch, ...).
            **arguments: As in `forward`.

        Returns:
            Shape of y.

        Raises:
            ConfigError: With `streams="duplicate"`: a mean of two streams does not tell which they were.
        """
        if self.streams != "split":
            hint = "inverse_streams(*forward_streams(x, x)), or streams='split'"
            problem = "the mean of two streams has no inverse"
            raise ConfigError(problem, expected="streams='split'", got="streams='duplicate'", hint=hint)
        return self._split(y).merge(self.inverse_streams(*self._part(y), **arguments))

    def forward_streams(self, x1: Tensor, x2: Tensor, /, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Apply the network to two streams: per pair y1 = x1 + f(x2), y2 = x2 + g(y1).

        Args:
            x1: Shape (batch, ...).
            x2: Same shape.
            **arguments: As in `forward`.

        Returns:
            Two tensors of that shape.
        """
        chain = self.chain(x1)
        y1, y2 = chain((x1, x2), self._context(chain, arguments))
        return y1, y2

    def inverse_streams(self, y1: Tensor, y2: Tensor, /, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Undo `forward_streams`: per pair, last first, x2 = y2 - g(y1), x1 = y1 - f(x2).

        Args:
            y1: Shape (batch, ...).
            y2: Same shape.
            **arguments: As in `forward`.

        Returns:
            Two tensors of that shape.
        """
        chain = self.chain(y1)
        x1, x2 = chain.inverse((y1, y2), self._context(chain, arguments))
        return x1, x2

    def chain(self, x: Tensor) -> Chain:
        """The bijection inside, for the library's instruments.

        Args:
            x: A tensor with as many dimensions as the input, which tells the one that a negative `dim` counts to.

        Returns:
            A chain of couplings (`AdditiveCoupling`) that share the branches' weights: two for each pair.

        Raises:
            ShapeError: If x has no dimension `dim` besides the batch.
        """
        check_floating(x, "ReversibleSequential")
        dim = self.dim + x.ndim if self.dim < 0 else self.dim
        if not 1 <= dim < x.ndim:
            expected = f"shape (batch, ...) with a dimension {self.dim} after the batch"
            raise ShapeError("ReversibleSequential works on batches", expected=expected, got=describe(x))
        return self._chain_along(dim)

    def train(self, mode: bool = True) -> ReversibleSequential:
        """Switch between training and evaluation.

        Args:
            mode: Whether to train.

        Returns:
            Itself.
        """
        super().train(mode)
        if self._built is not None:
            _set_mode(self._built[2], mode)
        return self

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Streams and memory.
        """
        where = f", dim={self.dim}" if self.streams == "split" else ""
        return f"streams={self.streams!r}{where}, memory={self.memory!r}" + ", exact=True" * bool(self._exact)

    def _part(self, x: Tensor) -> tuple[Tensor, Tensor]:
        split = self._split(x)
        if self.streams == "duplicate":
            return x, x
        if x.shape[split.dim] % 2:
            hint = "another dim, or streams='duplicate'"
            expected = f"an even size in dimension {split.dim}"
            raise ShapeError("cannot part the tensor in halves", expected=expected, got=describe(x), hint=hint)
        first, second = split.part(x)
        return first, second

    def _split(self, x: Tensor) -> Any:
        return self.chain(x).split_in

    def _context(self, chain: Chain, arguments: dict[str, Any]) -> dict[str, Any] | None:
        branches = [coupling.network for coupling in chain if isinstance(coupling, AdditiveCoupling)]
        names = {name for branch in branches if isinstance(branch, Branch) for name in branch.names}
        takes_any = any(isinstance(branch, Branch) and branch.takes_any for branch in branches)
        unknown = [name for name in arguments if name not in names]
        if unknown and not takes_any:
            expected = f"some of {', '.join(sorted(names))}" if names else "none: no branch takes more than x"
            raise ContextError("no branch takes this argument", expected=expected, got=", ".join(unknown))
        return arguments if chain.takes_context else None

    def _chain_along(self, dim: int) -> Chain:
        # What `pair` picks may sit deep in a block, and be replaced there.
        modules = [m for _, module in self._members() for m in (module.modules() if self._pair else (module,))]
        if self._built is not None:
            built_dim, used, chain = self._built
            if built_dim == dim and len(used) == len(modules) and all(map(_is_same, used, modules)):
                return chain
        couplings = [
            AdditiveCoupling(branch, "second" if i % 2 else "first", dim=dim, takes_context=branch.takes_arguments)
            for i, branch in enumerate(self._branches())
        ]
        chain = Chain(*couplings, memory=self._memory, exact=self._exact)
        _set_mode(chain, self.training)
        self._built = dim, modules, chain
        return chain

    def _branches(self) -> Iterator[Branch]:
        for name, module in self._members():
            if self._pair is None:
                yield Branch(module, f"branch {name!r} ({type(module).__name__})")
                continue
            for letter, function in zip("fg", read_pair(self._pair, module, name), strict=True):
                yield Branch(function, f"branch {letter} of block {name!r} ({type(module).__name__})", module)

    def _members(self) -> list[tuple[str, nn.Module]]:
        if self._pair is not None or not all(isinstance(child, nn.ModuleList) for child in self):
            return [(name, child) for name, child in self._modules.items() if child is not None]
        return [(f"{i}.{j}", branch) for i, both in self._modules.items() for j, branch in children(both)]

    def __getstate__(self) -> dict[str, Any]:
        # A copy's functions have to be made from the copy's blocks.
        return {**self.__dict__, "_built": None}

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return (child for child in self._modules.values() if child is not None)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[nn.Module]: ...
    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        return list(self)[index]


def make_reversible(
    blocks: Iterable[Any],
    pair: Pair | None = None,
    *,
    streams: Literal["duplicate", "split"] = "duplicate",
    dim: int = -1,
    memory: Memory = "reconstruct",
    exact: bool | int = False,
) -> ReversibleSequential:
    """Make a sequence of residual branches reversible, to train it in memory that does not grow with its depth.

    A branch is what a residual block adds to its input: f in x + f(x). Two of them, say attention and MLP, act on two
    streams: y1 = x1 + f(x2), y2 = x2 + g(y1). This can be undone, so no activation has to be kept for backward.

    The result stands where the `nn.Sequential` stood: same state-dict keys (pairs: "0.0.weight" for the first f,
    "0.1.weight" for its g), same modules when indexed. **It computes another function**: weights of the plain residual
    network load, but it has to be trained or fine-tuned in this form. Whether a branch adds its input by itself cannot
    be seen from outside: leave the skip out, or it acts twice.

    Hooks on the modules that are called work as ever. With `pair` the blocks' own `forward` is not called, and hooks on
    a block as a whole are not either.

    Args:
        blocks: An `nn.Sequential` or any iterable of modules f, g, f, g, ...; of pairs (f, g); or of any blocks, with
            `pair`. Branches keep the shape of their input.
        pair: From a block to its f and g: modules of it, or functions that use its parameters and no others, as in
            `lambda block: (lambda x: block.attn(block.norm1(x)), lambda x: block.mlp(block.norm2(x)))`.
        streams: "duplicate": both streams start as x and end as their mean; branches of x's full width, weights of a
            plain network fit. "split": x is parted in halves, branches have half its width, `inverse` works.
        dim: The dimension that "split" parts: -1 for (batch, tokens, features), 1 for the channels of images.
        memory: "reconstruct" keeps the output only; "checkpoint" the streams between branches; "store" everything. It
            can be set later: `net.memory = "store"`.
        exact: Compute on a lattice, so that reconstruction is right to the last bit; see `Chain`. An int is its k.

    Returns:
        The module. `net(x, mask=mask)` hands `mask` to the branches whose signature names it.

    Raises:
        ConfigError: If branches do not come in pairs, or an argument is out of range; when called: if a branch changes
            its input in place or uses parameters that are not its block's.
        DtypeError: If a branch is no module; when called: if it returns no tensor.
        ShapeError: When called: if a branch changes the shape; the message names it.
        ContextError: When called: if a branch lacks an argument, or no branch takes the one given.

    Source: Gomez et al. 2017 (RevNet), equation 6; for attention and MLP Kitaev et al. 2020 (Reformer), equation 9.

    Example:
        >>> import torch
        >>> branches = nn.Sequential(*[nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)])
        >>> net = make_reversible(branches)
        >>> net(torch.randn(2, 5, 8)).shape, net.state_dict().keys() == branches.state_dict().keys()
        (torch.Size([2, 5, 8]), True)
    """
    return ReversibleSequential(blocks, pair, streams=streams, dim=dim, memory=memory, exact=exact)


def _is_same(a: object, b: object) -> bool:
    return a is b


def _set_mode(chain: Chain, mode: bool) -> None:
    for module in (chain, *chain, *(coupling.network for coupling in chain if isinstance(coupling, AdditiveCoupling))):
        module.training = mode
