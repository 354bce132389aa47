"""Experiments: what is more than one training; each a function, a line in the registry, and recipes."""

from invertible.train.experiments.registry import EXPERIMENTS, Experiment, experiment

__all__ = ["EXPERIMENTS", "Experiment", "experiment"]
