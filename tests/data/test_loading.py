import dataclasses
import functools
import gzip
import http.server
import inspect
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from invertible.data import DataFile, cache_folder, describe, load, names
from invertible.data.locate import download
from invertible.data.registry import SOURCES
from invertible.errors import ConfigError, DataError

FASHION = Path("/usr/share/datasets/fashion-mnist")
# Sums of the published files' content, which Debian compresses anew.
FASHION_CONTENT = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INVERTIBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """Every address is a closed port."""
    for name, source in SOURCES.items():
        parts = {
            split: tuple(dataclasses.replace(file, urls=("http://127.0.0.1:9/" + file.name,)) for file in files)
            for split, files in (("train", source.train), ("test", source.test))
        }
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, system_folders=(), **parts))


def write_mnist(folder, n=4, label=9, pack=bytes, suffix="", shape=(28, 28)):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (np.arange(n * shape[0] * shape[1]) % 256).astype(np.uint8)
    for part in ("train", "t10k"):
        images = struct.pack(">4I", 0x803, n, *shape) + pixels.tobytes()
        labels = struct.pack(">2I", 0x801, n) + bytes([label] * n)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(images))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(labels))
    return torch.from_numpy(pixels).view(n, 1, *shape)


class TestRegistry:
    def test_names(self):
        assert names()[0] == "digits"
        assert set(names()) >= {
            "mnist",
            "fashion-mnist",
            "kmnist",
            "kuzushiji-49",
            "cifar10",
            "cifar100",
            "svhn",
        }

    @pytest.mark.parametrize("name", names())
    def test_each_is_complete(self, name):
        source = describe(name)
        assert source.name == name
        assert source.licence
        assert len(source.classes) in (0, source.n_classes)
        assert len(set(source.classes)) == len(source.classes)
        for file in source.files:
            kind, _, digits = file.checksum.partition(":")
            assert len(bytes.fromhex(digits)) == {"md5": 16, "sha256": 32}[kind]
            assert all(url.endswith(file.name) for url in file.urls)

    @pytest.mark.parametrize(
        ("typed", "meant"), [("fashion_mnist", "fashion-mnist"), ("CIFAR-10", "cifar10"), ("digit", "digits")]
    )
    def test_an_unknown_name_suggests_the_nearest(self, typed, meant):
        with pytest.raises(ConfigError, match=f"unknown data set: expected digits, .*got '{typed}'. Try: '{meant}'"):
            load(typed)

    def test_an_unknown_split_or_option(self):
        with pytest.raises(ConfigError, match="unknown split: expected 'train' or 'test', got 'val'"):
            load("digits", "val")
        with pytest.raises(ConfigError, match=r"digits: bad options.*got size=32, lazy=True"):
            load("digits", size=32, lazy=True)
        with pytest.raises(ConfigError, match="folder: no folder: expected data_dir"):
            load("folder")


class TestOnDisk:
    @pytest.mark.parametrize("inside", ["", "mnist"])
    @pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz"), (bytes, ".gz")])
    def test_found_in_data_dir_gzipped_or_not(self, tmp_path, inside, pack, suffix):
        expected = write_mnist(tmp_path / "mine" / inside, pack=pack, suffix=suffix)
        data = load("mnist", "test", tmp_path / "mine")
        assert torch.equal(data.images, expected)
        assert data.labels.tolist() == [9] * 4
        assert data.classes == tuple("0123456789")

    def test_found_in_the_cache(self, cache):
        expected = write_mnist(cache / "kmnist")
        assert cache_folder() == cache
        assert torch.equal(load("kmnist").images, expected)

    def test_the_folder_of_the_name_comes_first(self, tmp_path):
        write_mnist(tmp_path, label=1)
        write_mnist(tmp_path / "mnist", label=2)
        assert load("mnist", data_dir=tmp_path).labels.tolist() == [2] * 4

    def test_the_users_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write_mnist(tmp_path / "mine")
        assert len(load("mnist", data_dir="~/mine")) == 4

    def test_files_that_do_not_fit(self, tmp_path):
        write_mnist(tmp_path, label=10)
        with pytest.raises(DataError, match="mnist: label out of range: expected 0 to 9, got 10 to 10"):
            load("mnist", data_dir=tmp_path)
        write_mnist(tmp_path, shape=(8, 8))
        with pytest.raises(DataError, match=r"mnist: wrong image shape: expected \(1, 28, 28\), got \(1, 8, 8\)"):
            load("mnist", data_dir=tmp_path)
        write_mnist(tmp_path)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 3) + bytes(3))
        with pytest.raises(DataError, match="mnist: image and label counts differ: expected 4 labels, got 3"):
            load("mnist", data_dir=tmp_path)

    def test_kuzushiji_49(self, tmp_path):
        for part in ("train", "test"):
            np.savez_compressed(tmp_path / f"k49-{part}-imgs.npz", np.full((2, 28, 28), 7, dtype=np.uint8))
            np.savez_compressed(tmp_path / f"k49-{part}-labels.npz", np.array([0, 48], dtype=np.uint8))
        data = load("kuzushiji-49", "train", tmp_path)
        assert data.shape == (1, 28, 28)
        assert [data.classes[k] for k in data.labels] == ["a", "iteration-mark"]

    def test_svhn(self, tmp_path):
        savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[10], [3]]})
        assert load("svhn", "test", tmp_path).labels.tolist() == [0, 3]

    @pytest.mark.parametrize("unpacked", [True, False])
    def test_cifar10(self, tmp_path, monkeypatch, unpacked):
        monkeypatch.setitem(SOURCES, "cifar10", dataclasses.replace(SOURCES["cifar10"], n_train=10, n_test=2))
        inner = tmp_path / "cifar-10-batches-bin"
        inner.mkdir()
        for k, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            (inner / name).write_bytes((bytes([k]) + bytes(3072)) * 2)
        if not unpacked:
            with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
                archive.add(inner, inner.name)
            inner.rename(tmp_path / "elsewhere")
        assert load("cifar10", "train", tmp_path).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert load("cifar10", "test", tmp_path).labels.tolist() == [5, 5]

    def test_cifar10_of_a_wrong_length(self, tmp_path):
        (tmp_path / "test_batch.bin").write_bytes(bytes(1000))
        with pytest.raises(DataError, match=r"test_batch.bin: wrong length: expected 30730000 bytes, got 1000 bytes"):
            load("cifar10", "test", tmp_path)

    def test_cifar10_with_a_missing_part(self, tmp_path):
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(30730000))
        with pytest.raises(DataError, match=r"data_batch_2.bin: cannot be read"):
            load("cifar10", "train", tmp_path)

    def test_cifar100_has_fine_labels(self, tmp_path, monkeypatch):
        monkeypatch.setitem(SOURCES, "cifar100", dataclasses.replace(SOURCES["cifar100"], n_train=2, n_test=1))
        (tmp_path / "train.bin").write_bytes(bytes([4, 0]) + bytes(3072) + bytes([14, 99]) + bytes(3072))
        data = load("cifar100", "train", tmp_path)
        assert [data.classes[k] for k in data.labels] == ["apple", "worm"]

    @pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
    def test_fashion_mnist_is_found_on_the_system(self):
        train, test = load("fashion-mnist", "train"), load("fashion-mnist", "test")
        assert (len(train), len(test), train.shape) == (60000, 10000, (1, 28, 28))
        assert train.labels.bincount().tolist() == [6000] * 10
        assert test.labels.bincount().tolist() == [1000] * 10
        assert train.classes[train.labels[0]] == "Ankle boot"

    @pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
    def test_fashion_mnist_is_the_published_content(self):
        import hashlib

        for name, expected in FASHION_CONTENT.items():
            content = gzip.decompress((FASHION / f"{name}.gz").read_bytes())
            assert hashlib.sha256(content).hexdigest() == expected


CONTENT = b"the published file" * 1000
MD5 = "md5:" + __import__("hashlib").md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        body = {"/whole": CONTENT, "/wrong": CONTENT[::-1], "/early": CONTENT[:100]}[self.path.rpartition("/")[0]]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


class TestDownload:
    def test_a_good_file(self, server, tmp_path):
        path = download(DataFile("a.bin", (f"{server}/whole/a.bin",), MD5), tmp_path)
        assert path == tmp_path / "a.bin"
        assert path.read_bytes() == CONTENT
        assert leftovers(tmp_path) == [path]

    @pytest.mark.parametrize(
        ("kind", "words"),
        [("wrong", "hash"), ("early", "IncompleteRead|ChunkedEncoding|broken"), ("missing", "404")],
    )
    def test_a_failure_leaves_nothing_and_says_where(self, server, tmp_path, kind, words):
        url = f"{server}/{kind}/a.bin"
        with pytest.raises(DataError, match=words) as caught:
            download(DataFile("a.bin", (url,), MD5), tmp_path / "new")
        assert leftovers(tmp_path) == []
        assert url in str(caught.value)
        assert f"expected a.bin with {MD5}" in str(caught.value)
        assert "--data-dir" in str(caught.value)

    def test_the_next_address_is_tried(self, server, tmp_path):
        urls = tuple(f"{server}/{kind}/a.bin" for kind in ("missing", "early", "wrong", "whole"))
        assert download(DataFile("a.bin", urls, MD5), tmp_path).read_bytes() == CONTENT
        assert len(leftovers(tmp_path)) == 1

    @pytest.mark.parametrize("given", [True, False])
    def test_load_downloads_into_the_data_dir_or_the_cache(self, server, tmp_path, cache, monkeypatch, given):
        files = tuple(DataFile(f"{what}.gz", (f"{server}/whole/{what}.gz",), MD5) for what in ("images", "labels"))
        monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], train=files))
        folder = tmp_path / "mine" if given else cache
        with pytest.raises(DataError, match="wrong magic number"):
            load("mnist", data_dir=folder if given else None)
        assert {path.name for path in leftovers(folder / "mnist")} == {"images.gz", "labels.gz"}

    @pytest.mark.parametrize("name", [name for name in names() if describe(name).files])
    def test_offline_says_what_to_do(self, offline, cache, name):
        with pytest.raises(DataError, match=r"cannot download.*http://127.0.0.1:9/.*by hand.*--data-dir"):
            load(name)
        assert leftovers(cache) == []


def test_nothing_is_unpickled():
    import invertible.data

    folder = Path(inspect.getfile(invertible.data)).parent
    sources = {path: path.read_text() for path in folder.glob("*.py")}
    assert not [path for path, text in sources.items() if "import pickle" in text or "allow_pickle=True" in text]
