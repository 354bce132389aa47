"""What a converted network is made of, and the network itself, which runs step by step so that hooks are heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from invertible._tap_points import TapPoints
from invertible.errors import ConfigError
from invertible.layers import ScaledActivation, SkipInit
from invertible.models._nf_trace import name_of


class BetaActivation(nn.Module):
    """g(x / beta) with g = gamma act: variance beta^2 in, variance one out.

    Args:
        activation: act.
        beta: Standard deviation of x, by theory.

    Source: Brock, De and Smith 2021, section 3.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], beta: float) -> None:
        super().__init__()
        self.scaled, self.beta = ScaledActivation(activation), beta

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each number.

        Args:
            x: Any shape.

        Returns:
            Shape of x.
        """
        return self.scaled(x if self.beta == 1 else x / self.beta)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            beta.
        """
        return f"beta={self.beta:.4g}"


class ResidualSum(nn.Module):
    """shortcut + alpha s branch, with a learned s (SkipInit): what a residual addition becomes.

    Args:
        alpha: The fixed factor.
        skip_gain: First value of s.
        expected: Variances of the sum and of the branch by theory.
    """

    def __init__(self, alpha: float, skip_gain: float, expected: tuple[float, float]) -> None:
        super().__init__()
        self.end, self.skip = nn.Identity(), SkipInit(alpha, skip_gain)
        self.expected = expected

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Add.

        Args:
            shortcut: Any shape.
            branch: The same.

        Returns:
            The same.
        """
        return shortcut + self.skip(self.end(branch))

    def tap_points(self) -> TapPoints:
        """Where instruments listen, and what they may expect.

        Returns:
            The end of the branch, its gain, and theory's variances.
        """
        return TapPoints("end", ("skip.skip_gain",), *self.expected)


class GateFactor(nn.Module):
    """Twice a gate: a sigmoid is one half at the start, and variance shall stay."""

    def forward(self, gate: Tensor) -> Tensor:
        """Double.

        Args:
            gate: Any shape.

        Returns:
            The same.
        """
        return 2 * gate


@dataclass(frozen=True)
class _Value:
    name: str


@dataclass(frozen=True)
class _Step:
    op: str
    target: Any
    args: Any
    kwargs: Any
    name: str
    done_with: tuple[str, ...]


class ConvertedNetwork(nn.Module):
    """A network that was read as a graph and changed. Its layers have the names that they had.

    Args:
        program: Graph and layers.
        name: Of the class that was converted.
    """

    def __init__(self, program: fx.GraphModule, name: str) -> None:
        super().__init__()
        for key, child in program.named_children():
            self.add_module(key, child)
        for key, parameter in program.named_parameters(recurse=False):
            self.register_parameter(key, parameter)
        for key, buffer in program.named_buffers(recurse=False):
            self.register_buffer(key, buffer)
        self.converted_from = name
        nodes = list(program.graph.nodes)
        self._inputs = tuple((str(n.target), n.name, n.args) for n in nodes if n.op == "placeholder")
        self._steps = tuple(_steps([n for n in nodes if n.op != "placeholder"]))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network that was converted took and gave back.

        Args:
            *args: Its inputs.
            **kwargs: Its inputs, by name.

        Returns:
            Its output.

        Raises:
            ConfigError: If inputs are missing, or there are too many.
        """
        values = self._bind(args, kwargs)
        for step in self._steps:
            found = self._run(step, values)
            if step.op == "output":
                return found
            values[step.name] = found
            for name in step.done_with:
                del values[name]
        raise ConfigError("the network has no output", got=self.converted_from)

    def _bind(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        names = [target for target, _, _ in self._inputs]
        if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]):
            got = f"{len(args)} inputs and {sorted(kwargs)}"
            raise ConfigError("the network got inputs it does not take", expected=", ".join(names), got=got)
        given, values = dict(zip(names, args, strict=False)) | kwargs, {}
        for target, name, default in self._inputs:
            if target not in given and not default:
                raise ConfigError("the network got too few inputs", expected=", ".join(names), got=len(given))
            values[name] = given[target] if target in given else default[0]
        return values

    def _run(self, step: _Step, values: dict[str, Any]) -> Any:
        args, kwargs = (
            map_aggregate(part, lambda arg: values[str(arg.name)] if isinstance(arg, _Value) else arg)
            for part in (step.args, step.kwargs)
        )
        if step.op == "output":
            return args[0]
        if step.op == "get_attr":
            owner, _, key = step.target.rpartition(".")
            return getattr(self.get_submodule(owner), key)
        if step.op == "call_module":
            return self.get_submodule(step.target)(*args, **kwargs)
        if step.op == "call_method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        return step.target(*args, **kwargs)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            What was converted.
        """
        return f"converted from {self.converted_from}"


def _steps(nodes: list[fx.Node]) -> list[_Step]:
    last_use = {one: node for node in nodes for one in node.all_input_nodes}
    steps = []
    for node in nodes:
        done_with = tuple(one.name for one in dict.fromkeys(node.all_input_nodes) if last_use[one] is node)
        done_with += () if node.users or node.op == "output" else (node.name,)
        args, kwargs = (map_aggregate(part, _as_value) for part in (node.args, node.kwargs))
        target = node.target if node.op == "call_function" else name_of(node)
        steps.append(_Step(node.op, target, args, kwargs, node.name, done_with))
    return steps


def _as_value(arg: Any) -> Any:
    return _Value(arg.name) if isinstance(arg, fx.Node) else arg
