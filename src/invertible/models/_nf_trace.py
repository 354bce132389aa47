"""Reading a stranger's network: its graph, what each step is, and where it forks and joins."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from invertible._checks import check_channels
from invertible.errors import ConfigError, InvertibleError
from invertible.layers import gain
from invertible.models.classifier import check_input

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_MAX_POOL_FUNCTIONS = ("max_pool1d", "max_pool2d", "max_pool3d")
_POOL_FUNCTIONS = {*_MAX_POOL_FUNCTIONS, "avg_pool1d", "avg_pool2d", "avg_pool3d", "mean"} | {
    f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)
}
_PASSING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Flatten,
    nn.Unflatten,
)
_PASSING_NAMES = {"DropPath", "StochasticDepth", "DropBlock2d"}  # classes that people write the same, by their names
_PASSING_FUNCTIONS = {"flatten", "view", "reshape", "contiguous", "squeeze", "unsqueeze", "size", "getattr", "getitem",
                      "dropout", "dropout1d", "dropout2d", "dropout3d", "to", "clone"}  # fmt: skip
_ACTIVATIONS = {"relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish", "hardswish",
                "hardtanh", "tanh", "sigmoid", "hardsigmoid", "softplus", "softsign"}  # fmt: skip
_GATES = (nn.Sigmoid, nn.Hardsigmoid)


class Tracer(fx.Tracer):
    """Looks into the modules of a network, but not into torch's own and not into activations.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(autowrap_functions=(check_input, check_channels))
        # Where these checks are called; else they are looked for beside each forward only.
        self._autowrap_search += [import_module(f"invertible.models.{name}") for name in ("classifier", "resnet")]
        # Before tracing begins, while modules can still be called.
        self._activations = {module for module in model.modules() if _is_own_activation(module)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell what is one step.

        Args:
            m: A module.
            module_qualified_name: Its name.

        Returns:
            Whether it is.
        """
        is_torchs = super().is_leaf_module(m, module_qualified_name)
        return is_torchs or type(m).__name__ in _PASSING_NAMES or m in self._activations

    def create_arg(self, a: Any) -> Any:
        """Let this library's checks pass, which take the network as an argument.

        Args:
            a: An argument of a step.

        Returns:
            What stands for it in the graph.
        """
        return None if isinstance(a, nn.Module) else super().create_arg(a)


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a network; arguments of its forward that have defaults get them.

    Args:
        model: The network.

    Returns:
        The graph, without this library's checks of inputs.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    fixed = {p.name: p.default for p in parameters if p.default is not p.empty and not isinstance(p.default, Tensor)}
    graph = Tracer(model).trace(model, concrete_args=fixed or None)
    for node in reversed(list(graph.nodes)):
        is_check = node.target in (check_input, check_channels, torch._assert)
        if is_check or (node.op == "call_function" and "assert" in name_of(node)):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is operator.eq and not node.users:
            graph.erase_node(node)
    return graph


def name_of(node: fx.Node) -> str:
    """What a step calls, in a word.

    Args:
        node: The step.

    Returns:
        The name of its module, function or method.
    """
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


class Reading:
    """What the steps of a graph are.

    Args:
        model: The network that was traced.
        graph: Its graph.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model, self.graph = model, graph
        self.gated: set[fx.Node] = set()
        self._dominators: dict[fx.Node, fx.Node | None] = {}
        self._depths: dict[fx.Node, int] = {}
        self._roles: dict[fx.Node, str] = {}
        self._find_dominators()
        self.gates = {node for node in graph.nodes if self._is_gate(node)}

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a step calls.

        Args:
            node: The step.

        Returns:
            The module; None: it calls none.
        """
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def role(self, node: fx.Node) -> str:
        """What a step does.

        Args:
            node: The step.

        Returns:
            "conv", "linear", "norm", "act", "pool", "pass", "add", "gate", "mul", "input", "output" or "other".
        """
        if node not in self._roles:
            self._roles[node] = self._role(node)
        return self._roles[node]

    def _role(self, node: fx.Node) -> str:
        if node in self.gates:
            return "gate"
        if node.op in ("placeholder", "output"):
            return {"placeholder": "input"}.get(node.op, node.op)
        if node.op == "call_module":
            return self._role_of_module(self.module(node))
        name = name_of(node).removesuffix("_") if node.op == "call_method" else name_of(node)
        operands = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
        for role, names in (("add", ("add", "iadd")), ("mul", ("mul", "imul", "multiply"))):
            if name in names and len(operands) == 2 and not node.kwargs.get("alpha"):
                return role
        if name in _ACTIVATIONS:
            return "act"
        return "pool" if name in _POOL_FUNCTIONS else "pass" if name in _PASSING_FUNCTIONS else "other"

    def _role_of_module(self, module: nn.Module | None) -> str:
        kinds = {"conv": CONVOLUTIONS, "linear": nn.Linear, "norm": NORMS, "pool": _POOLS, "pass": _PASSING}
        for role, kind in kinds.items():
            if isinstance(module, kind):
                return role
        if type(module).__name__ in _PASSING_NAMES:
            return "pass"
        return "act" if module is not None and is_activation(module) else "other"

    def is_max_pool(self, node: fx.Node) -> bool:
        """Tell whether a step is max-pooling, with which rising activations commute.

        Args:
            node: The step.

        Returns:
            Whether it is.
        """
        return isinstance(self.module(node), _MAX_POOLS) or name_of(node) in _MAX_POOL_FUNCTIONS

    def activation(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """The activation that a step of role "act" applies.

        Args:
            node: The step.

        Returns:
            A module.
        """
        module = self.module(node)
        if module is not None:
            twin = copy.deepcopy(module)
            if "inplace" in vars(twin):  # the input of an activation is the shortcut too
                twin.__dict__["inplace"] = False
            return twin
        name = name_of(node).removesuffix("_")
        arguments = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
        return FunctionalActivation(name, tuple(node.args[1:]), arguments)

    def fork(self, node: fx.Node) -> fx.Node | None:
        """The last step that every way to this one goes through.

        Args:
            node: The step.

        Returns:
            The step; None: there is none.
        """
        return self._dominators.get(node)

    def between(self, fork: fx.Node | None, end: fx.Node) -> set[fx.Node]:
        """The steps from behind a fork to an end.

        Args:
            fork: Where they begin.
            end: Where they end.

        Returns:
            The steps, the end among them, the fork not.
        """
        found, waiting = set(), [end]
        while waiting:
            node = waiting.pop()
            if node is not fork and node not in found:
                found.add(node)
                waiting += _inputs(node)
        return found

    def _find_dominators(self) -> None:
        for node in self.graph.nodes:
            above: fx.Node | None = None
            for i, one in enumerate(_inputs(node)):
                above = one if i == 0 else self._common(above, one)
            self._dominators[node] = above
            self._depths[node] = self._depths[above] + 1 if above is not None else 0

    def _common(self, a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        while a is not b and a is not None and b is not None:
            if self._depths[a] >= self._depths[b]:
                a = self._dominators[a]
            else:
                b = self._dominators[b]
        return a if a is b else None

    def _is_gate(self, node: fx.Node) -> bool:
        # x times a sigmoid of something pooled from x, as in squeeze-excite.
        if node.op == "call_module" or name_of(node).removesuffix("_") not in ("mul", "imul", "multiply"):
            return False
        operands = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
        fork = self._dominators[node]
        if len(operands) != 2 or fork not in operands:
            return False
        gate = operands[1] if operands[0] is fork else operands[0]
        inside = self.between(fork, gate)
        ends = [n for n in inside if isinstance(self.module(n), _GATES) or name_of(n) in ("sigmoid", "hardsigmoid")]
        if len(inside) > 1 and len(ends) == 1:
            self.gated |= inside
            return True
        return False


class FunctionalActivation(nn.Module):
    """An activation that a network calls as a function.

    Args:
        name: Of the function.
        args: What follows its input.
        kwargs: Likewise, by name.
    """

    def __init__(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.args, self.kwargs = name, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        """Apply it.

        Args:
            x: Any shape.

        Returns:
            Shape of x.
        """
        function = getattr(functional, self.name)
        return function(x, *[arg for arg in self.args if not isinstance(arg, bool)], **self.kwargs)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The function's name.
        """
        return self.name


def is_activation(module: nn.Module) -> bool:
    """Tell whether a module acts on each number alone, and is no identity.

    Args:
        module: Any module.

    Returns:
        Whether `gain` has a value for it.
    """
    if isinstance(module, nn.Identity) or next(module.children(), None) is not None:
        return False
    try:
        gain(copy.deepcopy(module).eval())
    except (InvertibleError, NotImplementedError):
        return False
    return True


def _is_own_activation(module: nn.Module) -> bool:
    has_state = next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
    if has_state or next(module.children(), None) is not None:
        return False
    return is_activation(module)


def _inputs(node: fx.Node) -> list[fx.Node]:
    return [one for one in node.all_input_nodes if one.op != "get_attr"]


def operand(node: fx.Node, at: int = 0) -> fx.Node:
    """One of the steps that a step takes.

    Args:
        node: The step.
        at: Which argument.

    Returns:
        The other step.

    Raises:
        ConfigError: If it takes something else there.
    """
    found = node.args[at] if at < len(node.args) else None
    if not isinstance(found, fx.Node):
        expected = "a tensor of the network"
        raise ConfigError(f"step {node.name!r} has a strange argument", expected=expected, got=repr(found))
    return found
