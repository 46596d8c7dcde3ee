import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.errors import MedpflError
from medpfl.image_score import ImageScore
from medpfl.outcomes import Status
from medpfl.report import _provenance
from medpfl.report._strict_json import dumps
from medpfl.report.panels import PANEL_SIDE, draw_panels
from medpfl.report.planes import three_planes
from medpfl.report.victim_file import load_victim, safe_name
from medpfl.seeding import generator

SCORE = ImageScore(
    image_id="a/" + "long" * 100,
    label=0,
    label_inferred=1,
    ssim=0.95,
    mse=0.01,
    psnr_db=20.0,
    success=True,
    gradient_norm=1.0,
    true_probability=0.5,
    objective=math.nan,
    steps=10,
    evaluations=12,
    seconds=2.0,
    status="out_of_steps",
    noise_scale=None,
    snr_db=None,
    ssim_paper=math.nan,
    ssim_zeros=0.1,
    mse_zeros=0.09,
    ssim_mean_image=0.3,
    mse_mean_image=0.02,
)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a file of numpy's", b"PK\x03\x04 cut short"],
    ids=["empty", "text", "zip"],
)
def test_a_damaged_victim_is_named(tmp_path, content):
    path = tmp_path / "victim.npz"
    path.write_bytes(content)
    with pytest.raises(MedpflError, match=r"victim\.npz is not a readable record"):
        load_victim(path)


def test_foreign_arrays_are_named(tmp_path):
    np.savez(tmp_path / "foreign.npz", original=np.zeros(3))
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", original=np.array([object()]), allow_pickle=True)
    for name in ("foreign.npz", "single.npy", "pickle.npz", "missing.npz"):
        with pytest.raises(MedpflError, match="is not a readable record"):
            load_victim(tmp_path / name)


def test_a_readable_id_stays_readable():
    assert safe_name("glioma/Tr-gl_0048") == "glioma__Tr-gl_0048"
    assert safe_name("glioma/Tr-gl_0048+3") == "glioma__Tr-gl_0048+3"
    assert safe_name("Viral Pneumonia/01").startswith("Viral_Pneumonia_01-")


def test_odd_ids_stay_apart():
    odd = [
        "",
        ".",
        "..",
        "../..",
        "a/b",
        "a__b",
        "a_/b",
        "a/_b",
        "a b",
        "a_b",
        "é",
        "/a",
        "x" * 400,
    ]
    names = [safe_name(name) for name in odd]
    assert len(set(names)) == len(odd)


@given(st.text())
def test_any_id_is_a_portable_file_name(name):
    safe = safe_name(name)
    assert set(safe) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-",
    )
    assert 0 < len(safe) < 150
    assert safe[0] not in "._"


@pytest.mark.parametrize(
    ("shape", "panel"),
    [
        ((3, 32, 32), (192, 192)),
        ((1, 24, 48), (192, 96)),
        ((1, 5, 20, 20), (200, 125)),
        ((3, 224, 224), (224, 224)),
        ((2, 12, 12), (192, 192)),
    ],
)
def test_panels_are_enlarged_and_labelled(shape, panel):
    x = torch.rand(shape, generator=generator(0, "panels"))
    y = 1 - x
    sheet = draw_panels(x, y, SCORE)
    assert max(panel) >= PANEL_SIDE
    assert sheet.width == 3 * panel[0] + 32
    assert panel[1] < sheet.height < panel[1] + 60
    for k, image in enumerate((x, y, (x - y).abs())):
        picture = image if image.ndim == 3 else torch.from_numpy(three_planes(image.numpy()).copy())
        pixel = picture[:, 0, 0] if len(picture) == 3 else picture[:, 0, 0].mean().expand(3)
        corner = sheet.getpixel((8 + k * (panel[0] + 8), 22))
        assert corner == tuple((pixel * 255).round().int().tolist())


def test_strict_json_refuses_what_it_does_not_know():
    assert json.loads(dumps({"a": [math.nan, -math.inf, 1.5, np.float64(math.inf)]})) == {
        "a": [None, None, 1.5, None]
    }
    assert json.loads(dumps({1: Path("a") / "b", "s": Status.STALLED})) == {
        "1": os.path.join("a", "b"),
        "s": "stalled",
    }
    with pytest.raises(TypeError):
        dumps({"a": object()})


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(
        ["git", "-C", folder, *identity, *arguments],
        check=True,
        capture_output=True,
        env=environment,
    )


def test_commit_of_a_checkout(tmp_path, monkeypatch):
    assert _provenance.commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert _provenance.commit(tmp_path) is None
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message=first")
    clean = _provenance.commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "code.py").write_text("2")
    assert _provenance.commit(tmp_path) == f"{clean}-dirty"
    assert _provenance.commit(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", "")
    assert _provenance.commit(tmp_path) is None
