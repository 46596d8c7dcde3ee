"""Defenses on the command line: lists, sweeps over them, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Command
from helpers import CONF
from records import rewrite, run_json, table
from test_cli_mistakes import refused

from medpfl._parts import defense_names, defense_parts
from medpfl.compare.runs import read_run
from medpfl.compare.settings import differences
from medpfl.errors import ConfigurationError
from medpfl.report.jobs import collect
from medpfl.resume import Request
from medpfl.resume.run import resume_run

TINY = (
    "device=cpu",
    "attack=dlg",
    "n_images=1",
    "dataset.per_class=1",
    "preprocess.size=12",
    "attack.optimizer.max_steps=1",
    "attack.trace_points=0",
    "attack.rows=1",  # alone, results are the same to the last bit
)
FLAT = {"_target_": "medpfl.defenses.Perturbation", "noise": {"_target_": "x", "std": 0.1}}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "defense=[]",
            "defense=[]: the list is empty: choose one of clipping, dp_sgd, inspect, masking, none",
        ),
        ("defense=[topk,topk]", "defense=[topk,topk]: name each once"),
        ("defense=[topk,clpping]", "no such option; did you mean clipping? Choose one of clipping"),
        ("defense=[topk,3]", "defense=[topk,3]: choose one of clipping, dp_sgd, inspect, masking"),
        (
            "defense=[topk,[sign]]",
            "defense=[topk,[sign]]: choose one of clipping, dp_sgd, inspect, masking",
        ),
        ("defense=[none,topk]", "defense=[none,topk]: none goes alone"),
        ("attack=[cpl,dlg]", "attack=[cpl,dlg]: choose one of cpl, dimitrov"),
        ("+defense=[topk]", "defense is chosen without a + in front: defense=OPTION"),
        ("~defense", "every run needs one, so choose one of clipping"),
        ("defense.topk.fraction=0.1", "defense.topk: topk is not chosen. Choose it with defense="),
    ],
)
def test_lists_that_cannot_be_followed(command: Command, typed: str, words: str) -> None:
    assert words in refused(command(typed))


@pytest.mark.parametrize("typed", ["defense=[topk,none],sign", "defense=sign,[topk,topk]"])
def test_a_sweep_with_a_list_that_cannot_work_ends_before_its_first_job(
    command: Command, typed: str, tmp_path: Path
) -> None:
    done = command("-m", typed.replace("none", "nothing"), *TINY)
    assert ("no such option" in refused(done)) or ("name each once" in refused(done))
    assert not list(tmp_path.rglob("run.json"))


def test_a_sweep_over_defenses_says_which_is_which(command: Command, tmp_path: Path) -> None:
    defenses = "none,topk,[clipping,sign],[sign,clipping]"
    done = command("-m", f"defense={defenses}", "hydra.sweep.dir=out", *TINY)
    assert done.code == 0, done.stderr
    rows = collect(tmp_path / "out")
    named = ["none", "topk", "[clipping,sign]", "[sign,clipping]"]
    assert [row["defense"] for row in rows] == named
    assert [row["epsilon"] for row in rows] == [None, "inf", "inf", "inf"]
    assert [row["bytes_sent_mean"] is None for row in rows] == [True, False, False, False]
    markdown = (tmp_path / "out/results.md").read_text()
    assert all(f"| {name} |" in markdown for name in named)
    for job, names in ((1, ["topk"]), (2, ["clipping", "sign"]), (3, ["sign", "clipping"])):
        assert list(run_json(tmp_path / f"out/{job}")["config"]["defense"]) == names
    plain, sparse = (table(tmp_path / f"out/{job}/metrics.csv")[0] for job in (0, 1))
    assert "bytes_sent" not in plain
    assert float(sparse["share_sent"]) == pytest.approx(0.01, rel=0.05)


def test_the_column_is_right_where_hydra_has_left_no_note(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    folder.mkdir()
    config = {"defense": {"topk": {}, "sign": {}}}
    (folder / "run.json").write_text(json.dumps({"status": "complete", "config": config}))
    assert collect(tmp_path)[0]["defense"] == "[topk,sign]"


@pytest.fixture
def stopped(command: Command, tmp_path: Path) -> Path:
    """A run whose record says that it was stopped before its last image."""
    settings = ("defense=[clipping,perturbation]", "noise=gaussian", "hydra.run.dir=out")
    assert command(*TINY, *settings, "n_images=2").code == 0
    (tmp_path / "out/reconstructions/round-000__client-1.npz").unlink()
    rewrite(tmp_path / "out", status="interrupted")
    return tmp_path / "out"


def test_a_composition_is_resumed_as_it_was(stopped: Path, command: Command) -> None:
    before = table(stopped / "metrics.csv")
    assert command("resume=out", "defense=[clipping,perturbation]").code == 0
    assert table(stopped / "metrics.csv") == before


def test_another_order_is_another_run(stopped: Path, command: Command) -> None:
    done = command("resume=out", "defense=[perturbation,clipping]")
    assert "defense: [clipping,perturbation] -> [perturbation,clipping]" in refused(done)
    done = command("resume=out", "defense.clipping.max_norm=7")
    assert "defense.clipping.max_norm: 1.0 -> 7" in refused(done)


def test_an_older_record_goes_on(command: Command, tmp_path: Path) -> None:
    settings = ("defense=perturbation", "noise=gaussian", "hydra.run.dir=out", "n_images=2")
    assert command(*TINY, *settings).code == 0
    folder = tmp_path / "out"
    before, config = table(folder / "metrics.csv"), run_json(folder)["config"]
    part = config["defense"]["perturbation"]
    flat = {"_target_": part["_target_"], "noise": part["noise"]}
    rewrite(folder, status="interrupted", config={**config, "defense": flat})
    (folder / "reconstructions/round-000__client-1.npz").unlink()
    with pytest.raises(ConfigurationError, match=r"defense: \[perturbation\] -> \[topk\]"):
        resume_run(Request(folder, ("defense=topk", "noise=none")), CONF)
    # What it was started with, said in other words.
    assert command("resume=out", "noise.std=0.001").code == 0
    assert table(folder / "metrics.csv") == before


def test_two_runs_that_differ_in_the_order_alone_are_told_apart(
    command: Command, tmp_path: Path
) -> None:
    for name, defense in (("a", "[clipping,sign]"), ("b", "[sign,clipping]")):
        assert command(*TINY, f"defense={defense}", f"hydra.run.dir={name}").code == 0
    one, other = (read_run(tmp_path / name) for name in "ab")
    assert one.label.endswith(", defended (clipping, sign)")
    assert differences(one.settings, other.settings) == [
        "settings that differ, A -> B:",
        "  defense: clipping, sign -> sign, clipping",
    ]


@pytest.mark.parametrize(
    ("group", "names"),
    [
        (None, ()),
        ("topk", ()),
        ([], ()),
        ({}, ()),
        ({"topk": {}, "sign": {}}, ("topk", "sign")),
        (FLAT, ("perturbation",)),
        ({"_target_": "medpfl.defenses.NoDefense"}, ("none",)),
        ({"_target_": "mine.Own", "x": 1}, ("Own",)),
        ({"_target_": 5}, ("5",)),
    ],
)
def test_parts_of_todays_records_and_of_older_ones(group: object, names: tuple) -> None:
    assert defense_names(group) == names
    assert defense_parts(FLAT) == {"perturbation": FLAT}
