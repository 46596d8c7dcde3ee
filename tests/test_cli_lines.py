"""Odd command lines, one kind after the other: a message and exit code 2, never a traceback."""

from __future__ import annotations

import itertools

import pytest
from conftest import Command
from helpers import CONF
from test_cli_mistakes import refused

GROUPS = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")})
NO_OPTION = ("5", "null", "true", "nan", "[a]", "{a: 1}", "", "zz", "a/b", "../config", "'5'")
NO_FOLDER = ("null", "[a]", "{a: 1}", "")
LINES = [
    ["--bogus"],
    ["--cfg"],
    ["--cfg=bogus"],
    ["--cfg=job", "--run"],
    ["--info=bogus"],
    ["--resolve"],
    ["--package=attack"],
    ["--experimental-rerun=config.pickle"],
    ["--config-name=nothing"],
    ["--config-name="],
    ["--config-name=../config"],
    ["-sc"],
    ["-sc", "install=none"],
    ["--", "-x=1"],
    ["="],
    ["=5"],
    ["attack"],
    ["a=b=c"],
    ["attack.optimizer.lr=["],
    ["attack.optimizer.lr={"],
    ["attack.optimizer.lr='"],
    ["attack.optimizer.lr=a,"],
    ["attack.optimizer.lr=${x"],
    ["attack.optimizer.lr=" + "[" * 3000],
    ["attack.optimizer.lr.deeper=1"],
    ["attack..lr=1"],
    ["@=1"],
    ["dataset@elsewhere=covid"],
    ["++dataset=covid"],
    ["+seed=1"],
    ["~nothing"],
    ["~seed=5"],
    ["hydra=5"],
    ["hydra=null"],
    ["hydra.run=null"],
    ["hydra.mode=BOGUS"],
    ["hydra.verbose=5"],
    ["hydra.callbacks=null"],
    ["+hydra.callbacks.x._target_=os.nothing"],
    ["hydra.job_logging=null"],
    ["hydra.job.name=a/b"],
    ["hydra.job.name=" + "x" * 300],
    ["hydra.job.env_copy=[NOTHING_OF_THIS_NAME]"],
    ["hydra.output_subdir=" + "x" * 300],
    ["hydra/launcher=nothing"],
    ["hydra/launcher=5"],
    ["hydra/job_logging=nothing"],
    ["hydra.searchpath=5"],
    ["hydra.searchpath=[odd://x]"],
    ["hydra.searchpath=[pkg://nowhere]"],
    ["hydra.run.dir=" + "x" * 300],
    ["hydra.run.dir=" + "x/" * 3000],
    ["-m", "hydra.sweep.dir=" + "x" * 300],
    ["-m", "seed=1,"],
    ["-m", "attack=cpl,zz"],
    ["-m", "hydra.run.dir=a,b"],
    ["-m", "hydra/launcher=nothing"],
    ["resume="],
    ["resume=nowhere"],
    ["resume=~nobody_here/x"],
    ["resume=" + "x" * 300],
    ["resume=.", "resume=."],
    ["resume=.", "--cfg=job"],
    *[[f"{group}={choice}"] for group, choice in itertools.product(GROUPS, NO_OPTION)],
    *[[f"~{group}"] for group in GROUPS],
    *[[f"hydra.run.dir={folder}"] for folder in NO_FOLDER],
    *[["-m", f"hydra.sweep.dir={folder}"] for folder in NO_FOLDER],
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line)[:60])
def test_an_odd_command_line_is_one_message(command: Command, line: list[str]) -> None:
    told = refused(command(*line))
    assert len(told) > len("medpfl: error: ") + 5
    assert "HYDRA_FULL_ERROR" not in told


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "paper"])
def test_a_group_says_what_there_is_to_choose(command: Command, group: str) -> None:
    options = sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))
    assert f"hoose one of {', '.join(options)}" in refused(command(f"{group}=null"))
