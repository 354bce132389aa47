"""The normalizer-free recipes train, resume and are compared with BatchNorm."""

from __future__ import annotations

from pathlib import Path

from invertible.train import compare, read_table_recipe

FEW = ["--training.epochs=1", "--data.n_train=64", "--training.threads=1", "--training.batch_size=32"]


def test_the_table_of_digits_trains_both(tmp_path: Path) -> None:
    found = compare("nf_resnet/batch-size-digits", tmp_path / "out", overrides=[*FEW, "--optimizer.adaptive_clip=0.05"],
                    quiet=True)  # fmt: skip
    assert found.errors == []
    assert [row.name for row in found.rows] == [
        f"{kind}, batch {size}" for size in (4, 64) for kind in ("BatchNorm", "normalizer-free")
    ]


def test_the_table_of_fashion_mnist_has_rows_alike_but_for_the_network() -> None:
    table = read_table_recipe("nf_resnet/batch-size-fashion-mnist")
    sizes = []
    for batch_norm, free in zip(table.rows[::2], table.rows[1::2], strict=True):
        first, second = table.recipe_of(batch_norm), table.recipe_of(free)
        assert (first.training, first.optimizer, first.schedule, first.data) == (
            second.training, second.optimizer, second.schedule, second.data)  # fmt: skip
        assert first.model.arguments["channels"] == second.model.arguments["channels"]
        assert first.optimizer.lr == 0.2 * first.training.batch_size / 256
        sizes.append(first.training.batch_size)
    assert sizes == [4, 16, 64, 256]
