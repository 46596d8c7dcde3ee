"""How a command ends where it cannot go on: the disk, the terminal, the driver, Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command
from helpers import ROOT
from test_cli_mistakes import refused

from medpfl.device import pick_device
from medpfl.errors import ConfigurationError

MEDPFL = "from medpfl.cli import main; main()"
COMPARE = "from medpfl.compare import main; main()"
# What stands for a slow import: it tells that it began, then waits.
SLOW = "import sys, time; sys.stderr.write('begun'); sys.stderr.flush(); time.sleep(60)"


def process(
    code: str, *arguments: str, path: Path = ROOT, **streams: object
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=os.getcwd() if path == ROOT else path,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **streams,  # type: ignore[call-overload]
    )


def light(*arguments: str) -> list[str]:
    """Return which heavy packages a command line imports."""
    code = (
        "import sys\n"
        "try:\n    from medpfl.cli import main; main()\nexcept SystemExit: pass\n"
        "heavy = 'torch pandas matplotlib scipy skimage torchvision numpy'.split()\n"
        "sys.stderr.write('\\nimported ' + ' '.join(n for n in heavy if n in sys.modules))"
    )
    running = process(code, *arguments, stdout=subprocess.DEVNULL)
    _, told = running.communicate()
    assert "Traceback" not in told
    return told.rpartition("imported ")[2].split()


@pytest.mark.parametrize(
    "line",
    [
        ["--help"],
        ["--version"],
        ["--hydra-help"],
        ["--cfg=job"],
        ["-sc", "install=bash"],
        ["datset=covid"],
        ["attack=zz"],
        ["attack=null"],
        ["-m", "seed=range(0,0)"],
        ["resume=nowhere"],
    ],
    ids=" ".join,
)
def test_what_needs_no_torch_does_not_import_it(line: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert light(*line) == []


def test_tab_completion_is_light_and_quiet(monkeypatch: pytest.MonkeyPatch, command: Command):
    for line, told in (("medpfl attack=sc", "attack=scale_free"), ("medpfl --bogus x", "")):
        monkeypatch.setenv("COMP_LINE", line)
        done = command("-sc", "query=bash")
        assert (done.stdout.strip(), done.stderr) == (told, "")


def test_version_and_help(command: Command) -> None:
    assert command("--version").stdout.startswith("medpfl 0.")
    for flag in ("--help", "-h"):
        told = command(flag).stdout
        for words in (
            "usage: medpfl",
            "medpfl -m attack=cpl,dlg",
            "exit codes: 0 ",
            "--hydra-help",
        ):
            assert words in told
        assert "attack: cpl, dimitrov, dlg," in told


@pytest.mark.parametrize(
    ("code", "package"), [(MEDPFL, "medpfl/command/main"), (COMPARE, "medpfl/compare/command")]
)
def test_ctrl_c_while_python_imports_is_one_line(tmp_path: Path, code: str, package: str) -> None:
    # The command's own module is slow: the package of the same name leads to the real one.
    for name in ("medpfl", package.rpartition("/")[0]):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text((ROOT / name / "__init__.py").read_text())
    for name in ("cli", "_entry", "_conf", "errors"):
        (tmp_path / "medpfl" / f"{name}.py").symlink_to(ROOT / "medpfl" / f"{name}.py")
    (tmp_path / f"{package}.py").write_text(SLOW)
    running = process(code, path=tmp_path, stdout=subprocess.PIPE)
    assert running.stderr is not None
    assert running.stderr.read(5) == "begun"
    running.send_signal(signal.SIGINT)
    _, told = running.communicate()
    assert (running.returncode, told) == (130, "medpfl: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--cfg=job"]], ids=" ".join)
def test_output_to_a_full_device(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        running = process(MEDPFL, *arguments, stdout=full)
        _, told = running.communicate()
    assert running.returncode == 1
    assert told == "medpfl: error: cannot write to standard output: No space left on device\n"


def test_output_that_nobody_reads() -> None:
    read, write = os.pipe()
    os.close(read)
    running = process(MEDPFL, "--help", stdout=write)
    os.close(write)
    _, told = running.communicate()
    assert running.returncode == 141
    assert told == "medpfl: error: standard output was closed before everything was written\n"


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor before Python starts")
def test_output_that_was_never_open() -> None:
    running = process(MEDPFL, "--version", stdout=None, preexec_fn=lambda: os.close(1))
    assert (running.communicate()[1], running.returncode) == ("", 0)


@pytest.mark.parametrize("mode", ["run", "sweep"])
@pytest.mark.parametrize(
    ("taken", "folder"),
    [
        (".hydra", False),
        (".hydra/config.yaml", True),
        (".hydra/hydra.yaml", True),
        ("medpfl.log", True),
    ],
)
def test_a_place_of_hydras_that_is_taken(
    command: Command, tmp_path: Path, mode: str, taken: str, folder: bool
) -> None:
    place = tmp_path / "out" / ("0" if mode == "sweep" else ".") / taken
    place.parent.mkdir(parents=True)
    place.mkdir() if folder else place.write_text("mine")
    arguments = ["-m", "seed=0,1"] if mode == "sweep" else []
    told = refused(command(*arguments, f"hydra.{mode}.dir=out"))
    assert "cannot write to the output folder out: " in told
    assert taken in told
    assert place.is_dir() if folder else place.read_text() == "mine"


def test_a_job_folder_that_is_a_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1").write_text("mine")
    told = refused(command("-m", "seed=0,1", "hydra.sweep.dir=out"))
    assert "cannot write to the output folder out: File exists (out/1)" in told
    assert not (tmp_path / "out" / "0").exists()


@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_a_full_disk_is_told_before_anything_is_computed(
    command: Command, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()  # the name still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    arguments = ["-m", "seed=0,1"] if mode == "sweep" else []
    told = refused(command(*arguments, f"hydra.{mode}.dir=out"))
    assert "cannot write to the output folder out: No space left on device" in told
    assert f"hydra.{mode}.dir=..." in told
    assert not any(path.is_file() for path in Path("out").rglob("*"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["attack=glob(zz*)"], "attack=glob(zz*)"),
        (["attack=glob(zz*)", "seed=0,1"], "attack=glob(zz*)"),
        (["seed=range(3,3)"], "seed=range(3,3)"),
        (["attack=glob(*)", "seed=range(3,3)"], "seed=range(3,3)"),
    ],
)
def test_a_sweep_of_nothing_is_a_mistake(command: Command, settings: list[str], why: str) -> None:
    done = command("-m", *settings, "hydra/hydra_logging=none")
    assert f"the sweep has no jobs: nothing matches {why}" in refused(done)


def test_auto_goes_on_without_a_driver_that_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA driver initialization failed\nstack")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", broken)
    assert pick_device("auto") == torch.device("cpu")
    said = " ".join(capsys.readouterr().out.split())
    assert "does not work on this machine (CUDA driver initialization failed); the CPU is" in said
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigurationError, match=rf"device={name}: .*initialization failed"):
            pick_device(name)


def test_auto_says_what_torch_complains_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def old_driver() -> bool:
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert pick_device("auto") == torch.device("cpu")
    assert "(The NVIDIA driver on your system is too old)" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="driver on your system is too old"):
        pick_device("cuda")


@pytest.mark.parametrize(
    "name", ["cuda:x", "cuda:", "cuda:-1", "cuda:1e9", "cuda:٣", "cuda:9999999"]
)
def test_a_device_of_no_number(name: str) -> None:
    with pytest.raises(ConfigurationError, match="choose auto, cpu, cuda"):
        pick_device(name)


def test_a_fault_of_the_program_is_one_message(command: Command, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("medpfl.runner.build", fail)
    done = command("hydra.run.dir=out")
    assert done.code == 1
    assert done.stderr.startswith("medpfl: error: RuntimeError: no such luck")
    assert "Traceback" not in done.stderr
    assert "MEDPFL_TRACEBACK=1" in done.stderr
    assert "no such luck" in Path("out/run.json").read_text()
    monkeypatch.setenv("MEDPFL_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="no such luck"):
        command("hydra.run.dir=again")
