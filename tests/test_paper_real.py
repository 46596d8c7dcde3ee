"""On the sample images: the class shares predict the success rate, as the findings say."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import sample_images
from hydra import compose, initialize_config_dir

from medpfl.cli import conf_dir
from medpfl.image_score import ImageScore
from medpfl.paper.expected import predicted_success
from medpfl.paper.reported import DATASETS
from medpfl.report.record import load_victim
from medpfl.runner import run


def attacked(dataset: str, folder: Path) -> list[ImageScore]:
    """Attack four images in CPL's setting with the attack that takes no time for it."""
    told = ["paper/row=scale_free_cpl", f"dataset={dataset}", "n_images=4", "device=cpu"]
    with initialize_config_dir(version_base="1.3", config_dir=conf_dir()):
        config = compose("paper/table1", told)
    run(config, folder)
    return [load_victim(path).scores[0] for path in sorted(folder.glob("reconstructions/*.npz"))]


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", DATASETS)
def test_class_shares_predict_success_and_ssim(dataset: str, tmp_path: Path) -> None:
    sample_images()
    scores = attacked(dataset, tmp_path / "run")
    n = len(scores)
    predicted = predicted_success(
        [score.label for score in scores], [score.true_probability for score in scores]
    )
    assert n == 4
    assert predicted is not None
    assert 0 < predicted < 1
    asr = sum(score.ssim_paper_cpl >= 0.9 for score in scores) / n
    assert asr == pytest.approx(predicted, abs=0.03)
    assert sum(score.ssim_paper_cpl for score in scores) / n == pytest.approx(predicted, abs=0.03)
