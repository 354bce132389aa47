"""From a residual network's graph to its normalizer-free form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx, nn

from invertible.layers import ScaledStdConv1d, ScaledStdConv2d, ScaledStdConv3d, ScaledStdLinear
from invertible.models._nf_network import BetaActivation, ConvertedNetwork, GateFactor, ResidualSum
from invertible.models._nf_obstacles import Residual
from invertible.models._nf_trace import CONVOLUTIONS, Reading, name_of, operand


@dataclass(frozen=True)
class Change:
    """What happens to one step of the network.

    Args:
        name: Of the layer, or of the block for an addition.
        what: What it is.
        becomes: What it becomes.
        expected_variance: Of its output at the start with skip gains of one, by theory; None: none.
    """

    name: str
    what: str
    becomes: str
    expected_variance: float | None = None


@dataclass
class Conversion:
    """A conversion under way: it changes the graph and the network that it was read from.

    Args:
        reading: The network, a copy.
        residuals: Its residual additions.
        alpha: How much of a branch is added.
        skip_gain: First value of the learned factor.
    """

    reading: Reading
    residuals: list[Residual]
    alpha: float
    skip_gain: float
    changes: list[Change] = field(default_factory=list)
    n_moved: int = 0
    shifting: list[str] = field(default_factory=list)
    _normed: set[str] = field(default_factory=set)

    def run(self) -> ConvertedNetwork:
        """Convert.

        Returns:
            The network.
        """
        order = list(self.reading.graph.nodes)
        last = order.index(self.residuals[-1].add)
        self._plain = {n for n in order[last:] if self.reading.role(n) in ("conv", "linear") and self._makes_logits(n)}
        self._roles = {node: self.reading.role(node) for node in order}
        self._remove_norms()
        self._use_modules_for_dropout()
        self._pool_before_activations()
        self._free_shortcuts()
        self._scale()
        graph, model = self.reading.graph, self.reading.model
        for node in reversed(list(graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        graph.lint()
        name = type(model).__name__
        return ConvertedNetwork(fx.GraphModule(model, graph), name).train(model.training)

    def _makes_logits(self, node: fx.Node) -> bool:
        # Behind the last sum, with nothing behind it that would want a variance.
        waiting, seen = list(node.users), set()
        while waiting:
            user = waiting.pop()
            if user in seen:
                continue
            seen.add(user)
            if self.reading.role(user) in ("norm", "act"):
                return False
            waiting += list(user.users)
        return True

    def _remove_norms(self) -> None:
        for node in list(self.reading.graph.nodes):
            if self._roles.get(node) != "norm":
                continue
            before = operand(node)
            if self._roles[before] in ("conv", "linear"):
                self._normed.add(str(before.target))
            node.replace_all_uses_with(before)
            self.reading.graph.erase_node(node)
            kind = type(self.reading.model.get_submodule(str(node.target))).__name__
            self.changes.append(Change(str(node.target), kind, "gone"))

    def _use_modules_for_dropout(self) -> None:
        # A dropout that is called as a function was recorded in the mode of the moment.
        for node in self.reading.graph.nodes:
            kind = _DROPOUTS.get(name_of(node)) if node.op == "call_function" else None
            if kind is not None:
                rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
                module = kind(rate if isinstance(rate, float | int) else 0.5)
                name = self._add_module(f"dropouts.{node.name}", module.train(self.reading.model.training))
                node.op, node.target, node.args, node.kwargs = "call_module", name, (operand(node),), {}

    def _pool_before_activations(self) -> None:
        graph = self.reading.graph
        for pool in list(graph.nodes):
            act = pool.args[0] if pool.args else None
            if not (isinstance(act, fx.Node) and self._roles.get(act) == "act" and self.reading.is_max_pool(pool)):
                continue
            if len(act.users) > 1 or act in self.reading.gated:
                continue
            with graph.inserting_after(pool):
                later = graph.node_copy(act, lambda _, pool=pool: pool)
            self._roles[later] = "act"
            pool.replace_all_uses_with(later, delete_user_cb=lambda user, later=later: user is not later)
            pool.replace_input_with(act, operand(act))
            graph.erase_node(act)

    def _free_shortcuts(self) -> None:
        # x + F(act(x)) instead of act(x) + F(act(x)): a shortcut without activation keeps variance and mean.
        for residual in self.residuals:
            source, passed = residual.shortcut, set()
            while not residual.is_projected and self._roles[source] in ("pass", "act"):
                passed.add(self._roles[source])
                source = operand(source)
            self.n_moved += "act" in passed
            args = list(residual.add.args)
            args[1 - residual.branch_at] = source
            residual.add.args = tuple(args)

    def _scale(self) -> None:
        variance: dict[fx.Node, float | None] = {}
        sums = {residual.add: residual for residual in self.residuals}
        for node in list(self.reading.graph.nodes):
            role = self._roles.get(node, "pass")
            inputs = [one for one in node.all_input_nodes if one.op != "get_attr"]
            known = variance.get(inputs[0]) if inputs else 1.0
            if node in self.reading.gated:
                variance[node] = None
            elif node in sums:
                variance[node] = self._scale_sum(sums[node], variance)
            elif role == "gate":
                variance[node] = self._scale_gate(node, variance)
            elif role in ("conv", "linear"):
                variance[node] = self._standardize(node, known)
            elif role == "act" and known is not None:
                variance[node] = self._scale_activation(node, known)
            else:
                variance[node] = known

    def _scale_sum(self, residual: Residual, variance: dict[fx.Node, float | None]) -> float:
        add = residual.add
        branch, shortcut = residual.branch, residual.shortcut
        end = branch
        while self._roles.get(end) == "pass":
            end = operand(end)
        if self._roles.get(end) == "act":
            self.shifting.append(residual.name or "the network")
        inner, outer = variance[branch] or 1.0, variance[shortcut] or 1.0
        expected = outer + self.alpha**2 * inner
        module = ResidualSum(self.alpha, self.skip_gain, (expected, inner))
        name = self._add_module(f"{residual.name}.residual_sum".removeprefix("."), module)
        becomes = f"shortcut + {self.alpha:g} s F, s starting at {self.skip_gain:g}"
        self.changes.append(Change(residual.name, "residual addition", becomes, expected))
        add.op, add.target, add.args, add.kwargs = "call_module", name, (shortcut, branch), {}
        return expected

    def _scale_gate(self, node: fx.Node, variance: dict[fx.Node, float | None]) -> float | None:
        first, second = operand(node), operand(node, 1)
        gate, signal = (second, first) if second in self.reading.gated else (first, second)
        name = self._add_module("gate_factor", GateFactor())
        with self.reading.graph.inserting_before(node):
            doubled = self.reading.graph.call_module(name, (gate,))
        node.replace_input_with(gate, doubled)
        self.reading.gated.add(doubled)
        self.changes.append(Change(node.name, "gate", "twice the gate", variance[signal]))
        return variance[signal]

    def _standardize(self, node: fx.Node, known: float | None) -> float | None:
        target, old = str(node.target), self.reading.module(node)
        if node in self._plain or (isinstance(old, nn.Linear) and target not in self._normed):
            return None
        if isinstance(old, (*CONVOLUTIONS, nn.Linear)) and not isinstance(old, _SCALED):
            self.reading.model.set_submodule(target, standardized_twin(old, target in self._normed))
            self.changes.append(Change(target, type(old).__name__, "standardised weights, gain and bias", known))
        return known

    def _scale_activation(self, node: fx.Node, known: float) -> float:
        activation = self.reading.activation(node)
        module = BetaActivation(activation, known**0.5)
        base = str(node.target) if node.op == "call_module" else f"activations.{name_of(node)}"
        name = self._add_module(base, module)
        what = type(activation).__name__ if node.op == "call_module" else name_of(node)
        beta = "" if known == 1 else f", of x / {known**0.5:.4g}"
        self.changes.append(Change(base, what, f"{module.scaled.gamma:.6g} times it{beta}", 1.0))
        node.op, node.target, node.args, node.kwargs = "call_module", name, (operand(node),), {}
        return 1.0

    def _add_module(self, base: str, module: nn.Module) -> str:
        taken, model = {name for name, _ in self.reading.model.named_modules()}, self.reading.model
        name, number = f"{base}_nf" if base in taken else base, 2
        while name in taken:
            name, number = f"{base}_nf{number}", number + 1
        parent = ""
        for part in name.split(".")[:-1]:
            path = f"{parent}.{part}" if parent else part
            if path not in taken:
                model.get_submodule(parent).add_module(part, nn.Module())
            parent = path
        model.get_submodule(parent).add_module(name.rsplit(".", 1)[-1], module)
        return name


_DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
}
_SCALED = (ScaledStdConv1d, ScaledStdConv2d, ScaledStdConv3d, ScaledStdLinear)
_TWINS: dict[type, Callable[..., nn.Module]] = {
    nn.Conv1d: ScaledStdConv1d,
    nn.Conv2d: ScaledStdConv2d,
    nn.Conv3d: ScaledStdConv3d,
}


def standardized_twin(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear, wants_bias: bool) -> nn.Module:
    """A layer with standardised weights.

    Args:
        layer: A convolution or linear layer.
        wants_bias: Whether a bias of 0 is added where there is none, in BatchNorm's place.

    Returns:
        A new layer with the same raw weights.
    """
    bias = layer.bias
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype, "bias": bias is not None or wants_bias}
    if isinstance(layer, nn.Linear):
        twin: nn.Module = ScaledStdLinear(layer.in_features, layer.out_features, **place)
    else:
        make = next(make for kind, make in _TWINS.items() if isinstance(layer, kind))
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        options = {name: getattr(layer, name) for name in names}
        twin = make(layer.in_channels, layer.out_channels, layer.kernel_size, **options, **place)
    values = {"weight": layer.weight.detach()} | ({} if bias is None else {"bias": bias.detach()})
    twin.load_state_dict(values, strict=False)
    return twin
