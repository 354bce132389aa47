"""NICE, RealNVP, Glow and spline flows: the papers' sizes, conditional variants, reconstruction, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cases import assert_close
from invertible import Chain, Flow
from invertible.errors import ConfigError, ContextError, RangeError
from invertible.flow import VariationalDequantization
from invertible.layers import ActNorm, AffineCoupling, Checkerboard
from invertible.models import build
from invertible.models.glow import glow, glow_digits
from invertible.models.nice import nice, nice_digits
from invertible.models.realnvp import realnvp, realnvp_2d, realnvp_digits, realnvp_table
from invertible.models.spline_flow import spline_flow, spline_flow_digits


def count(flow: Flow) -> int:
    return sum(p.numel() for p in flow.parameters())


def disturb(flow: Flow) -> Flow:
    """Move every zero, so that no layer is the identity; start its activation norms."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            if not bool(parameter.any()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for part in flow.modules():
            if isinstance(part, ActNorm):
                part.initialised.fill_(True)
                part.is_initialised = True
    return flow.double()


SMALL: dict[str, Callable[..., Flow]] = {
    "nice": lambda **kw: nice((1, 4, 4), hidden=(8,), n_levels=None, **kw),
    "nice-odd": lambda **kw: nice((5,), 3, hidden=(8,), prior="normal", n_levels=None, **kw),
    "realnvp": lambda **kw: realnvp((1, 4, 4), 2, 1, 4, n_levels=None, **kw),
    "realnvp-3-scales": lambda **kw: realnvp((1, 8, 8), 3, 1, 4, n_levels=None, **kw),
    "realnvp-table": lambda **kw: realnvp_table(3, 4, (8,), **kw),
    "glow": lambda **kw: glow((1, 4, 4), 2, 2, 6, n_levels=None, **kw),
    "glow-affine-direct": lambda **kw: glow((1, 4, 4), 2, 1, 6, "affine", "direct", n_levels=None, **kw),
    "glow-additive-shuffle": lambda **kw: glow((3, 2, 2), 1, 2, 6, "additive", "shuffle", n_levels=None, **kw),
    "glow-reverse": lambda **kw: glow((1, 4, 4), 2, 1, 6, mixing="reverse", n_levels=None, **kw),
    "spline": lambda **kw: spline_flow((2,), 3, (8,), 4, **kw),
    "spline-5": lambda **kw: spline_flow((5,), 2, (8,), 4, standardize=True, tails=True, **kw),
    "spline-image": lambda **kw: spline_flow((1, 2, 2), 2, (8,), 4, **kw),
    "spline-1": lambda **kw: spline_flow((1,), 1, (8,), 4, **kw),
}
every_model = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def points(flow: Flow, n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, *flow.event_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every_model
def test_log_prob_is_that_of_the_dense_jacobian(make: Callable[..., Flow]) -> None:
    flow = disturb(make()).eval()
    x = points(flow, 2)
    n = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(lambda t: flow.encode(t).flatten(1).sum(0), x)
    logdet = torch.stack([torch.linalg.slogdet(jacobian[:, i].reshape(n, n)).logabsdet for i in range(2)])
    expected = flow.base.log_prob(flow.encode(x)) + logdet
    assert_close(flow.log_prob(x), expected, 1e-9)
    assert_close(flow.decode(flow.encode(x)), x, 1e-9)


@every_model
def test_labels_change_the_density_and_samples_follow_them(make: Callable[..., Flow]) -> None:
    flow = disturb(make(n_classes=3)).eval()
    x, labels = points(flow), torch.tensor([0, 1, 2])
    assert not torch.allclose(flow.log_prob(x, labels), flow.log_prob(x, labels.roll(1)))
    assert flow.sample(2, labels).shape == (2, 3, *flow.event_shape)
    assert_close(flow.decode(flow.encode(x, labels), labels), x, 1e-9)
    with pytest.raises(RangeError, match="0 to 2"):
        flow.log_prob(x, labels + 1)
    with pytest.raises(ContextError):
        flow.log_prob(x)


@every_model
def test_vectors_as_context(make: Callable[..., Flow]) -> None:
    flow = disturb(make(n_context=2)).eval()
    x, context = points(flow), torch.randn(3, 2, dtype=torch.float64)
    assert not torch.allclose(flow.log_prob(x, context), flow.log_prob(x, context + 1))
    assert_close(flow.decode(flow.encode(x, context), context), x, 1e-9)


@every_model
def test_reconstruct_gives_the_gradients_of_store(make: Callable[..., Flow]) -> None:
    stored = disturb(make())
    saving = copy.deepcopy(stored)
    assert isinstance(saving.bijection, Chain)
    saving.bijection.memory, saving.bijection.check_every = "reconstruct", 1
    x = points(stored)
    for flow in (stored, saving):
        flow(x).backward()
    for (name, plain), ours in zip(stored.named_parameters(), saving.parameters(), strict=True):
        assert (plain.grad is None) == (ours.grad is None), name
        if plain.grad is not None and ours.grad is not None:
            assert_close(ours.grad, plain.grad, 1e-8)


@every_model
def test_saved_and_loaded_it_is_the_same(make: Callable[..., Flow], tmp_path: Path) -> None:
    flow = disturb(make(n_classes=2)).eval()
    flow.save(tmp_path / "flow")
    again = Flow.load(tmp_path / "flow.safetensors")
    x, labels = points(flow), torch.tensor([0, 1, 1])
    assert again.config == flow.config
    assert torch.equal(again.log_prob(x, labels), flow.log_prob(x, labels))


@pytest.mark.parametrize(("make", "levels"), [(nice_digits, 17), (realnvp_digits, 17), (glow_digits, 17),
                                              (spline_flow_digits, 17)])  # fmt: skip
def test_digits_models_take_pixels_and_train(make: Callable[..., Flow], levels: int) -> None:
    flow = make()
    pixels = torch.randint(0, levels, (8, 1, 8, 8), dtype=torch.uint8)
    flow(pixels).backward()
    assert all(bool(p.grad.isfinite().all()) for p in flow.parameters() if p.grad is not None)
    samples = flow.eval().sample(2)
    assert torch.equal(samples, samples.round())
    assert samples.min() >= 0
    assert samples.max() <= levels - 1
    assert flow.bits_per_dim(pixels).shape == (8,)


def linear(n: int, m: int) -> int:
    return n * m + m


def test_nice_has_the_paper_s_size() -> None:
    # MNIST: 784 pixels in halves, four couplings of five hidden layers of 1000, a scale per pixel.
    expected = 4 * (linear(392, 1000) + 4 * linear(1000, 1000) + linear(1000, 392)) + 784
    assert count(nice()) == expected == 19_158_352


def test_realnvp_has_the_paper_s_structure() -> None:
    # CIFAR-10: 8 residual blocks, 64 features, one squeeze: 3 + 3 couplings, then 4.
    flow = realnvp()
    couplings = [m for m in flow.modules() if isinstance(m, AffineCoupling)]
    assert [m._roles.split is None for m in couplings] == [True] * 3 + [False] * 3 + [True] * 4
    assert isinstance(couplings[0], AffineCoupling)

    def net(n_in: int, n_out: int, width: int, blocks: int = 8) -> int:
        conv = width * n_in * 9 + width + width  # weights, their norms (weight normalisation), biases
        block = 2 * (2 * width) + 2 * (width * width * 9 + width) + width
        return conv + blocks * block + 2 * width + linear(width, n_out)

    actnorms = 2 * (3 * 3 + 3 * 12 + 4 * 6)
    expected = 3 * net(3, 6, 64) + 3 * net(6, 12, 128) + 4 * net(6, 12, 128) + actnorms
    assert count(flow) == expected == 18_415_536


def glow_size(channels: int, scales: int, steps: int, hidden: int) -> int:
    total = 0
    for i in range(scales):
        channels *= 4
        half = channels // 2
        network = half * hidden * 9 + 2 * hidden + hidden * hidden + 2 * hidden + hidden * channels * 9 + channels
        mixing = channels * (channels - 1) + channels
        total += steps * (2 * channels + mixing + network)
        if i < scales - 1:
            total += half * channels * 9 + channels
            channels = half
    return total


def test_glow_has_the_paper_s_size() -> None:
    flow = glow()
    assert count(flow) == glow_size(3, 3, 32, 512) == 44_049_996
    assert sum(isinstance(m, AffineCoupling) for m in flow.modules()) == 2  # the split priors


def test_spline_flow_has_the_size_that_its_networks_give() -> None:
    n = 8 * 3 - 1
    couplings = [(32, 32 * n)] * 6
    networks = sum(linear(a, 128) + linear(128, 128) + linear(128, b) for a, b in couplings)
    assert count(spline_flow_digits()) == networks


def test_masks_are_checkerboards() -> None:
    flow = disturb(realnvp((1, 4, 4), 1, 1, 4, n_levels=None)).eval()
    assert isinstance(flow.bijection, Chain)
    x = points(flow, 1)
    y = flow.bijection[0](x)
    kept = Checkerboard().build((1, 4, 4), torch.device("cpu")).expand(1, 4, 4)
    assert torch.equal(y[0][kept], x[0][kept])
    assert bool((y[0][~kept] != x[0][~kept]).all())


def test_the_first_batch_starts_a_glow_in_every_memory_mode() -> None:
    torch.manual_seed(0)
    flows = [glow((1, 8, 8), 2, 3, 8, n_levels=None, memory=m) for m in ("store", "reconstruct")]
    flows[1].load_state_dict(flows[0].state_dict())
    x = 5 + 3 * torch.randn(32, 1, 8, 8)
    losses = [flow(x) for flow in flows]
    for loss in losses:
        loss.backward()
    assert_close(losses[1].detach(), losses[0].detach(), 1e-5)
    for a, b in zip(*(flow.state_dict().values() for flow in flows), strict=True):
        assert_close(b.float(), a.float(), 1e-5)
    assert all(m.is_initialised for m in flows[1].modules() if isinstance(m, ActNorm))
    assert -losses[0].item() > -2.6 * 64  # normalised from the first step on


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        glow((1, 28, 28))
    with pytest.raises(ConfigError, match="one pixel left"):
        realnvp((1, 4, 4), 3)
    with pytest.raises(ConfigError, match="one kind of context"):
        realnvp_2d(n_classes=2, n_context=2)
    with pytest.raises(ConfigError, match="n_classes is out of range"):
        spline_flow((2,), n_classes=0)
    with pytest.raises(ConfigError, match="two numbers or more"):
        nice((1,))
    with pytest.raises(ConfigError, match="at least 1"):
        glow((1, 8, 8), n_scales=0)
    with pytest.raises(ConfigError, match="two numbers or more"):
        realnvp_table(1)


def test_built_by_name_from_lists() -> None:
    flow = build("spline_flow", in_shape=[3], n_couplings=2, hidden=[8])
    assert isinstance(flow, Flow)
    assert flow.config is not None
    assert flow.config["name"] == "spline_flow"
    assert isinstance(build("realnvp_2d"), Flow)


def test_networks_start_at_zero_so_that_flows_start_near_the_identity() -> None:
    flow, x = spline_flow((2,)), torch.randn(5, 2)
    assert_close(flow.encode(x).detach(), x, 1e-5)
    assert isinstance(flow, nn.Module)


@pytest.mark.parametrize("make", [glow, realnvp])
def test_variational_noise_is_part_of_the_model(make: Callable[..., Flow], tmp_path: Path) -> None:
    flow = make((1, 4, 4), 1, 1, 4, n_levels=8, noise="variational")
    pixels = torch.randint(0, 8, (5, 1, 4, 4))
    flow(pixels).backward()
    assert isinstance(flow.dequantization, VariationalDequantization)
    assert any(p.grad is not None and bool(p.grad.any()) for p in flow.dequantization.parameters())
    flow.save(tmp_path / "flow")
    assert isinstance(Flow.load(tmp_path / "flow").dequantization, VariationalDequantization)
    with pytest.raises(ConfigError, match="bad noise"):
        build(make.__name__, in_shape=[1, 4, 4], n_scales=1, noise="gaussian")
