"""The benchmark: small measurements whose outcome is known, and the arithmetic of its tables."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import fields

import pytest
import torch
from helpers import CPU, experiment

from medpfl.bench import __main__ as bench
from medpfl.bench import against_breaching, breaching_side, compiling, gpu
from medpfl.bench.machine import machine, show_table
from medpfl.bench.updates import Attempt, attack_updates, compute_updates, dataset_overrides
from medpfl.image_score import ImageScore

# 16 pixels a side: the closed form of dlg_cnn takes a tenth of a second.
SMALL = ("preprocess.size=16", "attack.optimizer.max_steps=3")


def table(text: str) -> list[dict[str, str]]:
    """Return the rows of a Markdown table, by column."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    header, rows = lines[0], lines[2:]
    return [dict(zip(header, [c.strip() for c in row], strict=False)) for row in rows]


def attempt(*ssims: float, seconds: float, cpu: float = 0.0, evaluations: int = 0) -> Attempt:
    blank = {field.name: 0.0 for field in fields(ImageScore)}
    scores = tuple(ImageScore(**{**blank, "ssim": s, "success": s >= 0.9}) for s in ssims)
    return Attempt(scores, seconds, cpu, evaluations)


def test_an_attempt_spreads_all_its_time_over_what_it_solved():
    tried = attempt(0.95, 0.2, 0.99, seconds=12.0, cpu=5.0, evaluations=600)
    assert (tried.solved, tried.per_image, tried.per_solved) == (2, 4.0, 6.0)
    assert (tried.cpu_per_image, tried.cpu_per_solved) == (5 / 3, 2.5)
    assert tried.per_evaluation_ms == 20.0
    assert tried.without(6.0).per_evaluation_ms == 10.0
    assert attempt(0.2, seconds=1.0).per_solved == math.inf


def test_the_machine_line_names_threads_and_torch():
    line = machine()
    assert f"{torch.get_num_threads()} threads" in line
    assert f"torch {torch.__version__}" in line
    assert "\n" not in line
    assert line.split(",")[0]


def test_a_table_is_headed_by_the_machine_and_a_command_to_copy(capsys):
    show_table("Title", ["a"], [["1"]], command=["loop", "--dataset", "it's here"])
    printed = capsys.readouterr().out
    assert machine() in printed
    assert "    python -m medpfl.bench loop --dataset 'it'\"'\"'s here'\n" in printed
    assert table(printed) == [{"a": "1"}]


def test_the_loop_and_the_engine_solve_the_same_images(capsys):
    arguments = ["--attacks", "cpl", "--images", "2", "--steps", "3"]
    status = bench.main(["loop", *arguments, "--override", "preprocess.size=16"])
    (row,) = table(capsys.readouterr().out)
    assert status == 0
    assert (row["attack"], row["engine"]) == ("cpl", "batched")
    assert row["same success"] == f"{row['images']} of {row['images']}"
    for ratio in (row["throughput"], row["throughput in CPU s"]):
        assert ratio.endswith("x")
        assert 0 <= float(ratio[:-1]) < math.inf


def test_time_to_compile_is_told_apart(monkeypatch):
    # Rows of a tick, and its seconds: two of these compiled.
    ticks = [(8, 30.0), *[(8, 0.25)] * 4, (2, 20.0), *[(2, 0.125)] * 4]
    clock = iter([t for _, seconds in ticks for t in (0.0, seconds)])
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    watch = compiling.CompileWatch(CPU)
    assert watch.compiling == 0.0
    for rows, _ in ticks:
        with watch.evaluation(torch.empty(rows, 3)):
            pass
    assert watch.compiling == (30.0 - 0.25) + (20.0 - 0.125)


def test_slow_evaluations_that_are_all_alike_have_not_compiled(monkeypatch):
    clock = iter([0.0, 3.0] * 3)
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    watch = compiling.CompileWatch(CPU)
    for _ in range(3):
        with watch.evaluation(torch.empty(1, 1)):
            pass
    assert watch.compiling == 0.0


def test_success_is_counted_over_the_images(capsys):
    arguments = ["--datasets", "phantom", "--models", "dlg_cnn", "--images", "2"]
    status = bench.main(["success", *arguments, "--override", *SMALL])
    printed = capsys.readouterr().out
    (row,) = table(printed)
    assert status == 0
    assert row["solved of these"] == "2 of 2"
    assert row["ASR"] == "100.0 %"
    assert row["solved of the others"] == "0 of 0"
    assert float(row["smallest SSIM"]) > 0.99
    assert "Every image with a gradient was found." in printed


def test_a_case_that_cannot_run_costs_no_other_case(tmp_path, capsys):
    nowhere = f"brain_mri@{tmp_path}"
    arguments = ["--datasets", nowhere, "phantom", "--models", "idlg_cnn", "--images", "1"]
    assert bench.main(["success", *arguments, "--override", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert [row["dataset"] for row in table(printed)] == ["phantom"]
    assert f"{nowhere}, idlg_cnn could not run: " in " ".join(printed.split())


def test_success_names_the_images_that_were_not_found(capsys):
    hopeless = "attack.start.largest_residual=1e-30"
    arguments = ["--datasets", "phantom", "--models", "dlg_cnn", "--images", "1"]
    bench.main(["success", *arguments, "--override", *SMALL, hopeless])
    printed = capsys.readouterr().out
    assert table(printed)[0]["solved of these"] == "0 of 1"
    assert "Not found: phantom, dlg_cnn: " in printed
    assert ": out_of_steps, SSIM " in printed


def test_gpu_runs_at_small_size_and_says_what_was_not_measured(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    measure, measured = gpu._measure, []
    monkeypatch.setattr(gpu, "_measure", lambda *a: measured.append(measure(*a)) or measured[-1])
    assert bench.main(["gpu", "--small", "--only", "scale_free"]) == 0
    small, full = table(capsys.readouterr().out)
    assert small["what"].startswith("small size of: scale_free")
    assert small["solved"] == "2 of 2"
    assert small["met"] == ""
    (whole,) = measured
    assert whole.fraction > 0  # printed with one digit, a busy machine's share may be 0.0 %
    assert small["fraction of peak"] == f"{100 * whole.fraction:.1f} %"
    assert (full["seconds"], full["met"]) == ("", gpu.NO_GPU)


def test_gpu_measures_nothing_at_full_size_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "compute_updates", lambda _: pytest.fail("attacked on a CPU"))
    assert bench.main(["gpu"]) == 0
    assert [row["met"] for row in table(capsys.readouterr().out)] == [gpu.NO_GPU] * 4


@pytest.mark.parametrize(("seconds", "met"), [(119.0, "yes"), (121.0, "no")])
def test_gradinv_is_judged_by_the_image_and_scaled_to_all_its_steps(seconds, met):
    targets = gpu._targets(Namespace(gradinv_steps=12_000, gradinv_images=4))
    gradinv = next(target for name, target in targets if name == "gradinv")
    measured = gpu.Measured(4, 0, seconds, 3.0, 1e15, 1e14, 2_000_000_000)
    cells = gpu._shown(gradinv, measured, judged=True)
    row = dict(zip(gpu._COLUMNS, cells, strict=True))
    assert row["met"] == met
    assert row["seconds"].endswith("(measured, times 2)")
    assert row["peak memory"] == "2.0 GB"
    assert row["fraction of peak"] == f"{100 * 10 / seconds:.1f} %"


def test_with_a_gpu_every_target_is_judged(monkeypatch):
    measured = gpu.Measured(4, 4, 20.0, 3.0, math.nan, 1e14, 0)
    monkeypatch.setattr(gpu, "_measure", lambda *_: measured)
    arguments = Namespace(small=False, gradinv_steps=24_000, gradinv_images=4)
    rows = [
        dict(zip(gpu._COLUMNS, cells, strict=True))
        for _, target in gpu._targets(arguments)
        for cells in gpu._rows(target, torch.device("cuda"), arguments)
    ]
    assert [row["met"] for row in rows] == ["yes", "no", "yes", "yes"]
    assert [row["precision"] for row in rows] == ["float32", "float64", "TF32", "float32"]
    assert {row["fraction of peak"] for row in rows} == {"n/a"}


def test_measurements_on_several_datasets_add_up():
    one = gpu.Measured(3, 1, 2.0, 1.0, 10.0, 5.0, 7)
    two = gpu.Measured(2, 2, 3.0, 0.5, 15.0, 5.0, 9)
    assert one + two == gpu.Measured(5, 3, 5.0, 1.5, 25.0, 5.0, 9)
    assert (one + two).fraction == 1.0


@pytest.mark.parametrize("count", [2, 300])
def test_as_many_images_are_drawn_as_a_target_asks_for(count):
    assert len(experiment(*gpu._images("phantom", count)).data.selected) == count


def test_tf32_is_put_back_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with gpu._tf32(not before[0]):
        assert torch.backends.cuda.matmul.allow_tf32 is not before[0]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_images_that_lie_elsewhere_are_named_with_their_folder():
    assert dataset_overrides("phantom") == ["dataset=phantom"]
    assert dataset_overrides("covid@a/b") == ["dataset=covid", "dataset.root=a/b"]


def test_the_engine_solves_the_updates_that_it_is_given():
    updates = compute_updates(["attack=scale_free", "device=cpu", "n_images=2", *SMALL])
    tried = attack_updates(updates.with_gradient())
    assert tried.solved == len(tried.scores) == 2
    assert tried.seconds > 0


def test_a_mistake_is_one_message_and_exit_status_2(capsys):
    assert bench.main(["loop", "--dataset", "folder"]) == 2
    told = capsys.readouterr()
    assert "dataset.root" in told.err
    assert "|" not in told.out


@pytest.mark.parametrize(("installed", "parts"), [(False, ["loop"]), (True, ["loop", "breaching"])])
def test_without_a_part_what_is_installed_is_compared(monkeypatch, capsys, installed, parts):
    asked = []
    for name, module in bench.PARTS.items():
        monkeypatch.setattr(module, "run", lambda arguments, command, name=name: asked.append(name))
    monkeypatch.setattr(breaching_side, "is_installed", lambda: installed)
    assert bench.main([]) == 0
    assert asked == parts
    assert ("pip install" in capsys.readouterr().out) is not installed


def test_how_many_times_the_seconds_of_medpfl():
    times = against_breaching._times
    assert times(2.0, 50.0, 100.0) == "25x"
    assert times(2.0, math.inf, 50.0) == "at least 25x"
    assert times(math.inf, 50.0, 50.0) == "medpfl solved none"


def test_one_evaluation_plain_and_batched(capsys):
    assert bench.main(["evaluation", "--rows", "2", "--turns", "2"]) == 0
    rows = table(capsys.readouterr().out)
    assert [row["attack"] for row in rows] == ["dlg", "idlg", "cpl"]
    for row in rows:
        assert float(row["objectives agree to"]) < 1e-4
        assert float(row["plain, ms"]) > 0
        assert float(row["batched, ms a row"]) > 0
