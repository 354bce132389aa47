"""Loss slices against quadratics in closed form, and to the bit against the networks they go through."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, NonFiniteError
from invertible.instruments import LossSlice, WeightPath, loss_slice
from invertible.instruments._batch import Batch
from invertible.instruments._loss_on_data import LossOnData
from invertible.instruments._slice_directions import normalised


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)
    )
    made(torch.randn(50, 1, 4, 4))
    return made


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 4


def own_loss(model: nn.Module) -> float:
    x, y = data()
    with torch.no_grad():
        return nn.functional.cross_entropy(copy.deepcopy(model).eval()(x), y).item()


def square(output: Tensor, y: object) -> Tensor:
    return output.square().mean()


def linear(*weights: float) -> nn.Linear:
    made = nn.Linear(len(weights), 1, bias=False).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor([weights]))
    return made


@pytest.mark.parametrize("options", [{}, {"n_dims": 2, "n_points": 4}, {"along": "eigenvectors", "n_slices": 3}])
def test_the_centre_is_the_networks_loss_to_the_bit(options) -> None:
    model = net()
    found = loss_slice(model, data(), **options)
    assert found.loss == own_loss(model)
    for one in found.slices:
        zero = (0.0,) * len(one.axes)
        assert dict(zip(one.points, one.losses, strict=True))[zero] == found.loss
        others = [loss for at, loss in zip(one.points, one.losses, strict=True) if at != zero]
        assert len(set(others)) > len(others) // 2


def test_every_point_is_the_loss_of_the_network_that_lies_there() -> None:
    model, direction = net(), {"0.weight": torch.randn(3, 1, 3, 3), "5.bias": torch.ones(4)}
    for at_once in (1, 5, None):
        found = loss_slice(model, data(), directions=[direction], n_points=7, at_once=at_once).slices[0]
        for (x,), loss in zip(found.points, found.losses, strict=True):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                moved[0].weight += x * direction["0.weight"]
                moved[5].bias += x * direction["5.bias"]
            assert loss == pytest.approx(own_loss(moved), rel=1e-5)


def test_a_plane_of_a_quadratic_in_closed_form() -> None:
    model, x = linear(1.0, 2.0), torch.eye(2, dtype=torch.float64)  # L = (w1^2 + w2^2) / 2
    directions = [{"weight": torch.tensor([[1.0, 0.0]])}, {"weight": torch.tensor([[0.0, 3.0]])}]
    found = loss_slice(model, x, loss=square, directions=directions, n_dims=2, n_points=5, span=2.0)
    (one,) = found.slices
    for (a, b), loss in zip(one.points, one.losses, strict=True):
        assert loss == pytest.approx(((1 + a) ** 2 + (2 + 3 * b) ** 2) / 2, abs=1e-12)
    assert one.grid[0][1] == pytest.approx(((1 - 1) ** 2 + (2 - 6) ** 2) / 2)  # second axis: rows
    assert [axis.length for axis in one.axes] == [1.0, 3.0]
    assert any("not the lowest" in finding.sentence for finding in found.findings)


def test_eigenvectors_bend_as_their_eigenvalues_say() -> None:
    model, x = linear(0.5, 0.25, 1.0), torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()
    found = loss_slice(model, x, loss=square, along="eigenvectors", n_slices=3, n_points=5, span=1.0)
    for one, value in zip(found.slices, (6.0, 8 / 3, 2 / 3), strict=True):  # 2/3 x^2
        low, middle, high = one.losses[0], one.losses[2], one.losses[4]
        assert low - 2 * middle + high == pytest.approx(value)
        assert f"{value:.3g}" in one.name
    default = loss_slice(model, x, loss=square, along="eigenvectors", n_slices=1)
    first = default.slices[0]
    assert (first.losses[0] + first.losses[-1]) / 2 - default.loss == pytest.approx(4.0)


def test_between_networks_buffers_move_and_both_ends_are_exact() -> None:
    a, b = net(0), net(1)
    found = loss_slice(a, data(), to=b, n_points=9)
    (one,) = found.slices
    losses = dict(zip(one.axes[0].at, one.losses, strict=True))
    assert losses[0.0] == own_loss(a)
    assert losses[1.0] == own_loss(b) == one.marks[0].loss
    half = copy.deepcopy(a)
    with torch.no_grad():
        for mine, other in zip([*half.parameters(), *half.buffers()], [*b.parameters(), *b.buffers()], strict=True):
            if mine.is_floating_point():
                mine.lerp_(other, 0.5)
    assert losses[0.5] == pytest.approx(own_loss(half), rel=1e-5)
    line = [y - (1 - x) * losses[0.0] - x * losses[1.0] for x, y in losses.items() if 0 <= x <= 1]
    assert found.barrier == pytest.approx(max(line))
    assert min(losses) < 0 < 1 < max(losses)


def test_the_plane_through_three_networks() -> None:
    a, others = net(0), [net(1), net(2)]
    (one,) = loss_slice(a, data(), to=others, n_points=6).slices
    losses = dict(zip(one.points, one.losses, strict=True))
    assert [losses[0.0, 0.0], losses[1.0, 0.0], losses[0.0, 1.0]] == [own_loss(model) for model in (a, *others)]
    with pytest.raises(ConfigError, match=r"the same parameters"):
        loss_slice(a, data(), to=copy.deepcopy(a))
    with pytest.raises(ConfigError, match=r"do not fit the network at"):
        loss_slice(a, data(), to=nn.Linear(2, 2))


def test_a_path_is_seen_in_its_principal_components() -> None:
    model = linear(0.0, 0.0, 0.0)
    places = [(4.0, 0.0, 0.0), (2.0, 1.0, 0.0), (1.0, -1.0, 0.0)]
    states = [linear(*place).state_dict() for place in places]
    x = torch.eye(3, dtype=torch.float64)
    found = loss_slice(model, x, loss=square, path=states, n_points=5)
    (one,) = found.slices
    exact = torch.linalg.svdvals(torch.tensor(places)).square()
    assert one.shares == pytest.approx((exact[:2] / exact.sum()).tolist())
    for mark, place in zip(one.marks, places, strict=True):
        assert math.hypot(*mark.at) == pytest.approx(math.hypot(*place))  # the plane holds the whole path
        assert mark.loss == pytest.approx(sum(w * w for w in place) / 3)
        assert all(a.at[0] <= m <= a.at[-1] for a, m in zip(one.axes, mark.at, strict=True))
    for at, loss in zip(one.points, one.losses, strict=True):
        assert loss == pytest.approx(sum(c * c for c in at) / 3, abs=1e-12)  # unit axes
    with pytest.raises(ConfigError, match=r"does not span"):
        loss_slice(model, x, loss=square, path=states[:1])
    assert len(loss_slice(model, x, loss=square, path=states[:1], n_dims=1).slices[0].axes) == 1


def test_the_recorder_keeps_copies() -> None:
    model = net()
    path = WeightPath(model, every=2)
    for _ in range(5):
        path.record()
        with torch.no_grad():
            model[0].weight += 1
    assert len(path) == 3
    torch.testing.assert_close(path.states[1]["0.weight"], path.states[0]["0.weight"] + 2)
    found = loss_slice(model, data(), path=path, n_dims=1, n_points=5)
    assert len(found.slices[0].marks) == 3
    with pytest.raises(ConfigError, match="every >= 1"):
        WeightPath(model, every=0)


def test_filter_normalisation_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.LayerNorm([2, 2]),
        nn.Linear(4, 3), nn.PReLU(3),
    )  # fmt: skip
    view = LossOnData(model, [Batch((torch.zeros(1),))])
    d = view.unflatten(normalised(view, torch.randn(view.n), "filter"))
    w = dict(model.named_parameters())
    assert {name for name, part in d.items() if not part.any()} == {
        "0.bias", "1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.bias", "5.weight"
    }  # fmt: skip
    for name in ("0.weight", "4.weight"):
        torch.testing.assert_close(d[name].flatten(1).norm(dim=1), w[name].detach().flatten(1).norm(dim=1))
    for group in range(2):
        for channel in range(3):
            rows = slice(2 * group, 2 * group + 2)
            torch.testing.assert_close(
                d["2.weight"][rows, channel].norm(), w["2.weight"][rows, channel].norm().detach()
            )
    whole = normalised(view, torch.randn(view.n), "none")
    torch.testing.assert_close(whole.norm(), view.theta.norm())
    layer = view.unflatten(normalised(view, torch.randn(view.n), "layer"))
    torch.testing.assert_close(layer["0.weight"].norm(), w["0.weight"].norm().detach())


def test_rescaling_a_network_does_not_change_its_picture() -> None:
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False)).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= 8
        other[2].weight /= 8
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 4
    first, second = (loss_slice(m, (x, y), n_slices=2, n_points=5) for m in (model, other))
    for one, two in zip(first.slices, second.slices, strict=True):
        assert two.losses == pytest.approx(one.losses, rel=1e-9)
    unscaled = [
        loss_slice(m, (x, y), n_slices=1, n_points=5, normalise="none").slices[0].losses for m in (model, other)
    ]
    assert unscaled[0] != pytest.approx(unscaled[1], rel=1e-3)


def test_what_vmap_does_not_know_goes_one_by_one_and_is_said() -> None:
    def looks(output: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, y) * (1 if output.sum().item() < 1e9 else 2)

    model = net()
    found = loss_slice(model, data(), loss=looks, n_points=5, n_slices=2)
    assert found.at_once == 1
    assert [f.severity for f in found.findings if "one by one" in f.sentence] == ["note"]
    plain = loss_slice(model, data(), n_points=5, n_slices=2)
    assert not [f for f in plain.findings if "one by one" in f.sentence]
    for one, two in zip(found.slices, plain.slices, strict=True):
        assert one.losses == pytest.approx(two.losses, rel=1e-5)


def test_error_rates_have_slices_too() -> None:
    def error(output: Tensor, y: Tensor) -> Tensor:
        return (output.argmax(1) != y).float().mean()

    found = loss_slice(net(), [data(5), data(7)], loss=error, n_slices=1, n_points=5)
    assert all(0 <= loss <= 1 for loss in found.slices[0].losses)


def test_infinite_points_are_gaps_and_time_is_kept() -> None:
    model, x = linear(1.0, 1.0), torch.ones(1, 2).double()
    found = loss_slice(model, x, loss=lambda z, y: z.mean().log(), directions=[{"weight": -2 * torch.ones(1, 2)}])
    assert [f.severity for f in found.findings if "not finite" in f.sentence] == ["warning"]
    found.plot()
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        loss_slice(linear(-1.0, 0.0), x, loss=lambda z, y: z.mean().log())
    short = loss_slice(net(), data(), seconds=1e-9, at_once=2)
    assert short.is_partial
    assert math.isnan(short.slices[-1].losses[-1])
    short.plot()


def test_options_are_checked() -> None:
    model = net()
    for options, match in (
        ({"n_dims": 3}, "one or two dimensions"),
        ({"to": [net(1), net(2)], "n_dims": 1}, "two for a plane"),
        ({"to": net(1), "path": []}, "models and path"),
        ({"path": []}, "path is empty"),
        ({"directions": []}, "no directions"),
        ({"directions": [{"7.weight": torch.ones(1)}]}, "7.weight"),
        ({"directions": [{"5.bias": torch.zeros(4)}]}, "must go somewhere"),
        ({"normalise": "max"}, "no such normalisation"),
        ({"n_points": 2}, "n_points=2"),
        ({"span": -1.0}, "bad span"),
    ):
        with pytest.raises(ConfigError, match=match):
            loss_slice(model, data(), **options)
    with pytest.raises(ConfigError, match="leaves nothing"):
        loss_slice(nn.BatchNorm1d(2), torch.randn(3, 2), loss=square)


def test_saved_shown_and_compared(tmp_path) -> None:
    model = net()
    for options in ({}, {"n_dims": 2, "n_points": 5}, {"to": net(1)}, {"to": [net(1), net(2)], "n_points": 5}):
        found = loss_slice(model, data(), **options)
        found.save(tmp_path / "s.json")
        assert LossSlice.load(tmp_path / "s.json") == found
        found.save_plot(tmp_path / "s.png")
        found.save_csv(tmp_path / "s.csv")
        assert len({tuple(row) for row in found.table}) == 1
    lines, planes = loss_slice(model, data(), n_points=5), loss_slice(model, data(), n_dims=2, n_points=5)
    lines.compare(loss_slice(net(1), data(), n_points=5), labels=["a", "b"])
    assert planes.plot_surface().name == "3d"
    with pytest.raises(ConfigError, match="needs a plane"):
        lines.plot_surface()
