import pytest
import torch
from torch.nn import functional

from invertible.data import Cutout, RandomCrop, RandomFlip
from invertible.errors import ConfigError


def naive_crop(change, image, draw):
    row, column = draw.tolist()
    padded = functional.pad(image, (change.padding,) * 4)
    return padded[:, row : row + image.shape[1], column : column + image.shape[2]]


def naive_flip(change, image, draw):
    return image.flip(-1) if draw.item() else image


def naive_cutout(change, image, draw):
    result, half = image.clone(), change.size // 2
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            offsets = row - (int(draw[0]) - half), column - (int(draw[1]) - half)
            if all(0 <= offset < change.size for offset in offsets):
                result[:, row, column] = 0
    return result


CASES = [
    (RandomCrop(4), naive_crop),
    (RandomCrop(0), naive_crop),
    (RandomFlip(), naive_flip),
    (RandomFlip(0.0), naive_flip),
    (RandomFlip(1.0), naive_flip),
    (Cutout(3), naive_cutout),
    (Cutout(20), naive_cutout),
]


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("change", "naive"), CASES)
def test_equals_a_loop_over_the_images(change, naive, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (40, *shape), generator=generator).to(dtype)
    before = images.clone()
    draws = change.draw(40, shape, generator)
    expected = torch.stack([naive(change, image, draw) for image, draw in zip(images, draws, strict=True)])
    result = change.apply(images, draws)
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    assert torch.equal(images, before)


def test_draws_cover_their_range_evenly():
    generator = torch.Generator().manual_seed(0)
    corners = RandomCrop(2).draw(5000, (1, 8, 8), generator)
    assert all(count > 800 for axis in corners.unbind(1) for count in axis.bincount(minlength=5).tolist())
    assert abs(RandomFlip(0.3).draw(5000, (1, 8, 8), generator).double().mean() - 0.3) < 0.03
    centres = Cutout(2).draw(5000, (1, 4, 2), generator)
    assert centres.amax(0).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomCrop(-1), "bad padding: expected at least 0, got -1"),
        (lambda: RandomFlip(1.5), "bad probability: expected 0 to 1, got 1.5"),
        (lambda: Cutout(0), "bad size: expected at least 1, got 0"),
    ],
)
def test_construction_states_what_is_wrong(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
