"""MIC's table from small sums, and the aggregate of their code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import config, experiment

from medpfl.errors import ConfigurationError
from medpfl.federated.malicious.bins import joined
from medpfl.metrics.mic import mic_weights
from medpfl.paper import MicTable
from medpfl.paper.results import JobResult, read_results
from medpfl.report.sweep import write_report
from medpfl.runner import run

SMALL = (
    *("attack=mic", "dataset=phantom", "preprocess.size=12", "model=dlg_cnn", "server.rows=40"),
    *(
        "dataset.per_class=12",
        "dataset.stride=1",
        "n_images=6",
        "federation.clients=3",
        "federation.batch_size=2",
    ),
)


def test_the_running_update_weighs_clients_as_its_closed_form():
    (running,) = experiment(*SMALL, "threat.aggregation=running").source.captures()
    alone = list(experiment(*SMALL, "threat.aggregation=individual").source.captures())
    weights = mic_weights(3)
    assert running.observation.num_examples == 6
    for name, tensor in running.observation.tensors.items():
        expected = sum(
            weight * one.observation.tensors[name].double()
            for weight, one in zip(weights, alone, strict=True)
        )
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-9)


def test_a_running_update_is_for_whoever_reads_planted_rows():
    with pytest.raises(
        ConfigurationError, match=r"threat\.server=honest_but_curious choose secure"
    ):
        experiment("threat.aggregation=running", "federation.clients=3")


def test_thresholds_of_two_laws_are_those_of_their_mixture():
    first = torch.tensor([-9.0, 0.0, 1.0], dtype=torch.float64)
    second = torch.tensor([-7.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    assert joined(first, second).tolist() == [-9.0, -1.0, 0.0, 0.5, 1.0, 2.0]


@pytest.fixture
def results(tmp_path: Path) -> list[JobResult]:
    rows = ("mic_2d_6", "imprint_2d")
    target = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    axes = [f"paper/row={','.join(rows)}"]
    planned = {"sweeper": {"_target_": target}, "overrides": {"task": axes}}
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": planned}))
    own = {"mic_2d_6": SMALL, "imprint_2d": ("attack=imprint", *SMALL[1:4], *SMALL[5:])}
    for number, row in enumerate(rows):
        run(config(*own[row], "threat.aggregation=secure"), tmp_path / str(number))
        (tmp_path / str(number) / ".hydra").mkdir()
        told = tmp_path / str(number) / ".hydra" / "overrides.yaml"
        told.write_text(json.dumps([f"paper/row={row}"]))
    return read_results(write_report(tmp_path))


def test_reported_stands_beside_both_ways_to_count(results, tmp_path, capsys):
    files = MicTable(title="MIC").make(results, tmp_path, note="")
    text = files["table"].read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    mic = next(line for line in lines if line[0].startswith("MIC, 2D, 4 of 6"))
    imprint = next(line for line in lines if line[0].startswith("imprint, 2D"))
    assert mic[1] == "35.19"
    assert imprint[1] == "not reported"
    assert all(cell.endswith("n 6") for cell in (*mic[2:], *imprint[2:]))
    scores = results[1].scores
    assert float(imprint[3].split()[0]) == pytest.approx(
        100 * (scores["psnr_db"] > 30).mean(), abs=0.05
    )
    facts = next(line for line in lines if line[0].startswith("imprint") and line[3] == "1,000")
    assert facts[4] == f"{1000 * (3 * 12 * 12 + 1):,}"
    assert "35.19" in capsys.readouterr().out
