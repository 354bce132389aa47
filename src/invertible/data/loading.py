"""``load``: any set by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from invertible.data import locate
from invertible.data.cifar import read_cifar
from invertible.data.dataset import ImageSet
from invertible.data.digits import read_digits
from invertible.data.folder import Size, read_folder
from invertible.data.idx import read_idx
from invertible.data.lazy import LazyImageSet
from invertible.data.npz import read_npz
from invertible.data.registry import DataSource, describe
from invertible.data.svhn import read_svhn
from invertible.errors import ConfigError, DataError

SPLITS = ("train", "test")
IMAGENET_SIZE = 224

Arrays = tuple[Tensor, Tensor]


def load(
    name: str = "digits",
    split: str = "train",
    data_dir: str | Path | None = None,
    size: Size | None = None,
    **options: Any,
) -> ImageSet | LazyImageSet:
    """Load one part of a set; what is not on disk is downloaded once and its checksum verified.

    Args:
        name: One of ``invertible.data.names()``.
        split: ``"train"`` or ``"test"``, the publisher's parts.
        data_dir: Where the files are (``data_dir`` or ``data_dir/<name>``); for ``folder`` and ``imagenet``
            the folder itself. Downloads go to ``data_dir/<name>``, without ``data_dir`` to the cache.
        size: For ``folder`` and ``imagenet``: side or (height, width), in pixels.
        **options: For ``folder`` and ``imagenet``: ``channels``, ``budget`` (bytes), ``lazy``: see
            ``read_folder``.

    Returns:
        The images and labels; a ``LazyImageSet`` only for folders that do not fit the memory budget.

    Raises:
        ConfigError: If the name, the split or an option is unknown.

    Example:
        >>> digits = load("digits")
        >>> len(digits), digits.shape, len(load("digits", "test"))
        (1347, (1, 8, 8), 450)
    """
    source = describe(name)
    if split not in SPLITS:
        raise ConfigError("unknown split", expected="'train' or 'test'", got=repr(split), hint="train_validation")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if source.reader == "folder":
        return _load_folder(source, split, folder, size, options)
    _refuse_options(source, size, options)
    if source.reader == "digits":
        return read_digits(split)
    return _assemble(source, *READERS[source.reader](source, split, folder))


def _assemble(source: DataSource, images: Tensor, labels: Tensor) -> ImageSet:
    if len(images) != len(labels):
        expected, got = f"{len(images)} labels", len(labels)
        hint = "are the files from the same part and both whole?"
        raise DataError(f"{source.name}: image and label counts differ", expected=expected, got=got, hint=hint)
    if tuple(images.shape[1:]) != source.shape:
        got, hint = tuple(images.shape[1:]), "are these another set's files?"
        raise DataError(f"{source.name}: wrong image shape", expected=source.shape, got=got, hint=hint)
    return ImageSet(images, labels, source.classes, source.name)


def _read_idx_pair(source: DataSource, split: str, data_dir: Path | None) -> Arrays:
    images, labels = (locate.obtain(file, source, data_dir) for file in source.part(split))
    return read_idx(images, 3).unsqueeze(1), read_idx(labels, 1).long()


def _read_npz_pair(source: DataSource, split: str, data_dir: Path | None) -> Arrays:
    images, labels = (locate.obtain(file, source, data_dir) for file in source.part(split))
    return read_npz(images, 3).unsqueeze(1), read_npz(labels, 1).long()


def _read_svhn_file(source: DataSource, split: str, data_dir: Path | None) -> Arrays:
    (file,) = source.part(split)
    return read_svhn(locate.obtain(file, source, data_dir))


def _read_cifar_files(source: DataSource, split: str, data_dir: Path | None) -> Arrays:
    # The unpacked .bin files where they lie on disk, else the archive.
    members, n_images = _cifar_members(source, split)
    inner = "cifar-10-batches-bin" if source.n_classes == 10 else "cifar-100-binary"
    folders = [part for folder in locate.search_folders(source, data_dir) for part in (folder, folder / inner)]
    first = locate.find(members[:1], folders)
    path = first.parent if first else locate.obtain(source.part(split)[0], source, data_dir)
    return read_cifar(path, members, 1 if source.n_classes == 10 else 2, n_images // len(members))


def _cifar_members(source: DataSource, split: str) -> tuple[tuple[str, ...], int]:
    """Return the .bin files of a part and the number of images in all of them."""
    if source.n_classes == 10:
        train = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
        return (train, source.n_train) if split == "train" else (("test_batch.bin",), source.n_test)
    return ((f"{split}.bin",), source.n_train if split == "train" else source.n_test)


READERS: dict[str, Callable[[DataSource, str, Path | None], Arrays]] = {
    "idx": _read_idx_pair,
    "npz": _read_npz_pair,
    "svhn": _read_svhn_file,
    "cifar": _read_cifar_files,
}


def _load_folder(
    source: DataSource, split: str, data_dir: Path | None, size: Size | None, options: dict[str, Any]
) -> ImageSet | LazyImageSet:
    known = tuple(inspect.signature(read_folder).parameters)[4:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1) or ["leave it out"]
        expected, got = ", ".join(known), ", ".join(unknown)
        raise ConfigError(f"{source.name}: unknown option", expected=expected, got=got, hint=near[0])
    if data_dir is None:
        hint = f"load({source.name!r}, data_dir='path/to/images') or --data-dir"
        raise ConfigError(f"{source.name}: no folder", expected="data_dir", got="None", hint=hint)
    if source.name == "imagenet":
        size, options = size or IMAGENET_SIZE, {"channels": 3, **options}
    return read_folder(data_dir, split, name=source.name, size=size, **options)


def _refuse_options(source: DataSource, size: Size | None, options: dict[str, Any]) -> None:
    given = ([f"size={size}"] if size else []) + [f"{key}={value}" for key, value in options.items()]
    if given:
        expected = f"no options: its images are {source.shape}"
        hint = "these options are for 'folder' and 'imagenet'"
        raise ConfigError(f"{source.name}: bad options", expected=expected, got=", ".join(given), hint=hint)
