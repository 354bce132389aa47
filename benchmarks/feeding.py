"""What does feeding cost: crop, flip and normalisation of whole batches, against one image at a time?

Times a batch of `invertible.data.Batches` and of a plain `torch.utils.data.DataLoader` (no workers) with the
same augmentation written by hand, turn by turn in one run; and a training step of a small residual network.

    python benchmarks/feeding.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from invertible.data import Batches, ImageSet, Normalize, RandomCrop, RandomFlip, load

PADDING = 4
FASHION = Path("/usr/share/datasets/fashion-mnist")


class Case(NamedTuple):
    """Images and the batch size they are fed with."""

    label: str
    data: ImageSet
    batch_size: int


class PlainDataset(Dataset):
    """Crop, flip and normalise one image, as most training scripts do."""

    def __init__(self, data: ImageSet, normalize: Normalize) -> None:
        self.data, self.shape = data, data.shape
        self.mean = torch.tensor(normalize.mean).view(-1, 1, 1)
        self.std = torch.tensor(normalize.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        _, height, width = self.shape
        padded = functional.pad(self.data.images[index], (PADDING,) * 4)
        top, left = random.randint(0, 2 * PADDING), random.randint(0, 2 * PADDING)
        image = padded[:, top : top + height, left : left + width]
        image = image.flip(-1) if random.random() < 0.5 else image
        return (image.float() / 255 - self.mean) / self.std, int(self.data.labels[index])


class Block(nn.Module):
    """A residual block; the first of a stage halves the size."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)])
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.skip(x))


def small_resnet(n_channels: int) -> nn.Module:
    """ResNet-20 of the CIFAR kind: 0.27 million parameters."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(n_in, n_out) for n_in, n_out in pairwise(widths)]
    stem = [nn.Conv2d(n_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def random_images(shape: tuple[int, int, int], n: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return ImageSet(images, labels, tuple("0123456789"), "random")


def cases() -> list[Case]:
    grey = load("fashion-mnist") if FASHION.is_dir() else random_images((1, 28, 28), 60000)
    if not isinstance(grey, ImageSet):
        raise SystemExit("Fashion-MNIST fits in memory")
    label = "fashion-mnist 1x28x28" if FASHION.is_dir() else "random 1x28x28"
    colour = random_images((3, 32, 32), 50000)
    return [Case(name, data, size) for name, data in ((label, grey), ("random 3x32x32", colour)) for size in (64, 256)]


def forever(make: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Chain epochs, so that a clock never sees an end."""
    epoch = 0
    while True:
        yield from make(epoch)
        epoch += 1


def feeders(case: Case) -> dict[str, Iterator[Any]]:
    normalize = Normalize.fit(case.data)
    augment = (RandomCrop(PADDING), RandomFlip())
    batches = Batches(case.data, case.batch_size, augment=augment, normalize=normalize, drop_last=True)
    plain = DataLoader(PlainDataset(case.data, normalize), case.batch_size, shuffle=True, drop_last=True)
    return {"invertible": forever(batches.epoch), "plain": forever(lambda _: iter(plain))}


def training_step(case: Case) -> Callable[[Tensor, Tensor], None]:
    model = small_resnet(case.data.shape[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def clock(action: Callable[[], object]) -> float:
    """Return how long an action takes, in milliseconds."""
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def measure(case: Case, rounds: int, n_steps: int) -> list[dict[str, Any]]:
    """Time both feeders turn by turn, then the step; the first of each warms up."""
    sources = feeders(case)
    times: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds + 1):
        for name, source in sources.items():
            times[name].append(clock(lambda source=source: next(source)))
    step, (x, y) = training_step(case), next(sources["invertible"])
    step_ms = statistics.median([clock(lambda: step(x, y)) for _ in range(n_steps + 1)][1:])
    return [record(case, name, statistics.median(found[1:]), step_ms) for name, found in times.items()]


def record(case: Case, implementation: str, feed_ms: float, step_ms: float) -> dict[str, Any]:
    setting = {"data": case.label, "batch_size": case.batch_size, "augment": "crop 4, flip"}
    setting |= {"threads": torch.get_num_threads(), "device": "cpu", "torch": torch.__version__}
    metrics = {"feed_ms": feed_ms, "step_ms": step_ms, "feed_share_of_step": feed_ms / step_ms}
    metrics["load_average"] = os.getloadavg()[0]  # above the number of cores, the other programs are measured too
    return {"implementation": implementation, "setting": setting, "metrics": metrics}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under two minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds, n_steps = (30, 3) if arguments.quick else (200, 15)
    records: list[dict[str, Any]] = []
    for case in cases():
        ours, plain = measure(case, rounds, n_steps)
        records += [ours, plain]
        print(summary(case, ours["metrics"], plain["metrics"]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")


def summary(case: Case, ours: dict[str, float], plain: dict[str, float]) -> str:
    return (
        f"{case.label}, batch {case.batch_size}: invertible {ours['feed_ms']:.2f} ms a batch"
        f" ({100 * ours['feed_share_of_step']:.2f} % of a {ours['step_ms']:.0f} ms training step),"
        f" plain {plain['feed_ms']:.2f} ms ({100 * plain['feed_share_of_step']:.1f} %):"
        f" {plain['feed_ms'] / ours['feed_ms']:.1f} times less"
    )


if __name__ == "__main__":
    main()
