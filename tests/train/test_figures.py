"""What a run shows: pictures, history, TensorBoard, lines per epoch; and how many threads it takes."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from invertible.train import log
from invertible.train.figures import save_curves, save_reconstructions, spread
from invertible.train.log import RunLog, history_csv
from invertible.train.threads import fastest_threads

ROWS = [
    {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.5, "test_accuracy": 0.25, "seconds": 0.5},
    {"epoch": 2, "step": 6, "lr": 1 / 3, "train_loss": 1.5, "test_accuracy": 0.5, "seconds": 1.0},
]


def check_png(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()
        colours = picture.convert("L").getextrema()
        assert colours[0] < 50, "something is drawn"
        assert colours[1] == 255
        return picture.size


@pytest.mark.parametrize("n_epochs", [1, 2])
def test_curves(tmp_path: Path, n_epochs: int) -> None:
    save_curves(ROWS[:n_epochs], tmp_path / "curves.png")
    width, height = check_png(tmp_path / "curves.png")
    assert width > 2 * height


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("largest", "k"),
    [(0.0, 0), (1.0, 0), (0.4, 0), (0.051, 0), (0.05, 1), (0.049, 1), (4.9e-3, 2), (6e-7, 5), (4e-7, 6), (1e-30, 29)],
)
def test_magnification(tmp_path: Path, channels: int, largest: float, k: int) -> None:
    original = torch.zeros(2, channels, 8, 8, dtype=torch.float64)
    reconstruction = original.clone()
    reconstruction[1, 0, 3, 4] = -largest
    path = tmp_path / "reconstruction.png"
    assert save_reconstructions(original, reconstruction, path, "title") == k
    check_png(path)
    if k:
        assert 0.05 <= 10 * largest * 10**k / 10 <= 0.5 * (1 + 1e-9), "visible, and neither black nor white"


def test_pictures_of_many_and_of_one(tmp_path: Path) -> None:
    for n in (1, 8):
        save_reconstructions(torch.rand(n, 3, 5, 7), torch.rand(n, 3, 5, 7), tmp_path / "a.png", "title")
        check_png(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("n", "n_shown", "expected"), [(10, 3, [0, 4, 9]), (2, 8, [0, 1]), (1, 8, [0]), (8, 8, [*range(8)])]
)
def test_spread(n: int, n_shown: int, expected: list[int]) -> None:
    assert spread(n, n_shown).tolist() == expected


def test_history_reads_back_exactly() -> None:
    text = history_csv([*ROWS, {"epoch": 3, "validation_loss": 1e-17}])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == "epoch,step,lr,train_loss,test_accuracy,seconds,validation_loss"
    assert "\r" not in text
    assert text.endswith("\n")
    assert float(rows[1]["lr"]) == 1 / 3
    assert (rows[0]["validation_loss"], rows[2]["train_loss"], rows[2]["validation_loss"]) == ("", "", "1e-17")


def test_history_grows_by_a_row_per_epoch(tmp_path: Path) -> None:
    with RunLog(tmp_path, 6, quiet=True) as run_log:
        for n in (1, 2):
            run_log.epoch(ROWS[:n])
            assert (tmp_path / "history.csv").read_text() == history_csv(ROWS[:n])


def test_tensorboard_gets_every_value(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 6, quiet=True) as run_log:
        run_log.epoch(ROWS[:1])
        run_log.epoch(ROWS)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(ROWS[0])
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(3, 2.5), (6, 1.5)]


def test_without_tensorboard_nothing_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with RunLog(tmp_path, 6, quiet=True) as run_log:
        run_log.epoch(ROWS[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog(None, 6, quiet=True) as run_log:
        run_log.epoch(ROWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quiet", [True, False])
def test_a_line_per_epoch_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    text = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=text, width=200))
    with RunLog(None, 6, quiet=quiet) as run_log:
        run_log.step(1, 1, {"loss": 2.5})
        run_log.step(2, 1, {"loss": 2.4})
        run_log.epoch(ROWS[:1])
    lines = (
        []
        if quiet
        else ["epoch 1  step 1  loss 2.5000", "epoch 1  lr 0.1  train_loss 2.5  test_accuracy 0.25  seconds 0.5"]
    )
    assert [line.strip() for line in text.getvalue().splitlines() if line.strip()] == lines


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=text, width=200, force_terminal=True))
    with RunLog(None, 6, first_step=2) as run_log:
        run_log.step(3, 1, {"loss": 2.5})
    assert "epoch 1" in text.getvalue()
    assert "3/6" in text.getvalue()
    assert "loss 2.5000" in text.getvalue()


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("slow", "expected"), [(1, 2), (2, 1)])
def test_the_faster_number_of_threads_wins_and_the_setting_is_restored(slow: int, expected: int) -> None:
    def step() -> None:
        time.sleep(0.03 if torch.get_num_threads() == slow else 0.005)

    assert fastest_threads(step) == expected
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_setting_is_restored_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        fastest_threads(lambda: 1 / 0)
    assert torch.get_num_threads() == 2


def test_with_one_thread_there_is_nothing_to_time() -> None:
    assert fastest_threads(lambda: 1 / 0) == 1
