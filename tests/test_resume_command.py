"""``medpfl resume=...``, for runs and for sweeps."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from helpers import CONF
from records import finished, logged, rewrite, run_json, table
from sessions import TINY, Stop, command, start

from medpfl import _atomic
from medpfl.command.arguments import read_arguments
from medpfl.errors import ConfigurationError
from medpfl.resume import Request, read_request
from medpfl.resume.launch import sweep_arguments


def medpfl(cwd: Path, *arguments: str, stop: Stop | None = None) -> tuple[int, str]:
    process = start(command, arguments, cwd, cwd / "said", cwd / "log", stop)
    process.join()
    return process.exitcode, " ".join((cwd / "said").read_text().split())  # unwrapped


def test_an_interrupted_run_is_resumed_in_its_own_folder(tmp_path, whole):
    stop = Stop("update", 3, signal=signal.SIGINT)
    code, said = medpfl(tmp_path, *TINY, stop=stop)
    assert code == 130
    (folder,) = tmp_path.glob("outputs/*/*")
    assert f"medpfl resume={folder}" in said
    assert run_json(folder)["status"] == "interrupted"
    code, said = medpfl(tmp_path, f"resume={folder.relative_to(tmp_path)}", "attack.rows=2")
    assert code == 2
    assert "attack.rows: 1 -> 2" in said
    code, said = medpfl(tmp_path, f"resume={folder.relative_to(tmp_path)}", "seed=0")
    assert code == 0, said
    assert list(tmp_path.glob("outputs/*/*")) == [folder]
    assert table(folder / "metrics.csv") == table(whole / "metrics.csv")
    code, said = medpfl(tmp_path, f"resume={folder}")
    assert (code, "complete already" in said) == (0, True)


def test_a_killed_sweep_is_resumed(tmp_path):
    told = ("--multirun", *TINY, "n_images=3", "seed=0,1,2,3")
    for name, stop in (("whole", None), ("half", Stop("update", 6))):
        code, said = medpfl(tmp_path, *told, f"hydra.sweep.dir={name}", stop=stop)
        assert code == (0 if stop is None else -signal.SIGKILL), said
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert run_json(half / "0")["status"] == "complete"
    assert len(finished(half / "1")) == 2
    assert not (half / "2").exists()
    # The sweep notes a job like this where the job itself could not leave a record.
    (half / "3").mkdir()
    (half / "3" / "run.json").write_text('{"status": "failed", "overrides": [], "error": {}}')
    done = (half / "0" / "run.json").read_bytes()

    code, said = medpfl(tmp_path, "resume=half", "seed=0,1,2,3,4")
    assert (code, "seed: 0,1,2,3 -> 0,1,2,3,4" in said) == (2, True)
    (tmp_path / "log").unlink()
    code, said = medpfl(tmp_path, "resume=half")
    assert code == 0, said
    assert len(logged(tmp_path / "log")) == 1 + 3 + 3
    assert (half / "0" / "run.json").read_bytes() == done
    assert table(half / "results.csv") == table(whole / "results.csv")
    for job in "0123":
        assert table(half / job / "metrics.csv") == table(whole / job / "metrics.csv")
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "multirun").exists()

    rewrite(half / "1", status="running")
    descriptor = _atomic.hold(half / "1")
    code, said = medpfl(tmp_path, "resume=half")
    os.close(descriptor)
    assert (code, "another medpfl is writing" in said) == (2, True)
    rewrite(half / "2", versions={"medpfl": "0.0.1"})
    code, said = medpfl(tmp_path, "resume=half")
    assert (code, "0.0.1" in said) == (2, True)
    assert run_json(half / "1")["status"] == "running"


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"overrides": {"hydra": ["+hydra.callbacks.x._target_=os.system"]}}, "not take over"),
        ({"overrides": {"task": ["hydra.launcher._target_=os.system"]}}, "not take over"),
        ({"overrides": {"hydra": ["hydra.launcher={_target_: os.system}"]}}, "not take over"),
        ({"overrides": {"hydra": ["hydra.sweep.subdir=../x"]}}, "one by one"),
        ({"job": {"config_name": "../../elsewhere"}}, "no such configuration"),
        ({"job": {"config_name": "unknown"}}, "no such configuration"),
        (
            {"runtime": {"config_sources": [{"provider": "command-line", "path": "/x"}]}},
            "--config-dir=/x",
        ),
        ({"runtime": {"config_sources": [{"provider": "main", "path": "/"}]}}, "configurations of"),
    ],
)
def test_a_sweep_that_would_run_other_code_is_refused(tmp_path, notes, told):
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": notes}))
    request = Request(tmp_path)
    assert request.is_sweep
    with pytest.raises(ConfigurationError, match=told):
        sweep_arguments(request, CONF)


def test_a_sweep_is_launched_as_it_was(tmp_path):
    notes = {
        "overrides": {
            "hydra": ["hydra/launcher=joblib", "hydra.mode=MULTIRUN", "hydra.sweep.dir=x"],
            "task": ["seed=0,1", "paper/row=cpl"],
        },
        "job": {"config_name": "paper/table1"},
    }
    folder = tmp_path / "it's one"
    folder.mkdir()
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": notes}))
    told = Request(folder, overrides=("seed=0,1",))
    assert sweep_arguments(told, CONF) == [
        "--config-name=paper/table1",
        "--multirun",
        "hydra/launcher=joblib",
        "seed=0,1",
        "paper/row=cpl",
        f"hydra.sweep.dir='{tmp_path}/it\\'s one'",
    ]


def requested(*line):
    return read_request(read_arguments(line))


@pytest.mark.parametrize("argument", ["--cfg=job", "--help", "resume=b", "resume="])
def test_a_request_is_for_one_thing(argument):
    with pytest.raises(ConfigurationError, match="resume="):
        requested("resume=a", argument)


def test_a_request_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=b", "a", "c"):
        (tmp_path / name).mkdir()
    assert requested("attack=dlg", "--cfg", "job") is None
    assert requested("resume=a=b", "-m", "--config-dir", "c", "seed=1") == Request(
        tmp_path / "a=b", ("seed=1",), tmp_path / "c"
    )
    assert requested("++resume=a") == Request(tmp_path / "a")
