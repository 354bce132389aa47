"""Models by name."""

import pytest
import torch

from invertible import models
from invertible.errors import ConfigError
from invertible.models import build, names

DENSITIES = ("iresnet_density", "iresnet_table", "iresnet_2d", "residual_flow")  # these take no context
CLASSIFIERS = (
    *("glow_classifier", "hybrid_", "iresnet", "irevnet", "mlp", "nf_", "preact_", "resnet", "revnet"),
    *("small_alexnet", "small_inception"),
)
FLOWS = ("ffjord", "glow", "nice", "realnvp", "spline_flow")


def kind(name: str) -> str:
    kinds = {"density": DENSITIES, "classifier": CLASSIFIERS, "flow": FLOWS}
    return next((kind for kind, starts in kinds.items() if name.startswith(starts)), "")


def test_every_public_constructor_is_registered():
    public = {name for name in models.__all__ if kind(name)}
    assert set(names()) == public


@pytest.mark.parametrize("name", [name for name in names() if kind(name) == "flow"])
def test_every_flow_builds_by_name_and_conditional_on_labels(name):
    with torch.device("meta"):
        assert not build(name).takes_context
        assert build(name, n_classes=7).takes_context


@pytest.mark.parametrize("name", [name for name in names() if kind(name) == "classifier"])
def test_every_classifier_builds_with_another_number_of_classes(name):
    with torch.device("meta"):
        net = build(name, n_classes=7)
    assert next(m for m in reversed(list(net.modules())) if isinstance(m, torch.nn.Linear)).out_features == 7


def test_arguments_reach_the_constructor():
    torch.manual_seed(0)
    ours = build("revnet", in_shape=[1, 8, 8], n_blocks=[2, 1], channels=[4, 8], strides=[1, 2], block="bottleneck")
    torch.manual_seed(0)
    theirs = models.revnet((1, 8, 8), 10, (2, 1), (4, 8), (1, 2), "bottleneck")
    assert str(ours) == str(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": None, "init_squeeze": 2},
        {"dropout": 0},
        {"dropout": 0.25},
        {"in_shape": [3, 32, 32]},
        {"hidden": [4, 16, 64]},
    ],
)
def test_yaml_values_fit(arguments):
    with torch.device("meta"):
        assert build("irevnet", **arguments).in_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("got", "nearest"),
    [
        ("irevnet-b", "'irevnet_b'"),
        ("iRevNet", "'irevnet'"),
        ("resnet-18", "'resnet18'"),
        ("revnet_104", "'revnet104'"),
        ("irevnet_fashion", "'irevnet_fashion_mnist'"),
    ],
)
def test_unknown_name_suggests_the_nearest_and_lists_all(got, nearest):
    with pytest.raises(ConfigError) as error:
        build(got)
    assert error.value.hint == nearest
    assert all(name in str(error.value) for name in names())


def test_name_like_nothing_gets_no_suggestion():
    with pytest.raises(ConfigError) as error:
        build("§§§")
    assert error.value.hint == ""


def test_misspelt_argument_suggests_the_nearest_and_lists_all():
    with pytest.raises(ConfigError, match=r"no argument 'n_block'.*in_shape, n_classes.*Try: 'n_blocks'"):
        build("irevnet", n_block=[1])
    with pytest.raises(ConfigError, match=r"expected n_classes, got 'in_shape'"):
        build("resnet18", in_shape=[3, 32, 32])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n_classes": "ten"}, r"n_classes: int, got 'ten'"),
        ({"n_classes": 10.0}, r"n_classes: int, got 10.0"),
        ({"n_classes": True}, r"n_classes: int, got True"),
        ({"n_classes": None}, r"n_classes: int, got None"),
        ({"in_shape": [3, 32]}, r"in_shape: tuple\[int, int, int\]"),
        ({"in_shape": "3x32x32"}, r"in_shape: tuple\[int, int, int\]"),
        ({"n_blocks": 18}, r"n_blocks: .*Sequence\[int\], got 18"),
        ({"n_blocks": [18, "18", 18]}, r"n_blocks"),
        ({"channels": [16, 64, 25.6]}, r"channels: .*None"),
        ({"dropout": "0.1"}, r"dropout: float"),
        ({"dropout": True}, r"dropout: float"),
    ],
)
def test_value_of_the_wrong_type_names_the_argument_and_its_type(arguments, says):
    with pytest.raises(ConfigError, match=says):
        build("irevnet", **arguments)


def test_value_that_is_no_choice_lists_the_choices():
    with pytest.raises(ConfigError, match=r"block: .*'basic', 'bottleneck'.*got 'wide'"):
        build("resnet", block="wide")


def test_constructor_still_checks_what_types_cannot_say():
    with pytest.raises(ConfigError, match="one entry per stage"):
        build("irevnet", n_blocks=[1])
