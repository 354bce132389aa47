"""The worked examples on other people's networks run, shortened, and show what they say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import invertible.data
from invertible.errors import DataError

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(autouse=True)
def _like_the_gallery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples import what lies beside them; pictures are closed again."""
    import matplotlib.pyplot as plt

    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    plt.close("all")
    for name in [name for name in sys.modules if name.split(".")[0] == "shared"]:
        del sys.modules[name]


def run(name: str, **constants: str) -> dict:
    """Run an example with other constants than those at its top."""
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    for constant, value in constants.items():
        source, n = re.subn(rf"\b{constant}\b = .*", f"{constant} = {value}", source, count=1)
        assert n == 1, constant
    names: dict = {"__name__": "__main__"}
    exec(compile(source, str(EXAMPLES / name), "exec"), names)
    return names


def peaks(printed: str, label: str) -> list[float]:
    line = next(line for line in printed.splitlines() if line.startswith(label))
    return [float(number) for number in re.findall(r"([\d.]+) MiB", line)]


@pytest.mark.usefixtures("unchecked")
def test_reversible_vit(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded digits: Fashion-MNIST is not everywhere."""

    def only_digits(name: str, split: str = "train") -> object:
        if name != "digits":
            raise DataError("not here")
        return load(name, split)

    load = invertible.data.load
    monkeypatch.setattr(invertible.data, "load", only_digits)
    names = run("plot_reversible_vit.py", DEPTHS="2, 16", N_STEPS="40")
    printed = capsys.readouterr().out
    assert "digits: 1,347 images" in printed
    assert "same state dict: True" in printed
    assert float(re.search(r"difference of the gradients: (\S+)", printed)[1]) < 1e-4
    assert names["accuracy"](names["reversible"]) > 0.3  # 0.1 is chance
    stored, reconstructed = peaks(printed, 'memory="store"'), peaks(printed, 'memory="reconstruct"')
    assert stored == pytest.approx(peaks(printed, "plain nn"), rel=0.05)
    assert stored[1] > 5 * stored[0]
    growth = (reconstructed[1] - reconstructed[0]) * 2**20
    assert growth < 4 * (names["n_weights"][1] - names["n_weights"][0]) * 1.2  # gradients of the weights, no more


@pytest.mark.usefixtures("unchecked")
def test_causal_transformer(capsys: pytest.CaptureFixture) -> None:
    names = run("plot_causal_transformer.py", N_STEPS="25", DEPTHS="2, 8")
    printed = capsys.readouterr().out
    before, after = (float(re.search(rf"{start}.*?: (\S+)", printed)[1]) for start in ("before training", "after 25"))
    assert after < before - 2
    assert "equal to the last bit: True" in printed
    original = bytes(names["tokens"][0].tolist()).decode()
    assert repr(original) in printed
    stored, reconstructed = peaks(printed, "store"), peaks(printed, "reconstruct")
    assert stored[1] > 3 * stored[0]
    assert reconstructed[1] < 1.6 * reconstructed[0]


@pytest.mark.usefixtures("unchecked")
def test_memory_is_counted_right() -> None:
    """Against sums done by hand: a tensor counts from its making to its freeing, a view and what was there never."""
    from shared import peak_memory

    existing = torch.zeros(1000, 250)  # 1 MB

    def two_at_a_time() -> None:
        a = existing + 1
        b = a.view(-1)[:10] + existing.view(-1)[:10]
        del b
        c = a * 2
        del a
        c.exp_()
        d = c + existing.t().t()
        del c, d

    assert peak_memory(two_at_a_time) == 2_000_000

    weights = [torch.zeros(250, 250, requires_grad=True) for _ in range(4)]

    def activations_wait_for_backward() -> None:
        x = existing
        for weight in weights:
            x = torch.tanh(x @ weight)
        x.sum().backward()

    peak = peak_memory(activations_wait_for_backward)
    assert 5_000_000 <= peak < 6_500_000  # four outputs of tanh, one product more, gradients of the weights


def test_text_is_the_one_its_readme_describes() -> None:
    import hashlib

    from shared import alice

    content, readme = alice().encode("ascii"), (EXAMPLES / "shared" / "README").read_text()
    assert hashlib.sha256(content).hexdigest() in readme
    assert f"{len(content):,} bytes" in readme
    assert b"\r" not in content
