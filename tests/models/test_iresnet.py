"""i-ResNets, Residual Flows and hybrids: shapes, counts, round trips, what the papers' configurations are."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from invertible.errors import ConfigError
from invertible.layers import Residual
from invertible.models import (
    Hybrid,
    build,
    hybrid_iresnet,
    iresnet,
    iresnet164,
    iresnet_density,
    iresnet_digits,
    iresnet_table,
    residual_flow,
    residual_flow_table,
)


def n_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv_block(channels: int, hidden: int) -> int:
    convolutions = 9 * channels * hidden + hidden + hidden * hidden + hidden + 9 * hidden * channels + channels
    return convolutions + 2 * channels  # ActNorm


def test_the_released_scripts_network_has_its_parameters():
    channels, hidden = (16, 64, 256), (32, 64, 128)
    blocks = sum(7 * conv_block(c, h) for c, h in zip(channels, hidden, strict=True))
    head = 2 * 256 + 256 * 10 + 10
    assert n_parameters(iresnet()) == blocks + head - 2 * 13  # the padding of the first block is not normalised


def test_the_papers_network_has_54_blocks_of_three_convolutions():
    net = iresnet164()
    assert sum(isinstance(m, Residual) for m in net.modules()) == 54
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == 162


def test_the_papers_density_has_its_parameters():
    channels = (12, 24, 48)  # after each squeeze; half leave after a level
    blocks = sum(16 * conv_block(c, 512) for c in channels)
    assert n_parameters(iresnet_density()) == blocks


def test_a_residual_flow_has_its_parameters():
    channels = (3, 12, 48)
    blocks = sum(2 * conv_block(c, 8) for c in channels)
    dense = 48 * 8 * 8 // 4  # 16x16 images, 4x4 in the end
    fully = 2 * (dense * 8 + 8 + 8 * dense + dense + 2 * dense)
    betas = 6 * 3 - 1 + 2 * 2  # one LipSwish before each layer but the network's first
    flow = residual_flow((3, 16, 16), (2, 2, 2), 8, 2, dense_hidden=8)
    assert n_parameters(flow) == blocks + fully + betas + 2 * 48 + 2 * dense


def test_a_trained_classifier_gives_its_input_back():
    net = iresnet((2, 8, 8), 3, (2, 1), (8, 8), n_pad=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    x, y = torch.rand(16, 2, 8, 8), torch.arange(16) % 3
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    back = net.reconstruct(net.representation(x))
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


def test_without_a_constraint_nothing_is_promised():
    net = iresnet_digits(coefficient=None)
    assert all(b.lipschitz_bound() is None for b in net.modules() if isinstance(b, Residual))
    assert net(torch.rand(4, 1, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize("flow", [
    lambda: iresnet_table(3, 2, (8,)),
    lambda: residual_flow_table(3, 2, (8,)),
    lambda: iresnet_density((1, 8, 8), 2, 1, 8, n_levels=None),
    lambda: residual_flow((1, 8, 8), (1, 1), 8, 1, dense_hidden=8, n_levels=None),
])  # fmt: skip
def test_flows_there_and_back(flow):
    torch.manual_seed(0)
    flow = flow()
    x = torch.randn(6, *flow.event_shape)
    flow.train()(x)  # sets the ActNorms
    flow = flow.eval().double()
    x = x.double()
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, atol=1e-8, rtol=1e-8)
    assert flow.sample(3).shape == (3, *flow.event_shape)


def test_a_flow_is_saved_and_read_back(tmp_path):
    torch.manual_seed(0)
    flow = iresnet_table(2, 2, (8,))
    flow.train()(torch.randn(20, 2))
    flow.eval().save(tmp_path / "flow")
    x = torch.randn(5, 2)
    assert torch.equal(type(flow).load(tmp_path / "flow").log_prob(x), flow.log_prob(x))


def test_a_hybrid_classifies_and_scores_from_one_evaluation():
    torch.manual_seed(0)
    hybrid = hybrid_iresnet((1, 8, 8), 10, 2, 1, 8, n_levels=17)
    x = torch.randint(0, 17, (6, 1, 8, 8)).float()
    logits, log_prob = hybrid.logits_and_log_prob(x)
    assert logits.shape == (6, 10)
    assert log_prob.shape == (6,)
    hybrid.eval()
    assert torch.equal(hybrid(x), hybrid(x.to(torch.uint8)))  # no noise, and pixels as they are in the file
    (logits.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None for p in hybrid.parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="coefficient"):
        iresnet_table(coefficient=1.0)
    with pytest.raises(ConfigError, match="stages"):
        iresnet(n_blocks=(1, 2))
    with pytest.raises(ConfigError, match="multiples of 4"):
        iresnet((1, 30, 30))
    with pytest.raises(ConfigError, match="estimator"):
        build("iresnet_table", estimator="hutchinson")
    with pytest.raises(ConfigError, match="unconditional"):
        Hybrid(build("realnvp_2d", n_classes=2), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="n_dense"):
        residual_flow(n_dense=-1)
    with pytest.raises(ConfigError, match="n_blocks"):
        iresnet_density(n_blocks=0)


WRONG = """
from torch import nn
from invertible import models
from invertible.errors import ConfigError
from invertible.layers import constrain

CASES = [
    lambda: models.iresnet(784),
    lambda: models.iresnet((1.0, 8.0, 8.0)),
    lambda: models.iresnet(n_blocks=3),
    lambda: models.iresnet(n_blocks=(1, 1), hidden=(8,)),
    lambda: models.iresnet(n_blocks=(), hidden=()),
    lambda: models.iresnet(n_pad=-1),
    lambda: models.residual_flow(3),
    lambda: models.residual_flow(n_blocks=2),
    lambda: models.residual_flow_table("a"),
    lambda: models.residual_flow_table(2, hidden=()),
    lambda: constrain(nn.Linear(3, 3), 0.9, norms=3),
]
for i, case in enumerate(CASES):
    try:
        case()
        print(i, "was taken")
    except ConfigError as error:
        print(i, "expected" in str(error) and "got" in str(error))
"""


def test_arguments_of_the_wrong_kind_are_refused_in_words():
    """In a process of its own, as here all types are checked."""
    told = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, timeout=300, check=True)
    assert told.stdout.split("\n")[:-1] == [f"{i} True" for i in range(11)]
