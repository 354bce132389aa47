"""A residual network without a constraint is trained and judged like any other; if it has no inverse, that is said."""

from __future__ import annotations

import torch

from invertible.train import assess, load_run, read_recipe, train

SMALL = ["--model.arguments.coefficient", "null", "--training.epochs", "1", "--data.n_train", "96",
         "--training.threads", "1"]  # fmt: skip


def test_a_network_that_folds_is_said_to_have_no_inverse(tmp_path):
    metrics = train(read_recipe("iresnet/digits", SMALL), tmp_path / "run", quiet=True)
    assert "test_accuracy" in metrics
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        for parameter in run.model.body.parameters():  # pyright: ignore[reportAttributeAccessIssue]
            parameter.mul_(3)
    figures = assess(run, run.test_data().subset(torch.arange(8)))
    assert figures["reconstruction_converges"] is False
    assert 0 <= figures["accuracy"] <= 1
    assert "reconstruction_max_abs_error" not in figures


def test_a_network_with_a_constraint_has_one(tmp_path):
    metrics = train(read_recipe("iresnet/digits", [*SMALL, "--model.arguments.coefficient", "0.9"]), tmp_path / "run",
                    quiet=True)  # fmt: skip
    assert metrics["reconstruction_max_abs_error"] < 1e-5
    assert "reconstruction_converges" not in metrics
