"""The signal propagation plots of Brock, De and Smith (2021), at a smaller depth, against theory."""

import math
import re
from pathlib import Path

import pytest
import torch

from invertible.errors import ConfigError
from invertible.instruments import signal_propagation
from invertible.models import signal_networks
from invertible.models._signal_theory import relu_correlation
from invertible.models.signal_networks import Size, theory

SIZE = Size((8, 8), (64, 64), (3, 16, 16))
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plot_signal_propagation.py"
DESIGNED = ["bn_relu_conv", "relu_bn_conv", "bn_conv", "nf_scaled_ws", "nf_he_linear"]


@pytest.fixture(scope="module", params=signal_networks.NAMES)
def measured(request):
    torch.manual_seed(0)
    net = getattr(signal_networks, request.param)(SIZE)
    return request.param, signal_propagation(net, (16, 3, 16, 16), quiet=True), theory(request.param, SIZE.n_blocks)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_each_network_against_theory(measured):
    name, result, expected = measured
    blocks = result.blocks[1:]
    if name in DESIGNED:
        # 27 dimensions behind a 3x3 window of three channels: single variances scatter, and a percent is missing.
        tolerance = 0.13 if name == "nf_he_linear" else 0.06
        for block, other in zip(blocks, expected, strict=True):
            assert block.variance == pytest.approx(other.variance, rel=tolerance)
        found = mean(block.residual_variance for block in blocks)
        assert found == pytest.approx(expected[0].residual_variance, rel=0.06)
    # Where theory is that of infinite width, networks of 64 channels scatter around it by factors.
    for quantity in ("variance", "squared_mean", "residual_variance"):
        pairs = [(getattr(b, quantity), getattr(e, quantity)) for b, e in zip(blocks, expected, strict=True)]
        if all(theirs > 0 for _, theirs in pairs):
            off = mean(math.log(ours / theirs) for ours, theirs in pairs)
            assert abs(off) < (0.1 if name in DESIGNED else 0.5), quantity


def test_mean_shift_is_relus_and_standardised_weights_remove_it(measured):
    name, result, expected = measured
    blocks = result.blocks[1:]
    shares = [block.branches[0].squared_mean / block.branches[0].variance for block in blocks]
    has_shift = any("Mean shift" in finding.sentence for finding in result.findings)
    assert has_shift == (name in ("bn_relu_conv", "relu_conv", "nf_he"))
    if has_shift:
        assert min(shares) > 0.3, "1 / (pi - 1) = 0.47 or more"
    else:
        assert max(shares) < 0.03
        assert {e.residual_squared_mean for e in expected} == {0.0}


def test_mean_and_variance_grow_linearly_inside_a_stage_and_fall_back(measured):
    name, result, _ = measured
    if name != "bn_relu_conv":
        return
    for quantity, slope in (("variance", 1 - 1 / math.pi), ("squared_mean", 1 / math.pi)):
        values = [getattr(block, quantity) for block in result.blocks[1:]]
        for stage in (values[:8], values[8:]):
            assert (stage[-1] - stage[0]) / 7 == pytest.approx(slope, rel=0.25 if quantity == "squared_mean" else 0.06)
        assert values[8] == pytest.approx(2 * slope, rel=0.2), "two branches' worth: shortcut and branch"


def test_declared_are_designs_only(measured):
    name, result, expected = measured
    blocks = result.blocks[1:]
    declared = [(block.expected_variance, block.branches[0].expected_variance) for block in blocks]
    if name in DESIGNED:
        for ours, theirs in zip(declared, expected, strict=True):
            assert ours == pytest.approx((theirs.variance, theirs.residual_variance), rel=1e-9)
        assert any(finding.sentence.startswith("As designed") for finding in result.findings)
    else:
        assert set(declared) == {(None, None)}


def test_the_second_moment_doubles_without_normalisation():
    for i, expected in enumerate(theory("relu_conv")):
        assert expected.squared_mean + expected.variance == pytest.approx(2.0 ** (i + 1), rel=1e-9)


def test_the_kernel_against_a_monte_carlo():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
    for c in (-0.5, 0.0, 0.3, 0.9):
        w = c * u + math.sqrt(1 - c * c) * v
        assert relu_correlation(c) == pytest.approx(2 * (u.relu() * w.relu()).mean().item(), abs=0.006)


def test_they_are_the_papers_depth_without_arguments():
    with torch.device("meta"):
        for net in (signal_networks.bn_relu_conv(), signal_networks.nf_he()):
            assert [len(stage) for stage in net.stages] == [50] * 4
            assert {module.padding_mode for module in net.modules() if isinstance(module, torch.nn.Conv2d)} == {
                "circular"
            }
    with pytest.raises(ConfigError, match=r"unknown signal network.*got 'bn'"):
        theory("bn")


@pytest.mark.usefixtures("unchecked")
def test_the_example_runs_shortened(capsys):
    source = EXAMPLE.read_text(encoding="utf-8")
    for line in ("DEPTHS = (2, 2)", "WIDTHS = (16, 16)", "SHAPE = (4, 3, 8, 8)"):
        source, n = re.subn(rf"^{line.split(' = ')[0]} = .*$", line, source, flags=re.MULTILINE)
        assert n == 1
    import matplotlib.pyplot as plt

    exec(compile(source, str(EXAMPLE), "exec"), {"__name__": "__main__"})
    assert len(plt.get_fignums()) == 2
    plt.close("all")
    printed = capsys.readouterr().out
    assert all(f"{name:13} block   4:" in printed for name in signal_networks.NAMES)
