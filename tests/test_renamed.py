"""Settings by the names that they had: translated in records, refused where they are typed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Command
from helpers import CONF, config
from omegaconf import OmegaConf
from records import assert_same_end, rewrite, run_json

from medpfl.errors import ConfigurationError
from medpfl.experiment import build
from medpfl.report.jobs import read_record
from medpfl.resume import Request
from medpfl.resume.launch import sweep_arguments
from medpfl.resume.run import resume_run
from medpfl.settings.renamed import now_called, overrides_by_todays_names, translated

NAMED = "is now federation.batch_norm: eval_public for mode=eval, train_private for mode=train"


def recorded(**old: object) -> dict[str, Any]:
    """Return a configuration as it was recorded before there was one policy."""
    today: Any = OmegaConf.to_container(config("attack=dlg"), resolve=True)
    del today["federation"]["batch_norm"]
    return {**today, "federation": {**today["federation"], **old}}


@pytest.mark.parametrize(
    ("old", "policy"),
    [
        ({"mode": "eval", "buffers": "private"}, "eval_public"),
        ({"mode": "eval", "buffers": "shared"}, "eval_public"),
        ({"mode": "train", "buffers": "private"}, "train_private"),
        ({"mode": "train", "buffers": "shared"}, "train_shared"),
        ({"mode": "train"}, "train_private"),
        ({"buffers": "shared"}, "eval_public"),
    ],
)
def test_a_recorded_pair_becomes_the_policy_that_it_meant(old, policy):
    before = recorded(**old)
    after = translated(before)
    assert after["federation"] == {**recorded()["federation"], "batch_norm": policy}
    assert before == recorded(**old)
    assert {**after, "federation": {}} == {**before, "federation": {}}
    assert translated(after) == after


@pytest.mark.parametrize(
    "config_",
    [
        {},
        {"federation": None},
        {"federation": ["mode"]},
        {"federation": {"mode": "train"}},
        {"federation": {"_target_": "mine.Federation", "mode": "train"}},
        recorded(mode="test"),
        recorded(mode=["train"]),
        recorded(mode="train", batch_norm="eval_public"),
    ],
)
def test_what_cannot_be_translated_is_left_as_it_is(config_):
    assert translated(config_) == config_


def test_a_configuration_that_is_left_so_is_refused_by_name():
    for old in ({"mode": "test"}, {"buffers": "shared", "batch_norm": "train_private"}):
        (name, *_) = old
        with pytest.raises(ConfigurationError, match=rf"^federation\.{name} {NAMED}"):
            build(OmegaConf.create(translated(recorded(**old))))


def test_overrides_are_told_by_the_name_that_composes_today():
    told = ["seed=1", "federation.mode=train", "++federation.buffers=shared", "attack=dlg"]
    config_ = {"federation": {"batch_norm": "train_shared"}}
    assert overrides_by_todays_names(told, config_) == [
        "seed=1",
        "attack=dlg",
        "federation.batch_norm=train_shared",
    ]
    assert overrides_by_todays_names(["seed=1"], {}) == ["seed=1"]
    assert now_called("federation.batch_norm") is None


def aged(folder, *overrides: str, mode: str = "eval") -> None:
    """Make a run's record one of before."""
    record = run_json(folder)
    federation = {**record["config"]["federation"], "mode": mode, "buffers": "private"}
    del federation["batch_norm"]
    rewrite(
        folder,
        config={**record["config"], "federation": federation},
        overrides=[*record["overrides"], *overrides],
    )


def test_a_run_of_before_is_resumed_by_todays_names(half, whole):
    aged(half, "federation.mode=eval")
    with pytest.raises(ConfigurationError, match=r"batch_norm: eval_public -> train_private"):
        resume_run(Request(half, overrides=("federation.batch_norm=train_private",)), CONF)
    with pytest.raises(ConfigurationError, match=rf"^federation\.mode {NAMED}"):
        resume_run(Request(half, overrides=("federation.mode=train",)), CONF)
    told = ("seed=0", "federation.batch_norm=eval_public", "federation.mode=eval")
    resume_run(Request(half, overrides=told), CONF)
    assert_same_end(half, whole)
    assert run_json(half)["config"] == run_json(whole)["config"]


def test_a_record_reads_as_one_of_today(half, whole):
    aged(half)
    assert read_record(half)["config"] == read_record(whole)["config"]


def test_a_sweep_of_before_is_continued_job_by_job(tmp_path):
    notes = {
        "overrides": {"task": ["federation.mode=eval,train"]},
        "job": {"config_name": "config"},
    }
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": notes}))
    with pytest.raises(ConfigurationError, match=rf"mode=eval,train: .* {NAMED}.* one by one"):
        sweep_arguments(Request(tmp_path), CONF)


@pytest.mark.parametrize(
    "arguments",
    [
        ("federation.mode=train",),
        ("+federation.mode=train",),
        ("federation.buffers=shared",),
        ("--multirun", "federation.mode=eval,train"),
    ],
)
def test_an_old_name_on_the_command_line_ends_in_the_new_one(command: Command, arguments) -> None:
    done = command(*arguments)
    assert done.code != 0
    assert NAMED in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_old_name_in_ones_own_configuration_does_too(command: Command, tmp_path) -> None:
    (tmp_path / "own" / "federation").mkdir(parents=True)
    text = "defaults:\n  - fedsgd\n  - _self_\nmode: train\n"
    (tmp_path / "own" / "federation" / "mine.yaml").write_text(text)
    done = command("--config-dir=own", "federation=mine")
    assert done.code == 2
    assert NAMED in " ".join(done.stderr.split())
