"""Files of captures that are damaged, foreign or hostile: one message before any compute."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_files import change_tensors, edit, full, given, put, refusal, replace_file, the_one
from hostile import damaged
from safetensors.torch import save as packed

from medpfl.captures import load_captures, read_captures
from medpfl.errors import DataError, MedpflError


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture of its own: a folder in which each test may do what it likes."""
    return full(tmp_path / "given")


@pytest.mark.parametrize("role", ["update", "model", "truth"])
def test_a_damaged_file_is_refused(capture, role):
    entry = json.loads((capture / "capture.json").read_text())["files"][role]
    path = capture / entry["path"]
    whole = path.read_bytes()
    for content in damaged(whole, 25, np.random.default_rng(2)):
        path.write_bytes(content)
        if content != whole:
            told = refusal(given(capture))
            assert path.name in told
            assert "truncated" in told or "sha256" in told
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(given(capture))


@pytest.mark.parametrize("role", ["update", "model", "truth"])
def test_a_file_made_to_do_harm_is_read_as_numbers_or_refused(capture, role):
    """The checksum is right: whoever made the file has made the manifest, too."""
    entry = json.loads((capture / "capture.json").read_text())["files"][role]
    whole = (capture / entry["path"]).read_bytes()
    refusals: list[str] = []
    for content in damaged(whole, 120, np.random.default_rng(3)):
        replace_file(capture, role, content)
        try:
            read = the_one(given(capture))
        except MedpflError as error:
            refusals.append(str(error))
        else:
            assert all(bool(t.isfinite().all()) for t in read.update.tensors.values())
            assert all(bool(t.isfinite().all()) for t in read.payload.parameters.values())
            assert read.truth is not None
            assert 0 <= float(read.truth.inputs.min()) <= float(read.truth.inputs.max()) <= 1
    assert len(refusals) > 40
    assert all(refusal.isprintable() for refusal in refusals)


@pytest.mark.parametrize(
    ("role", "name", "change", "words"),
    [
        ("update", "fc.bias", lambda t: t * torch.nan, "3 numbers that are NaN or infinite"),
        ("update", "fc.bias", lambda t: t / 0, "NaN or infinite"),
        ("model", "fc.bias", lambda t: t / 0, "NaN or infinite"),
        ("update", "fc.bias", lambda t: t.double(), "mixes float32, float64"),
        ("model", "fc.bias", lambda t: t.half(), "mixes float16, float32"),
        ("update", "fc.bias", lambda t: t.int(), "holds float32, int32"),
        ("update", "fc.bias", lambda t: t.to(torch.float8_e4m3fn), "holds float32, float8_e4m3fn"),
        ("update", "fc.bias", lambda t: t.to(torch.complex64), "holds complex64"),
        ("update", "fc.bias", lambda t: t > 0, "holds bool"),
        ("update", "fc.bias", lambda t: t.long(), "these files are not of one capture"),
        ("model", "fc.bias", lambda t: t.long(), "whole numbers"),
        ("update", "fc.bias", lambda t: t[:2], "these files are not of one capture"),
        ("model", "fc.bias", lambda t: t[:2], "of another shape: fc.bias (2,) for (3,)"),
        ("truth", "inputs", lambda t: t + 1, "must be pixels in [0, 1]"),
        ("truth", "inputs", lambda t: t * 255, "must be pixels in [0, 1]"),
        ("truth", "inputs", lambda t: t * torch.nan, "NaN"),
        ("truth", "inputs", lambda t: t[:1], "must be float32 (2, 3, 16, 16)"),
        ("truth", "inputs", lambda t: t.double(), "must be float32"),
        ("truth", "labels", lambda t: t + 2, "label 3: there are 3 classes"),
        ("truth", "labels", lambda t: t - 1, "label -1"),
        ("truth", "labels", lambda t: t[:1], "must be int64 (2,)"),
        ("truth", "labels", lambda t: t.float(), "must be int64 (2,)"),
    ],
)
def test_tensors_that_cannot_be_are_named(capture, role, name, change, words):
    change_tensors(capture, role, lambda t: t | {name: change(t[name]).contiguous()})
    assert words in refusal(given(capture))


@pytest.mark.parametrize(
    ("role", "change", "words"),
    [
        ("model", lambda t: {n: v for n, v in t.items() if n != "fc.bias"}, "lacks fc.bias"),
        ("model", lambda t: t | {"fc.more": torch.ones(2)}, "unknown to it: fc.more"),
        ("update", lambda t: t | {"fc.more": torch.ones(2)}, "fc.more is float32 (2,)"),
        ("update", lambda _: {}, "is nothing"),
        ("update", lambda t: t | {"a\x1b[2J": torch.ones(2)}, "name cannot be printed"),
        ("truth", lambda t: {"inputs": t["inputs"]}, "must hold two tensors"),
    ],
)
def test_files_with_too_little_or_too_much_in_them_are_refused(capture, role, change, words):
    change_tensors(capture, role, change)
    assert words in refusal(given(capture))


def test_numbers_too_large_for_float32_are_refused(capture):
    def huge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        return wide | {"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)}

    change_tensors(capture, "model", huge)
    assert "infinite as float32" in refusal(given(capture))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".PT"])
def test_pickles_are_refused_by_name_and_not_opened(capture, tmp_path, suffix):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Bomb()}, capture / f"update{suffix}")
    edit(capture, put("files", "update", "path", value=f"update{suffix}"))
    assert "can run code" in refusal(given(capture))
    assert "can run code" in refusal(capture / f"update{suffix}")
    replace_file(capture, "truth", (capture / f"update{suffix}").read_bytes())
    edit(capture, put("files", "update", "path", value="truth.safetensors"))
    refusal(given(capture))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../../../outside.safetensors", "lies outside of"),
        ("../../../given/../outside.safetensors", "lies outside of"),
        ("{absolute}", "relative to the capture's folder"),
        ("link.safetensors", "lies outside of"),
        ("..\\x.safetensors", "relative to the capture's folder"),
        ("nothing.safetensors", "no such file"),
        ("folder.safetensors", "no such file"),
        ("pipe.safetensors", "no such file"),
        ("x" * 300 + ".safetensors", "longer than the file system takes"),
        ("update", "must be a .safetensors file"),
        ("", "must be a .safetensors file"),
        ("a\0.safetensors", "cannot be printed"),
        (".safetensors", "must be a .safetensors file"),
    ],
)
def test_files_lie_in_the_folder_that_was_given(capture, path, words):
    outside = given(capture).parent / "outside.safetensors"
    outside.write_bytes(packed({"fc.bias": torch.ones(3)}))
    (capture / "link.safetensors").symlink_to(outside)
    (capture / "folder.safetensors").mkdir()
    os.mkfifo(capture / "pipe.safetensors")
    edit(capture, put("files", "update", "path", value=path.format(absolute=outside)))
    assert words in refusal(given(capture))


def test_a_shared_model_needs_the_folder_that_holds_it(capture):
    told = refusal(capture)
    assert "lies outside of" in told
    assert "give the folder that holds it" in told
    assert the_one(capture.parent).capture_id == "round-005/client-2"


def test_two_captures_of_one_client_and_round_are_refused(capture):
    shutil.copytree(capture, capture.parent / "copy")
    assert "round-005/client-2 a second time" in refusal(given(capture))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no capture"),
        ("nothing", "no such folder"),
        ("update.pt", "can run code"),
        ("file.txt", "give the folder"),
        ("x\0", "NUL"),
        ("x" * 300, "longer than the file system takes"),
    ],
)
def test_what_is_no_folder_of_captures_is_refused(tmp_path, name, words):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DataError, match=words) as refused:
        read_captures(f"{tmp_path}/{name}")
    assert str(refused.value).startswith("source.path")


def test_the_setting_is_named_as_it_was_given(tmp_path):
    with pytest.raises(DataError, match=r"--captures=.*no such folder"):
        read_captures(tmp_path / "nothing", setting="--captures")


def test_a_manifest_that_is_a_folder_or_a_pipe_is_no_capture(tmp_path):
    (tmp_path / "capture.json").mkdir()
    with pytest.raises(DataError, match="no capture"):
        read_captures(tmp_path)
    (tmp_path / "capture.json").rmdir()
    os.mkfifo(tmp_path / "capture.json")
    with pytest.raises(DataError, match="not a file"):
        read_captures(tmp_path)


def test_what_changes_between_reading_and_attacking_is_noticed(capture):
    found = read_captures(given(capture))
    path = capture / "update.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DataError, match="sha256"):
        list(load_captures(found))


def test_all_captures_are_checked_before_the_first_is_attacked(capture):
    later = shutil.copytree(capture, capture.parent / "client-3")
    edit(later, put("client", value=3))
    (later / "update.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"client-3.*truncated"):
        read_captures(given(capture))
