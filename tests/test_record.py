import csv
import errno
import json
import math
import os
import stat
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers import capture_of
from PIL import Image

from medpfl.errors import MedpflError
from medpfl.metrics import Scorer, summarise
from medpfl.outcomes import Status
from medpfl.report.record import COLUMNS, RunRecord, load_victim
from medpfl.seeding import generator
from medpfl.source import Planned
from medpfl.types import DataSpec, Reconstruction, Trace, Truth, UpdateFacts

SHAPE = (3, 16, 20)


def start(folder, **changes):
    settings = {
        "config": {"attack": {"steps": 300, "clip": math.inf}, "sizes": (1, 2)},
        "overrides": ["attack=cpl", "seed=0"],
        "seed": 0,
        "device": "cpu",
    }
    return RunRecord.create(folder, **{**settings, **changes})


def victim_of(*ids, shape=SHAPE):
    inputs = torch.rand((len(ids), *shape), generator=generator(0, *ids))
    return Truth(inputs=inputs, labels=torch.arange(len(ids)), ids=ids)


def reconstruction_of(victim, *, order=None, trace=False):
    order = torch.arange(len(victim.ids)) if order is None else torch.tensor(order)
    inputs = victim.inputs[order]
    steps = torch.tensor([0, 10])
    history = torch.stack([inputs * 0.5, inputs])
    return Reconstruction(
        capture_id="+".join(victim.ids),
        inputs=inputs,
        labels=victim.labels[order],
        objective=math.nan,
        status=Status.CONVERGED,
        steps=10,
        evaluations=12,
        seconds=1.5,
        trace=Trace(steps, torch.tensor([1.0, 0.0]).double(), history) if trace else None,
    )


def planned(*ids):
    return [Planned(image_id, 0, 0, (image_id,)) for image_id in ids]


def judgement_of(victim, reconstruction):
    shape = tuple(victim.inputs.shape[1:])
    capture = captured(victim, reconstruction)
    return Scorer().judge(capture, reconstruction, torch.zeros(shape))


def captured(victim, reconstruction):
    shape = tuple(victim.inputs.shape[1:])
    spec = DataSpec(shape, 4, (0.5,) * shape[0], (0.5,) * shape[0])
    facts = UpdateFacts(1.0, torch.ones(len(victim.ids)), None, 3.0)
    return capture_of(victim, facts, spec, capture_id=reconstruction.capture_id)


def add(record, *ids, **choices):
    victim = victim_of(*ids)
    reconstruction = reconstruction_of(victim, **choices)
    judgement = judgement_of(victim, reconstruction)
    record.add(captured(victim, reconstruction), reconstruction, judgement)
    return victim, reconstruction, judgement.scores


def read_run(folder):
    def refuse(token):
        raise AssertionError(f"run.json holds {token}")

    return json.loads((folder / "run.json").read_text("utf-8"), parse_constant=refuse)


def read_table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def fill_the_disk(monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)


def test_a_whole_run(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("medpfl.report.run_file.time.perf_counter", lambda: now[0])
    folder = tmp_path / "2026-11-20" / "10-00"
    record = start(folder)
    assert read_run(folder)["status"] == "running"
    record.plan(planned("b/2", "a/1"))
    _, _, first = add(record, "a/1")
    _, _, second = add(record, "b/2")
    assert record.scores == [*second, *first]
    summary = summarise(record.scores)
    now[0] += 7.5
    record.finish(summary)

    run = read_run(folder)
    assert list(run) == [
        "status",
        "error",
        "config",
        "overrides",
        "seed",
        "device",
        "versions",
        "commit",
        "started",
        "seconds",
        "summary",
    ]
    assert (run["status"], run["error"]) == ("complete", None)
    assert run["config"] == {"attack": {"steps": 300, "clip": "inf"}, "sizes": [1, 2]}
    assert (run["overrides"], run["seed"]) == (["attack=cpl", "seed=0"], 0)
    assert list(run["versions"]) == [
        *("medpfl", "python", "torch", "torchvision", "numpy", "skimage", "hydra")
    ]
    assert all(run["versions"].values())
    assert run["seconds"] == 7.5
    # Every image is an exact hit: there is no finite PSNR to take a mean of, and no objective.
    undefined = ["psnr_db_mean", "ssim_paper_mean", "objective_median"]
    undefined += ["unexplained_median", "agreement_median"]
    finite = asdict(summary) | dict.fromkeys(undefined)
    if math.isnan(summary.ssim_oracle_mean):
        finite |= dict.fromkeys(["ssim_oracle_mean", "mse_oracle_mean"])
    assert run["summary"] == finite
    assert files_below(folder) == [
        "metrics.csv",
        "reconstructions/a__1.npz",
        "reconstructions/a__1__a__1.png",
        "reconstructions/b__2.npz",
        "reconstructions/b__2__b__2.png",
        "run.json",
    ]


def test_victims_are_read_back_in_the_planned_order(tmp_path):
    record = start(tmp_path / "run")
    record.plan(planned("c/3", "b/2", "a/1"))
    originals = {name: add(record, name)[0].inputs for name in ("a/1", "c/3", "b/2")}
    victims = list(record.victims())
    assert [victim.scores[0].image_id for victim in victims] == ["c/3", "b/2", "a/1"]
    for victim in victims:
        assert torch.equal(victim.original, originals[victim.scores[0].image_id])


def test_the_device_can_be_noted_later(tmp_path):
    record = start(tmp_path / "run", device=None)
    assert read_run(tmp_path / "run")["device"] is None
    record.note_device(torch.device("cpu"))
    assert read_run(tmp_path / "run")["device"] == "cpu"
    assert read_run(tmp_path / "run")["status"] == "running"


def test_columns_are_the_scores_fields(tmp_path):
    record = start(tmp_path / "run")
    add(record, "b/2")
    record.plan(planned("a/1", "b/2"))
    add(record, "a/1")
    record.finish(None)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header == (
        "capture_id,round,client,image_id,label,label_inferred,ssim,mse,psnr_db,success,gradient_norm,true_probability,"
        "objective,steps,evaluations,seconds,status,noise_scale,snr_db,ssim_paper,ssim_zeros,"
        "mse_zeros,ssim_mean_image,mse_mean_image,"
        "ssim_paper_cpl,ssim_paper_dlg,ssim_paper_gradinv,ssim_oracle,mse_oracle,"
        "closed_form,unknowns,determined,grade,grade_mean_image,"
        "unexplained,agreement,grain,identification_rank,identification_candidates"
    )
    assert header == ",".join(COLUMNS)
    rows = read_table(tmp_path / "run")
    assert [row["image_id"] for row in rows] == ["a/1", "b/2"]
    assert (rows[0]["psnr_db"], rows[0]["objective"], rows[0]["noise_scale"]) == ("inf", "nan", "")
    assert (rows[0]["success"], rows[0]["status"]) == ("True", "converged")
    assert float(rows[0]["ssim_zeros"]) == record.scores[0].ssim_zeros


@pytest.mark.parametrize("trace", [False, True])
def test_round_trip_in_the_order_of_the_originals(tmp_path, trace):
    record = start(tmp_path / "run")
    victim, reconstruction, scores = add(record, "a/1", "a/2", "a/3", order=[2, 0, 1], trace=trace)
    (path,) = (tmp_path / "run" / "reconstructions").glob("*.npz")
    back = load_victim(path)
    assert torch.equal(back.original, victim.inputs)
    assert torch.equal(back.reconstruction, victim.inputs)
    # NaN is not equal to itself, and its place in the rows matters.
    assert repr(back.scores) == repr(scores)
    assert [type(value) for value in asdict(back.scores[0]).values()] == [
        type(value) for value in asdict(scores[0]).values()
    ]
    if not trace:
        assert back.trace is None
        assert back.ssim_trace is None
        return
    assert torch.equal(back.trace.steps, reconstruction.trace.steps)
    assert torch.equal(back.trace.objective, reconstruction.trace.objective)
    assert torch.equal(back.trace.inputs, torch.stack([victim.inputs * 0.5, victim.inputs]))
    assert torch.equal(back.ssim_trace, judgement_of(victim, reconstruction).ssim_trace)
    assert len(list(path.parent.glob("*.png"))) == 3


def test_arrays_need_no_pickle(tmp_path):
    record = start(tmp_path / "run")
    add(record, "a/1", trace=True)
    with np.load(tmp_path / "run/reconstructions/a__1.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == [
            *("original", "reconstruction", "scores", "ssim_trace"),
            *("trace_inputs", "trace_objective", "trace_steps"),
        ]
        assert json.loads(str(arrays["scores"]))[0]["psnr_db"] == "inf"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_nobody_else_can_read(tmp_path, umask):
    old = os.umask(umask)
    try:
        record = start(tmp_path / "run")
        add(record, "a/1")
        record.finish(None)
    finally:
        os.umask(old)
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(paths) == 7
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_open_folder_is_closed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    start(tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_folder_holds_one_run(tmp_path):
    start(tmp_path / "run").finish(None)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(MedpflError, match=r"already holds a run .* hydra\.run\.dir"):
        start(tmp_path / "run", seed=1)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(MedpflError, match="is a file"):
        start(tmp_path / "run")
    with pytest.raises(MedpflError, match=r"Cannot write .* Not a directory.* hydra\.run\.dir"):
        start(tmp_path / "run" / "below")


def test_a_folder_closed_to_us_is_refused(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(MedpflError, match=r"Permission denied.*that you own"):
        start(tmp_path / "run")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_costs_the_current_victim_alone(tmp_path, monkeypatch, call):
    folder = tmp_path / "run"
    record = start(folder)
    add(record, "a/1")
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    with monkeypatch.context() as context:
        fill_the_disk(context, call)
        with pytest.raises(MedpflError, match=r"No space left.* 1 images recorded so far"):
            add(record, "a/2")
        with pytest.raises(MedpflError, match="free some space"):
            record.finish(None)
    assert {name: (folder / name).read_bytes() for name in files_below(folder)} == before
    assert [score.image_id for score in record.scores] == ["a/1"]
    assert load_victim(folder / "reconstructions" / "a__1.npz").scores[0].image_id == "a/1"
    add(record, "a/2")
    record.finish(None)
    assert [row["image_id"] for row in read_table(folder)] == ["a/1", "a/2"]


def test_an_interrupted_write_leaves_no_part(tmp_path, monkeypatch):
    record = start(tmp_path / "run")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            add(record, "a/1")
    assert files_below(tmp_path / "run") == ["run.json"]


def test_an_interrupted_run_sums_up_what_there_is(tmp_path):
    record = start(tmp_path / "run")
    add(record, "a/1")
    add(record, "a/2")
    record.interrupt()
    run = read_run(tmp_path / "run")
    assert (run["status"], run["summary"]["n"]) == ("interrupted", 2)
    assert len(read_table(tmp_path / "run")) == 2


def test_interrupted_before_the_first_victim(tmp_path):
    start(tmp_path / "run").interrupt()
    assert read_run(tmp_path / "run")["summary"] is None
    assert read_table(tmp_path / "run") == []


def test_a_failed_run_tells_why(tmp_path):
    record = start(tmp_path / "run")
    add(record, "a/1")
    try:
        raise RuntimeError("out of memory")
    except RuntimeError as error:
        record.fail(error)
    run = read_run(tmp_path / "run")
    assert (run["status"], run["summary"]) == ("failed", None)
    assert (run["error"]["type"], run["error"]["message"]) == ("RuntimeError", "out of memory")
    assert "test_a_failed_run_tells_why" in run["error"]["traceback"]
    assert len(read_table(tmp_path / "run")) == 1


def test_a_failure_that_cannot_be_recorded_hides_nothing(tmp_path, monkeypatch, caplog):
    record = start(tmp_path / "run")
    fill_the_disk(monkeypatch, "replace")
    record.fail(RuntimeError("the cause"))
    assert "No space left" in caplog.text


def test_the_table_waits_while_victims_come_fast(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    record = start(tmp_path / "run")
    for name, expected in (("a/1", 1), ("a/2", 1)):
        add(record, name)
        assert len(read_table(tmp_path / "run")) == expected
    now[0] += 2.5
    add(record, "a/3")
    assert len(read_table(tmp_path / "run")) == 3


def test_a_victim_is_recorded_once(tmp_path):
    record = start(tmp_path / "run")
    add(record, "a/1")
    with pytest.raises(ValueError, match="'a/1' is recorded already"):
        add(record, "a/1")


def test_pictures_open(tmp_path):
    record = start(tmp_path / "run")
    add(record, "a/1")
    with Image.open(tmp_path / "run/reconstructions/a__1__a__1.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
