"""Optimiser and learning rate from a recipe; the rate is a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from invertible.train.adaptive_clipping import AdaptiveClipping, last_linear
from invertible.train.recipe import OptimizerConfig, ScheduleConfig

ADAPTIVE = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser.

    Args:
        model: Whose parameters it moves; frozen ones are left out.
        config: Which one, and its numbers.

    Returns:
        The optimiser.

    Example:
        >>> config = OptimizerConfig("adamax", lr=0.003, weight_decay=0.0)
        >>> optimizer = make_optimizer(nn.Linear(2, 1), config)
        >>> type(optimizer).__name__, optimizer.defaults["betas"]
        ('Adamax', (0.9, 0.999))
    """
    optimizer = _plain_optimizer(_parameter_groups(model, config), config)
    if config.adaptive_clip is None:
        return optimizer
    last = [p for p in last_linear(model).parameters() if p.requires_grad]
    return AdaptiveClipping(optimizer, config.adaptive_clip, exclude=last)


def _plain_optimizer(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name in ADAPTIVE:
        return ADAPTIVE[config.name](groups, lr=config.lr, betas=(config.momentum, config.beta2))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def _parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    exempt = [p for p in parameters if p.ndim < 2 and not config.decay_norms]
    exempt_ids = {id(p) for p in exempt}
    decayed = [p for p in parameters if id(p) not in exempt_ids]
    groups = [(decayed, config.weight_decay), (exempt, 0.0)]
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def learning_rate(step: int, steps_per_epoch: int, n_epochs: int, peak: float, config: ScheduleConfig) -> float:
    """The learning rate of one step.

    Args:
        step: Number of the step, from 0.
        steps_per_epoch: How many make an epoch.
        n_epochs: Length of the whole run.
        peak: The largest rate.
        config: Shape of the schedule.

    Returns:
        The rate.

    Example:
        >>> config = ScheduleConfig("step", milestones=[60], gamma=0.2)
        >>> learning_rate(59, 1, 200, 0.1, config), round(learning_rate(60, 1, 200, 0.1, config), 6)
        (0.1, 0.02)
    """
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return peak * (step + 1) / (config.warmup_epochs * steps_per_epoch + 1)
    if config.name == "step":
        return peak * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.name == "cosine":
        progress = (epoch - config.warmup_epochs) / max(n_epochs - config.warmup_epochs, 1e-9)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups this rate.

    Args:
        optimizer: The optimiser.
        rate: The learning rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
