"""Flows on disk: the same bits back, in any dtype; what is corrupt or does not belong is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch.distributions import Laplace

from flow._make import plane
from invertible import Flow
from invertible._files import read_tensors, write_tensors
from invertible.errors import CheckpointError, ConfigError
from invertible.models.spline_flow import spline_flow


def small() -> Flow:
    flow = spline_flow((2,), 2, (8,), 4, standardize=True)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return flow.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_bits_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    flow, x = small().to(dtype), torch.randn(5, 2, dtype=dtype)
    flow.save(tmp_path / "new" / "flow")
    other = Flow.load(tmp_path / "new" / "flow")
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    assert other.log_prob(x).dtype == flow.log_prob(x).dtype
    assert other.config == flow.config
    assert other.fitted is None
    assert not other.training


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".json"])
def test_with_or_without_suffix(tmp_path: Path, suffix: str) -> None:
    small().save(f"{tmp_path}/v1.2{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.2.json", "v1.2.safetensors"]
    assert isinstance(Flow.load(f"{tmp_path}/v1.2{suffix}"), Flow)
    (tmp_path / "v1.2.json").unlink()
    assert isinstance(Flow.load(tmp_path / "v1.2"), Flow)  # the weights' header says the same


def test_how_it_was_fitted_is_kept(tmp_path: Path) -> None:
    flow = small().fit(torch.randn(6, 2), max_steps=2, quiet=True)  # one row held out: a standard error of NaN
    flow.save(tmp_path / "flow")
    other = Flow.load(tmp_path / "flow").fitted
    assert other is not None
    assert flow.fitted is not None
    assert other.to_dict() == flow.fitted.to_dict()
    json.loads((tmp_path / "flow.json").read_text(), parse_constant=pytest.fail)


def test_a_flow_made_by_hand(tmp_path: Path) -> None:
    flow, x = plane(Laplace(torch.zeros(2).double() + 0.1, 1.0)), torch.randn(3, 2).double()
    flow.bijection.requires_grad_(False).mul = None  # any attribute: only tensors are kept
    flow.get_parameter("bijection.0.network.0.weight").mul_(2)
    flow.save(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"made by hand.*load_weights"):
        Flow.load(tmp_path / "own")
    other = plane(Laplace(torch.zeros(2), 1.0)).load_weights(tmp_path / "own")
    assert torch.equal(other.log_prob(x), flow.log_prob(x))  # the base's float64 numbers too
    doubled = plane(Laplace(torch.zeros(2), 1.0)).double().load_weights(tmp_path / "own")
    assert torch.equal(doubled.log_prob(x), flow.log_prob(x))
    assert {p.dtype for p in doubled.parameters()} == {torch.float32}
    with pytest.raises(CheckpointError, match="does not fit this flow"):
        plane().load_weights(tmp_path / "own")


def test_what_is_missing_corrupt_or_foreign_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved flow"):
        Flow.load(tmp_path / "nothing")
    small().save(tmp_path / "flow")
    weights, description = tmp_path / "flow.safetensors", tmp_path / "flow.json"
    whole = weights.read_bytes()
    for broken in (whole[:-10], whole[:20], b"", b"x" * 100):
        weights.write_bytes(broken)
        with pytest.raises(CheckpointError, match="corrupt"):
            Flow.load(tmp_path / "flow")
    weights.write_bytes(whole)
    description.write_text("{")
    with pytest.raises(CheckpointError, match="corrupt"):
        Flow.load(tmp_path / "flow")
    description.write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="does not belong"):
        Flow.load(tmp_path / "flow")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({}, "holds no flow"),
        ({"flow": "[1]"}, "holds no flow"),
        ({"flow": '{"format": 1}'}, "holds no flow"),
        ({"flow": '{"format": 99, "config": null, "dtype": "float32"}'}, "another format"),
    ],
)
def test_headers_that_are_no_flow_s(tmp_path: Path, header: dict[str, str], words: str) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "flow.safetensors", header)
    with pytest.raises(CheckpointError, match=words):
        Flow.load(tmp_path / "flow")


def test_a_model_that_is_unknown_or_no_flow(tmp_path: Path) -> None:
    for name, error in (("no_such_model", ConfigError), ("revnet38", CheckpointError)):
        flow = small()
        flow.config = {"name": name, "arguments": {}}
        flow.save(tmp_path / name)
        with pytest.raises(error):
            Flow.load(tmp_path / name)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, other, x = small(), small(), torch.randn(3, 2)
    flow.save(tmp_path / "flow")

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(CheckpointError, match="No space left"):
            other.save(tmp_path / "flow")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.json", "flow.safetensors"]
    assert torch.equal(Flow.load(tmp_path / "flow").log_prob(x), flow.log_prob(x))


def test_a_changed_byte_of_a_weight_is_noticed(tmp_path: Path) -> None:
    small().save(tmp_path / "flow")
    path = tmp_path / "flow.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last tensor's
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed or damaged"):
        Flow.load(tmp_path / "flow")
    with pytest.raises(CheckpointError, match="changed or damaged"):
        small().load_weights(tmp_path / "flow")


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    """As versions before it wrote them."""
    flow = small()
    flow.save(tmp_path / "flow")
    tensors, header = read_tensors(tmp_path / "flow.safetensors")
    about = {key: value for key, value in json.loads(header["flow"]).items() if key != "sha256"}
    write_tensors(tmp_path / "flow.safetensors", tensors, {"flow": json.dumps(about)})
    (tmp_path / "flow.json").unlink()
    assert torch.equal(Flow.load(tmp_path / "flow").log_prob(torch.zeros(1, 2)), flow.log_prob(torch.zeros(1, 2)))
