"""Weights of any damage, with tensors of any kind in them: a message or a right conversion."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import seeded, spec_of
from hostile import damaged
from safetensors.torch import save as safetensors_bytes

from medpfl.errors import ConfigurationError, DataError, MedpflError
from medpfl.models import IDLGCNN
from medpfl.models.init import UniformInit
from medpfl.models.weights import load_state, read_state

SPEC = spec_of(3, 16, 16)
NAME = "body.2.weight"


def network(weights: Path | None = None):
    text = None if weights is None else str(weights)
    return IDLGCNN(init=UniformInit(), weights=text).build(SPEC, seeded(1))


def state() -> dict[str, torch.Tensor]:
    return IDLGCNN(init=UniformInit()).build(SPEC, seeded(2)).state_dict()


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_become_float32(tmp_path, dtype, suffix):
    given = {name: tensor.to(dtype) for name, tensor in state().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        saved(path, given)
    else:
        path.write_bytes(safetensors_bytes(given))
    for name, tensor in network(path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, given[name].float())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.flatten(1).to_sparse_csr(), "sparse"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: t.to(torch.complex64), "complex"),
        (lambda t: (t * 10).to(torch.int8), "holds int8, where the network has float32"),
        (lambda t: (t * 10).long(), "holds int64, where the network has float32"),
        (lambda t: t > 0, "holds bool, where the network has float32"),
        (lambda t: t * float("nan"), f"{NAME} holds 3600 numbers that are NaN or infinite"),
        (lambda t: t / 0, f"{NAME} holds 3600 numbers that are NaN or infinite"),
        (lambda t: t.double().sign() * 1e300, "NaN or infinite as float32"),
        (lambda t: t[:1].expand(2**40, *t.shape[1:]), "of another shape"),
    ],
)
def test_tensors_that_are_no_weights_are_named(tmp_path, change, words):
    given = state()
    given[NAME] = change(given[NAME])
    with pytest.raises(MedpflError, match=words) as refused:
        network(saved(tmp_path / "w.pt", given))
    assert NAME in str(refused.value)
    assert "model.weights=" in str(refused.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_torch_itself_refuses_is_told_without_its_advice_to_trust_the_file(tmp_path):
    given = state() | {NAME: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}
    with pytest.raises(DataError, match="not a readable file of plain tensors") as refused:
        network(saved(tmp_path / "w.pt", given))
    assert "_rebuild_nested_tensor" in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert "two options" not in str(refused.value)


def test_a_network_is_left_as_it_was_where_a_number_is_not_finite():
    taker, given = network(), state()
    before = {name: tensor.clone() for name, tensor in taker.state_dict().items()}
    given[NAME] = given[NAME] * float("inf")
    with pytest.raises(ConfigurationError):
        load_state(taker, given, source="x")
    assert all(torch.equal(before[name], t) for name, t in taker.state_dict().items())


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_damaged_file_is_loaded_or_refused(tmp_path, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        path.write_bytes(safetensors_bytes(state()))
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    taker = network()
    refusals = []
    for content in damaged(path.read_bytes(), 150, np.random.default_rng(5)):
        path.write_bytes(content)
        try:
            load_state(taker, read_state(str(path)), source="w")
        except MedpflError as refused:
            refusals.append(str(refused))
    assert refusals
    assert all("model.weights=" in refusal and "\n" not in refusal for refusal in refusals)
    assert all(bool(tensor.isfinite().all()) for tensor in taker.state_dict().values())


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("~nobody_here/w.pt", "home folder of this user is not known"),
        ("w\0.pt", "NUL"),
        (f"{'n' * 300}.pt", "longer than the file system takes"),
        (f"{'n/' * 3000}w.pt", "longer than the file system takes"),
        (".pt", "give a file ending in"),
        ("", "give a file ending in"),
    ],
)
def test_paths_that_are_none(weights, words):
    with pytest.raises(MedpflError, match=words):
        read_state(weights)


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    assert stat.S_ISFIFO((tmp_path / "w.pt").stat().st_mode)
    with pytest.raises(DataError, match="no such file"):
        read_state(str(tmp_path / "w.pt"))
