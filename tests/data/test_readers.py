import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from invertible.data.cifar import read_cifar
from invertible.data.idx import read_idx
from invertible.data.npz import read_npz
from invertible.data.svhn import read_svhn
from invertible.errors import DataError


def idx_bytes(array, magic=None):
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def pixels(*shape):
    return (np.arange(np.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


class TestIdx:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_reads_plain_and_gzipped(self, tmp_path, pack):
        path = tmp_path / "images"
        path.write_bytes(pack(idx_bytes(pixels(3, 4, 5))))
        assert torch.equal(read_idx(path, 3), torch.from_numpy(pixels(3, 4, 5)))
        path.write_bytes(pack(idx_bytes(pixels(9))))
        assert torch.equal(read_idx(path, 1), torch.from_numpy(pixels(9)))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "no IDX header: expected at least 16 bytes, got 0 bytes"),
            (idx_bytes(pixels(9)), "no IDX header|wrong magic number: expected 0x00000803, got 0x00000801"),
            (idx_bytes(pixels(30)), "wrong magic number: expected 0x00000803, got 0x00000801"),
            (idx_bytes(pixels(3, 4, 5), magic=0xD03), "expected 0x00000803, got 0x00000d03"),
            (idx_bytes(pixels(3, 4, 5))[:-1], "wrong length: expected 76 bytes, got 75 bytes"),
            (idx_bytes(pixels(3, 4, 5)) + b"x", "expected 76 bytes, got 77 bytes"),
            (
                struct.pack(">4I", 0x803, 60000, 28, 28) + bytes(984),
                "expected 47040016 bytes, got 1000 bytes",
            ),
            (gzip.compress(idx_bytes(pixels(3, 4, 5)), mtime=0)[:-12], "cannot be read: expected a whole file, got"),
            (gzip.compress(idx_bytes(pixels(3, 4, 5)), mtime=0)[:20] + bytes(40), "cannot be read"),
        ],
    )
    def test_states_what_is_wrong(self, tmp_path, content, words):
        path = tmp_path / "broken-images"
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            read_idx(path, 3)
        assert str(path) in str(caught.value)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(tmp_path / "nothing", 3)

    @given(st.binary(max_size=64))
    def test_any_bytes_are_read_or_refused(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("idx") / "any"
        path.write_bytes(content)
        try:
            tensor = read_idx(path, 1)
        except DataError:
            return
        assert len(content) == 8 + len(tensor)


def cifar_record(label_bytes, image):
    return bytes(label_bytes) + image.tobytes()


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


class TestCifar:
    @pytest.mark.parametrize("labels", [[(3,), (9,)], [(0, 77), (19, 99)]])
    def test_reads_folder_and_archive(self, tmp_path, labels):
        images = pixels(2, 3, 32, 32)
        content = b"".join(cifar_record(label, image) for label, image in zip(labels, images, strict=True))
        (tmp_path / "a.bin").write_bytes(content)
        tar_of(tmp_path / "a.tar.gz", {"inside/readme.html": b"?", "inside/a.bin": content})
        for path in (tmp_path, tmp_path / "a.tar.gz"):
            found, numbers = read_cifar(path, ("a.bin",), len(labels[0]), 2)
            assert torch.equal(found, torch.from_numpy(images))
            assert numbers.tolist() == [label[-1] for label in labels]

    def test_members_follow_their_order(self, tmp_path):
        for name, label in (("b1.bin", 1), ("b2.bin", 2)):
            (tmp_path / name).write_bytes(cifar_record((label,), pixels(3, 32, 32)))
        assert read_cifar(tmp_path, ("b1.bin", "b2.bin"), 1, 1)[1].tolist() == [1, 2]

    def test_wrong_length(self, tmp_path):
        (tmp_path / "a.bin").write_bytes(bytes(1000))
        with pytest.raises(DataError, match=r"a.bin: wrong length: expected 30730000 bytes, got 1000 bytes"):
            read_cifar(tmp_path, ("a.bin",), 1, 10000)

    def test_the_pickled_version_is_refused(self, tmp_path):
        tar_of(tmp_path / "a.tar.gz", {"cifar-10-batches-py/data_batch_1": b"\x80\x02."})
        with pytest.raises(DataError, match=r"wrong archive: expected a.bin, got no a.bin. Try: use CIFAR's binary"):
            read_cifar(tmp_path / "a.tar.gz", ("a.bin",), 1, 1)

    @pytest.mark.parametrize("n_bytes", [0, 10, 500])
    def test_truncated_archive(self, tmp_path, n_bytes):
        noise = np.random.default_rng(0).integers(0, 256, 3073, dtype=np.uint8).tobytes()
        tar_of(tmp_path / "a.tar.gz", {"a.bin": noise})
        (tmp_path / "a.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:n_bytes])
        with pytest.raises(DataError, match=r"a.tar.gz: cannot be read: expected a whole .tar.gz"):
            read_cifar(tmp_path / "a.tar.gz", ("a.bin",), 1, 1)


class TestNpz:
    def test_reads(self, tmp_path):
        np.savez_compressed(tmp_path / "a.npz", pixels(5, 4, 4))
        assert torch.equal(read_npz(tmp_path / "a.npz", 3), torch.from_numpy(pixels(5, 4, 4)))

    def test_never_unpickles(self, tmp_path):
        np.savez(tmp_path / "a.npz", np.array([{"a": 1}], dtype=object))
        with pytest.raises(DataError, match=r"cannot be read.*allow_pickle=False"):
            read_npz(tmp_path / "a.npz", 1)

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (pixels(5), "wrong array: expected uint8 with 3 axes, got uint8 with 1"),
            (pixels(5, 4, 4).astype(np.float32), "got float32 with 3"),
        ],
    )
    def test_wrong_array(self, tmp_path, array, words):
        np.savez(tmp_path / "a.npz", array)
        with pytest.raises(DataError, match=words):
            read_npz(tmp_path / "a.npz", 3)

    def test_wrong_key_and_damage(self, tmp_path):
        np.savez(tmp_path / "a.npz", other=pixels(5, 4, 4))
        with pytest.raises(DataError, match=r"an .npz file with the array 'arr_0'"):
            read_npz(tmp_path / "a.npz", 3)
        np.savez_compressed(tmp_path / "b.npz", pixels(50, 40, 4))
        whole = (tmp_path / "b.npz").read_bytes()
        for content in (b"", whole[: len(whole) // 2], whole[:100] + bytes(30) + whole[130:]):
            (tmp_path / "b.npz").write_bytes(content)
            with pytest.raises(DataError, match=r"b.npz: cannot be read"):
                read_npz(tmp_path / "b.npz", 3)


class TestSvhn:
    def test_reads_and_turns_ten_into_zero(self, tmp_path):
        images = pixels(4, 3, 32, 32)
        labels = np.array([[1], [9], [10], [5]], dtype=np.uint8)
        savemat(tmp_path / "a.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
        found, numbers = read_svhn(tmp_path / "a.mat")
        assert torch.equal(found, torch.from_numpy(images))
        assert found.is_contiguous()
        assert numbers.tolist() == [1, 9, 0, 5]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (
                {"X": pixels(4, 4, 3, 2), "y": [[1], [2]]},
                r"expected uint8 \(32, 32, 3, n\), got uint8 \(4, 4, 3, 2\)",
            ),
            (
                {"X": pixels(32, 32, 3, 2), "y": [[0], [2]]},
                "label out of range: expected 1 to 10, got 0 to 2",
            ),
            ({"X": pixels(32, 32, 3, 2), "z": [[0], [2]]}, "cannot be read: expected X and y in a .mat file"),
        ],
    )
    def test_wrong_content(self, tmp_path, content, words):
        savemat(tmp_path / "a.mat", content)
        with pytest.raises(DataError, match=words):
            read_svhn(tmp_path / "a.mat")

    @pytest.mark.parametrize("keep", [0, 50, 200, 3000])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_truncated(self, tmp_path, keep, compressed):
        content = {"X": pixels(32, 32, 3, 2), "y": [[1], [2]]}
        savemat(tmp_path / "a.mat", content, do_compression=compressed)
        whole = (tmp_path / "a.mat").read_bytes()
        (tmp_path / "a.mat").write_bytes(whole[:keep] if keep < len(whole) else whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"a.mat: cannot be read"):
            read_svhn(tmp_path / "a.mat")
