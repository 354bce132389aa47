"""Your own pictures: ``<class>/*``, or ``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from invertible import _console
from invertible.data.dataset import ImageSet
from invertible.data.lazy import LazyImageSet
from invertible.data.pictures import MODES, SUFFIXES, Header, read_header
from invertible.data.splits import TEST_FRACTION, TEST_SEED, stratified_indices
from invertible.errors import ConfigError, DataError

GIB = 2**30
PART_NAMES = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
LAYOUT = "<class>/*.png, or train/<class>/*.png and test/<class>/*.png (or val/)"

Size = int | tuple[int, int]


def read_folder(
    root: Path,
    split: str,
    *,
    name: str = "folder",
    size: Size | None = None,
    channels: int | None = None,
    budget: int = 2 * GIB,
    lazy: bool | None = None,
) -> ImageSet | LazyImageSet:
    """Read a folder of pictures, one subfolder per class.

    A folder without ``train/`` is split by class: a quarter is the test part, the same one every time.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``.
        name: What to call the set.
        size: Side, or (height, width), in pixels: the shorter side is resized, the centre kept. By default
            the pictures keep their size, which must be the same for all.
        channels: 1 or 3; by default 1 if every picture is grey, else 3.
        budget: Largest set, in bytes, that is decoded into memory.
        lazy: Decode into memory never (True), always (False), or if it fits the budget (None).

    Returns:
        An ``ImageSet``, or a ``LazyImageSet`` of the same content.

    Raises:
        DataError: If the folder is missing or empty, has no class subfolders, or a picture cannot be read.
        ConfigError: If an option is out of range.
    """
    if channels not in (None, *MODES):
        raise ConfigError("bad channels", expected="1, 3 or None", got=channels, hint="None")
    if not root.is_dir():
        hint = f"a folder with {LAYOUT}"
        raise DataError(f"{root}: no such folder", expected="a folder", got="nothing", hint=hint)
    part, classes = _part(root, split)
    files, labels = _files(part or root, classes)
    shape = _shape(part or root, files, _pair(size), channels)
    data = LazyImageSet(part or root, files, labels, classes, name, shape)
    if part is None:
        parts = stratified_indices(labels, TEST_FRACTION, TEST_SEED)
        data = data.subset(parts[split == "test"].sort().values)
    return _within(data, budget, lazy)


def _within(data: LazyImageSet, budget: int, lazy: bool | None) -> ImageSet | LazyImageSet:
    channels, height, width = data.shape
    n_bytes = len(data) * channels * height * width
    if lazy is None and n_bytes > budget:
        sizes = f"{n_bytes / GIB:.1f} GiB of pixels, more than the budget of {budget / GIB:.1f}"
        _console.announce(f"{data.name}: {sizes}: pictures are decoded while they are used")
    return data if lazy or (lazy is None and n_bytes > budget) else data.in_memory()


def _part(root: Path, split: str) -> tuple[Path | None, tuple[str, ...]]:
    # The part's folder (None: the root has no parts) and the classes of the training part.
    found = {key: _first_part(root, PART_NAMES[key]) for key in PART_NAMES}
    if not any(found.values()):
        return None, _class_names(root)
    wanted = found[split]
    if wanted is None:
        expected = " or ".join(f"{name}/<class>/" for name in PART_NAMES[split])
        got = ", ".join(path.name + "/" for path in found.values() if path)
        raise DataError(f"{root}: no {split} part", expected=expected, got=got, hint=f"a folder with {LAYOUT}")
    classes = _class_names(found["train"] or wanted)
    strangers = sorted(set(_class_names(wanted)) - set(classes))
    if strangers:
        hint = "the classes of both parts must have the same names"
        raise DataError(f"{wanted}: unknown class", expected="a class of train/", got=strangers[0], hint=hint)
    return wanted, classes


def _first_part(root: Path, part_names: tuple[str, ...]) -> Path | None:
    folders = (root / name for name in part_names)
    return next((folder for folder in folders if folder.is_dir() and _subfolders(folder)), None)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    found = _subfolders(folder)
    if not found:
        got = "no subfolder" if any(folder.iterdir()) else "an empty folder"
        raise DataError(f"{folder}: no classes", expected="a subfolder per class", got=got, hint=f"use {LAYOUT}")
    return tuple(found)


def _files(part: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], torch.Tensor]:
    # Class by class, in the order of their names.
    present = set(_subfolders(part))
    found = [(file, label) for label, name in enumerate(classes) if name in present for file in _pictures(part, name)]
    return tuple(file for file, _ in found), torch.tensor([label for _, label in found], dtype=torch.int64)


def _pictures(part: Path, class_name: str) -> list[str]:
    found = sorted(_walk(part / class_name))
    if not found:
        hint = "remove the folder or put pictures into it"
        expected = ", ".join(SUFFIXES)
        raise DataError(f"{part / class_name}: no pictures", expected=expected, got="none of these", hint=hint)
    return [os.path.relpath(file, part) for file in found]


def _walk(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        wanted = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        yield from (os.path.join(parent, name) for name in wanted)


def _pair(size: Size | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ConfigError("bad size", expected="positive lengths in pixels", got=size, hint="size=32")
    return height, width


def _shape(
    part: Path, files: tuple[str, ...], size: tuple[int, int] | None, channels: int | None
) -> tuple[int, int, int]:
    # What was given is taken; the rest is looked up in the pictures' headers.
    if size and channels:
        return channels, *size
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(read_header, (part / file for file in files)))
    height, width = size or _common_size(part, files, headers)
    return channels or (1 if all(header.is_grey for header in headers) else 3), height, width


def _common_size(part: Path, files: tuple[str, ...], headers: list[Header]) -> tuple[int, int]:
    height, width, _ = headers[0]
    for file, header in zip(files, headers, strict=True):
        if (header.height, header.width) != (height, width):
            expected, got = f"{width}x{height} like {files[0]}", f"{header.width}x{header.height}"
            hint = "size=32 (or another size) brings all pictures to one size"
            raise DataError(f"{part / file}: another size", expected=expected, got=got, hint=hint)
    return height, width
