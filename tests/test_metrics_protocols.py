import math
from pathlib import Path

import pytest
import torch
from helpers import sample_images
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from medpfl.errors import ConfigurationError
from medpfl.metrics import (
    PaperCPL,
    PaperDLG,
    PaperGradInv,
    PaperIDLG,
    PaperProtocol,
    Scorer,
    ssim,
)
from medpfl.seeding import generator
from medpfl.types import DataSpec

CONF = Path(__file__).resolve().parents[1] / "conf" / "metrics"
SPEC = DataSpec(
    shape=(3, 32, 40),
    num_classes=2,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
ALL = [PaperCPL(), PaperIDLG(), PaperDLG(), PaperGradInv()]


def waves(phase):
    c, i, j = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (3, 32, 40)), indexing="ij"
    )
    return 0.5 + 0.4 * torch.sin(0.37 * i + 0.21 * j * (1 + c) + phase)


# Computed with pytorch_msssim 1.0.0, the library of the authors' notebooks, fed as they fed it.
@pytest.mark.parametrize(
    ("protocol", "published"),
    [
        (PaperCPL(), 0.9317194594),
        (PaperIDLG(), 0.9317194594),
        (PaperDLG(), 0.9328982199),
        (PaperGradInv(), 0.9895817303),
    ],
)
def test_equals_the_authors_library(protocol, published):
    # That library's window is float32, hence the tolerance.
    value = protocol(waves(0.0), waves(0.3).float().double(), SPEC)
    assert value == pytest.approx(published, abs=3e-7)


@pytest.mark.parametrize("protocol", ALL)
def test_contract(protocol):
    assert isinstance(protocol, PaperProtocol)
    x = waves(0.0).float()
    assert protocol(x, x, SPEC) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ConfigurationError, match="at least 11 pixels"):
        protocol(x[:, :8], x[:, :8], SPEC)
    with pytest.raises(ValueError, match="undo the normalisation"):
        protocol(x, 4 * x, SPEC)


def test_eight_bits_are_cut_not_rounded():
    original = torch.full((1, 11, 11), 0.5)
    level = torch.full((1, 11, 11), 127 / 255, dtype=torch.float64)
    assert PaperDLG()(original, torch.full((1, 11, 11), 127.9 / 255), SPEC) == pytest.approx(
        ssim(original, level.float()), abs=1e-7
    )


def test_without_constants_flat_pairs_are_undefined():
    flat = torch.full((3, 16, 16), 0.3)
    assert math.isnan(PaperCPL()(flat, flat, SPEC))
    assert math.isnan(PaperCPL()(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), SPEC))
    assert math.isnan(PaperCPL()(flat, torch.full((3, 16, 16), 0.7), SPEC))


def test_without_constants_a_flat_border_is_left_out():
    x, y = waves(0.0).float(), waves(0.3).float()
    inner = PaperCPL()(x[..., 20:], y[..., 20:], SPEC)
    for image in (x, y):
        image[..., :20] = 0.25
    with_border = PaperCPL()(x, y, SPEC)
    # Windows that straddle the edge see the step in both and only raise the mean.
    assert inner <= with_border <= 1.0
    assert PaperCPL()(x, x, SPEC) == pytest.approx(1.0, abs=1e-9)


def test_without_constants_a_flat_original_scores_zero():
    noise = 1e-3 * torch.rand(1, 16, 16, generator=generator(0, "noise"))
    assert PaperCPL()(torch.zeros(1, 16, 16), noise, SPEC) == 0.0


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("ssim", None),
        ("paper_cpl", PaperCPL()),
        ("paper_idlg", PaperIDLG()),
        ("paper_dlg", PaperDLG()),
        ("paper_gradinv", PaperGradInv()),
    ],
)
def test_configurations_compose(name, paper):
    scorer = instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    assert scorer == Scorer(threshold=0.9, paper=paper)
    assert type(scorer.paper) is type(paper)


def test_every_configuration_is_tested():
    names = {path.stem for path in CONF.glob("*.yaml")}
    assert names == {"ssim", "paper_cpl", "paper_idlg", "paper_dlg", "paper_gradinv"}


@pytest.mark.real_data
def test_gradinv_protocol_cannot_tell_real_images_apart():
    folder = sample_images("brain_mri/Testing/notumor")
    x, y = (picture(path, side=224) for path in sorted(folder.iterdir())[:2])
    assert PaperGradInv()(x, y, SPEC) > 0.75
    assert ssim(x, y) < 0.4
    noise = torch.rand(3, 224, 224, generator=generator(0, "noise"))
    assert PaperGradInv()(x, noise, SPEC) > 0.75
    assert ssim(x, noise) < 0.1


def picture(path, *, side):
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((side, side))
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    return pixels.reshape(side, side, 3).permute(2, 0, 1).float() / 255
