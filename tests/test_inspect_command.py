"""``medpfl-inspect``: exit codes, JSON, hashes, captures, and every mistake in words."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import payload_of
from planted_models import SPEC, imprinted
from safetensors.torch import save_file
from torch import nn

from medpfl.inspector import main


def saved(payload, path):
    state = {**payload.parameters, **payload.buffers}
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)


@pytest.fixture
def inspect(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    saved(payload_of("idlg_cnn", SPEC), "good.safetensors")
    saved(imprinted(), "bad.safetensors")

    def run(line: str) -> tuple[object, str, str]:
        capsys.readouterr()
        code: object = 0
        try:
            main(line.split())
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_an_honest_model_ends_with_0_and_a_planted_one_with_3(inspect):
    code, out, err = inspect("good.safetensors")
    assert (code, err) == (0, "")
    assert out.startswith("nothing found")
    code, out, err = inspect("bad.safetensors --input-shape 1x16x16")
    assert (code, err) == (3, "")
    assert "repeated rows" in out
    assert "wide first layer (note)" in " ".join(out.split())  # a file keeps no order of layers


def test_json_for_scripts(inspect):
    code, out, _ = inspect("bad.safetensors --agreed good.safetensors --json")
    record = json.loads(out, parse_constant=pytest.fail)
    model = record["models"][0]
    assert (code, record["suspicious"], model["name"]) == (3, True, "bad.safetensors")
    assert [finding["check"] for finding in model["findings"]] == ["not_agreed", "repeated_rows"]
    rows = model["findings"][1]
    assert rows["measured"]["rows"] == 50
    assert rows["measured"]["cosine"] >= rows["threshold"]["cosine"]


def test_a_hash_is_of_the_architecture_alone(inspect):
    code, out, _ = inspect("good.safetensors --hash")
    value, name = out.split()
    assert (code, name, len(value)) == (0, "good.safetensors", 64)
    assert inspect(f"good.safetensors --agreed {value}")[0] == 0
    assert inspect(f"bad.safetensors --agreed {value.upper()}")[0] == 3
    saved(payload_of("idlg_cnn", SPEC, seed=5), "other.safetensors")
    assert json.loads(inspect("other.safetensors --hash --json")[1]) == {"other.safetensors": value}


def test_a_module_that_was_pickled_is_not_run(inspect):
    torch.save(nn.Linear(2, 2), "module.pt")
    code, _, err = inspect("module.pt")
    assert code == 2
    assert "nothing in it was run" in " ".join(err.split())
    torch.save(nn.Linear(2, 2).state_dict(), "state.pt")
    assert inspect("state.pt")[0] == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "give the model"),
        ("nowhere.safetensors", "PATH=nowhere.safetensors: no such file"),
        ("notes.txt", "give a file ending in .pt, .pth or .safetensors"),
        (".", "no capture"),
        ("broken.safetensors", "not a readable file of plain tensors"),
        ("good.safetensors bad.safetensors", "one model at a time"),
        ("good.safetensors --inpt-shape 3", "did you mean --input-shape?"),
        ("good.safetensors --input-shape 3", "give channels and sides"),
        ("good.safetensors --input-shape", "its value is missing"),
        ("good.safetensors --agreed 0123456789abcdef0123456789", "not a hash of 64"),
        ("good.safetensors --agreed nowhere.pt", "--agreed=nowhere.pt: no such file"),
    ],
)
def test_a_mistake_is_one_message(inspect, tmp_path, line, told):
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 50)
    code, out, err = inspect(line)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())
