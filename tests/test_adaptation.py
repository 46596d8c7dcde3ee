"""Attackers that know the defense: what they match, and what they find."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CPU, config, context, payload_of, seeded, spec_of, victim_of
from test_contracts import DEFENSES, attack_of, attacked, check_form, same_bytes, snapshot
from torch import Tensor
from torch.func import vmap

from medpfl.attacks.adaptation.factors import Factors
from medpfl.attacks.adaptation.quantise import RoundingLikelihood
from medpfl.attacks.adaptation.sign import SignLikelihood
from medpfl.attacks.adaptation.soteria import HiddenColumns
from medpfl.attacks.adaptation.sparse import LargestSent, SomeSent
from medpfl.attacks.adaptation.through import Through, ThroughSquares, through_of
from medpfl.attacks.distances import Cosine, LeastSquares, SquaredError
from medpfl.defenses import Clipping, Defenses, Masking, Pruning, Quantise, RandomK, Sign, TopK
from medpfl.defenses.configured import defenses_at
from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.federated.sending import Sender
from medpfl.threat import ThreatModel
from medpfl.training import LocalTraining
from medpfl.types import ClientUpdate, Observation, Truth

SPEC = spec_of(1, 12, 12, num_classes=3)
KNOWS = ("num_examples", "local_training", "defense")
NETWORK = payload_of("dlg_cnn", SPEC)
ADAPTED = [name for name in DEFENSES if name not in ("none", "perturbation")]


def gradient(seed: int = 0) -> list[Tensor]:
    stream = seeded(seed)
    return [torch.randn(s, generator=stream).double() for s in ((4, 3, 5), (4,), (6, 20), (6,))]


def sent_of(defense: object, tensors: list[Tensor]) -> list[Tensor]:
    named = {str(n): t for n, t in enumerate(tensors)}
    update = ClientUpdate(kind="gradient", tensors=named, num_examples=1)
    parts = defense if isinstance(defense, dict) else {"part": defense}
    defended = Defenses(parts).on_update(update, {}, seeded(1)).update
    return list(defended.tensors.values())


CONSISTENT = {
    "topk": (TopK(fraction=0.1), [LargestSent(each=False)]),
    "topk by layer": (TopK(fraction=0.1, per="layer"), [LargestSent(each=True)]),
    "pruning": (Pruning(fraction=0.9), [LargestSent(each=True)]),
    "randomk": (RandomK(fraction=0.1), [SomeSent()]),
    "masking": (Masking(fraction=0.5), [SomeSent()]),
}


@pytest.mark.parametrize("case", CONSISTENT)
def test_the_gradient_itself_is_within_what_was_sent_and_another_is_not(case):
    defense, views = CONSISTENT[case]
    through = ThroughSquares(inner=SquaredError(), views=tuple(views))
    for seed in range(5):
        true = gradient(seed)
        sent = sent_of(defense, true)
        assert float(through(true, sent)) <= 1e-12
        assert float(through(gradient(seed + 9), sent)) > 0.1
        assert float(through([-t for t in true], sent)) > 0.1


@pytest.mark.parametrize("case", CONSISTENT)
def test_a_distance_through_a_defense_is_a_rows_own_under_vmap_and_a_sum_of_squares(case):
    defense, views = CONSISTENT[case]
    through = through_of(Cosine()).looking_through(views)
    assert isinstance(through, LeastSquares)
    sents = [sent_of(defense, gradient(seed)) for seed in range(3)]
    dummies = [gradient(seed + 5) for seed in range(3)]
    together = vmap(through)(
        [torch.stack(t) for t in zip(*dummies, strict=True)],
        [torch.stack(t) for t in zip(*sents, strict=True)],
    )
    for value, dummy, sent in zip(together, dummies, sents, strict=True):
        assert float(value) == pytest.approx(float(through(dummy, sent)), rel=1e-12)
        assert float(through.residual(dummy, sent).square().sum()) == pytest.approx(float(value))
        assert float(through([3 * t for t in dummy], sent)) == pytest.approx(float(value))


def test_a_distance_that_has_no_squares_has_none_through_a_defense():
    assert not isinstance(through_of(SignLikelihood()), LeastSquares)
    assert through_of(SquaredError()).factors == Factors()
    assert not Through(inner=SquaredError()).scale_free


def test_hidden_columns_are_free_and_all_others_are_not():
    true = gradient()
    sent = [t.clone() for t in true]
    sent[2][:, :4] = 0
    through = ThroughSquares(inner=SquaredError(), views=(HiddenColumns(2),))
    assert float(through(true, sent)) == 0
    other = [t.clone() for t in true]
    other[2][:, :4] += 5
    assert float(through(other, sent)) == 0
    other[2][0, 4] += 1
    assert float(through(other, sent)) == pytest.approx(1)


def test_tensors_clipped_each_by_itself_are_compared_up_to_a_factor_each():
    true = gradient()
    sent = sent_of(Clipping(max_norm=0.1, per="layer"), true)
    assert float(Cosine()(true, sent)) > 1e-3
    through = ThroughSquares(inner=Cosine(), factors=Factors(free=True, each=True))
    assert float(through(true, sent)) <= 1e-12


def test_levels_are_read_off_what_was_sent():
    true = torch.randn(40, generator=seeded()).double()
    for part in (Quantise(bits=b, stochastic=s) for b in (3, 6) for s in (False, True)):
        (sent,) = sent_of(part, [true])
        step = part.facts().step(sent)
        law = RoundingLikelihood(levels=part.levels, stochastic=part.stochastic)
        reach = step if part.stochastic else step / 2
        assert float(law.reach(sent)) == pytest.approx(reach, rel=1e-6)
        assert float((true - sent).abs().max()) <= reach * (1 + 1e-6)
        assert float(law([true], [sent])) < float(law([true.flip(0)], [sent])) / 3


def test_the_law_of_stochastic_rounding_is_most_likely_at_the_number_that_was_rounded():
    """Of many roundings of one number, 30 % went up."""
    levels = torch.tensor([0.0] * 70 + [1.0] * 30).double()
    law = RoundingLikelihood(levels=1, stochastic=True)
    tried = torch.linspace(0.05, 0.95, 91).double()
    values = torch.stack([law([t.expand(100)], [levels]) for t in tried])
    assert float(tried[values.argmin()]) == pytest.approx(0.3, abs=0.06)


def test_what_was_not_sent_is_held_below_what_was_before_it_is_rounded():
    part = Quantise(bits=6, stochastic=False)
    true = gradient()
    sent = sent_of({"a": TopK(fraction=0.3), "b": part}, true)
    law = RoundingLikelihood(levels=part.levels, stochastic=False)
    through = Through(inner=law, views=(LargestSent(each=False),))
    larger = [t.where(s != 0, 3 * t.sign()) for t, s in zip(true, sent, strict=True)]
    assert float(through(true, sent)) < float(through(larger, sent)) / 10


def test_signs_agree_with_every_gradient_that_has_them_whatever_its_sizes():
    true = gradient()
    signs, sizes = sent_of(Sign(scale="none"), true), sent_of(Sign(scale="mean"), true)
    law = SignLikelihood()
    assert float(law(true, signs)) == pytest.approx(float(law(true, sizes)))
    assert float(law([100 * t for t in true], signs)) == pytest.approx(float(law(true, signs)))
    assert float(law(gradient(3), signs)) > 3 * float(law(true, signs))


def defended(
    overrides: tuple[str, ...], *, images: int = 1, seed: int = 0, knows: tuple[str, ...] = KNOWS
) -> tuple[Observation, Truth]:
    truth = victim_of(SPEC, [n % 3 for n in range(images)], seed=seed)
    defense = defenses_at(config(*overrides))
    client = Client(spec=SPEC, device=CPU, training=LocalTraining())
    update = Sender(client=client, defense=defense, seed=0).send("a", truth, NETWORK, {}).update
    seen = ThreatModel(knows=knows).observe(
        capture_id=f"round-000/client-{seed}",
        payload=NETWORK,
        update=update,
        spec=SPEC,
        defense=defense.facts(),
    )
    return seen, truth


@pytest.mark.parametrize(
    ("name", "images"), [*((name, 1) for name in ADAPTED), ("topk", 2), ("sign", 2)]
)
def test_an_attack_that_is_told_of_a_defense_keeps_to_the_contract(name, images):
    attack = attack_of("scale_free", "attack.determination=false")
    seen, truth = defended((f"defense={name}",), images=images)
    before = snapshot([seen])
    (first,) = attacked(attack, [seen]).values()
    truth.inputs.fill_(float("nan"))
    truth.labels.fill_(0)
    (second,) = attacked(attack, [seen]).values()
    assert all(map(torch.equal, before, snapshot([seen])))
    check_form(first, SPEC, images)
    same_bytes(first, second)


@pytest.mark.parametrize("name", ["dlg", "gradinv_trained", "second_order"])
def test_attacks_of_other_distances_and_optimisers_match_through_defenses(name):
    attack = attack_of(name)
    for options in ("sign", "[topk,quantise]"):
        seen, _ = defended((f"defense={options}",), knows=(*KNOWS, *attack.requires))
        (found,) = attacked(attack, [seen]).values()
        check_form(found, SPEC, 1)


def test_second_order_alone_is_refused_where_nothing_is_a_sum_of_squares():
    attack = attack_of("second_order", "attack.optimizer=${attack.polish}")
    seen, _ = defended(("defense=sign",))
    with pytest.raises(ConfigurationError, match=r"told of sign.*LBFGS.*threat.knows"):
        list(attack.reconstruct(iter([seen]), context()))


@pytest.mark.parametrize(
    "options",
    [
        ("defense=soteria", "defense.soteria.fraction=0.5"),
        ("defense=[clipping,topk]", "defense.clipping.per=layer", "defense.topk.fraction=0.6"),
    ],
    ids=["soteria", "clipping, then top-k"],
)
def test_an_attack_that_knows_finds_the_image_where_the_naive_one_does_not(options):
    options = (*options, "defense.clipping.max_norm=0.01") if "clipping" in options[0] else options
    short = ("max_steps=100", "objective_below=1e-6")
    settings = [f"attack.optimizer.{setting}" for setting in short]
    attack = attack_of("scale_free", *settings, "attack.restarts=1", "attack.determination=false")
    errors = []
    for knows in (KNOWS[:2], KNOWS):
        seen, truth = defended(options, knows=knows)
        (found,) = attack.reconstruct(iter([seen]), context())
        errors.append(float((found.inputs - truth.inputs).abs().mean()))
    naive, told = errors
    assert told < 0.03
    assert naive > 4 * told


def test_what_is_withheld_changes_nothing():
    attack = attack_of("scale_free")
    told, _ = defended(("defense=topk",))
    untold = replace(told, defense=None)
    nothing = replace(told, defense=())
    same_bytes(*(next(iter(attacked(attack, [o]).values())) for o in (untold, nothing)))


def test_clipping_of_the_whole_update_changes_nothing_for_a_distance_without_scale():
    attack = attack_of("scale_free", "attack.determination=false")
    told, _ = defended(("defense=clipping",))
    (found,) = attacked(attack, [told]).values()
    (untold,) = attacked(attack, [replace(told, defense=None)]).values()
    assert found.closed_form
    same_bytes(found, untold)
