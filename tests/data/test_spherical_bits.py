"""The twelve-bit task has the paper's numbers, and no rotation changes its label."""

from __future__ import annotations

import math

import pytest
import torch

from invertible.data.spherical_bits import icosahedron, invariant, powers, spherical_bits
from invertible.errors import ConfigError


def test_the_papers_numbers() -> None:
    task = spherical_bits()
    assert task.x.unique(dim=0).shape == (4096, 12)
    assert task.x.abs().unique().tolist() == [1.0]
    assert powers((task.x + 1) / 2).round(decimals=6).unique(dim=0).shape[0] == 64
    assert float(task.p.mean()) == pytest.approx(0.5, abs=0.005)
    mean = float(task.p.mean())
    noise = -(torch.xlogy(task.p, task.p) + torch.xlogy(1 - task.p, 1 - task.p)).mean() / math.log(2)
    whole = -(mean * math.log2(mean) + (1 - mean) * math.log2(1 - mean))
    assert whole - float(noise) == pytest.approx(0.99, abs=1e-6)
    assert [len(part) for part in task.split(0.8)] == [3277, 819]
    assert sorted(torch.cat(task.split(0.3)).tolist()) == list(range(4096))


def test_rotations_change_nothing() -> None:
    points = icosahedron()
    angles = points @ points.T
    assert sorted(set(angles.round(decimals=6).flatten().tolist())) == pytest.approx(
        [-1, -1 / math.sqrt(5), 1 / math.sqrt(5), 1], abs=1e-6
    )
    # A fifth of a turn about the axis through point 0.
    axis, turn = points[0], 2 * math.pi / 5
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)).T
    rotation = torch.eye(3, dtype=torch.float64) + math.sin(turn) * cross + (1 - math.cos(turn)) * cross @ cross
    order = (points @ rotation.T @ points.T).argmax(1)
    assert sorted(order.tolist()) == list(range(12))
    assert order.tolist() != list(range(12))
    bits = (torch.rand(200, 12) > 0.5).long()
    assert torch.equal(invariant(bits), invariant(bits[:, order]))


def test_draws_and_refusals() -> None:
    state = torch.get_rng_state()
    assert torch.equal(spherical_bits(3).y, spherical_bits(3).y)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(spherical_bits(3, 0.5).y, spherical_bits(4, 0.5).y)
    assert spherical_bits(information=0.5).information == pytest.approx(0.5)
    assert len(spherical_bits().point_set()) == 4096
    for bad in ({"information": 1.0}, {"information": 0.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match="bad spherical bits"):
            spherical_bits(**bad)
    with pytest.raises(ConfigError, match="bad share"):
        spherical_bits().split(1.0)
