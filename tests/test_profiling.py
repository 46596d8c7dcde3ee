"""Profiles: time by phase, work of an evaluation, and the files of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import CPU, config, experiment

from medpfl.errors import ConfigurationError
from medpfl.profiling import RunProfiler
from medpfl.runner import run


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_phases_take_their_time_from_those_around_them() -> None:
    clock = Clock()
    profiler = RunProfiler(device=CPU, counts_work=False, clock=clock)
    clock.now = 1
    with profiler.phase("optimiser"):
        clock.now = 3
        with profiler.evaluation(torch.zeros(4, 2)):
            clock.now = 7

    def items() -> Iterator[int]:
        clock.now += 5
        yield 1

    assert list(profiler.drawn("client", items())) == [1]
    with suppress(KeyError), profiler.phase("writing"):
        clock.now += 2
        raise KeyError
    profile = profiler.profile()
    assert profile.seconds == {
        "other": 1,
        "optimiser": 2,
        "evaluation": 4,
        "client": 5,
        "writing": 2,
    }
    assert (profile.evaluations, profile.rows, profile.evaluations_per_second) == (4, 4, 1)
    assert profile.flops is None
    assert "not counted" in profile.as_markdown()


def test_the_work_of_an_evaluation_is_counted() -> None:
    profiler = RunProfiler(device=CPU)
    weight = torch.ones(5, 3)
    z = torch.ones(4, 5)
    with profiler.evaluation(z):
        product = z @ weight
    profile = profiler.profile()
    assert profile.flops == 2 * 5 * 3
    assert profile.bytes == 4 * (z.numel() + weight.numel() + product.numel()) / 4
    assert profile.peak_flops > 0
    assert profile.peak_bytes > 0


def test_work_in_place_is_counted_too() -> None:
    profiler = RunProfiler(device=CPU)
    a, b, total = torch.ones(2, 5, 3), torch.ones(2, 3, 4), torch.ones(2, 5, 4)
    with profiler.evaluation(torch.ones(1, 1)):
        total.baddbmm_(a, b).add_(1)
    assert profiler.profile().flops == 2 * 2 * 5 * 3 * 4


def test_a_profiled_run_leaves_its_profile(tmp_path: Path) -> None:
    small = ("n_images=2", "attack=dlg", "attack.optimizer.max_steps=2", "attack.trace_points=2")
    run(config(*small, "profile=true"), tmp_path / "run")
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert {"client", "starts", "evaluation", "optimiser", "scoring", "writing", "figures"} <= set(
        profile["seconds"]
    )
    assert profile["precision"] == "float32"
    assert profile["flops"] > 1e6
    done = profile["flops"] * profile["evaluations_per_second"]
    assert profile["fraction_of_peak_flops"] == pytest.approx(done / profile["peak_flops"])
    assert done > 0
    assert "| evaluation |" in (tmp_path / "run" / "profile.md").read_text()


def test_whether_to_profile_is_true_or_false() -> None:
    with pytest.raises(ConfigurationError, match="profile=maybe: must be true or false"):
        experiment("profile=maybe")
