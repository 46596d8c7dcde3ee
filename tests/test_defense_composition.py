"""Defenses one after another: their order, what clients keep, what is guaranteed and known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import config, experiment, seeded
from omegaconf import DictConfig, OmegaConf, open_dict
from records import run_json, table
from test_defense_parts import ENTRIES, an_update, flat, update_of

from medpfl.defenses import (
    Clipping,
    DefenseReport,
    Defenses,
    Gaussian,
    NoDefense,
    Perturbation,
    Quantise,
    RandomK,
    Sign,
    Soteria,
    TopK,
)
from medpfl.defenses.configured import defenses_at
from medpfl.errors import ConfigurationError
from medpfl.experiment import build
from medpfl.image_score import DEFENSE_COLUMNS
from medpfl.runner import run
from medpfl.seeding import generator

TINY = (
    "attack=dlg",
    "model=dlg_cnn",
    "dataset.per_class=2",
    "preprocess.size=12",
    "attack.optimizer.max_steps=1",
    "attack.trace_points=0",
)
CLIP, NOISE = Clipping(max_norm=1.0), Perturbation(noise=Gaussian(std=0.5))
FEEDBACK = [
    TopK(fraction=0.05),
    TopK(fraction=0.2, per="layer"),
    RandomK(fraction=0.1),
    Sign(error_feedback=True),
]


def composed(*parts) -> Defenses:
    return Defenses({part.name: part for part in parts})


def test_parts_act_in_their_order() -> None:
    update = an_update()
    clipped_last = composed(NOISE, CLIP).on_update(update, {}, seeded(1))
    clipped_first = composed(CLIP, NOISE).on_update(update, {}, seeded(1))
    noisy, _ = NOISE.on_update(update, seeded(1))
    by_hand, _ = CLIP.on_update(noisy, seeded())
    assert (flat(clipped_last.update.tensors) == flat(by_hand.tensors)).all()
    assert clipped_last.facts["sent_norm"] == pytest.approx(1)
    assert clipped_first.facts["sent_norm"] > 2
    # The same numbers are drawn whatever stands before them, as clipping draws none.
    clip, _ = CLIP.on_update(update, seeded())
    noise = flat(noisy.tensors) - flat(update.tensors)
    after = flat(clipped_first.update.tensors) - flat(clip.tensors)
    assert after == pytest.approx(noise, abs=1e-6)


def test_what_is_reported_of_a_composition_is_the_parts_own() -> None:
    update = an_update()
    parts = (CLIP, TopK(fraction=0.1), Quantise(bits=8, stochastic=False))
    defended = composed(*parts).on_update(update, {}, seeded())
    clipped, report = CLIP.on_update(update, seeded())
    kept, left, sparse = parts[1].on_update(clipped, {}, seeded())
    last, _ = parts[2].on_update(kept, seeded())
    assert (flat(defended.update.tensors) == flat(last.tensors)).all()
    assert defended.facts == {
        "sent_norm": pytest.approx(float(torch.tensor(flat(last.tensors)).norm())),
        "share_sent": 8 / ENTRIES,
        "bytes_sent": 8 * 5 + 12,
        "clip_factor": report.clip_factor,
        "residual_norm": sparse.residual_norm,
    }
    assert (defended.noise_scale, defended.snr_db) == (None, None)
    assert list(defended.state) == ["topk"]
    assert (flat(defended.state["topk"]) == flat(left)).all()


def test_noise_after_compression_fills_what_was_left_out() -> None:
    parts = (TopK(fraction=0.1), NOISE)
    facts = composed(*parts).on_update(an_update(), {}, seeded()).facts
    assert (facts["share_sent"], facts["bytes_sent"]) == (1, 4 * ENTRIES)


def test_without_a_defense_the_update_itself_leaves() -> None:
    update = an_update()
    defended = composed(NoDefense()).on_update(update, {}, seeded())
    assert defended.update is update
    assert (defended.facts, defended.state, defended.noise_scale) == ({}, {}, None)


@pytest.mark.parametrize("part", FEEDBACK, ids=lambda p: f"{p.name} {p.describe()}")
def test_what_was_sent_and_what_is_kept_is_all_there_was(part) -> None:
    defense, state = composed(part), {}
    sent = true = 0
    for round_ in range(30):
        update = an_update(0.1, seed=round_)
        defended = defense.on_update(update, state, seeded(round_))
        state = defended.state
        sent, true = sent + flat(defended.update.tensors), true + flat(update.tensors)
        kept = flat(state[part.name])
        assert true == pytest.approx(sent + kept, abs=1e-5)
        assert defended.facts["residual_norm"] == pytest.approx(math.sqrt((kept**2).sum()))


@pytest.mark.parametrize("part", [replace(p, error_feedback=False) for p in FEEDBACK])
def test_without_feedback_nothing_is_kept(part) -> None:
    state = {part.name: {n: torch.ones_like(t) for n, t in an_update().tensors.items()}}
    defended = composed(part).on_update(an_update(), {}, seeded(1))
    assert (defended.state, "residual_norm" in defended.facts) == ({}, False)
    assert not composed(part).on_update(an_update(), state, seeded(1)).state


class Halved:
    """A part of one's own."""

    name = "halved"

    def describe(self):
        return None

    def on_update(self, update, generator):
        tensors = {name: tensor / 2 for name, tensor in update.tensors.items()}
        return replace(update, tensors=tensors), DefenseReport()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([NoDefense()], "there is no defense"),
        ([CLIP, Halved()], "nothing is known of what Halved guarantees"),
        ([CLIP], "no noise is added"),
        ([TopK(fraction=0.1), Quantise()], "no noise is added"),
        ([NOISE], "the update is not clipped, so noise of no scale"),
        ([NOISE, CLIP], "the noise is added before the clipping"),
        ([CLIP, replace(NOISE, relative_to="norm")], "the scale of the noise follows the update"),
    ],
)
def test_no_epsilon_is_claimed_without_a_theorem(parts, words: str) -> None:
    reason = composed(*parts).claim(lambda: 1)
    assert isinstance(reason, str)
    assert words in reason


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([NoDefense(), CLIP], "defense=[none,clipping]: none goes alone"),
        ([CLIP, Soteria(fraction=0.1)], "soteria acts inside training, before clipping sees the"),
        ([object()], "must be a Defense (Changes what leaves the client); an object has no desc"),
    ],
)
def test_parts_that_do_not_go_together(parts, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Defenses({getattr(part, "name", "mine"): part for part in parts})
    assert words in str(refused.value)
    composed(Soteria(fraction=0.1), CLIP)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["defense=clipping", "noise=gaussian"], "defense=clipping adds none: choose noise=none"),
        (["defense=[topk,sign]", "noise=laplace"], "list what adds it: defense=[topk,sign,pertur"),
        (["defense=[clipping,perturbation]"], "defense=perturbation has no noise to add"),
        (["defense=[clipping,soteria]"], "list soteria before clipping"),
        (["defense=[none,topk]"], "none goes alone: leave it out, or the others"),
        (["defense=soteria", "defense.soteria.layer=nowhere"], "layer=nowhere: no fully connected"),
        (["defense=topk", "defense.topk.fraction=0"], "defense.topk.fraction=0: must be positive"),
        (["defense=topk", "defense.topk.fraction=1"], "defense.topk.fraction=1: must be positive"),
        (["defense=topk", "+defense.topk.k=3"], "defense.topk.k: no such setting; choose from"),
        (["~defense"], "defense: must be set"),
    ],
)
def test_what_cannot_work_is_said_before_any_compute(settings, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        experiment(*TINY, *settings)
    assert words in str(refused.value)


def with_defense(group: object) -> DictConfig:
    changed = config(*TINY, "n_images=1")
    with open_dict(changed):
        changed.defense = group
    return changed


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({}, "defense={}: must be an option by name, or a list of them"),
        ([], "defense=[]: must be an option by name, or a list of them"),
        ("topk", "defense=topk: must be an option by name, or a list of them"),
        ({"topk": 5}, "defense.topk=5: must be a group with a _target_"),
        ({"topk": None}, "defense.topk=null: must be a group with a _target_"),
        (
            {"_target_": "medpfl.defenses.Pruning", "fraction": 0.5, "x": {"_target_": "a.b"}},
            "defense: x stands beside Pruning, whose configuration gives it no name in the list: "
            "its first line must be '# @package defense.NAME'",
        ),
    ],
)
def test_groups_that_are_none(group: object, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        build(with_defense(group))
    assert words in str(refused.value)


def test_a_record_from_before_there_were_several_is_read_as_it_was() -> None:
    noise = {"_target_": "medpfl.defenses.Gaussian", "std": 0.25}
    old = {"_target_": "medpfl.defenses.Perturbation", "noise": noise}
    one = next(build(with_defense(old)).source.captures())
    told = (*TINY, "n_images=1", "defense=perturbation", "noise=gaussian", "noise.std=0.25")
    other = next(experiment(*told).source.captures())
    plain = next(experiment(*TINY, "n_images=1").source.captures())
    # As they were drawn before: one stream, by the name of the capture.
    stream = generator(0, "defense", one.capture_id)
    tensors = plain.observation.tensors
    by_hand, _ = Perturbation(noise=Gaussian(std=0.25)).on_update(update_of(tensors), stream)
    for name, tensor in one.observation.tensors.items():
        assert torch.equal(tensor, other.observation.tensors[name])
        assert torch.equal(tensor, by_hand.tensors[name])


def test_settings_and_order_reach_the_parts() -> None:
    settings = ("defense=[topk,quantise,clipping]", "defense.topk.fraction=0.25")
    found = defenses_at(config(*settings, "defense.quantise.bits=4"))
    assert list(found.parts) == ["topk", "quantise", "clipping"]
    assert found.parts["topk"] == TopK(fraction=0.25)
    assert found.parts["quantise"] == Quantise(bits=4)
    assert found.name == "topk, quantise, clipping"


@pytest.mark.parametrize("granted", [False, True])
def test_an_attacker_is_told_of_the_defense_where_that_is_granted(granted: bool) -> None:
    knows = "[num_examples,defense]" if granted else "[num_examples]"
    settings = ("defense=[masking,topk]", "n_images=1", f"threat.knows={knows}")
    parts = experiment(*TINY, *settings)
    capture = next(parts.source.captures())
    if not granted:
        assert capture.observation.defense is None
        return
    assert capture.observation.defense == parts.source.defense.facts()
    assert [fact.name for fact in capture.observation.defense] == ["masking", "topk"]
    bare = experiment(*TINY, "n_images=1", f"threat.knows={knows}")
    assert next(bare.source.captures()).observation.defense == ()


@pytest.mark.parametrize(
    "defense",
    ["[soteria,clipping]", "[topk,sign]", "[masking,quantise]", "pruning", "randomk"],
)
@pytest.mark.parametrize("federation", ["fedsgd", "fedavg"])
def test_several_images_and_weight_differences_are_defended(defense, federation) -> None:
    settings = (f"federation={federation}", "federation.batch_size=2", "n_images=2")
    (capture,) = experiment(*TINY, *settings, f"defense={defense}").source.captures()
    (plain,) = experiment(*TINY, *settings).source.captures()
    seen, bare = capture.observation, plain.observation
    assert seen.kind == bare.kind == ("gradient" if federation == "fedsgd" else "delta")
    assert list(seen.tensors) == list(bare.tensors)
    assert any(not torch.equal(t, bare.tensors[n]) for n, t in seen.tensors.items())
    entries = sum(t.numel() for t in seen.tensors.values())
    assert capture.facts.defense["bytes_sent"] <= 4 * entries
    assert capture.facts.defense["sent_norm"] > 0


def test_a_run_says_and_records_its_defense(tmp_path: Path, capsys) -> None:
    settings = ("defense=[clipping,perturbation]", "noise=gaussian", "n_images=2")
    run(config(*TINY, *settings), tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "clipping: the whole update to a norm of 1" in said
    assert "perturbation" in said
    assert "Gaussian, standard deviation 0.001" in said
    assert "at delta 1e-05 for one client (exact)" in said
    assert "client-level: hides which images a client has" in said
    assert "bytes an update, clipped to" in said
    record, rows = run_json(tmp_path / "run"), table(tmp_path / "run/metrics.csv")
    assert list(record["config"]["defense"]) == ["clipping", "perturbation"]
    # Noise of a thousandth of the norm: a theorem, and worth nothing.
    assert record["summary"]["epsilon"] > 1e6
    assert record["summary"]["rero"] == 1.0
    told = record["summary"]["defense"]
    assert told["parts"] == ["clipping: the whole update to a norm of 1", "perturbation"]
    assert told["noise"] == "Gaussian, standard deviation 0.001"
    assert told["privacy"].startswith("client-level: hides which images a client has")
    told_of = [column for column in rows[0] if column in DEFENSE_COLUMNS]
    assert told_of == ["sent_norm", "share_sent", "bytes_sent", "clip_factor"]
    sizes = [float(row["bytes_sent"]) for row in rows]
    assert told["means"]["bytes_sent"] == sum(sizes) / 2
    assert all(float(row["noise_scale"]) == 0.001 for row in rows)


def test_a_run_without_a_defense_has_the_columns_it_had(tmp_path: Path) -> None:
    run(config(*TINY, "n_images=1"), tmp_path / "run")
    (row,) = table(tmp_path / "run/metrics.csv")
    assert list(row)[-1] == "identification_candidates"
    summary = run_json(tmp_path / "run")["summary"]
    assert (summary["epsilon"], summary["defense"]) == (None, None)


def test_yaml_keeps_the_order() -> None:
    composed_ = config("defense=[sign,clipping]")
    assert list(OmegaConf.create(OmegaConf.to_yaml(composed_)).defense) == ["sign", "clipping"]
