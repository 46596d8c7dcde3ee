"""The published CPL experiment on the real sample images of ``$MEDPFL_DATA_ROOT``."""

from __future__ import annotations

import csv
import json
import re

import pytest
from helpers import config, experiment, sample_images

from medpfl.metrics.rates import is_zero_gradient
from medpfl.runner import run

pytestmark = pytest.mark.real_data

# The images that the papers' strides visit among the samples, and those without a gradient.
SILENT = {
    "brain_mri": (25, 99),
    "covid": (35, 76),
    "melanoma": (30, 60),
}


def sample(dataset: str) -> list[str]:
    """Return the overrides that select what was measured before; skips where it is not there."""
    folder = sample_images({"covid": "covid_640px"}.get(dataset, dataset))
    return [f"dataset={dataset}", f"dataset.root={folder}", "dataset.split=train"]


@pytest.mark.parametrize("dataset", SILENT)
def test_the_share_of_images_without_a_gradient(dataset):
    """The ceiling of the success rate, from the clients' updates alone: nothing is attacked."""
    parts = experiment("attack=cpl", *sample(dataset))
    norms = []
    for capture in parts.source.captures():
        facts = capture.facts
        norms.append(facts.gradient_norm)
        saturated = float(facts.true_probability[0]) == 1
        assert is_zero_gradient(facts.gradient_norm) == saturated
    assert (sum(map(is_zero_gradient, norms)), len(norms)) == SILENT[dataset]


def test_cpl_reconstructs_every_brain_mri_that_sends_a_gradient(tmp_path, capsys):
    composed = config("attack=cpl", *sample("brain_mri"), "n_images=4", "attack.trace_points=0")
    run(composed, tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    loud = [row for row in rows if not is_zero_gradient(float(row["gradient_norm"]))]
    silent = [row for row in rows if row not in loud]
    assert loud
    assert silent
    assert min(float(row["ssim"]) for row in loud) >= 0.99
    assert all(row["label"] == row["label_inferred"] for row in loud)
    assert max(float(row["ssim"]) for row in silent) < 0.9
    assert {row["status"] for row in silent} == {"no_gradient"}

    summary = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["summary"]
    assert summary["zero_gradient_share"] == len(silent) / 4
    assert summary["asr_ceiling"] == 1 - summary["zero_gradient_share"] == summary["asr"]
    printed = re.search(r"ceiling +([\d.]+) ?%", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(100 * summary["asr_ceiling"], abs=0.5)
