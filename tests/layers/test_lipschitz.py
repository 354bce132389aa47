"""`constrain`, `lipschitz_bound` and `certificate`: what a user does with them."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parametrize

from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.layers import ActNorm, InjectivePad, LipSwish, MaxMin, Squeeze
from invertible.layers.lipschitz import (
    certificate,
    constrain,
    lipschitz_bound,
    promised_bound,
    register_lipschitz,
    unconstrain,
)


def conv_net(scale=4.0, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ELU(), nn.Conv2d(6, 6, 1), nn.ELU(),
                        nn.Conv2d(6, 2, 3, padding=1))  # fmt: skip
    for layer in net[::2]:
        layer.weight.data *= scale
    return constrain(net, 0.9, **options)


def raw(layer):
    return layer.parametrizations.weight.original


def true_norm(layer, shape):
    """Of the layer as it computes, to the bit, on images of this shape."""
    layer = copy.deepcopy(layer)
    layer.bias = None
    pixels = torch.eye(math.prod(shape), dtype=raw(layer).dtype).reshape(-1, *shape)
    with torch.no_grad():
        return torch.linalg.matrix_norm(layer(pixels).flatten(1).double(), 2).item()


SHAPES = [(6, 6), (9, 7), (1, 5)]


def train_hard(seed, bound, size=(6, 6), n_steps=30):
    """Pull at the constraint: make the output as long as possible, with a large learning rate."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ELU(), nn.Conv2d(5, 2, 3, padding=1, padding_mode="circular"))
    constrain(net, 0.7, bound)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(n_steps):
        x = torch.randn(4, 2, *size)
        optimizer.zero_grad()
        (-(net(x) - net(torch.zeros_like(x))).square().mean()).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("seed", [0, 1])
def test_after_aggressive_training_no_layer_exceeds_its_bound_at_any_size(seed):
    net, ratios = train_hard(seed, "certified"), []
    for size in SHAPES:
        for layer, channels in ((net[0], 2), (net[2], 5)):
            truth = true_norm(layer, (channels, *size))
            bound = layer.lipschitz_bound((channels, *size))
            assert truth <= bound <= 0.7
            assert truth <= layer.lipschitz_bound() <= 0.7
            ratios.append(bound / truth)
    assert torch.tensor(ratios).median() <= 1.05


def test_the_power_iteration_does_exceed_its_target_and_says_so():
    net = train_hard(0, "power", n_steps=20)
    found = certificate(net, (2, 6, 6))
    assert max(link.bound for link in found.links if link.promised) > 0.7
    assert not found.is_kept
    for layer, shape in ((net[0], (2, 6, 6)), (net[2], (5, 6, 6))):
        assert true_norm(layer.eval(), shape) <= layer.lipschitz_bound(shape)


def test_the_gradient_is_that_of_what_is_computed():
    net, x = nn.Sequential(*conv_net()[:3:2], nn.Tanh()).double(), torch.randn(1, 2, 3, 3).double()
    names = [name for name, _ in net.named_parameters()]
    run = lambda *values: functional_call(net, dict(zip(names, values, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(run, tuple(p.detach().requires_grad_() for p in net.parameters()), atol=1e-4)


def test_weights_within_the_target_are_left_alone():
    layer = nn.Linear(5, 5)
    layer.weight.data *= 0.1
    before = layer.weight.detach().clone()
    constrain(layer, 0.9)
    assert torch.equal(layer.weight, before)
    assert layer.lipschitz_bound() == pytest.approx(torch.linalg.matrix_norm(before, 2).item(), rel=1e-3)


def change_in_place(layer):
    with torch.no_grad():
        raw(layer).mul_(3)


def change_data(layer):
    raw(layer).data.mul_(3)


def change_by_assignment(layer):
    layer.weight = raw(layer).detach() * 3


def change_by_loading(layer):
    state = {name: 3 * value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)


@pytest.mark.parametrize("change", [change_in_place, change_data, change_by_assignment, change_by_loading])
def test_no_change_of_the_weight_is_missed(change):
    layer = constrain(nn.Conv2d(2, 3, 3, padding=1), 0.9)
    x = torch.randn(1, 2, 6, 6)
    layer(x)
    change(layer)
    assert true_norm(layer, (2, 6, 6)) <= 0.9
    fresh = constrain(nn.Conv2d(2, 3, 3, padding=1), 0.9)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))  # noqa: S301


def through_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("bound", ["certified", "power"])
def test_copies_compute_the_same_and_stay_constrained(copied, bound):
    net, x = conv_net(bound=bound), torch.randn(2, 2, 6, 6)
    net(x)
    net.eval()
    other = copied(net)
    assert torch.equal(other(x), net(x))
    assert other[0].lipschitz_bound() == net[0].lipschitz_bound()
    raw(other[0]).data.mul_(10)
    if bound == "certified":
        assert true_norm(other[0], (2, 6, 6)) <= 0.9
    assert not torch.equal(raw(other[0]), raw(net[0]))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_averaged_weights_are_constrained():
    net = conv_net()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        for p in net.parameters():
            p.data += torch.randn_like(p)
        average.update_parameters(net)
    for i, channels in ((0, 2), (2, 6), (4, 6)):
        assert true_norm(average.module[i], (channels, 6, 6)) <= 0.9


def test_a_size_has_its_own_weight_also_in_a_parametrization_cache():
    layer = constrain(conv_net()[0], 0.9)
    small, large = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 12, 12)
    alone = layer(small), layer(large)
    with parametrize.cached():
        assert all(torch.equal(layer(x), y) for x, y in zip((small, large, small), (*alone, alone[0]), strict=True))
    assert not torch.equal(alone[0], nn.functional.conv2d(small, layer.weight, layer.bias, padding=1))


def test_inference_mode_first_and_training_after():
    net, x = conv_net(), torch.randn(1, 2, 6, 6)
    with torch.inference_mode():
        before = net(x)
    after = net(x)
    after.sum().backward()
    assert torch.equal(before, after)
    assert all(p.grad is not None for p in net.parameters())


def test_under_torch_func():
    net, x = conv_net(), torch.randn(3, 2, 4, 4)
    jacobian = vmap(jacrev(lambda a: net(a[None])[0]))(x)
    assert torch.linalg.matrix_norm(jacobian.reshape(3, 32, 32), 2).max() <= 0.9**3
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    gradients = torch.func.grad(lambda p: functional_call(net, p, (x,)).sum())(parameters)
    net(x).sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad)
    stacked = {name: torch.stack([p, p]) for name, p in parameters.items()}
    with pytest.raises(ConfigError, match="one weight"):
        vmap(lambda p: functional_call(net, p, (x,)))(stacked)


def test_autocast_and_half_precision():
    net, x = conv_net(), torch.randn(2, 2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(x).float(), net(x), atol=0.05, rtol=0.05, check_dtype=False)
    half = conv_net().bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert true_norm(half[0], (2, 6, 6)) <= 0.9
    with torch.no_grad():
        effective = copy.deepcopy(half[0]).weight
    layer = nn.Conv2d(2, 6, 3, padding=1).double()
    layer.weight.data.copy_(effective)
    assert lipschitz_bound(layer) <= 0.9


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_it_computes_the_same():
    net, x = conv_net(), torch.randn(2, 2, 6, 6)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    raw(net[0]).data.mul_(3)
    torch.testing.assert_close(compiled(x), net(x))


def test_empty_batches_single_images_and_other_shapes():
    net = conv_net()
    assert net(torch.zeros(0, 2, 6, 6)).shape == (0, 2, 6, 6)
    assert torch.equal(net(torch.ones(2, 6, 6)), net(torch.ones(1, 2, 6, 6))[0])
    matrix = constrain(nn.Linear(3, 3), 0.5)
    assert matrix(torch.ones(2, 4, 3)).shape == (2, 4, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_weight_is_named(value):
    net = conv_net()
    raw(net[2]).data[0, 0] = value
    with pytest.raises(NonFiniteError, match="weight of a constrained layer"):
        net(torch.ones(1, 2, 6, 6))
    raw(net[2]).data[0, 0] = 1
    assert net(torch.ones(1, 2, 6, 6)).isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.LayerNorm(2), nn.GRU(2, 2)],
)
def test_what_cannot_be_bounded_is_refused(layer):
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(layer))
    with pytest.raises(ConfigError, match=rf"{type(layer).__name__} \(1.0\) has no Lipschitz bound"):
        constrain(net)
    assert not parametrize.is_parametrized(net[0])


@pytest.mark.parametrize("options", [{"c": 0}, {"c": math.nan}, {"bound": "power", "n_iterations": 0},
                                     {"norms": [2, 2]}, {"norms": [2, 0.5, 2]}, {"norms": [2, 3, 1]}])  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError):
        constrain(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), **options)
    with pytest.raises(ConfigError, match="nothing to constrain"):
        constrain(nn.Tanh())


def test_constraining_again_replaces_and_unconstraining_undoes():
    layer = nn.Linear(4, 4)
    before = copy.deepcopy(layer.state_dict())
    constrain(constrain(layer, 0.9), 0.2)
    assert layer.lipschitz_bound() <= 0.2
    assert len(layer.parametrizations.weight) == 1
    unconstrain(layer)
    assert type(layer) is nn.Linear
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_a_network_in_mixed_norms_contracts_in_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.ELU(), nn.Linear(20, 6))
    for layer in net[::2]:
        layer.weight.data *= 20
    constrain(net, 0.9, norms=[1, 3, 1])
    x = torch.randn(50, 2, 6)
    images = net(x)
    assert ((images[:, 0] - images[:, 1]).norm(1, -1) <= 0.81 * (x[:, 0] - x[:, 1]).norm(1, -1)).all()
    assert lipschitz_bound(net) <= 0.81
    with pytest.raises(ConfigError, match="different norms"):
        lipschitz_bound(nn.Sequential(net, nn.Linear(6, 6)))


ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(2.0), nn.PReLU(), nn.ELU(), nn.ELU(1.5), nn.CELU(0.5), nn.Tanh(), nn.Sigmoid(),
               nn.Softplus(), nn.Softplus(3.0), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.SELU(),
               nn.Hardswish(), nn.Hardtanh(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Hardsigmoid(),
               nn.Softshrink(), nn.ReLU6(), LipSwish(), LipSwish(3.0)]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_slopes_of_activations_are_bounded_and_reached(activation):
    activation = activation.double()
    x = torch.linspace(-12, 12, 200_001).double().requires_grad_()
    (slopes,) = torch.autograd.grad(activation(x).sum(), x)
    assert slopes.abs().max() <= lipschitz_bound(activation) * (1 + 1e-12)
    assert slopes.abs().max() >= lipschitz_bound(activation) * 0.999


def test_maxmin_sorts_pairs_and_keeps_the_rest():
    x = torch.randn(3, 5, 2)
    y = MaxMin()(x)
    assert torch.equal(y[:, 4], x[:, 4])
    assert (y[:, :2] >= y[:, 2:4]).all()
    assert torch.equal(y.sort(1).values, x.sort(1).values)
    with pytest.raises(ShapeError):
        MaxMin(2)(torch.ones(2, 2))


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1),
                                   Squeeze(2), nn.PixelUnshuffle(2), nn.Flatten()], ids=repr)  # fmt: skip
def test_other_layers(layer):
    x = torch.randn(1, 2, 6, 6).double()
    jacobian = torch.autograd.functional.jacobian(layer, x).reshape(-1, 72)
    assert torch.linalg.matrix_norm(jacobian, 2) <= lipschitz_bound(layer) * (1 + 1e-12)


def test_library_layers():
    actnorm = ActNorm(2)
    actnorm.log_scale.data = torch.tensor([0.5, -3.0])
    assert lipschitz_bound(actnorm) == pytest.approx(math.exp(0.5))
    assert lipschitz_bound(InjectivePad(2, 2)) == 1
    dropout = nn.Dropout(0.5)
    assert (lipschitz_bound(dropout), lipschitz_bound(dropout.eval())) == (2, 1)


def test_unknown_modules_are_not_guessed():
    class Odd(nn.ReLU):
        def forward(self, x):
            return 5 * x

    class Net(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    for module in (Odd(), Net(nn.ReLU()), nn.Softmax(1), nn.BatchNorm1d(2)):
        with pytest.raises(ConfigError, match="register_lipschitz"):
            lipschitz_bound(nn.Sequential(module))
    register_lipschitz(Odd)(lambda module, in_shape: 5.0)
    assert lipschitz_bound(Odd()) == 5


def test_a_certificate_is_a_chain_and_uses_the_size():
    net = nn.Sequential(
        Squeeze(2), nn.Sequential(), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(16, 3)
    )
    found = certificate(net, (1, 8, 8))
    assert [link.name for link in found.links] == ["0", "2", "3", "4"]
    assert found.bound <= lipschitz_bound(net)
    assert found.bound == pytest.approx(math.prod(link.bound for link in found.links))
    assert "product" in str(found)
    assert promised_bound(conv_net()) == pytest.approx(0.9**3)


def test_a_softplus_that_jumps_is_refused():
    with pytest.raises(ConfigError, match=r"jumps at its threshold.*threshold=0"):
        lipschitz_bound(nn.Softplus(1, 0))


def test_a_layer_without_a_weight_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"no weight yet.*LazyLinear.*Try: a forward pass"):
        constrain(nn.LazyLinear(3), 0.9)
