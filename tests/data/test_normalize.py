import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invertible.data import ImageSet, Normalize, load
from invertible.errors import ConfigError, DtypeError, ShapeError

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)


def constant_set(*values):
    images = torch.tensor(values, dtype=torch.uint8).view(len(values), 1, 1, 1).expand(-1, 2, 4, 4).contiguous()
    return ImageSet(images, torch.zeros(len(values), dtype=torch.int64), ("a",), "constant")


def test_call_is_the_formula():
    normalize = Normalize((0.5, 0.25), (0.25, 0.5))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 2, 3, 3)
    x = normalize(pixels)
    assert x.dtype == torch.float32
    assert x[:, :, 0, 0].tolist() == [[-2.0, -0.5], [2.0, 1.5]]


def test_call_does_not_change_float_input():
    pixels = torch.full((1, 1, 2, 2), 100.0)
    Normalize((0.5,), (0.5,))(pixels)
    assert pixels.unique().tolist() == [100.0]


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.0, 1.0), (0.5, 0.5), (0.4914, 0.2471), (0.1307, 0.3081), (1.0, 1e-6), (0.3, 1 / 255), (0.5, 1e3)],
)
def test_round_trip_is_exact_for_every_8_bit_value(mean, std):
    normalize = Normalize((mean,), (std,))
    assert torch.equal(normalize.to_uint8(normalize(EVERY_VALUE)), EVERY_VALUE)


@given(st.floats(0, 1), st.floats(1e-6, 1e3), st.integers(1, 255))
def test_round_trip_is_exact_for_any_mean_and_std(mean, std, max_value):
    normalize = Normalize((mean,), (std,), max_value)
    pixels = EVERY_VALUE[: max_value + 1]
    assert torch.equal(normalize.to_uint8(normalize(pixels)), pixels)


def test_inverse_gives_pixel_range_and_keeps_the_dtype():
    normalize = Normalize((0.25,), (0.5,), max_value=16)
    x = normalize(torch.tensor([0, 8, 16], dtype=torch.uint8).view(3, 1, 1, 1))
    assert normalize.inverse(x).flatten().tolist() == [0.0, 0.5, 1.0]
    assert normalize.inverse(x.double()).dtype == torch.float64


def test_to_uint8_clips():
    x = torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1)
    assert Normalize((0.5,), (0.5,)).to_uint8(x).flatten().tolist() == [0, 255]


def test_fit_is_the_float64_mean_and_std():
    data = load("digits")
    pixels = data.images.double() / 16
    fitted = Normalize.fit(data)
    mean = math.fsum(pixels.flatten().tolist()) / pixels.numel()
    variance = math.fsum((value - mean) ** 2 for value in pixels.flatten().tolist()) / pixels.numel()
    assert fitted.mean[0] == pytest.approx(mean, abs=1e-15)
    assert fitted.std[0] == pytest.approx(math.sqrt(variance), abs=1e-15)
    x = fitted(data.images)
    assert abs(x.mean().item()) < 1e-6
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_fit_works_per_channel():
    images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    images[:, 1], images[1, 2] = 255, 255
    fitted = Normalize.fit(ImageSet(images, torch.zeros(2, dtype=torch.int64), ("a",), "three"))
    assert fitted.mean == (0.0, 1.0, 0.5)
    assert fitted.std == (1 / 255, 1 / 255, 0.5)


def test_a_constant_channel_gets_one_grey_level():
    fitted = Normalize.fit(constant_set(7, 7))
    assert fitted.std == (1 / 255, 1 / 255)
    assert fitted(constant_set(7).images).abs().max() < 1e-5


def test_lists_and_whole_numbers_are_accepted(unchecked):
    assert Normalize([0], [1]) == Normalize((0.0,), (1.0,))
    assert Normalize([0], [1])(EVERY_VALUE).shape == EVERY_VALUE.shape


def test_json_round_trip():
    normalize = Normalize.fit(load("digits"))
    assert Normalize.from_dict(json.loads(json.dumps(normalize.to_dict()))) == normalize


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((0.5,), (0.5, 0.5)), "expected one of each per channel, got 1 and 2"),
        (((), ()), "got 0 and 0"),
        (((127.5,), (0.5,)), "bad mean: expected 0 to 1"),
        (((float("nan"),), (0.5,)), "bad mean"),
        (((0.5,), (0.0,)), "bad std: expected positive numbers"),
        (((0.5,), (float("inf"),)), "bad std"),
        (((0.5,), (0.5,), 256), "bad max_value: expected 1 to 255"),
    ],
)
def test_construction_states_what_is_wrong(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Normalize(*arguments)


def test_wrong_channels_dtype_and_keys():
    normalize = Normalize((0.5,), (0.5,))
    with pytest.raises(ShapeError, match=r"expected \(batch, 1, height, width\), got \(2, 3, 4, 4\)"):
        normalize(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(DtypeError, match=r"expected floating point, got torch\.uint8"):
        normalize.inverse(EVERY_VALUE)
    with pytest.raises(ConfigError, match="expected mean, std, max_value"):
        Normalize.from_dict({"mean": [0.5]})
