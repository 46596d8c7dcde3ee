"""Every recipe of the papers composes, and builds what the papers describe."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medpfl.cli import conf_dir
from medpfl.defenses import MedPFLLevel
from medpfl.defenses.configured import defenses_at
from medpfl.metrics.protocols import ALL_PROTOCOLS
from medpfl.paper.product import expected_duration, resolve_swept, shortened
from medpfl.paper.reported import ROWS
from medpfl.report.jobs import planned
from medpfl.settings.build import instantiate

PAPER = Path(conf_dir()) / "paper"
PRODUCTS = sorted(path.stem for path in PAPER.glob("*.yaml"))
EXPECTED_ROWS = sorted(path.stem for path in (PAPER / "row").glob("*.yaml"))
DEFENSES = sorted(path.stem for path in (PAPER / "defense").glob("*.yaml"))
NOISES = sorted(path.stem for path in (PAPER / "noise").glob("*.yaml"))
GROUPS = ("dataset", "preprocess", "model", "federation", "threat", "metrics", "attack")


@functools.cache
def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=conf_dir()):
        return compose(f"paper/{name}", list(overrides), return_hydra_config=True)


def jobs_of(config: DictConfig) -> list[list[str]]:
    resolve_swept(config)
    return planned(OmegaConf.to_container(config.hydra, resolve=False))


def test_files_and_reported_rows_are_the_same() -> None:
    assert sorted(ROWS) == EXPECTED_ROWS
    figures = ("figure3", "figure4", "figure5", "figure6")
    assert [*figures, "frontier", "mic", "mitigation", "table1", "table2", "table3"] == PRODUCTS
    assert {row.protocol for row in ROWS.values()} <= set(ALL_PROTOCOLS)


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_sweeps_by_itself(name: str) -> None:
    config = composed(name, "budget=quick")
    assert str(config.hydra.mode) == "RunMode.MULTIRUN"
    assert config.n_images == config.paper.images.quick
    assert "full" in config.paper.images
    report = instantiate(config.hydra.callbacks.sweep_report)
    assert report.product.title
    jobs = jobs_of(config)
    assert len({tuple(job) for job in jobs}) == len(jobs) >= 1
    for job in jobs:
        chosen = dict(override.split("=") for override in job)
        assert chosen["paper/row"] in EXPECTED_ROWS
        assert chosen.get("paper/noise", "none") in NOISES


@pytest.mark.parametrize("row", EXPECTED_ROWS)
def test_every_row_builds_its_parts(row: str) -> None:
    of_mic = row.startswith(("mic_", "imprint_"))
    recipe = ("mic",) if of_mic else ("table2", "dataset=melanoma")
    config = composed(*recipe, f"paper/row={row}", "budget=quick")
    assert config.paper.row == row
    for group in GROUPS:
        assert instantiate(config[group]) is not None
    assert defenses_at(config).aggregation is None or of_mic
    assert (config.device == "cuda") == (ROWS[row].seconds is None)


@pytest.mark.parametrize("noise", NOISES)
def test_every_noise_is_what_its_name_says(noise: str) -> None:
    config = composed("table3", f"paper/noise={noise}")
    defense = defenses_at(config)
    if noise == "none":
        assert defense.name == "none"
        return
    reading, level = noise.split("_")
    assert defense.parts["perturbation"].noise == MedPFLLevel(level=int(level), reading=reading)


@pytest.mark.parametrize("name", DEFENSES)
def test_every_point_is_the_defense_that_its_name_says(name: str) -> None:
    config = composed("frontier", f"paper/defense={name}", "budget=quick")
    built = defenses_at(config)
    assert config.paper.setting
    assert built.name == {"noise": "perturbation"}.get(config.paper.defense, config.paper.defense)
    assert name.startswith(config.paper.defense)


def test_the_frontier_sweeps_more_points_without_a_budget() -> None:
    quick, full = composed("frontier", "budget=quick"), composed("frontier")
    assert len(jobs_of(quick)) == 3 * 2 * 8
    points = {o.partition("=")[2] for job in jobs_of(full) for o in job if "defense=" in o}
    assert points == set(DEFENSES)
    assert (quick.capture.rounds, quick.federation.rounds) == ([0, 15], 15)
    assert list(full.threat.knows) == ["num_examples", "local_training"]
    for attacker in ("adaptive", "informed"):
        knowing = composed("frontier", f"paper/attacker={attacker}")
        assert "defense" in knowing.threat.knows
        assert knowing.paper.attacker == "adaptive"
        assert instantiate(knowing.threat).granted
    mitigation = {o for job in jobs_of(composed("mitigation")) for o in job}
    assert {"paper/defense=none", "paper/defense=topk_0.01"} <= mitigation


def test_the_tables_have_the_published_settings() -> None:
    cpl = composed("table1", "paper/row=cpl")
    assert cpl.attack.optimizer.max_steps == 300
    assert cpl.federation.pretrain._target_.endswith("AdamSteps")
    assert (cpl.federation.model_seed, cpl.model.init.bound) == (50, 0.5)
    noise = composed("table3")
    assert noise.model._target_.endswith("DLGCNN")
    assert noise.federation.pretrain._target_.endswith("NoPretraining")
    assert noise.attack.optimizer.max_steps == 100
    assert noise.attack.start._target_.endswith("PatchTiled")
    assert noise.attack.labels._target_.endswith("SmallestRow")
    gradinv = composed("table2", "paper/row=gradinv_untrained", "n_images=7")
    assert gradinv.n_images == 7
    assert (gradinv.attack.optimizer.max_steps, gradinv.attack.restarts) == (24000, 8)
    assert len(jobs_of(composed("table3"))) == 3 * 3 * 9
    assert len(jobs_of(composed("table2"))) == 3 * 9


def test_a_shortened_run_says_so_and_all_say_how_long() -> None:
    assert shortened("full", None) == ""
    assert shortened("quick", 12).startswith("PREVIEW (budget=quick): at most 12 images a row")
    assert shortened("full", 5) == "shortened: at most 5 images a row; the papers attack 100"
    jobs = [["dataset=covid", "paper/row=cpl"], ["dataset=covid", "paper/row=gradinv_trained"]]
    text = expected_duration(jobs, "cpl", 10)
    assert text.startswith("2 jobs of up to 10 images, and 1 that need a GPU")
    assert "idle CPU cores" in text
