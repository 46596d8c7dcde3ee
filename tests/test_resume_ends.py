"""Runs that end early, by an error, the user or the disk."""

from __future__ import annotations

import errno
import os

import pytest
from helpers import CONF, config
from records import assert_same_end, finished, run_json
from sessions import TINY

from medpfl import runner
from medpfl.errors import MedpflError
from medpfl.report.record import RunRecord
from medpfl.resume import Request
from medpfl.resume.run import resume_run


def fail_with(error: BaseException):
    def failing(*_: object, **__: object) -> None:
        raise error

    return failing


@pytest.mark.parametrize("place", ["build", "attack", "draw"])
@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_no_run_that_ended_is_left_running(half, monkeypatch, capsys, place, error, status):
    with monkeypatch.context() as context:
        context.setattr(runner, place, fail_with(error))
        # The attack itself is not what is tested here.
        if place == "draw":
            context.setattr(runner, "attack", lambda *_: None)
        with pytest.raises(type(error)):
            resume_run(Request(half), CONF)
    record = run_json(half)
    assert record["status"] == status
    if status == "failed":
        assert record["error"]["message"] == "no"
    else:
        assert f"medpfl resume={half}" in capsys.readouterr().out
        assert record["summary"]["n"] == 2


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_run_that_cannot_finish_is_not_left_running(half, whole, monkeypatch, error):
    with monkeypatch.context() as context:
        context.setattr(RunRecord, "finish", fail_with(error))
        with pytest.raises(type(error)):
            resume_run(Request(half), CONF)
    assert run_json(half)["status"] in ("failed", "interrupted")
    resume_run(Request(half), CONF)
    assert_same_end(half, whole)
    assert len(run_json(half)["resumed"]) == 2


def test_a_full_disk_keeps_what_is_finished(tmp_path, whole, monkeypatch):
    folder = tmp_path / "run"
    plain = os.fsync

    def full(descriptor: int) -> None:
        if len(list((folder / "reconstructions").glob("*.npz"))) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        told = rf"No space left.* 3 images recorded so far are safe.*medpfl resume={folder}"
        with pytest.raises(MedpflError, match=told):
            runner.run(config(*TINY), folder, overrides=TINY)
    assert len(finished(folder)) == 3
    assert not list(folder.rglob(".medpfl-*"))
    resume_run(Request(folder), CONF)
    assert_same_end(folder, whole)


def test_a_disk_that_is_full_for_the_figures_is_told_in_words(half, monkeypatch):
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(runner, "draw", fail_with(no_space))
    with pytest.raises(MedpflError, match=r"No space left.* 6 images recorded so far"):
        resume_run(Request(half), CONF)
    assert run_json(half)["status"] == "failed"
