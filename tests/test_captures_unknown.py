"""Captures from files whose images nobody has: what a run tells of them all the same."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from capture_files import DLG
from helpers import CPU, FACTORIES, config, seeded, sent, spec_of, victim_of
from records import rewrite, run_json, table

from medpfl import runner
from medpfl.captures import Defense, write_capture
from medpfl.federated import Client
from medpfl.resume.run import continue_run
from medpfl.training import LocalTraining

SPEC = spec_of(3, 16, 16)
SEVERAL = LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.1)
SHORT = ("source=file", "attack=dlg", "attack.optimizer.max_steps=1", "attack.trace_points=2")
COMPARED = ("attack.restarts=3", "attack.restart_above=null")


def capture(
    folder: Path,
    client: int,
    *,
    labels: tuple[int, ...] = (1,),
    training: LocalTraining | None = None,
    told: bool = True,
    known: bool = False,
    times: float = 1.0,
    defense: Defense | None = None,
) -> float:
    """Write a client's update, with or without its images, and return its norm as a gradient's."""
    payload = sent(FACTORIES["dlg_cnn"].build(SPEC, seeded(3)))
    truth = victim_of(SPEC, labels, seed=client)
    local = training or LocalTraining()
    update, facts = Client(spec=SPEC, device=CPU, training=local).update(truth, payload)
    write_capture(
        folder,
        round=0,
        client=client,
        kind=update.kind,
        update={name: times * t for name, t in update.tensors.items()},
        sent=payload.parameters,
        model=DLG,
        spec=SPEC,
        batch_norm="eval_public",
        local_training=update.local_training if told else None,
        num_examples=len(labels),
        truth=truth if known else None,
        defense=defense,
    )
    return facts.gradient_norm


def attacked(folder: Path, out: Path, *overrides: str) -> list[dict[str, str]]:
    runner.run(config(*SHORT, f"source.path={folder}", *overrides), out)
    return read(out)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_has_its_own_signs_and_its_updates_norm(tmp_path: Path) -> None:
    norms = [capture(tmp_path / "c", 0, labels=(0, 2)), capture(tmp_path / "c", 1)]
    first, second, third = rows = attacked(tmp_path / "c", tmp_path / "run", *COMPARED)
    assert [row["image_id"][-16:] for row in rows[:2]] == ["client-0/image-0", "client-0/image-1"]
    for row, norm in zip(rows, (norms[0], norms[0], norms[1]), strict=True):
        assert float(row["gradient_norm"]) == pytest.approx(norm, rel=1e-6)
        assert 0 < float(row["unexplained"]) < 1
        assert -1 < float(row["agreement"]) < 1
        assert 0 < float(row["grain"]) < 2
        assert row["ssim"] == row["true_probability"] == "nan"
    assert first["unexplained"] == second["unexplained"] != third["unexplained"]
    for name in ("agreement", "grain"):
        assert len({row[name] for row in rows}) == 3


def test_norm_and_signs_do_not_depend_on_what_is_known(tmp_path: Path) -> None:
    defense = Defense(description="clipped", noise_scale=0.25)
    capture(tmp_path / "without", 0, defense=defense)
    capture(tmp_path / "with", 0, defense=defense, known=True)
    (one,), (other,) = (
        attacked(tmp_path / name, tmp_path / f"run {name}", *COMPARED)
        for name in ("without", "with")
    )
    assert [math.isnan(float(row["ssim"])) for row in (one, other)] == [True, False]
    for name in ("gradient_norm", "noise_scale", "unexplained", "agreement", "grain", "objective"):
        assert one[name] == other[name], name
    assert one["noise_scale"] == "0.25"


@pytest.mark.parametrize(("told", "unit"), [(True, 1.0), (False, 0.1 * 2)])
def test_a_delta_is_told_as_a_gradient_where_its_making_is(
    tmp_path: Path, told: bool, unit: float
) -> None:
    """Two steps at a rate of 0.1; where nobody knows of them, the delta's own norm is all."""
    norm = capture(tmp_path / "c", 0, training=SEVERAL, told=told)
    attack = () if told else ("attack=scale_free",)
    (row,) = attacked(tmp_path / "c", tmp_path / "run", *attack)
    assert float(row["gradient_norm"]) == pytest.approx(norm * unit, rel=1e-3)


def test_one_restart_has_nothing_to_agree_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(tmp_path / "c", 0)
    (row,) = attacked(tmp_path / "c", tmp_path / "run")
    assert row["agreement"] == "nan"
    assert float(row["unexplained"]) > 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"unexplained {float(row['unexplained']):.4g} (median)" in said
    assert "attack.restarts=3 attack.restart_above=null" in said
    assert "alike" not in said


def test_the_summary_tells_of_the_restarts_that_were_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(tmp_path / "c", 0)
    capture(tmp_path / "c", 1, times=0.0)
    row, silent = attacked(tmp_path / "c", tmp_path / "run", *COMPARED)
    said = " ".join(capsys.readouterr().out.split())
    agreement = float(row["agreement"])
    assert f"alike to an SSIM of {agreement:.3f} (median, over 1 of 2)" in said
    summary = run_json(tmp_path / "run")["summary"]
    assert summary["n_agreement"] == 1
    assert summary["agreement_median"] == pytest.approx(agreement)
    assert summary["unexplained_median"] == pytest.approx(float(row["unexplained"]))
    assert (silent["status"], float(silent["gradient_norm"])) == ("no_gradient", 0.0)
    assert silent["unexplained"] == silent["agreement"] == "nan"


def test_an_attack_that_breaks_down_leaves_its_row(tmp_path: Path) -> None:
    capture(tmp_path / "c", 0, times=1e30)
    (row,) = attacked(tmp_path / "c", tmp_path / "run", *COMPARED)
    assert row["status"] == "non_finite"
    assert float(row["gradient_norm"]) > 1e30
    assert row["unexplained"] == row["agreement"] == row["objective"] == "nan"


def test_a_run_is_resumed_to_the_same_table(tmp_path: Path) -> None:
    for client, labels in enumerate([(0, 2), (1,), (2,)]):
        capture(tmp_path / "c", client, labels=labels)
    folder = tmp_path / "run"
    attacked(tmp_path / "c", folder, *COMPARED, "attack.rows=1")
    whole, summary = table(folder / "metrics.csv"), run_json(folder)["summary"]
    for client in (0, 2):
        (folder / "reconstructions" / f"round-000__client-{client}.npz").unlink()
    rewrite(folder, status="interrupted", summary=None)
    continue_run(folder, run_json(folder))
    assert table(folder / "metrics.csv") == whole
    again = run_json(folder)["summary"]
    for name in ("unexplained_median", "agreement_median", "n_agreement", "n_judged"):
        assert again[name] == summary[name]
    assert torch.tensor([float(row["agreement"]) for row in whole]).isfinite().all()
