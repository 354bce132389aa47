"""A hybrid is trained for both, evaluated for both, and used like a flow."""

from __future__ import annotations

import math

import pytest
import torch

from invertible.errors import ConfigError
from invertible.models import hybrid_iresnet
from invertible.train import load_run, read_recipe, train
from invertible.train.hybrid import HybridLoss

SMALL = ["--model.name", "hybrid_iresnet", "--model.arguments",
         "{in_shape: [1, 8, 8], n_scales: 2, n_blocks: 1, hidden: 8, n_levels: 17}",
         "--training.epochs", "1", "--data.n_train", "128", "--training.threads", "1"]  # fmt: skip


def test_the_loss_is_the_sum_of_both():
    torch.manual_seed(0)
    hybrid = hybrid_iresnet((1, 8, 8), 10, 1, 1, 8, n_levels=17)
    x, y = torch.randint(0, 17, (8, 1, 8, 8)).float(), torch.arange(8)
    hybrid.logits_and_log_prob(x)
    found = {}
    for weight in (0.0, 2.0):
        torch.manual_seed(1)
        loss, metrics = HybridLoss(hybrid, weight)(x, y)
        found[weight] = loss.item()
    assert found[0.0] == pytest.approx(metrics["cross_entropy"].item(), rel=1e-5)
    assert found[2.0] == pytest.approx(found[0.0] + 2 * metrics["bits_per_dim"].item(), rel=1e-5)
    assert math.isfinite(found[2.0])


def test_a_run_tells_accuracy_and_likelihood_and_can_be_sampled(tmp_path):
    metrics = train(read_recipe("hybrid/digits", SMALL), tmp_path / "run", quiet=True)
    assert {"test_accuracy", "test_loss", "test_nats", "test_bits_per_dim", "pixels_equal"} <= set(metrics)
    assert metrics["pixels_equal"] is True
    assert {p.name for p in (tmp_path / "run").glob("*.png")} >= {"curves.png", "samples.png"}
    run = load_run(tmp_path / "run")
    assert run.flow.sample(2).shape == (2, 1, 8, 8)


def test_the_number_of_classes_must_fit(tmp_path):
    recipe = read_recipe("hybrid/digits", [*SMALL, "--model.arguments.n_classes", "7"])
    with pytest.raises(ConfigError, match="10 logits"):
        train(recipe, tmp_path / "run", quiet=True)
