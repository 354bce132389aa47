import hashlib
from pathlib import Path

import pytest
import torch

from invertible.data import ImageSet, ImageSource, LazyImageSet, load, train_validation
from invertible.errors import ConfigError, DataError, DtypeError, ShapeError

CLASSES = ("a", "b", "c")


def make(n=6, channels=1, **changes):
    images = torch.arange(n * channels * 4, dtype=torch.uint8).view(n, channels, 2, 2)
    parts = {"images": images, "labels": torch.arange(n) % 3, "classes": CLASSES, "name": "toy"} | changes
    return ImageSet(**parts)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"images": torch.zeros(6, 1, 2, 2)},
            DtypeError,
            "expected a tensor of torch.uint8, got torch.float32",
        ),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, DtypeError, "torch.int64, got torch.int32"),
        ({"labels": [0] * 6}, DtypeError, "got list"),
        ({"images": torch.zeros(6, 2, 2, dtype=torch.uint8)}, ShapeError, r"got \(6, 2, 2\)"),
        ({"images": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)}, ShapeError, "no images"),
        ({"labels": torch.arange(5) % 3}, ShapeError, r"counts differ: expected \(6,\), got \(5,\)"),
        ({"labels": torch.arange(6)}, DataError, "label out of range: expected 0 to 2, got 0 to 5"),
        ({"labels": torch.arange(6) % 3 - 1}, DataError, "got -1 to 1"),
        ({"max_value": 16}, DataError, "pixel out of range: expected 0 to 16, got 23"),
    ],
)
def test_construction_states_what_is_wrong(unchecked, changes, error, words):
    with pytest.raises(error, match=words):
        make(**changes)


def test_shape_length_and_batch():
    data = make()
    assert (len(data), data.shape) == (6, (1, 2, 2))
    assert torch.equal(data.batch([4, 0, 4]), data.images[[4, 0, 4]])
    assert torch.equal(data.batch(torch.tensor([2])), data.images[2:3])
    assert data.batch([]).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("indices", [[-1], [6], torch.tensor([0, 99])])
def test_indices_out_of_range(indices):
    for method in (make().batch, make().subset):
        with pytest.raises(ConfigError, match="index out of range: expected 0 to 5"):
            method(indices)


def test_masks_are_not_indices():
    with pytest.raises(DtypeError, match=r"expected whole numbers, got torch\.bool"):
        make().subset(torch.ones(6, dtype=torch.bool))


def test_subset_keeps_order_repetition_and_the_rest():
    data = make().subset([5, 1, 1])
    assert data.labels.tolist() == [2, 1, 1]
    assert torch.equal(data.images, make().images[[5, 1, 1]])
    assert (data.classes, data.name, data.max_value) == (CLASSES, "toy", 255)


def test_fingerprint_is_a_digest_of_the_content():
    data = make()
    content = repr((6, 1, 2, 2)).encode() + data.images.numpy().tobytes() + data.labels.numpy().tobytes()
    assert data.fingerprint() == hashlib.sha256(content).hexdigest() == make().fingerprint()
    changed = data.images.clone()
    changed[3, 0, 1, 1] += 1
    others = [
        make(images=changed),
        make(labels=(torch.arange(6) + 1) % 3),
        make(images=data.images.view(6, 1, 1, 4)),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_to_the_same_device_is_free():
    data = make()
    assert data.to("cpu") is data


def test_both_kinds_honour_the_interface():
    assert isinstance(make(), ImageSource)
    lazy = LazyImageSet(Path("/"), ("a.png",), torch.tensor([0]), ("a",), "lazy", (1, 2, 2))
    assert isinstance(lazy, ImageSource)


def test_digits_are_scikit_learns_stratified_split():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(pixels, labels, test_size=0.25, random_state=0, stratify=labels)
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        data = load("digits", split)
        assert torch.equal(data.images.view(len(y), 64), torch.from_numpy(x).to(torch.uint8))
        assert data.labels.tolist() == y.tolist()
        assert (data.max_value, data.shape, data.classes) == (16, (1, 8, 8), tuple("0123456789"))


def test_train_validation_is_stratified_disjoint_and_ordered():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    train, held = train_validation(ImageSet(images, labels, CLASSES, "toy"), fraction=0.2, seed=3)
    assert held.labels.bincount().tolist() == [12, 6, 2]
    positions = [part.images.flatten().tolist() for part in (train, held)]
    assert sorted(positions[0] + positions[1]) == list(range(100))
    assert all(part == sorted(part) for part in positions)


def test_train_validation_depends_on_the_seed_alone():
    data = load("digits")
    first, again, other = (train_validation(data, 0.1, seed)[1].fingerprint() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_train_validation_refuses_a_bad_fraction(fraction):
    with pytest.raises(ConfigError, match="bad fraction: expected between 0 and 1"):
        train_validation(make(), fraction)


def test_train_validation_refuses_classes_of_one():
    with pytest.raises(ConfigError, match="cannot split by class"):
        train_validation(make(n=3), 0.5)
