"""A recipe: everything that decides a training run, as plain dataclasses that read from and write to YAML."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from invertible.errors import ConfigError


@dataclass
class ModelConfig:
    """Which network.

    Args:
        name: A name from `invertible.models.names()`.
        arguments: What its constructor gets, e.g. `n_blocks: [18, 18, 18]`.
        exact: Whether its invertible part computes on a lattice and is undone to the last bit; a number: with that
            resolution k. See `invertible.Chain`.
        memory: What a training step keeps: everything, each block's input, or only the last block's output; null: as
            the network itself has it. See `invertible.Chain`.
    """

    name: str = "irevnet_digits"
    arguments: dict[str, Any] = field(default_factory=dict)
    exact: bool | int = False
    memory: Literal["store", "checkpoint", "reconstruct"] | None = None

    def all_arguments(self) -> dict[str, Any]:
        """What the constructor gets, `exact` and `memory` included where they are set.

        Returns:
            Arguments of `invertible.models.build`.

        Example:
            >>> ModelConfig("irevnet_digits", {"n_classes": 3}, exact=True).all_arguments()
            {'n_classes': 3, 'exact': True}
        """
        exact = {} if self.exact is False else {"exact": self.exact}
        memory = {} if self.memory is None else {"memory": self.memory}
        return self.arguments | exact | memory


@dataclass
class DataConfig:
    """Which data, and what happens to them.

    Args:
        name: A name from `invertible.data.names()`.
        data_dir: Where files that are already on disk lie; None: the usual places, then a download.
        size: Height and width to bring an image folder's pictures to; None: as they are.
        pad: Zeros to append on each side of every image (28x28 becomes 32x32 with 2).
        validation_fraction: Share of the training images held out, stratified, to choose the best epoch by; 0: none is
            held out, the last epoch's weights count, and the curves show the test images.
        crop: Random crops: zeros on each side before cropping back to the image's size; 0: none.
        flip: Whether to mirror half of the images.
        n_train: Keep only the first so many training images of a fixed shuffle; None: all.
    """

    name: str = "digits"
    data_dir: str | None = None
    size: int | None = None
    pad: int = 0
    validation_fraction: float = 0.0
    crop: int = 0
    flip: bool = False
    n_train: int | None = None


@dataclass
class OptimizerConfig:
    """How weights move.

    Args:
        name: "sgd", "adam", "adamw" or "adamax".
        lr: Peak learning rate.
        momentum: Of SGD; beta1 of the others.
        nesterov: Nesterov momentum, SGD only.
        weight_decay: L2 penalty in SGD, Adam and Adamax, decoupled in AdamW.
        decay_norms: Whether the weights and biases of norms and all biases decay too (the papers' code says yes).
        clip_norm: Largest gradient norm; longer ones are scaled down. None: no limit.
        beta2: Decay per step of the average of squared gradients; in Adamax, of their largest. Not used by SGD.
        adaptive_clip: Adaptive gradient clipping: the largest gradient of a unit relative to its weights, for all
            layers but the last linear one. None: no limit.
    """

    name: Literal["sgd", "adam", "adamw", "adamax"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    clip_norm: float | None = None
    beta2: float = 0.999
    adaptive_clip: float | None = None


@dataclass
class ScheduleConfig:
    """How the learning rate changes.

    Args:
        name: "constant", "cosine" (to zero) or "step".
        warmup_epochs: Linear rise from zero before that; fractions are fine.
        milestones: For "step": the epochs after which the rate drops.
        gamma: For "step": what it is multiplied by.
    """

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1


@dataclass
class TrainingConfig:
    """How long, in what precision, from which seed.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step over all processes together.
        micro_batches: Parts a process's share of a batch is computed in, one after the other (gradient accumulation).
        seed: Decides weights, order, augmentation and dropout.
        label_smoothing: Share of the target probability spread over all classes.
        likelihood_weight: Of a hybrid: its loss is the classifier's plus so many times the bits per dimension.
        ema: Decay per step of an exponential moving average of the weights, which is then what is evaluated and kept.
        precision: "float32", or mixed "bfloat16" / "float16".
        threads: CPU threads; "auto" times a step with one and with all, and takes the faster.
        device: "auto" takes an accelerator if there is one.
        compile: Whether to torch.compile the network.
        checkpoint_seconds: Save a resumable state at least so often; it is saved after each epoch anyway.
    """

    epochs: int = 10
    batch_size: int = 128
    micro_batches: int = 1
    seed: int = 0
    label_smoothing: float = 0.0
    likelihood_weight: float = 1.0
    ema: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int | Literal["auto"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    checkpoint_seconds: float = 60.0


@dataclass
class Recipe:
    """A training run.

    Args:
        title: One line that says what it is.
        paper: Where it comes from.
        model: Which network.
        data: Which data.
        optimizer: How weights move.
        schedule: How the learning rate changes.
        training: How long, in what precision, from which seed.

    Raises:
        ConfigError: If a number is out of range.
    """

    title: str = ""
    paper: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for key, is_fine, expected in self._rules():
            if not is_fine:
                section, name = key.split(".")
                got = getattr(getattr(self, section), name)
                raise ConfigError(f"{key} is out of range", expected=expected, got=got)

    def _rules(self) -> list[tuple[str, bool, str]]:
        data, optimizer, training = self.data, self.optimizer, self.training
        return [
            ("training.epochs", training.epochs >= 1, "at least 1"),
            ("training.batch_size", training.batch_size >= 1, "at least 1"),
            ("training.micro_batches", training.micro_batches >= 1, "at least 1"),
            ("training.seed", training.seed >= 0, "at least 0"),
            ("training.label_smoothing", 0 <= training.label_smoothing < 1, "0 to below 1"),
            ("training.likelihood_weight", 0 <= training.likelihood_weight < math.inf, "0 or more"),
            ("training.ema", training.ema is None or 0 < training.ema < 1, "between 0 and 1, or null"),
            ("training.threads", training.threads == "auto" or training.threads >= 1, "at least 1, or auto"),
            ("training.checkpoint_seconds", training.checkpoint_seconds >= 0, "at least 0"),
            ("optimizer.lr", optimizer.lr > 0, "above 0"),
            ("optimizer.momentum", 0 <= optimizer.momentum < 1, "0 to below 1"),
            ("optimizer.beta2", 0 <= optimizer.beta2 < 1, "0 to below 1"),
            ("optimizer.weight_decay", optimizer.weight_decay >= 0, "at least 0"),
            (
                "optimizer.clip_norm",
                optimizer.clip_norm is None or optimizer.clip_norm > 0,
                "above 0, or null",
            ),
            (
                "optimizer.adaptive_clip",
                optimizer.adaptive_clip is None or optimizer.adaptive_clip > 0,
                "above 0, or null",
            ),
            ("schedule.warmup_epochs", self.schedule.warmup_epochs >= 0, "at least 0"),
            ("schedule.gamma", self.schedule.gamma > 0, "above 0"),
            ("data.pad", data.pad >= 0, "at least 0"),
            ("data.crop", data.crop >= 0, "at least 0"),
            ("data.validation_fraction", 0 <= data.validation_fraction < 1, "0 to below 1"),
            ("data.n_train", data.n_train is None or data.n_train >= 1, "at least 1, or null"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries, as in its YAML file.

        Returns:
            One dictionary per section.
        """
        return json.loads(json.dumps(asdict(self)))  # tuples become lists, as YAML has them
