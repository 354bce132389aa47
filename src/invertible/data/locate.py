"""Where a set's files are: the user's folder, the system's, the cache, or the network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invertible import _console
from invertible.data.registry import DataFile, DataSource
from invertible.errors import DataError

CACHE_VARIABLE = "INVERTIBLE_CACHE"
TIMEOUT = 30  # seconds without an answer


def cache_folder() -> Path:
    """Say where downloads are kept.

    Returns:
        The folder named by the environment variable ``INVERTIBLE_CACHE``, else the user's cache.
    """
    import pooch

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(pooch.os_cache("invertible"))


def search_folders(source: DataSource, data_dir: Path | None) -> tuple[Path, ...]:
    """List the folders that may hold a set's files, best first.

    Args:
        source: The set.
        data_dir: The user's folder, if one was given.

    Returns:
        ``data_dir/<name>`` (several sets share file names), ``data_dir``, the system's, the cache's.
    """
    own = (data_dir / source.name, data_dir) if data_dir else ()
    return (*own, *map(Path, source.system_folders), cache_folder() / source.name)


def find(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """Find the first file that exists.

    Args:
        names: File names, best first.
        folders: Folders, best first.

    Returns:
        The path, or None.
    """
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def obtain(file: DataFile, source: DataSource, data_dir: Path | None) -> Path:
    """Find a file on disk, gzipped or not, or download it.

    Args:
        file: The published file.
        source: The set it belongs to.
        data_dir: The user's folder, if one was given; downloads go to ``data_dir/<name>`` then.

    Returns:
        Where it lies. A file that was already there is used as it is; a download has the published checksum.
    """
    folders = search_folders(source, data_dir)
    found = find((file.name, file.name.removesuffix(".gz")), folders)
    return found or download(file, folders[0] if data_dir else folders[-1])


def download(file: DataFile, folder: Path) -> Path:
    """Fetch a published file and verify its checksum; a failure leaves no file behind.

    Args:
        file: What to fetch; its addresses are tried in turn.
        folder: Where to put it.

    Returns:
        The file's path.

    Raises:
        DataError: If every address failed; the error says how to put the file there by hand.
    """
    failures: list[str] = []
    for url in file.urls:
        try:
            return _fetch(file, url, folder)
        except (
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSErrors; pooch's checksum error a ValueError
            failures.append(f"{url} ({type(error).__name__}: {error})")
    hint = f"fetch {' or '.join(file.urls)} by hand, put it into a folder and pass that as data_dir (--data-dir)"
    expected = f"{file.name} with {file.checksum}"
    raise DataError(f"cannot download {file.name}", expected=expected, got="; ".join(failures), hint=hint)


def _fetch(file: DataFile, url: str, folder: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    with _console.progress() as display:
        # pooch takes any object with total, update, reset and close, and says so only in its documentation.
        bar: Any = _console.DownloadBar(display, file.name)
        fetch: Any = pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT)
        return Path(pooch.retrieve(url, file.checksum, fname=file.name, path=folder, downloader=fetch))
