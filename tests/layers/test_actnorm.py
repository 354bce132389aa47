"""ActNorm: what the first batch does, when it does not, and where the flag goes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cases import affine_conv
from invertible import Chain, Inverse
from invertible.errors import ConfigError, DtypeError, NonFiniteError, ShapeError
from invertible.layers import ActNorm, AffineCoupling
from two_processes import run_two


def moments(y: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    rows = y.detach().movedim(dim, 0).flatten(1)
    return rows.mean(1), rows.std(1, correction=0)


def data(*shape: int, dim: int = 1) -> Tensor:
    scale = torch.tensor([1.0, 30.0, 1e-3], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - dim - 1))
    return torch.randn(shape, dtype=torch.float64) * scale + 100 * scale


@pytest.mark.parametrize(
    ("shape", "dim"), [((40, 3), 1), ((20, 3, 5), 1), ((9, 3, 4, 4), 1), ((5, 3, 2, 2, 2), 1), ((9, 4, 3), 2)]
)
def test_first_batch_is_normalised(shape: tuple[int, ...], dim: int) -> None:
    layer, x = ActNorm(3, dim).double(), data(*shape, dim=dim)
    y, logdet = layer.forward_with_logdet(x)
    mean, std = moments(y, dim)
    torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, torch.ones(3).double(), rtol=1e-12, atol=0)
    positions = x[0].numel() // 3
    torch.testing.assert_close(logdet[0], -positions * moments(x, dim)[1].log().sum())
    assert layer.is_initialised
    assert layer.initialised


def test_later_batches_change_nothing() -> None:
    layer = ActNorm(3).double()
    layer(data(40, 3))
    before = copy.deepcopy(layer.state_dict())
    mean, _ = moments(layer(5 * data(40, 3)))
    assert mean.abs().min() > 10
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_by_hand() -> None:
    layer = ActNorm(2)
    y = layer(torch.tensor([[0.0, 10.0], [4.0, 30.0]]))
    torch.testing.assert_close(y, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(layer.shift.detach(), torch.tensor([-2.0, -20.0]))
    torch.testing.assert_close(layer.log_scale.detach(), -torch.tensor([2.0, 10.0]).log())


def test_it_is_the_identity_before_in_eval_mode_and_from_the_inverse() -> None:
    layer, x = ActNorm(3).double(), data(9, 3)
    assert torch.equal(layer.inverse(x), x)
    assert torch.equal(Inverse(layer)(x), x)
    assert torch.equal(layer.eval()(x), x)
    assert not layer.is_initialised
    assert not layer.initialised
    layer.train()(x)
    assert layer.is_initialised


def test_a_batch_of_nothing_does_not_count() -> None:
    layer = ActNorm(3)
    assert layer(torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    assert layer(torch.zeros(4, 3, 0)).shape == (4, 3, 0)
    assert not layer.is_initialised


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_channels_keep_scale_1(value: float, dtype: torch.dtype) -> None:
    x = torch.randn(11, 2, 7, dtype=dtype)
    x[:, 1] = value
    layer = ActNorm(2).to(dtype)
    with pytest.warns(UserWarning, match="1 of the 2 channels of an ActNorm are constant"):
        y, logdet = layer.forward_with_logdet(x)
    assert layer.log_scale[1] == 0
    assert y[:, 1].abs().max() <= abs(value) * torch.finfo(dtype).eps
    assert logdet.isfinite().all()


def test_one_point_is_centred() -> None:
    with pytest.warns(UserWarning, match="begin with a full, typical batch"):
        assert ActNorm(2)(torch.tensor([[3.0, -4.0]])).tolist() == [[0.0, 0.0]]


def test_hard_but_varying_channels_stay_finite() -> None:
    x = torch.randn(50, 3)
    x[:, 0] *= 1e-20
    x[:, 1] *= 1e18
    x[7, 2] = 1e6
    layer = ActNorm(3)
    y, logdet = layer.forward_with_logdet(x)
    (y.square().sum() - logdet.sum()).backward()
    assert y.isfinite().all()
    torch.testing.assert_close(moments(y)[1], torch.ones(3), rtol=1e-4, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_values_name_the_channel_and_set_nothing(bad: float) -> None:
    x = torch.randn(5, 4)
    x[3, 2] = bad
    layer = ActNorm(4)
    with pytest.raises(NonFiniteError, match=r"ActNorm\(4\).* 1 of its channels, the first is channel 2"):
        layer(x)
    assert not layer.is_initialised
    assert not layer.shift.any()


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="needs channels"):
        ActNorm(0)
    with pytest.raises(ShapeError, match="size 3 in dimension 1"):
        ActNorm(3)(torch.zeros(5, 4))
    with pytest.raises(ShapeError, match="size 3 in dimension 1"):
        ActNorm(3).initialise(torch.zeros(5, 4))
    with pytest.raises(DtypeError, match="another dtype"):
        ActNorm(3)(torch.zeros(5, 3, dtype=torch.float64))


# --- the flag ---


def test_flag_is_saved_and_loaded_both_ways(tmp_path: Path) -> None:
    used, fresh, x = nn.Sequential(ActNorm(3)).double(), nn.Sequential(ActNorm(3)).double(), data(9, 3)
    untouched = copy.deepcopy(fresh.state_dict())
    used(x)
    save_file(used.state_dict(), tmp_path / "weights.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert fresh[0].is_initialised is True
    assert torch.equal(fresh(2 * x), used(2 * x))  # a first batch would have changed it
    fresh.load_state_dict(untouched)
    assert fresh[0].is_initialised is False
    fresh(2 * x)
    assert fresh[0].is_initialised is True


def test_flag_survives_copies_conversions_and_pickling(tmp_path: Path) -> None:
    layer = ActNorm(3).double()
    layer(data(9, 3))
    torch.save(layer, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    for twin in (copy.deepcopy(layer), copy.deepcopy(layer).float(), loaded):
        assert twin.is_initialised is True
        assert twin.initialised.item() is True
        assert twin.initialised.dtype == torch.bool
    twin = copy.deepcopy(ActNorm(3))
    twin(torch.randn(9, 3))
    assert twin.is_initialised


def test_twins_load_for_themselves() -> None:
    """The hook that mirrors the flag must not belong to the module it was copied from."""
    original = ActNorm(2)
    twin, state = copy.deepcopy(original), ActNorm(2).state_dict()
    state["initialised"].fill_(True)
    twin.load_state_dict(state)
    assert twin.is_initialised
    assert not original.is_initialised


# --- inside other things ---


@pytest.mark.parametrize("memory", ["store", "checkpoint", "reconstruct"])
def test_first_step_of_a_chain_has_the_gradients_of_stored_activations(memory: str) -> None:
    """Every layer is set from what the layers before make of the batch, once, before anything is saved."""

    def step(memory: str) -> list[Tensor]:
        torch.manual_seed(0)
        members = [m for _ in range(2) for m in (ActNorm(4), affine_conv(2, 2))]
        chain = Chain(*members, memory=memory).double()
        x = 3 * torch.randn(6, 4, 2, 2, dtype=torch.float64) + 1
        y, logdet = chain.forward_with_logdet(x)
        (y.square().sum() / 2 - logdet.sum()).backward()
        assert all(m.is_initialised for m in chain)
        return [y, logdet, *(p.grad for p in chain.parameters() if p.grad is not None)]

    found, expected = step(memory), step("store")
    assert len(found) == len(expected) == 2 + 2 * 6
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_inside_the_network_of_a_coupling() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), ActNorm(3), nn.ReLU(), nn.Conv2d(3, 4, 1))
    chain = Chain(AffineCoupling(network), memory="reconstruct")
    x = torch.randn(5, 4, 3, 3)
    chain(x).sum().backward()
    assert network[1].is_initialised
    torch.testing.assert_close(moments(network[:2](x[:, :2]))[1], torch.ones(3), rtol=1e-4, atol=0)


def test_where_values_cannot_be_looked_at_an_error_says_what_to_do() -> None:
    x = torch.randn(2, 5, 3)
    with pytest.raises(ConfigError, match="run one training batch first"):
        torch.func.vmap(ActNorm(3))(x)
    with pytest.raises(ConfigError, match="run one training batch first"):
        torch.func.grad(lambda z: ActNorm(3)(z).sum())(x[0])
    layer = ActNorm(3)
    stand_ins = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with pytest.raises(ConfigError, match="run one training batch first"):
        torch.func.functional_call(layer, stand_ins, x[0])
    assert not layer.is_initialised


@pytest.mark.usefixtures("unchecked")
def test_export_of_a_fresh_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="run one training batch first"):
        torch.export.export(ActNorm(3), (torch.randn(5, 3),), strict=False)


@pytest.mark.usefixtures("unchecked")
def test_a_fresh_one_compiles_with_a_graph_break() -> None:
    torch._dynamo.reset()
    layer, x = ActNorm(3), torch.randn(9, 3) + 5
    compiled = torch.compile(layer, backend="eager")
    with torch.no_grad():  # resuming after a graph break with gradients, PyTorch 2.13 warns
        torch.testing.assert_close(moments(compiled(x))[0], torch.zeros(3), rtol=0, atol=1e-6)
    assert layer.is_initialised
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(2 * x), layer(2 * x))


def test_on_the_meta_device_nothing_is_set() -> None:
    with torch.device("meta"):
        layer = ActNorm(3)
    assert layer(torch.zeros(5, 3, device="meta")).shape == (5, 3)
    assert not layer.is_initialised
    layer.to_empty(device="cpu").load_state_dict(ActNorm(3).state_dict())
    assert not layer.is_initialised


def test_under_autocast_the_stream_keeps_its_dtype() -> None:
    layer, x = ActNorm(3), torch.randn(50, 3, 2) * 7 + 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        back = layer.inverse(y)
        half = layer(x.bfloat16())
    assert y.dtype == back.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


def test_gradients_with_log_determinants() -> None:
    layer = ActNorm(2).double()
    layer(data(9, 3)[:, :2])
    x, rest = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True), tuple(layer.parameters())

    def both(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(("layer.shift", "layer.log_scale"), parameters, strict=True))
        return torch.func.functional_call(Both(layer), named, (x,))

    assert torch.autograd.gradcheck(both, (x, *rest))


class Both(nn.Module):
    def __init__(self, layer: ActNorm) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.layer.forward_with_logdet(x), *self.layer.inverse_with_logdet(x))


# --- processes ---

SCRIPT = """
import json
import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from invertible.layers import ActNorm
from two_processes import as_rank

def work(folder, rank):
    torch.manual_seed(0)
    x = torch.randn(7, 3, 2, dtype=torch.float64) * 5 + 1000
    parts = [x[:5], x[5:]]
    found = {}
    alone = DDP(ActNorm(3).double())
    found["image"] = alone(parts[rank])[0].tolist()
    found["state"] = {name: value.tolist() for name, value in alone.module.state_dict().items()}
    uneven = ActNorm(3).double()
    uneven(x if rank else x[:0])
    found["uneven"] = uneven.shift.tolist(), uneven.is_initialised
    try:
        ActNorm(3).double()(x if rank else x * float("nan"))
        found["error"] = "none"
    except Exception as error:
        found["error"] = type(error).__name__
    open(f"{folder}/rank{rank}.json", "w").write(json.dumps(found))

as_rank(work)
"""


def test_processes_agree_on_the_statistics_of_the_whole_batch(tmp_path: Path) -> None:
    done = run_two(SCRIPT, tmp_path)
    assert [code for code, _ in done] == [0, 0], done
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    torch.manual_seed(0)
    x = torch.randn(7, 3, 2, dtype=torch.float64) * 5 + 1000
    whole = ActNorm(3).double()
    y = whole(x)
    for rank, first in enumerate([y[0], y[5]]):
        torch.testing.assert_close(torch.tensor(found[rank]["image"]).double(), first, rtol=1e-6, atol=1e-6)
        state = found[rank]["state"]
        assert state["initialised"] is True
        assert state["log_scale"] == pytest.approx(whole.log_scale.tolist(), abs=1e-12)
        assert found[rank]["uneven"] == [pytest.approx(whole.shift.tolist(), abs=1e-9), True]
        assert found[rank]["error"] == "NonFiniteError"
