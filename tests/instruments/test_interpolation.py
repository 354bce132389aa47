"""Interpolations against lines that are known, and the command that draws them."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invertible import Chain
from invertible.cli import main
from invertible.data import Normalize
from invertible.errors import ConfigError, ContextError, DataError, NonFiniteError, ShapeError
from invertible.instruments import Interpolation, Result, interpolation
from invertible.instruments._pictures import Picture
from invertible.layers import AdditiveCoupling, Permute
from invertible.models import irevnet, revnet
from invertible.train import read_recipe
from invertible.train.prepare import load_data
from invertible.train.run import build_model, save_model, save_recipe
from measured_networks import Net


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quick(model: nn.Module, data: object, **options: object) -> Interpolation:
    return interpolation(model, data, **{"quiet": True} | options)


def bijective(**options: object) -> nn.Module:
    return irevnet((1, 8, 8), 10, (1, 1), (2, 2), None, (8, 16), 2, dropout=0.0, **options)


class Cube(nn.Module):
    """y = x^3: its lines are known."""

    def forward(self, x: Tensor) -> Tensor:
        return x**3


def cube_root(y: Tensor) -> Tensor:
    return y.sign() * y.abs() ** (1 / 3)


def test_a_linear_bijection_decodes_to_the_line_between_pixels() -> None:
    chain = Chain(Permute([2, 0, 3, 1]), AdditiveCoupling(nn.Linear(2, 2))).double()
    found = quick(chain, normal(6, 4), n_steps=5)
    assert len(found.lines) == 3
    for i in range(3):
        assert torch.allclose(found.decoded(i), found.mixed(i), atol=1e-6)
    assert max(step.from_pixels for line in found.lines for step in line.steps) < 1e-12


def test_an_inverse_of_ones_own_gives_the_known_curve() -> None:
    x = torch.tensor([[0.0, -1.0], [2.0, 3.0]], dtype=torch.float64)
    found = quick(nn.Sequential(Cube(), nn.Linear(2, 1).double()), x, inverse=cube_root, layers="0", n_steps=3)
    middle = cube_root((x[0] ** 3 + x[1] ** 3) / 2)
    assert torch.allclose(found.decoded(0)[1].double(), middle, atol=1e-6)
    step = found.lines[0].steps[1]
    assert step.position == 0.5
    assert step.from_pixels == pytest.approx((middle - x.mean(0)).square().mean().sqrt().item())
    assert step.from_ends == pytest.approx(min((middle - end).square().mean().sqrt().item() for end in x))
    assert step.outside == 0.0
    assert step.reconstruction is None
    assert found.is_from_input


def test_ends_come_back_and_the_middle_encodes_to_the_middle() -> None:
    torch.manual_seed(0)
    net = bijective().double().train()
    net(torch.rand(16, 1, 8, 8, dtype=torch.float64))
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    found = quick(net, x, n_steps=3)
    assert found.part == "body"
    assert torch.allclose(found.decoded(0)[[0, 2]].double(), x[:2], atol=1e-6)
    net.eval()
    with torch.no_grad():
        z = net.representation(torch.cat([x[:2], found.decoded(0)[1:2].double()]))
    assert torch.allclose(z[2], (z[0] + z[1]) / 2, atol=1e-5)


def test_an_exact_network_gives_both_ends_to_the_bit() -> None:
    torch.manual_seed(0)
    net = bijective(exact=True)
    x = net.body.lattice.quantise(torch.rand(4, 1, 8, 8))
    found = quick(net, x, n_steps=4)
    assert torch.equal(found.decoded(1)[[0, -1]], x[2:4])
    assert found.lines[1].steps[-1].reconstruction == 0.0
    assert (found.lines[1].first, found.lines[1].second) == (2, 3)


def test_injective_networks_are_projected_and_say_so() -> None:
    torch.manual_seed(0)
    net = irevnet((1, 8, 8), n_blocks=(1, 1), strides=(1, 2), channels=(8, 32), init_squeeze=2)
    kept = [module.tolerance for module in net.body if "tolerance" in vars(module)]
    found = quick(net, torch.rand(2, 1, 8, 8), n_steps=3)
    assert any("injective" in finding.sentence for finding in found.findings)
    assert kept == [module.tolerance for module in net.body if "tolerance" in vars(module)]


def test_a_part_inside_the_network_says_that_it_decodes_no_images() -> None:
    net = revnet(n_blocks=(2, 2), channels=(4, 8), strides=(1, 2), in_shape=(3, 8, 8))
    found = quick(net, torch.randn(2, 3, 8, 8), part="stages.0")
    assert not found.is_from_input
    assert found.findings[0].sentence.startswith("stages.0 starts inside the network")


def test_a_wrong_inverse_is_an_error_among_the_findings() -> None:
    found = quick(Cube(), normal(2, 3), inverse=lambda y: y)
    assert found.findings[0].severity == "error"
    assert "do not come back" in found.findings[0].sentence


def test_display_is_what_is_shown_and_compared() -> None:
    chain = Chain(Permute([2, 0, 3, 1])).double()
    x = normal(2, 4)
    found = quick(chain, x, display=lambda images: images * 0.5 + 0.5, n_steps=2)
    assert torch.allclose(found.decoded(0).double(), x * 0.5 + 0.5, atol=1e-6)
    assert (found.low, found.high) == pytest.approx(((x * 0.5 + 0.5).min().item(), (x * 0.5 + 0.5).max().item()))


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3), (0,)])
def test_pictures_keep_every_bit(shape) -> None:
    image = torch.randn(shape)
    picture = Picture.of(image)
    assert torch.equal(picture.tensor, image)
    with pytest.raises(ValueError, match="numbers where"):
        _ = Picture((2, 2), base64.b64encode(b"\0" * 4).decode()).tensor


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 6, 6), (2, 6, 6), (5,), (4, 4), (2, 3, 4, 4)])
def test_json_table_and_picture_of_any_shape(shape, tmp_path) -> None:
    found = quick(Chain(Permute(list(range(shape[0])))), torch.rand(2, *shape), n_steps=3)
    found.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["kind"] == "Interpolation"
    loaded = Result.load(tmp_path / "found.json")
    assert loaded == found
    assert torch.equal(loaded.decoded(0), found.decoded(0))
    assert [row["position"] for row in found.table] == [0.0, 0.5, 1.0]
    found.save_plot(tmp_path / "found.png")
    image = found.plot().images[0].get_array()
    assert np.isfinite(image).all()


def test_budget_and_batches() -> None:
    chain, x = Chain(Permute([2, 0, 3, 1])), torch.rand(2, 4)
    assert [line.first for line in quick(chain, [x, x, x]).lines] == [0, 2, 4]
    partial = quick(chain, [x, x, x], seconds=1e-7)
    assert len(partial.lines) == 1
    assert partial.is_partial


class WithContext(Chain):
    """A chain that takes a context, and is called without one."""

    def __init__(self) -> None:
        super().__init__(AdditiveCoupling(nn.Bilinear(2, 3, 2), takes_context=True))


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "message"),
    [
        (Net(), torch.zeros(2, 3, 6, 6), {}, ConfigError, "no such invertible part.*inverse="),
        (bijective(), torch.rand(2, 1, 8, 8), {"part": "head"}, ConfigError, "expected 'body'"),
        (bijective(), torch.rand(1, 1, 8, 8), {}, DataError, "two examples"),
        (bijective(), torch.rand(2, 1, 8, 8), {"n_steps": 1}, ConfigError, "bad n_steps"),
        (bijective(), torch.rand(2, 1, 8, 8), {"n_pairs": 0}, ConfigError, "bad n_pairs"),
        (Cube(), torch.rand(2, 3), {"inverse": lambda y: y[:, :2]}, ShapeError, "does not give inputs"),
        (Cube(), torch.rand(2, 3), {"inverse": lambda y: y / 0}, NonFiniteError, "not finite"),
        (Net(), torch.zeros(2, 3, 6, 6), {"inverse": cube_root, "layers": "blocks.*"}, ConfigError, "undoes one place"),
        (WithContext(), torch.rand(2, 4), {}, ContextError, "takes a context"),
    ],
)
def test_what_cannot_be_done_is_said(model, data, options, error, message) -> None:
    with pytest.raises(error, match=message):
        quick(model, data, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with an exact network, as if it had been trained."""
    folder = tmp_path_factory.mktemp("run")
    recipe = read_recipe("irevnet/digits")
    data = load_data(recipe.data, "test")
    record = {"normalize": Normalize.fit(data).to_dict(), "classes": list(data.classes), "in_shape": [1, 8, 8]}
    save_recipe(folder, recipe)
    save_model(folder, build_model(recipe), record)
    return folder


def test_the_command_writes_picture_and_figures(run, capsys) -> None:
    capsys.readouterr()
    assert main(["interpolate", str(run), "--steps", "3"]) == 0
    assert "Both ends come back" in capsys.readouterr().out
    assert (run / "interpolation.png").stat().st_size > 1000
    found = Interpolation.load(run / "interpolation.json")
    assert (len(found.lines), len(found.lines[0].steps)) == (4, 3)
    assert found.decoded(0)[0].min() >= -1e-6  # pixels from black to white


def test_the_command_takes_pictures(run, tmp_path, capsys) -> None:
    from PIL import Image

    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, path in enumerate(paths):
        Image.new("L", (20, 20), 100 * i).save(path)
    assert main(["interpolate", str(run), "--images", *paths, "-o", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.json").is_file()
    assert main(["interpolate", str(run), "--images", paths[0]]) == 2
    assert "takes pairs" in capsys.readouterr().err
    assert main(["interpolate", str(run), "--images", *paths, "-o", paths[0]]) == 2
    assert main(["interpolate", str(run), "-o", "out.txt"]) == 2
