"""What lies between two images: straight lines between representations, decoded (i-RevNet, figure 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invertible._checks import describe
from invertible.errors import ConfigError, DataError, NonFiniteError, ShapeError
from invertible.instruments._interpolation_inverse import Coder, encode, find_coder, forgive, to_lattice
from invertible.instruments._interpolation_plot import draw
from invertible.instruments._interpolation_rows import Line, Step, findings_of
from invertible.instruments._pictures import Picture
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Layers
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "interpolation"


@dataclass(frozen=True)
class Interpolation(Result):
    """What `interpolation` found.

    Args:
        findings: Worst first.
        lines: One per pair of examples.
        part: The part of the network that was undone.
        is_from_input: Whether its input is the network's, so that what is decoded are images.
        low: Smallest number in the data of the pairs, as shown.
        high: Largest.
    """

    lines: tuple[Line, ...]
    part: str
    is_from_input: bool
    low: float
    high: float

    @property
    def table(self) -> list[Row]:
        """One row per pair and step."""
        return [step.row(line.first, line.second) for line in self.lines for step in line.steps]

    def decoded(self, pair: int) -> Tensor:
        """The images along a line between representations.

        Args:
            pair: Which.

        Returns:
            Shape (n_steps, ...), float32.
        """
        return torch.stack([picture.tensor for picture in self.lines[pair].decoded])

    def mixed(self, pair: int) -> Tensor:
        """The images along the line between pixels.

        Args:
            pair: Which.

        Returns:
            Shape (n_steps, ...), float32.
        """
        return torch.stack([picture.tensor for picture in self.lines[pair].mixed])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw for each pair the decoded images above those between pixels: figure 5.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        positions = [step.position for step in self.lines[0].steps]
        return draw(ax, [(line.decoded, line.mixed) for line in self.lines], positions)


def interpolation(
    model: nn.Module,
    data: Any,
    *,
    n_pairs: int = 4,
    n_steps: int = 9,
    part: str | None = None,
    inverse: Callable[[Tensor], Tensor] | None = None,
    layers: Layers = "",
    display: Callable[[Tensor], Tensor] | None = None,
    mode: Mode = "eval",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Interpolation:
    """Decode images from straight lines between the representations of two images, beside lines between their pixels.

    z_t = (1 - t) f(a) + t f(b), decoded: f^-1(z_t). Pairs are the data's first and second example, third and fourth,
    and so on. A line between pixels mixes the two; where decoded images look like it, the representation is close to
    linear along the line, and where they leave the range of the data, there are no images between the two.

    On an exact network z_t is rounded to its lattice. Between two representations of an injective network (one that
    appends zeros) most points are no representations; there what should be zero is dropped, and a finding says so.

    Args:
        model: A network whose beginning is a bijection, such as an i-RevNet or a flow's bijection; or any network with
            an inverse of yours. It is left as it is, to the bit.
        data: Whatever `feeding.Feed` takes.
        n_pairs: How many pairs, at most.
        n_steps: Images on each line, both ends included.
        part: Name of the invertible part; None: the one that starts at the network's input, else the longest. Of a part
            that starts inside the network, its input is decoded.
        inverse: From a representation (of the first tensor at `layers`) back to the network's input.
        layers: With `inverse`: where the representation is; "": the network's output.
        display: What images are shown and compared as, e.g. the inverse of a normalisation; None: as they are.
        mode: "eval", "train" or "as is".
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after the pair during which so much time ran out.
        seed: Of noise and shuffling.
        quiet: Show no progress.

    Returns:
        Images and figures per pair, with findings; see `Interpolation` and its `lines`.

    Raises:
        ConfigError: If the network has no invertible part and no inverse is given, or an option is wrong.
        ContextError: If the part takes a context.
        DataError: If there are fewer than two examples.
        DtypeError: If model or data are of an unknown kind.
        ShapeError: If a batch is empty, or the inverse gives another shape than the input's.
        NonFiniteError: If data or decoded images hold NaN or infinity.

    Source: Jacobsen, Smeulders and Oyallon 2018, "i-RevNet: deep invertible networks", section 4.3 and figure 5.

    Example:
        >>> from invertible.models import irevnet
        >>> net = irevnet((1, 8, 8), 10, (1, 1), (2, 2), channels=None, hidden=(8, 16), init_squeeze=2)
        >>> found = interpolation(net, torch.rand(4, 1, 8, 8), n_steps=3)
        >>> found.part, len(found.lines), found.decoded(0).shape, found.lines[0].steps[0].reconstruction < 1e-5
        ('body', 2, torch.Size([3, 1, 8, 8]), True)
    """
    for name, (value, least) in {"n_pairs": (n_pairs, 1), "n_steps": (n_steps, 2)}.items():
        if isinstance(value, bool) or value < least:
            raise ConfigError(f"interpolation has a bad {name}", expected=f"{least} or more", got=value)
    show = display or (lambda images: images)
    with torch.inference_mode(False), measuring(model, mode) as network:
        feed = Feed(
            NAME, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet
        )  # fmt: skip
        coder = find_coder(network, feed.first.few(2), part, layers, inverse)
        is_onto = forgive(coder)
        lines, ends, is_from_input = _lines(network, coder, feed, n_pairs, n_steps, show, seconds)
        origin = feed.provenance(network)
    low, high = ends.min().item(), ends.max().item()
    findings = findings_of(lines, coder.name, is_from_input, high - low, is_onto, feed.stopped)
    return Interpolation(findings, tuple(lines), coder.name, is_from_input, low, high, provenance=origin)


def _lines(
    network: nn.Module, coder: Coder, feed: Feed, n_pairs: int, n_steps: int, show: Any, seconds: float | None
) -> tuple[list[Line], Tensor, bool]:
    lines, ends, is_from_input, n = [], [], True, 0
    for batch in feed:
        found = encode(network, coder, batch)
        is_from_input = is_from_input and (found.is_input or coder.is_given)
        for i in range(0, len(found.x) - 1, 2):
            x, z = found.x[i : i + 2], found.z[i : i + 2]
            lines.append(_line(coder, x, z, n + i, n_steps, show))
            ends.append(show(x).float().cpu())
            if len(lines) == n_pairs:
                return lines, torch.cat(ends), is_from_input
            if seconds is not None and feed.watch.seconds >= seconds:
                feed.stopped = f"seconds={seconds:g}, after {len(lines)} of {n_pairs} pairs"
                return lines, torch.cat(ends), is_from_input
        n += len(found.x)
    if not lines:
        raise DataError("interpolation needs two examples in a batch", expected="two or more", got=n)
    return lines, torch.cat(ends), is_from_input


def _line(coder: Coder, x: Tensor, z: Tensor, number: int, n_steps: int, show: Callable[[Tensor], Tensor]) -> Line:
    t = torch.linspace(0, 1, n_steps, dtype=torch.float64)
    decoded = _decode(coder, to_lattice(coder, _between(z, t)), x)
    mixed = _between(x, t)
    low, high = show(x).amin(), show(x).amax()
    shown, plain = show(decoded).double(), show(mixed).double()
    own = show(x).double()
    steps = []
    for i, position in enumerate(t.tolist()):
        image = shown[i]
        end = own[round(position)] if position in (0.0, 1.0) else None
        steps.append(
            Step(
                position=position,
                from_pixels=(image - plain[i]).square().mean().sqrt().item(),
                from_ends=min((image - other).square().mean().sqrt().item() for other in own),
                outside=((image < low) | (image > high)).double().mean().item(),
                reconstruction=None if end is None else (image - end).abs().max().item(),
            )
        )
    pictures = [tuple(map(Picture.of, images)) for images in (shown, plain)]
    return Line(number, number + 1, pictures[0], pictures[1], tuple(steps))


def _between(ends: Tensor, t: Tensor) -> Tensor:
    # The ends come out as they are, to the bit.
    weights = t.to(ends.device, ends.dtype).view(-1, *[1] * (ends.ndim - 1))
    mixed = ends[0] * (1 - weights) + ends[1] * weights
    mixed[0], mixed[-1] = ends[0], ends[1]
    return mixed


def _decode(coder: Coder, z: Tensor, x: Tensor) -> Tensor:
    decoded = coder.decode(z)
    if not isinstance(decoded, Tensor) or decoded.shape[1:] != x.shape[1:] or len(decoded) != len(z):
        expected = (len(z), *x.shape[1:])
        raise ShapeError("the inverse does not give inputs", expected=expected, got=describe(decoded))
    if not bool(decoded.isfinite().all()):
        hint = "n_steps=2 shows whether the ends come back"
        raise NonFiniteError("a decoded image is not finite", got="NaN or infinity", hint=hint)
    return decoded
