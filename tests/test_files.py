"""Files: whole or not at all; and what is said about broken, missing and foreign ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from invertible._files import read_json, read_tensors, write_atomically, write_json, write_tensors, write_text
from invertible.errors import CheckpointError
from invertible.train import load_run, read_recipe, train
from invertible.train.run import read_metrics


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.txt", []
    write_text(path, "old")
    write_atomically(path, lambda temporary: (temporary.write_text("new"), seen.append(path.read_text())))
    assert (seen, path.read_text(), names(tmp_path)) == (["old"], "new", ["a.txt"])


def test_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": [1, 2.5, None]}


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    words = r"cannot write .*file/a\.json: got (File exists|Not a directory)\. Try: another output folder"
    for write in (
        lambda path: write_json(path, {}),
        lambda path: write_tensors(path, {"a": torch.zeros(1)}),
    ):
        with pytest.raises(CheckpointError, match=words):
            write(tmp_path / "file" / "a.json")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from invertible.errors import CheckpointError
from invertible._files import write_tensors, write_text
path = Path(sys.argv[1])
write_tensors(path / "a.safetensors", {"a": torch.zeros(1)})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: write_tensors(path / "a.safetensors", {"a": torch.zeros(10000)}),
    lambda: write_text(path / "b.txt", "x" * 10000),
):
    try:
        write()
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"cannot write {tmp_path}/a.safetensors",
        f"cannot write {tmp_path}/b.txt",
    ]
    assert all("File too large" in line and "free space" in line for line in lines)
    assert names(tmp_path) == ["a.safetensors"]
    assert read_tensors(tmp_path / "a.safetensors")[0]["a"].tolist() == [0.0]


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    tensors = {
        "view": shared.t(),
        "shared": shared,
        "n": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "half": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "truth": torch.tensor([True, False]),
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"note": "é"})
    back, header = read_tensors(tmp_path / "a.safetensors")
    assert header == {"note": "é"}
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert back.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "expected JSON, got Expecting value"),
        (b'{"a": 1', "expected JSON, got "),
        (b"\xff\xfe", "expected JSON, got "),
        (b"3", "expected a JSON object, got int"),
    ],
)
def test_corrupt_json(tmp_path: Path, contents: bytes, words: str) -> None:
    (tmp_path / "a.json").write_bytes(contents)
    with pytest.raises(CheckpointError, match=rf"a\.json is corrupt: {words}"):
        read_json(tmp_path / "a.json")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*a\.json: got No such file or directory\. Try: "):
        read_json(tmp_path / "a.json")
    with pytest.raises(
        CheckpointError, match=r"no weights: expected the file .*a\.safetensors, got nothing there\. Try: "
    ):
        read_tensors(tmp_path / "a.safetensors")


# A run's folder -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(read_recipe("irevnet/digits", ["--training.epochs=1", "--data.n_train=64"]), folder, quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is no run: expected the folder of a run, got no such folder\. Try: `inv"
    ):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is no run: .*got a folder without recipe\.yaml"):
        load_run(tmp_path)


def test_weights_are_missing(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"no weights: expected the file {run}/model\.safetensors, got nothing there"
    ):
        load_run(run)


@pytest.mark.parametrize("keep", [0, 3, 4000, -1])
def test_weights_are_truncated(run: Path, keep: int) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt: expected a safetensors file, got "):
        load_run(run)


def test_weights_of_another_model(run: Path) -> None:
    path = run / "recipe.yaml"
    arguments = "{in_shape: [1, 8, 8], n_blocks: [1], strides: [2], channels: null, hidden: [4], init_squeeze: 2}"
    path.write_text(
        path.read_text().replace("irevnet_digits", "irevnet").replace("arguments: {}", f"arguments: {arguments}")
    )
    with pytest.raises(
        CheckpointError, match=r"(?s)the weights in .*model\.safetensors do not fit the model: got .*key.*Try"
    ):
        load_run(run)


@pytest.mark.parametrize("metadata", [None, {"record": "{"}, {"record": "{}"}])
def test_weights_from_elsewhere(run: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.zeros(1)}, run / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was not written by a run"):
        load_run(run)


def test_metrics_of_an_unfinished_run(run: Path) -> None:
    assert read_metrics(run)["n_test"] == 450
    (run / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*metrics\.json"):
        read_metrics(run)


def test_a_run_tells_what_it_was_trained_with(run: Path) -> None:
    found = load_run(run, dtype="float64")
    assert found.model.training is False
    assert {p.dtype for p in found.model.parameters()} == {torch.float64}
    assert found.recipe == read_recipe("irevnet/digits", ["--training.epochs=1", "--data.n_train=64"])
    assert (found.record["in_shape"], found.record["epoch"]) == ([1, 8, 8], 1)
    assert found.record == json.loads((run / "model.json").read_text())
    assert found.record["classes"] == [str(k) for k in range(10)]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left, other = tmp_path / ".partial-123-model.json", tmp_path / ".partial-123-model.json.txt"
    left.write_text("half")
    other.write_text("someone else's")
    write_json(tmp_path / "model.json", {"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "model.json"]
