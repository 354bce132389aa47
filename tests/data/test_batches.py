import random
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible.data import Batches, Cutout, ImageSet, Normalize, RandomCrop, RandomFlip, load
from invertible.errors import ConfigError

AUGMENT = (RandomCrop(1), RandomFlip(), Cutout(2))


def numbered(n):
    images = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    images += torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    return ImageSet(images, torch.arange(n) % 2, ("even", "odd"), "numbered")


def which(x):
    """Recover the image's number from a batch of `numbered` without augmentation."""
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


def epoch_of(batches, epoch=0, start=0):
    return list(batches.epoch(epoch, start))


def assert_same(first, second):
    assert len(first) == len(second)
    for (x1, y1), (x2, y2) in zip(first, second, strict=True):
        assert torch.equal(x1, x2)
        assert torch.equal(y1, y2)


def test_an_epoch_is_a_permutation():
    batches = Batches(numbered(23), 5)
    seen = [which(x) for x, _ in batches.epoch(0)]
    assert [len(part) for part in seen] == [5, 5, 5, 5, 3]
    assert len(batches) == 5
    assert sorted(chain(*seen)) == list(range(23)) != list(chain(*seen))


def test_images_labels_and_dtypes_belong_together():
    for x, y in Batches(numbered(23), 5).epoch(3):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert [number % 2 for number in which(x)] == y.tolist()


def test_without_shuffle_the_order_is_the_sets():
    seen = [which(x) for x, _ in Batches(numbered(7), 3, shuffle=False).epoch(9)]
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


def test_drop_last():
    batches = Batches(numbered(23), 5, drop_last=True)
    assert len(batches) == len(epoch_of(batches)) == 4


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [which(x) for x, _ in Batches(numbered(50), 10, seed=seed).epoch(epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@given(start=st.integers(0, 14), epoch=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_resuming_reproduces_the_rest_bit_for_bit(start, epoch):
    batches = Batches(load("digits"), 100, augment=AUGMENT, seed=7)
    assert_same(epoch_of(batches, epoch, start), epoch_of(batches, epoch)[start:])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [24, 25, 27, 30, 35])
def test_ranks_put_together_are_the_single_process(world_size, n):
    def run(rank, world):
        return epoch_of(Batches(numbered(n), 12, seed=5, augment=AUGMENT, rank=rank, world_size=world))

    single, ranks = run(0, 1), [run(rank, world_size) for rank in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert len({len(y) for _, y in parts}) == 1
        x, y = (torch.cat([part[axis] for part in parts]) for axis in (0, 1))
        whole_x, whole_y = single[step]
        assert len(whole_y) - len(y) < world_size
        assert torch.equal(x, whole_x[: len(y)])
        assert torch.equal(y, whole_y[: len(y)])
    dropped = sum(len(y) for _, y in single) - sum(len(y) for steps in ranks for _, y in steps)
    assert dropped == n % 12 % world_size


@given(n=st.integers(4, 60), batch_size=st.integers(4, 16), world_size=st.integers(1, 4))
@settings(deadline=None)
def test_evaluation_sees_every_image_once_on_any_number_of_ranks(n, batch_size, world_size):
    ranks = [
        epoch_of(Batches(numbered(n), batch_size, shuffle=False, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(steps) for steps in ranks}) == 1
    assert all(len(y) for steps in ranks for _, y in steps)
    seen = [which(x) for parts in zip(*ranks, strict=True) for x, _ in parts]
    assert list(chain(*seen)) == list(range(n))


def test_default_normalisation_is_pixel_range():
    x, _ = next(Batches(load("digits"), 1347).epoch(0))
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)


def test_normalisation_is_applied_after_augmentation():
    normalize = Normalize.fit(numbered(50))
    x, _ = next(Batches(numbered(50), 50, augment=(Cutout(3),), normalize=normalize).epoch(0))
    assert x.unique().numel() > 1
    black = normalize(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item()
    assert (x == black).float().mean() > 0.25


def test_global_generators_are_untouched(unchecked):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data = load("digits")
    epoch_of(Batches(data, 100, augment=AUGMENT, normalize=Normalize.fit(data)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_batches_do_not_alias_the_data():
    data = numbered(6)
    before = data.fingerprint()
    for x, y in Batches(data, 3, shuffle=False).epoch(0):
        x.zero_(), y.zero_()
    assert data.fingerprint() == before


class Halve:
    """A user's own augmentation without numbers."""

    def draw(self, n, shape, generator):
        return torch.zeros(n, 0, dtype=torch.int64)

    def apply(self, images, draws):
        return images // 2


def test_an_augmentation_of_ones_own():
    x, _ = next(Batches(numbered(9), 9, shuffle=False, augment=(Halve(),)).epoch(0))
    assert which(x) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "bad batch_size"),
        ({"batch_size": 10, "world_size": 4}, "expected a multiple of the 4 processes, got 10. Try: 8"),
        (
            {"batch_size": 2, "world_size": 4, "shuffle": False},
            "expected one image per process, got 2. Try: 4",
        ),
        (
            {"batch_size": 4, "rank": 2, "world_size": 2},
            "bad rank: expected 0 <= rank < world_size, got rank 2",
        ),
        ({"batch_size": 4, "seed": -1}, "bad seed: expected at least 0, got -1"),
        ({"batch_size": 40, "drop_last": True}, "no batch: expected at least 40 images, got 9"),
        (
            {"batch_size": 4, "normalize": Normalize((0.5,), (0.5,), 16)},
            "1 channels up to 255, got 1 channels up to 16",
        ),
        ({"batch_size": 4, "normalize": Normalize((0.5,) * 3, (0.5,) * 3)}, "got 3 channels"),
    ],
)
def test_construction_states_what_is_wrong(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Batches(numbered(9), **arguments)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 4)])
def test_epoch_refuses_what_does_not_exist(epoch, start):
    with pytest.raises(ConfigError, match="no such step: expected epoch >= 0 and start 0 to 3"):
        Batches(numbered(9), 3).epoch(epoch, start)


def test_start_at_the_end_is_empty():
    assert epoch_of(Batches(numbered(9), 3), 0, 3) == []
