import numpy as np
import pytest
import torch
from PIL import Image

from invertible.data import Batches, ImageSet, LazyImageSet, Normalize, RandomFlip, load, train_validation
from invertible.errors import ConfigError, DataError


def paint(path, value, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def parted(tmp_path):
    for part, n in (("train", 3), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            for k in range(n):
                paint(tmp_path / part / name / f"{k}.png", 100 * label + 10 * k + (part == "val"))
    return tmp_path


@pytest.fixture
def mixed(tmp_path):
    for k in range(8):
        paint(tmp_path / "a" / f"{k}.png", 10 * k, size=(8 + k, 12))
        paint(tmp_path / "b" / "deeper" / f"{k}.JPG", (0, 10 * k, 0), size=(20, 16 + k), mode="RGB")
    return tmp_path


def test_parts_classes_order_and_pixels(parted):
    train, test = load("folder", "train", parted), load("folder", "test", parted)
    assert isinstance(train, ImageSet)
    assert (train.classes, train.shape, train.name) == (("cat", "dog"), (1, 8, 8), "folder")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 100, 110, 120]
    assert test.images[:, 0, 0, 0].tolist() == [1, 101]


def test_a_labelled_val_wins_over_an_unlabelled_test(parted):
    paint(parted / "test" / "0001.png", 9)
    assert len(load("folder", "test", parted)) == 2


def test_labels_of_the_test_part_are_those_of_the_training_part(parted):
    for file in (parted / "val" / "cat").iterdir():
        file.unlink()
    (parted / "val" / "cat").rmdir()
    assert load("folder", "test", parted).labels.tolist() == [1]
    paint(parted / "val" / "bird" / "0.png", 9)
    with pytest.raises(DataError, match="unknown class: expected a class of train/, got bird"):
        load("folder", "test", parted)


def test_a_missing_part(tmp_path):
    paint(tmp_path / "train" / "a" / "0.png", 1)
    with pytest.raises(DataError, match=r"no test part: expected test/<class>/ or val/<class>/.*got train/"):
        load("folder", "test", tmp_path)


def test_an_undivided_folder_is_split_by_class(mixed):
    train, test = (load("folder", split, mixed, size=8) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [6, 6]
    assert test.labels.bincount().tolist() == [2, 2]
    again = load("folder", "test", mixed, size=8)
    assert test.fingerprint() == again.fingerprint()


def test_sizes_and_channels(mixed):
    assert load("folder", "train", mixed, size=8).shape == (3, 8, 8)
    assert load("folder", "train", mixed, size=(6, 10), channels=1).shape == (1, 6, 10)
    with pytest.raises(DataError, match=r"1.png: another size: expected 8x12 like a.0.png, got 9x12. Try: size=32"):
        load("folder", "train", mixed)


def test_exif_decides_the_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(2):
        paint(tmp_path / "train" / "a" / f"{k}.png", 5, size=(4, 6))
    Image.new("L", (6, 4), 7).save(tmp_path / "train" / "a" / "2.png", exif=exif)
    assert load("folder", "train", tmp_path).shape == (1, 6, 4)


def test_hidden_and_foreign_files_are_passed_over(parted):
    (parted / "train" / "cat" / "notes.txt").write_text("x")
    (parted / "train" / "cat" / "._0.png").write_bytes(b"x")
    (parted / "train" / ".cache").mkdir()
    assert len(load("folder", "train", parted)) == 6


def test_lazy_equals_in_memory(mixed):
    whole = load("folder", "train", mixed, size=8)
    lazy = load("folder", "train", mixed, size=8, lazy=True)
    assert isinstance(lazy, LazyImageSet)
    assert (len(lazy), lazy.shape, lazy.classes) == (len(whole), whole.shape, whole.classes)
    assert torch.equal(lazy.labels, whole.labels)
    assert torch.equal(lazy.batch([3, 0]), whole.images[[3, 0]])
    assert torch.equal(lazy.in_memory().images, whole.images)
    assert torch.equal(lazy.subset([5]).batch([0]), whole.images[5:6])
    assert lazy.batch([]).shape == (0, 3, 8, 8)
    assert Normalize.fit(lazy) == Normalize.fit(whole)
    first, _ = train_validation(lazy, 0.25)
    assert torch.equal(first.batch(range(len(first))), train_validation(whole, 0.25)[0].images)


def test_lazy_batches_equal_those_from_memory(mixed):
    options = {"batch_size": 5, "seed": 4, "augment": (RandomFlip(),)}
    whole, lazy = (Batches(load("folder", "train", mixed, size=8, lazy=lazy), **options) for lazy in (False, True))
    for start in (0, 2):
        pairs = zip(whole.epoch(1, start), lazy.epoch(1, start), strict=True)
        assert all(torch.equal(x1, x2) and torch.equal(y1, y2) for (x1, y1), (x2, y2) in pairs)


def test_a_lazy_epoch_can_be_left_early(mixed):
    epoch = Batches(load("folder", "train", mixed, size=8, lazy=True), 2).epoch(0)
    next(epoch)
    epoch.close()


def test_the_budget_decides_and_is_announced(parted, capsys):
    n_bytes = 6 * 64
    assert isinstance(load("folder", "train", parted, budget=n_bytes), ImageSet)
    assert capsys.readouterr().err == ""
    assert isinstance(load("folder", "train", parted, budget=n_bytes - 1), LazyImageSet)
    assert "pictures are decoded while they are used" in capsys.readouterr().err


def test_lazy_fingerprint_sees_files_and_labels(parted):
    lazy = load("folder", "train", parted, lazy=True)
    before = lazy.fingerprint()
    assert before == load("folder", "train", parted, lazy=True).fingerprint()
    assert lazy.subset([1, 0, 2, 3, 4, 5]).fingerprint() != before
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(
        parted / "train" / "cat" / "0.png"
    )
    assert lazy.fingerprint() != before


def test_a_broken_picture_is_named(parted):
    (parted / "train" / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train.dog.1.png: not a readable image"):
        load("folder", "train", parted)
    lazy = load("folder", "train", parted, size=8, channels=1, lazy=True)
    with pytest.raises(DataError, match=r"train.dog.1.png: not a readable image"):
        list(Batches(lazy, 2).epoch(0))


def test_folders_without_pictures(tmp_path):
    with pytest.raises(DataError, match="no classes: expected a subfolder per class, got an empty folder"):
        load("folder", data_dir=tmp_path)
    paint(tmp_path / "0.png", 1)
    with pytest.raises(DataError, match="no classes: expected a subfolder per class, got no subfolder"):
        load("folder", data_dir=tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat: no pictures: expected .png, .jpg"):
        load("folder", data_dir=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load("folder", data_dir=tmp_path / "nowhere")


def test_imagenet_defaults(parted):
    data = load("imagenet", "test", parted, budget=0)
    assert (data.shape, data.name) == ((3, 224, 224), "imagenet")
    assert data.batch([0]).shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 2}, "bad channels: expected 1, 3 or None, got 2"),
        ({"size": 0}, None),
        ({"size": -3}, "bad size: expected positive lengths in pixels, got -3"),
        ({"size": (0, 4)}, "bad size"),
        ({"chanels": 3}, "unknown option: expected .*channels.*, got chanels. Try: channels"),
    ],
)
def test_options_are_checked(parted, options, words):
    with pytest.raises(ConfigError, match=words):
        load("folder", data_dir=parted, **options)
