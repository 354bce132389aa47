"""The sets that can be loaded by name: files, addresses, checksums, licences."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from invertible.data import class_names
from invertible.errors import ConfigError


@dataclass(frozen=True)
class DataFile:
    """One published file.

    Args:
        name: File name, as published.
        urls: Addresses that serve it, tried in turn.
        checksum: ``"md5:..."`` or ``"sha256:..."`` of the published file.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str


@dataclass(frozen=True)
class DataSource:
    """What the library knows about a set.

    Args:
        name: The name that ``load`` takes.
        reader: Which reader understands it: idx, npz, cifar, svhn, digits or folder.
        licence: The publisher's terms.
        homepage: Where the set is described.
        n_classes: Number of classes; 0 where the folder decides.
        shape: (channels, height, width) of one image; 0 where the folder decides.
        n_train: Published number of training images; 0 where the folder decides.
        n_test: Published number of test images; 0 where the folder decides.
        classes: Class names in the order of their labels.
        train: Files of the training part.
        test: Files of the test part.
        system_folders: Where a distribution's package puts the files.
    """

    name: str
    reader: str
    licence: str
    homepage: str
    n_classes: int
    shape: tuple[int, int, int]
    n_train: int = 0
    n_test: int = 0
    classes: tuple[str, ...] = ()
    train: tuple[DataFile, ...] = ()
    test: tuple[DataFile, ...] = ()
    system_folders: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Every file, each once."""
        return tuple(dict.fromkeys(self.train + self.test))

    def part(self, split: str) -> tuple[DataFile, ...]:
        """Return the files of ``"train"`` or ``"test"``."""
        return self.train if split == "train" else self.test


def _files(mirrors: tuple[str, ...], checksums: dict[str, str]) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(name, tuple(mirror + name for mirror in mirrors), f"md5:{md5}") for name, md5 in checksums.items()
    )


def _idx_files(mirrors: tuple[str, ...], *md5s: str) -> tuple[DataFile, ...]:
    """Return the four files of MNIST and its kin: training images, labels, test images, labels."""
    names = (f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
    return _files(mirrors, dict(zip(names, md5s, strict=True)))


_MNIST = _idx_files(
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
_FASHION = _idx_files(
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
_KMNIST = _idx_files(
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    "bdb82020997e1d708af4cf47b453dcf7",
    "e144d726b3acfaa3e44228e80efcd344",
    "5c965bf0a639b31b8f53240b1b52f4d7",
    "7320c461ea6c1c855c0b718fb2a4b134",
)
_K49 = _files(
    ("http://codh.rois.ac.jp/kmnist/dataset/k49/",),
    {
        "k49-train-imgs.npz": "7ac088b20481cf51dcd01ceaab89d821",
        "k49-train-labels.npz": "44a8e1b893f81e63ff38d73cad420f7a",
        "k49-test-imgs.npz": "d352e201d846ce6b94f42c990966f374",
        "k49-test-labels.npz": "4da6f7a62e67a832d5eb1bd85c5ee448",
    },
)
_TORONTO = ("https://www.cs.toronto.edu/~kriz/",)
_CIFAR10 = _files(_TORONTO, {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"})
_CIFAR100 = _files(_TORONTO, {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"})
_SVHN = _files(
    ("http://ufldl.stanford.edu/housenumbers/",),
    {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
)

_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_NO_LICENCE = "none stated by the publisher; cite Krizhevsky (2009)"
_IMAGENET_LICENCE = "non-commercial research; get it from the homepage and pass its folder"
_UCI = "https://archive.ics.uci.edu/dataset/80"
_LECUN = "http://yann.lecun.com/exdb/mnist/"
_ZALANDO = "https://github.com/zalandoresearch/fashion-mnist"
_CODH = "https://github.com/rois-codh/kmnist"
_KRIZ = "https://www.cs.toronto.edu/~kriz/cifar.html"
_HOUSES = "http://ufldl.stanford.edu/housenumbers/"
_IMAGENET = "https://image-net.org/download.php"
_DEBIAN = ("/usr/share/datasets/fashion-mnist",)

_ALL = (
    DataSource("digits", "digits", "CC BY 4.0 (UCI), inside scikit-learn", _UCI, 10, (1, 8, 8), 1347, 450,
               class_names.DIGITS),
    DataSource("mnist", "idx", "CC BY-SA 3.0", _LECUN, 10, _GREY, 60000, 10000,
               class_names.DIGITS, _MNIST[:2], _MNIST[2:]),
    DataSource("fashion-mnist", "idx", "MIT", _ZALANDO, 10, _GREY, 60000, 10000,
               class_names.FASHION, _FASHION[:2], _FASHION[2:], _DEBIAN),
    DataSource("kmnist", "idx", "CC BY-SA 4.0", _CODH, 10, _GREY, 60000, 10000,
               class_names.KUZUSHIJI, _KMNIST[:2], _KMNIST[2:]),
    DataSource("kuzushiji-49", "npz", "CC BY-SA 4.0", _CODH, 49, _GREY, 232365, 38547,
               class_names.KUZUSHIJI_49, _K49[:2], _K49[2:]),
    DataSource("cifar10", "cifar", _NO_LICENCE, _KRIZ, 10, _COLOUR, 50000, 10000,
               class_names.CIFAR10, _CIFAR10, _CIFAR10),
    DataSource("cifar100", "cifar", _NO_LICENCE, _KRIZ, 100, _COLOUR, 50000, 10000,
               class_names.CIFAR100, _CIFAR100, _CIFAR100),
    DataSource("svhn", "svhn", "non-commercial use only", _HOUSES, 10, _COLOUR, 73257, 26032,
               class_names.DIGITS, _SVHN[:1], _SVHN[1:]),
    DataSource("folder", "folder", "your own", "", 0, (0, 0, 0)),
    DataSource("imagenet", "folder", _IMAGENET_LICENCE, _IMAGENET, 1000, (3, 224, 224), 1281167, 50000),
)  # fmt: skip

SOURCES: dict[str, DataSource] = {source.name: source for source in _ALL}


def names() -> tuple[str, ...]:
    """List the sets that ``load`` knows.

    Returns:
        Their names; the first is the default.

    Example:
        >>> names()[0]
        'digits'
    """
    return tuple(SOURCES)


def describe(name: str) -> DataSource:
    """Look a set up by name.

    Args:
        name: One of ``names()``.

    Returns:
        Its files, licence, shape and number of classes.

    Raises:
        ConfigError: If there is no such set; the error suggests the nearest name.

    Example:
        >>> describe("fashion-mnist").licence
        'MIT'
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name).lower(), SOURCES, n=1, cutoff=0.4)
        hint = f"{near[0]!r}" if near else "one of these, or 'folder' with your own images"
        raise ConfigError("unknown data set", expected=", ".join(SOURCES), got=repr(name), hint=hint)
    return SOURCES[name]
