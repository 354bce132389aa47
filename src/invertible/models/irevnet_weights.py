"""The weights that the authors of i-RevNet released, into our network and back.

Their code (github.com/jhjacobsen/pytorch-i-revnet, models/iRevNet.py) and ours compute the same function, but
call things by other names: F of block i is `stack.{i}.bottleneck_block` there, the head `bn1` and `linear`.
Space-to-depth orders its channels in the same way ("offset"), so no tensor changes; `squeeze_permutation` is
for networks that were built with `torch.pixel_unshuffle` instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from invertible._checks import describe
from invertible.chain import Chain
from invertible.errors import CheckpointError, ConfigError
from invertible.models.classifier import Classifier, PoolingHead
from invertible.models.irevnet import IRevNetBlock

_HEAD = {"0": "bn1", "4": "linear"}
_CONVERT = (
    "checkpoint = torch.load(path, map_location='cpu', weights_only=True), if you trust the file, then"
    " safetensors.torch.save_file(checkpoint['state_dict'], 'weights.safetensors')"
)
_COUNTER = "num_batches_tracked"  # BatchNorm's; PyTorch has it since 0.4.1, after the release


def load_released_irevnet(model: Classifier, weights: Mapping[str, Tensor] | str | Path) -> Classifier:
    """Fill an i-RevNet with released weights. Nothing is changed if anything does not fit.

    A pickled file is never opened here. Convert it once, where you trust it:

        checkpoint = torch.load("model.pth.tar", map_location="cpu", weights_only=True)
        safetensors.torch.save_file(checkpoint["state_dict"], "model.safetensors")

    Args:
        model: From `irevnet(...)` with the released network's stages; `irevnet_b()` for the ImageNet file.
        weights: A state dict, with or without DataParallel's `module.` in its keys, or a .safetensors file.

    Returns:
        The model, whose weights and BatchNorm statistics are now the released ones, in its own dtype.

    Raises:
        CheckpointError: If a file is no safetensors file, or keys are missing, unexpected or mis-shaped.
        ConfigError: If the model is no i-RevNet.

    Source: Jacobsen et al. 2018, released code.

    Example:
        >>> from invertible.models import irevnet
        >>> net, twin = (irevnet((1, 8, 8), 10, (2,), (2,), (8,), init_squeeze=2).eval() for _ in range(2))
        >>> twin, x = load_released_irevnet(twin, to_released_layout(net)), torch.rand(2, 1, 8, 8)
        >>> torch.equal(net(x), twin(x))
        True
    """
    names = _released_names(model)
    state = _without_prefix(_read(weights) if isinstance(weights, str | Path) else weights)
    own = model.state_dict()
    _check_keys({theirs: own[ours] for ours, theirs in names.items()}, state)
    model.load_state_dict({ours: state.get(theirs, own[ours]) for ours, theirs in names.items()})
    return model


def to_released_layout(model: Classifier) -> dict[str, Tensor]:
    """The model's state dict under the released code's names.

    Args:
        model: An i-RevNet.

    Returns:
        The tensors, not copied; `safetensors.torch.save_file` writes them.

    Raises:
        ConfigError: If the model is no i-RevNet.

    Example:
        >>> from invertible.models import irevnet_digits
        >>> list(to_released_layout(irevnet_digits()))[0]
        'stack.0.bottleneck_block.0.weight'
    """
    state = model.state_dict()
    return {theirs: state[ours] for ours, theirs in _released_names(model).items()}


def squeeze_permutation(n_channels: int, factor: int) -> Tensor:
    """Where the channels of our (and the released) space-to-depth are found among `torch.pixel_unshuffle`'s.

    With p the result, `torch.pixel_unshuffle(x, b)[:, p]` is `Squeeze(b, order="offset")(x)`. A convolution's
    weight w that follows pixel_unshuffle becomes `w[:, p]`, a BatchNorm's vector v becomes `v[p]`.

    Args:
        n_channels: Channels before space-to-depth.
        factor: b.

    Returns:
        Whole numbers, shape (n_channels * b * b,).

    Raises:
        ConfigError: If a number is below 1.

    Example:
        >>> squeeze_permutation(2, 2).tolist()
        [0, 4, 1, 5, 2, 6, 3, 7]
    """
    if n_channels < 1 or factor < 1:
        got = f"n_channels={n_channels}, factor={factor}"
        raise ConfigError("squeeze_permutation has a bad size", expected="numbers >= 1", got=got)
    return torch.arange(n_channels * factor**2).reshape(n_channels, factor**2).T.flatten()


def _released_names(model: Classifier) -> dict[str, str]:
    body = model.body if isinstance(model, Classifier) else None
    if not isinstance(body, Chain) or not isinstance(model.head, PoolingHead):
        raise _no_irevnet(describe(model))
    places = [i for i, member in enumerate(body) if isinstance(member, IRevNetBlock)]
    prefixes = {f"body.{at}.residual.": f"stack.{i}.bottleneck_block." for i, at in enumerate(places)}
    prefixes |= {f"head.{ours}.": f"{theirs}." for ours, theirs in _HEAD.items()}
    return {key: _renamed(key, prefixes) for key in model.state_dict()}


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    raise _no_irevnet(f"a model with {key!r}")


def _no_irevnet(got: str) -> ConfigError:
    return ConfigError("only an i-RevNet has released names", expected="a model from irevnet(...)", got=got)


def _read(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise CheckpointError("no weights", expected="a .safetensors file", got=f"no file {path}")
    if Path(path).suffix != ".safetensors":
        raise CheckpointError("a pickle is never opened", expected="a .safetensors file", got=path, hint=_CONVERT)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        got = f"{path}: {error}"
        raise CheckpointError("cannot read the weights", expected="a safetensors file", got=got) from error


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    is_flat = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not is_flat:
        hint = "checkpoint['state_dict'], or model.state_dict() of a pickled model"
        got = describe(state)
        raise CheckpointError("these are no weights", expected="a dict of tensors by name", got=got, hint=hint)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _check_keys(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    missing = [key for key in expected if key not in got and not key.endswith(_COUNTER)]
    unexpected = [key for key in got if key not in expected]
    shapes = {key: (tuple(expected[key].shape), tuple(got[key].shape)) for key in expected if key in got}
    misfits = [f"{key} of {theirs} for {ours}" for key, (ours, theirs) in shapes.items() if ours != theirs]
    if missing or unexpected or misfits:
        details = f"missing {_few(missing)}; unexpected {_few(unexpected)}; mis-shaped {_few(misfits)}"
        hint = "build irevnet(...) with the released network's stages, channels and classes"
        wanted = f"the {len(expected)} tensors of an i-RevNet of {_n_blocks(expected)} blocks"
        problem = "the weights do not fit the model"
        raise CheckpointError(problem, expected=wanted, got=f"{_n_blocks(got)} blocks: {details}", hint=hint)


def _few(items: list[str]) -> str:
    rest = [f"and {len(items) - 3} more"] if len(items) > 3 else []
    return ", ".join(items[:3] + rest) or "none"


def _n_blocks(keys: Iterable[str]) -> int:
    return len({match.group() for match in (re.match(r"stack\.\d+\.", key) for key in keys) if match})
