"""What every model promises, whatever its paper."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from invertible.errors import DtypeError, NonFiniteError, ShapeError
from invertible.models import irevnet, resnet, revnet

IN_SHAPE, N_CLASSES = (3, 16, 12), 5
STAGES = {"n_blocks": (2, 2), "strides": (1, 2)}
CASES = {
    "irevnet-bijective": lambda: irevnet(IN_SHAPE, N_CLASSES, (1, 2), (1, 2), None, init_squeeze=2),
    "irevnet-injective": lambda: irevnet(IN_SHAPE, N_CLASSES, (2, 2), (1, 2), (2, 8), (4, 4)),
    "resnet-basic": lambda: resnet(IN_SHAPE, N_CLASSES, channels=(8, 12), **STAGES),
    "resnet-imagenet": lambda: resnet(IN_SHAPE, N_CLASSES, channels=(4, 8), block="bottleneck", stem="imagenet",
                                      shortcut="projection", **STAGES),
    "resnet-preact": lambda: resnet(IN_SHAPE, N_CLASSES, channels=(4, 8), block="preact-bottleneck", **STAGES),
    "resnet-relu-bn": lambda: resnet(IN_SHAPE, N_CLASSES, channels=(4, 8), block="preact-basic", order="relu-bn",
                                     initial="fan_in", **STAGES),
    "revnet-basic": lambda: revnet(IN_SHAPE, N_CLASSES, channels=(8, 12), **STAGES),
    "revnet-bottleneck": lambda: revnet(IN_SHAPE, N_CLASSES, channels=(4, 8), block="bottleneck", **STAGES),
}  # fmt: skip


@pytest.fixture(params=CASES, ids=list(CASES))
def model(request):
    torch.manual_seed(0)
    net = CASES[request.param]()
    with torch.no_grad():
        net(torch.randn(16, *IN_SHAPE))  # so that BatchNorm has statistics
    return net


def batch(n=4, seed=1):
    return torch.randn(n, *IN_SHAPE, generator=torch.Generator().manual_seed(seed))


def test_logits_have_one_column_per_class(model):
    assert model.eval()(batch()).shape == (4, N_CLASSES)


def test_gradients_reach_every_parameter(model):
    model.train()(batch(8)).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_in_eval_mode_images_do_not_influence_each_other(model):
    x = batch()
    torch.testing.assert_close(model.eval()(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-5)


def test_eval_changes_no_buffer_and_training_updates_batchnorm(model):
    def buffers():
        return {name: b.clone() for name, b in model.named_buffers() if "running" in name}

    before = buffers()
    model.eval()(batch())
    assert all(torch.equal(before[name], b) for name, b in buffers().items())
    model.train()(batch())
    assert all(not torch.equal(before[name], b) for name, b in buffers().items())


def test_state_dict_survives_safetensors(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        torch.nn.init.zeros_(p)
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(model.eval()(batch()), twin.eval()(batch()))


def test_deepcopy_shares_nothing(model):
    twin, x = copy.deepcopy(model.eval()), batch()
    before = model(x)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)


def test_export_computes_the_same(model):
    program = torch.export.export(model.eval(), (batch(),))
    torch.testing.assert_close(program.module()(batch(seed=2)), model(batch(seed=2)), atol=1e-5, rtol=1e-5)


def test_double_precision_all_through(model):
    out = model.double().eval()(batch().double())
    assert out.dtype == torch.float64


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.zeros(2, 4, 16, 12), ShapeError, "shape \\(batch, 3, 16, 12\\)"),
        (torch.zeros(3, 16, 12), ShapeError, "unsqueeze"),
        (torch.zeros(2, 16, 12, 3), ShapeError, "permute"),
        (torch.zeros(2, 3, 12, 16), ShapeError, "in_shape"),
        (torch.zeros(2, 3, 16, 12, dtype=torch.uint8), DtypeError, "float"),
        (torch.zeros(2, 3, 16, 12, dtype=torch.float64), DtypeError, "float32"),
        ([[0.0]], DtypeError, "Tensor"),
        (torch.full((2, 3, 16, 12), float("nan")), NonFiniteError, "1152 NaN or infinite of 1152"),
    ],
    ids=["channels", "no batch", "HWC", "transposed", "uint8", "float64", "list", "NaN"],
)
@pytest.mark.usefixtures("unchecked")
def test_unfit_input_is_refused_with_a_hint(model, x, error, says):
    with pytest.raises(error, match=says):
        model.eval()(x)


def test_one_bad_pixel_is_found_in_training_too(model):
    x = batch()
    x[2, 1, 3, 5] = float("inf")
    with pytest.raises(NonFiniteError, match="\\(2, 1, 3, 5\\)"):
        model.train()(x)
