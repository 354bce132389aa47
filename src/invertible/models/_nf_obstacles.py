"""Which additions of a network are residual, and what stands in the way of its normalizer-free form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from invertible.layers.weight_standardization import is_standardized
from invertible.models._nf_trace import CONVOLUTIONS, Reading, name_of, operand

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
                nn.LocalResponseNorm, nn.RMSNorm)  # fmt: skip


@dataclass(frozen=True)
class Residual:
    """A residual addition.

    Args:
        add: The step.
        branch_at: Which of its operands is the branch: 0 or 1.
        name: Of the block, from its layers' names.
        is_projected: Whether the shortcut has a convolution.
    """

    add: fx.Node
    branch_at: int
    name: str
    is_projected: bool

    @property
    def branch(self) -> fx.Node:
        """The step that the branch ends with."""
        return operand(self.add, self.branch_at)

    @property
    def shortcut(self) -> fx.Node:
        """The step that the shortcut ends with."""
        return operand(self.add, 1 - self.branch_at)


def find_residuals(reading: Reading) -> tuple[list[Residual], list[str]]:
    """Sort the additions.

    Args:
        reading: The network.

    Returns:
        The residual ones in order, and sentences about the others.
    """
    found, complaints = [], []
    for node in reading.graph.nodes:
        if node in reading.gated or reading.role(node) != "add":
            continue
        residual = _as_residual(reading, node)
        if isinstance(residual, Residual):
            found.append(residual)
        else:
            complaints.append(residual)
    return found, complaints


def find_obstacles(reading: Reading, residuals: list[Residual]) -> list[str]:
    """What cannot be converted.

    Args:
        reading: The network.
        residuals: Its residual additions.

    Returns:
        Sentences; none: nothing stands in the way.
    """
    found = []
    if not residuals:
        found.append("it has no residual addition x + F(x): only residual networks have a normalizer-free form here")
    last = residuals[-1].add if residuals else None
    trunk = reading.between(None, last) if last is not None else set()
    for node in reading.graph.nodes:
        if not _is_fine(reading, node, node in trunk):
            found.append(_sentence(reading, node))
        if reading.role(node) == "norm":
            found += _complaints_about_norm(reading, node)
        elif reading.role(node) == "conv" and node not in reading.gated and _fan_in(reading, node) < 2:
            found.append(f"{node.target} has one weight per channel, which standardisation would make 0")
    return list(dict.fromkeys(found))


def is_normalizer_free(model: nn.Module) -> bool:
    """Tell whether a network has standardised weights already.

    Args:
        model: The network.

    Returns:
        Whether a layer has.
    """
    return any(is_standardized(module) for module in model.modules())


def _as_residual(reading: Reading, node: fx.Node) -> Residual | str:
    fork = reading.fork(node)
    operands = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
    regions = [reading.between(fork, operand) for operand in operands]
    convs = [[n for n in region if reading.role(n) == "conv" and n not in reading.gated] for region in regions]
    counts = [len(part) for part in convs]
    where = f"the addition {node.name!r}"
    if fork is None or max(counts) == 0:
        return f"{where} adds no residual branch of convolutions to a shortcut"
    is_thin = [
        count == 0 or (count == 1 and _is_pointwise(reading, part[0]))
        for count, part in zip(counts, convs, strict=True)
    ]
    if not any(is_thin) or (all(is_thin) and counts[0] == counts[1]):
        return f"{where} has two branches of convolutions, and neither is a shortcut"
    short = is_thin.index(True) if sum(is_thin) == 1 else counts.index(min(counts))
    # Behind a pooling a convolution may set the variance right again; without one nothing does.
    allowed = {"conv", "norm", "act", "pass"} | ({"pool"} if counts[short] else set())
    strange = [n for n in regions[short] if reading.role(n) not in allowed]
    if strange:
        what = name_of(strange[0])
        return f"the shortcut of {where} goes through {what!r}, which may change its variance; use a 1x1 convolution"
    last = max(convs[1 - short], key=list(reading.graph.nodes).index)
    name = _parent(str(last.target))
    return Residual(node, 1 - short, name, counts[short] > 0)


def _is_pointwise(reading: Reading, node: fx.Node) -> bool:
    module = reading.module(node)
    return isinstance(module, CONVOLUTIONS) and all(size == 1 for size in module.kernel_size)


def _fan_in(reading: Reading, node: fx.Node) -> int:
    module = reading.module(node)
    return module.weight[0].numel() if isinstance(module, CONVOLUTIONS) else 2


def _is_fine(reading: Reading, node: fx.Node, is_in_trunk: bool) -> bool:
    module = reading.module(node)
    if isinstance(module, _OTHER_NORMS + _TRANSPOSED):
        return False
    if not is_in_trunk or node in reading.gated or node.op == "get_attr":
        return True
    return reading.role(node) not in ("other", "mul")


def _sentence(reading: Reading, node: fx.Node) -> str:
    module = reading.module(node)
    if isinstance(module, _OTHER_NORMS):
        return f"{node.target} is a {type(module).__name__}: only BatchNorm is taken out"
    if isinstance(module, _TRANSPOSED):
        return f"{node.target} is a transposed convolution, whose weights cannot be standardised"
    what = f"a {type(module).__name__} ({node.target})" if module is not None else f"{name_of(node)!r} ({node.name})"
    return f"it has {what} before its last residual addition, and nobody knows what that does to a variance"


def _complaints_about_norm(reading: Reading, node: fx.Node) -> list[str]:
    if node in reading.gated:
        return [f"BatchNorm {node.target} stands inside a gate"]
    before = node.args[0]
    while isinstance(before, fx.Node) and reading.role(before) == "pass":
        before = before.args[0]
    allowed = ("conv", "linear", "act", "add", "pool", "norm", "gate")
    if isinstance(before, fx.Node) and reading.role(before) in allowed:
        return []
    what = "the network's input" if isinstance(before, fx.Node) and reading.role(before) == "input" else repr(before)
    return [
        f"BatchNorm {node.target} follows {what}, no convolution and no residual addition; normalise the data instead"
    ]


def _parent(name: str) -> str:
    # Of stages.0.1.residual.7 the block stages.0.1, of layer1.0.conv2 layer1.0.
    parts = name.split(".")[:-1]
    while parts and not parts[-1].isdigit() and any(part.isdigit() for part in parts):
        parts.pop()
    return ".".join(parts)
