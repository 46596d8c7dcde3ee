"""``medpfl-dp``: the numbers it prints, the frameworks it reads, and every mistake in words."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest

from medpfl.accounting import Mechanism, epsilon
from medpfl.bounds import reconstruction_robustness as rero
from medpfl.dp import main

DP_SGD = "--noise-multiplier 3 --sample-rate 0.2 --steps 50 --delta 2.0833e-5 --candidates 10"
FLOWER = "--flower-local-dp --clipping-norm 1 --sensitivity 1 --delta 1e-5"


@pytest.fixture
def dp(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code: object = 0
        try:
            main(line.split())
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        assert isinstance(code, int)
        return code, told.out, told.err

    return run


@pytest.fixture
def answer(dp):
    def run(line: str) -> dict[str, Any]:
        code, out, err = dp(f"{line} --json")
        assert (code, err) == (0, ""), err
        return json.loads(out, parse_constant=pytest.fail)

    return run


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_dp_sgd_prints_both_epsilons_and_the_bound(dp):
    code, out, err = dp(DP_SGD)
    assert (code, err) == (0, "")
    assert "one image more or less all 50 releases 1.961 2.169" in words(out)
    assert "one of 10 candidates is found with probability at most 0.213" in words(out)
    assert "a guess has 0.1" in out
    assert "\x1b" not in out  # plain where it is piped


def test_dp_sgd_for_scripts(answer):
    found = answer(DP_SGD)
    assert {name: round(found[name], 3) for name in ("epsilon", "epsilon_rdp", "rero")} == {
        "epsilon": 1.961,
        "epsilon_rdp": 2.169,
        "rero": 0.213,
    }
    facts = {
        **{"delta": 2.0833e-5, "accountant": "pld", "neighbours": "add_remove", "kappa": 0.1},
        **{"noise_multiplier": 3.0, "sample_rate": 0.2, "steps": 50, "noise": "gaussian"},
        **{"candidates": 10, "unit": "image", "why": None, "claimed_epsilon": None},
    }
    assert {name: found[name] for name in facts} == facts
    assert [cost["releases"] for cost in found["costs"]] == [1, 50]
    assert found["costs"][-1]["epsilon"] == found["epsilon"]


@pytest.mark.parametrize("settings", ["1000 .0336", "100 .083"])
def test_other_bounds_of_the_table(answer, settings):
    _, bound = settings.split()
    noise = "3 --sample-rate 0.2" if bound == ".0336" else "1 --sample-rate 0.1"
    found = answer(f"--noise-multiplier {noise} --steps 50 --delta 1e-5 --candidates 100")
    assert f"{found['rero']:.{len(bound) - 1}f}" == f"0{bound}"


def test_rounds_and_local_steps_are_steps(answer):
    rest = "--noise-multiplier 3 --sample-rate 0.2 --delta 2.0833e-5"
    rounds = answer(f"{rest} --rounds 10 --local-steps 5")
    steps = answer(f"{rest} --steps 50")
    assert rounds["epsilon"] == steps["epsilon"]
    assert [cost["releases"] for cost in rounds["costs"]] == [5, 50]
    assert answer(f"{rest} --rounds 7")["steps"] == 7


def test_a_target_gives_the_noise(answer, dp):
    rest = "--sample-rate 0.2 --steps 50 --delta 2.0833e-5"
    found = answer(f"--target-epsilon 1.961 {rest}")
    assert found["noise_multiplier"] == pytest.approx(3, abs=1e-3)
    assert found["epsilon"] <= 1.961
    by_rdp = answer(f"--target-epsilon 2.169 --accountant rdp {rest}")
    assert by_rdp["noise_multiplier"] == pytest.approx(3, abs=1e-3)
    assert by_rdp["epsilon_rdp"] <= 2.169
    _, out, _ = dp("--target-epsilon 2 --delta 1e-5 --steps 1 --neighbours replace")
    told = float(words(out).split("standard deviation ")[1].split()[0])
    printed = Mechanism(noise_multiplier=told, neighbours="replace")
    assert 1.999 < epsilon({printed: 1}, delta=1e-5) <= 2


def test_noise_on_sums_is_compared_with_the_norm(answer):
    rest = "--steps 3 --delta 1e-5"
    by_std = answer(f"--noise-std 1 --clipping-norm 0.5 {rest}")
    assert by_std["epsilon"] == answer(f"--noise-multiplier 2 {rest}")["epsilon"]
    update = answer(f"--clipping update --noise-std 1 --clipping-norm 0.5 {rest}")
    assert (update["epsilon"], update["unit"]) == (by_std["epsilon"], "client's whole update")
    assert update["accountant"] == "exact"


def test_laplace_noise(answer):
    once = answer("--noise laplace --noise-multiplier 0.5 --steps 1 --delta 1e-9 --candidates 10")
    assert once["epsilon"] == pytest.approx(2, abs=1e-6)
    assert once["epsilon_rdp"] is None
    assert f"{once['rero']:.5f}" == "0.66166"
    more = answer("--noise laplace --noise-multiplier 5 --steps 9 --delta 1e-5 --candidates 10")
    assert more["epsilon"] < 9 / 5
    assert more["rero"] < rero.pure_dp(epsilon=9 / 5, kappa=0.1)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("--clipping none --noise-std 0.1", "nothing is clipped"),
        ("--clipping batch --noise-multiplier 3 --sample-rate 0.1", "the mean over a batch is"),
        ("--noise-multiplier 0 --steps 5", "no noise is added"),
        ("--nvflare-percentile --percentile 10 --gamma 0.01", "the filter adds no noise"),
        ("--flower-local-dp --clipping-norm 1 --sensitivity 0 --epsilon 1 --delta 0.1", "sensi"),
    ],
)
def test_what_hides_nothing_is_infinite_and_says_why(dp, answer, setting, why):
    found = answer(setting)
    assert (found["epsilon"], found["delta"], found["rero"]) == ("inf", None, 1.0)
    assert found["why"].startswith(why)
    assert math.isinf(float(found["epsilon"]))
    code, out, _ = dp(setting)
    assert code == 0
    assert "infinite" in out
    assert f"epsilon is infinite: {why}" in words(out)
    assert "no bound" in out


@pytest.mark.parametrize(
    ("claimed", "once", "replaced", "rounds"),
    # The last one by mpmath with 60 digits, 1260.978; dp-accounting's grids say 1262.
    [(1, "0.75", "1.61", "3.99"), (10, "10.39", "25.4", "81"), (50, "96.4", "300", "1261")],
)
def test_flowers_claims_against_the_truth(answer, claimed, once, replaced, rounds):
    found = answer(f"{FLOWER} --epsilon {claimed} --rounds 20 --candidates 10")
    true = {(c["neighbours"], c["releases"]): c["epsilon"] for c in found["costs"]}
    for place, text in (
        (("add_remove", 1), once),
        (("replace", 1), replaced),
        (("add_remove", 20), rounds),
    ):
        assert f"{true[place]:.{len(text.partition('.')[2])}f}" == text
    assert found["claimed_epsilon"] == claimed
    assert found["epsilon"] == true["replace", 20]
    sigma = math.sqrt(2 * math.log(1.25e5)) / claimed
    assert found["noise_multiplier"] == pytest.approx(sigma)
    assert found["rero"] == rero.gaussian(noise_multiplier=sigma, releases=20, kappa=0.1)


def test_flowers_sensitivity_is_compared_with_the_norm(answer, dp):
    half = answer(FLOWER.replace("norm 1", "norm 2") + " --epsilon 1")
    whole = answer(f"{FLOWER} --epsilon 1 --neighbours replace")
    assert half["noise_multiplier"] == whole["noise_multiplier"] / 2
    assert any("sensitivity 1 is less than the 4" in note for note in half["notes"])
    enough = answer(FLOWER.replace("sensitivity 1", "sensitivity 2") + " --epsilon 1")
    assert enough["notes"] == []
    assert enough["epsilon"] < 1
    one = answer(f"{FLOWER} --epsilon 1 --neighbours add-remove")
    assert round(one["epsilon"], 2) == 0.75
    _, out, _ = dp(f"{FLOWER} --epsilon 10 --rounds 20")
    assert "claimed epsilon 10 a round" in words(out)
    assert "the mod's formula holds for epsilon below 1 only" in words(out)


def test_flowers_mod_adds_the_noise_that_is_accounted_for(answer, monkeypatch):
    pytest.importorskip("flwr")
    from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
    from flwr.clientapp.mod import LocalDpMod
    from flwr.supercore.task_identity import TaskIdentity

    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)
    monkeypatch.setattr(np.random, "normal", np.random.default_rng(0).normal)
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)

    def record(value: float) -> RecordDict:
        return RecordDict({"arrays": ArrayRecord({"w": Array(np.full(200_000, value))})})

    def train(message: Message, _: Context) -> Message:
        return Message(record(1.0), reply_to=message)

    message = Message(record(0.0), dst_node_id=1, message_type="train")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = LocalDpMod(0.5, 0.8, 4.0, 1e-4)(message, context, train)
    (sent,) = reply.content.array_records["arrays"].to_numpy_ndarrays()
    found = answer(
        "--flower-local-dp --clipping-norm 0.5 --sensitivity 0.8 --epsilon 4 --delta 1e-4"
    )
    assert sent.std() == pytest.approx(0.5 * found["noise_multiplier"], rel=0.01)
    clipped = 0.5 / math.sqrt(200_000)
    assert sent.mean() == pytest.approx(clipped, abs=5 * sent.std() / math.sqrt(200_000))


def test_sparse_vectors_release_costs_the_most(answer):
    found = answer("--nvflare-svt --parameters 1000000 --rounds 3")
    assert found["entries"] == 100_000
    assert found["costs"][0]["epsilon"] == pytest.approx(0.1 + 100_000 * 0.1)
    assert found["epsilon"] == pytest.approx(3 * 10_000.1)
    assert (found["delta"], found["accountant"], found["claimed_epsilon"]) == (0.0, "pure", 0.1)
    assert found["rero"] == 1.0
    little = "--nvflare-svt --parameters 100 --fraction 0.05 --epsilon 0.2 --epsilon-release 0.3"
    small = answer(f"{little} --candidates 10")
    assert small["epsilon"] == pytest.approx(0.5)
    assert small["rero"] == pytest.approx(0.1 * math.exp(0.5))


def test_nvflares_own_ledger_says_the_same(answer):
    pytest.importorskip("nvflare")
    from nvflare.apis.dxo import DXO, DataKind
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy

    update = np.random.default_rng(1).normal(0, 1e-5, 500)
    dxo = DXO(DataKind.WEIGHT_DIFF, data={"w": update.copy()})
    sent = SVTPrivacy(fraction=0.05, epsilon=0.3, noise_var=0.2).process_dxo(
        dxo, Shareable(), FLContext()
    )
    told = sent.get_meta_prop("svt_privacy_budget")["epsilon_total"]
    line = "--nvflare-svt --parameters 500 --fraction 0.05 --epsilon 0.3 --noise-var 0.2"
    assert answer(line)["epsilon"] == pytest.approx(told)

    first, second = (
        PercentilePrivacy(percentile=10, gamma=0.01)
        .process_dxo(DXO(DataKind.WEIGHT_DIFF, data={"w": update.copy()}), Shareable(), FLContext())
        .data["w"]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)  # no noise
    kept = first != 0
    np.testing.assert_array_equal(first[kept], update[kept])


MISTAKES = {
    "": "--noise-multiplier is missing",
    "--noise-multiplier 3 --delta 1e-5": "--steps is missing",
    "--noise-multiplier 3 --steps 5": "--delta is missing",
    "--noise-std 3 --steps 5 --delta 1e-5": "--clipping-norm is missing",
    "--noise-std 3e9 --clipping-norm 1 --steps 5 --delta 1e-5": "--noise-std=3e+09: it is 3e+09 t",
    "--noise-multiplier 0 --target-epsilon 8 --steps 5 --delta 1e-5": "--target-epsilon=8: give on",
    "--noise-multiplier -1 --steps 5 --delta 1e-5": "--noise-multiplier=-1.0: must be at least 0",
    "--noise-multiplier 1e-5 --steps 5 --delta 1e-5": "--noise-multiplier=1e-05: must be at least",
    "--noise-multiplier 1e300 --steps 5 --delta 1e-5": "--noise-multiplier=1e+300: must be at le",
    "--noise-multiplier inf --steps 5 --delta 1e-5": "--noise-multiplier=inf: must be a finite",
    "--noise-multiplier three": "--noise-multiplier=three: must be a number",
    "--noise-multiplier": "--noise-multiplier: its value is missing",
    "--noise-multiplier 3 --sample-rate 0": "--sample-rate=0.0: must be positive and at most 1",
    "--noise-multiplier 3 --sample-rate 1.5": "--sample-rate=1.5: must be positive and at most 1",
    "--noise-multiplier 3 --sample-rate nan": "--sample-rate=nan: must be a finite number",
    "--noise-multiplier 3 --delta 0": "--delta=0.0: must be at least 1e-12 and below 1",
    "--noise-multiplier 3 --delta 1": "--delta=1.0: must be at least 1e-12 and below 1",
    "--noise-multiplier 3 --delta -1e-5": "--delta=-1e-05: must be at least 1e-12",
    "--noise-multiplier 3 --candidates 1": "--candidates=1: must be at least 2",
    "--noise-multiplier 3 --candidates 2.5": "--candidates=2.5: must be a whole number",
    "--noise-multiplier 3 --steps 0": "--steps=0: must be at least 1",
    "--noise-multiplier 3 --steps 99999999999999999999": "--steps=99999999999999999999: must be at",
    "--noise-multiplier 3 --steps 5 --rounds 2 --delta 1e-5": "--steps=5: give either it or --rou",
    "--noise-multiplier 3 --local-steps 5 --delta 1e-5": "--local-steps=5: it goes with --rounds",
    "--noise-multiplier 3 --rounds 9999999 --local-steps 9 --delta 1e-5": "--rounds=9999999: with",
    "--noise-multiplier 3 --stepps 5": "--stepps: there is no such flag; did you mean --steps?",
    "--noise-multiplier 3 surplus": "surplus: there is no such flag.",
    "--noise-multiplier 3 --noise cauchy": "--noise=cauchy: choose gaussian or laplace",
    "--noise-multiplier 3 --noise laplac": "--noise=laplac: choose gaussian or laplace; did you me",
    "--clipping none --target-epsilon 8": "--target-epsilon=8: no noise reaches it with --clipping",
    "--target-epsilon 0 --steps 1": "--target-epsilon=0.0: must be at least 0.001",
    "--target-epsilon 0.001 --steps 10000000 --delta 1e-12": "--target-epsilon=0.001: no noise mul",
    "--noise-multiplier 3 --accountant rdp --steps 1 --delta 1e-5": "--accountant=rdp: it goes wit",
    "--noise laplace --target-epsilon 1 --accountant rdp --steps 1 --delta 1e-5": "--accountant=rd",
    "--noise laplace --noise-multiplier 3 --sample-rate 0.5 --neighbours replace --steps 1"
    " --delta 1e-5": "--neighbours=replace: not known for Laplace",
    "--fraction 0.1": "--fraction=0.1: it belongs to --nvflare-svt; give that flag, too",
    "--nvflare-percentile --epsilon 1": "--epsilon=1.0: it belongs to --flower-local-dp and --nvfl",
    "--nvflare-svt": "--parameters is missing",
    "--nvflare-svt --parameters 0": "--parameters=0: must be at least 1",
    "--nvflare-svt --nvflare-percentile": "--nvflare-percentile: give only one of",
    "--flower-local-dp --steps 3": "--steps=3: it says nothing beside --flower-local-dp",
    "--flower-local-dp --clipping-norm 1": "--sensitivity is missing",
    f"{FLOWER} --epsilon 0": "--epsilon=0.0: must be positive",
    f"{FLOWER} --epsilon 1e9": "--epsilon=1e+09: it makes the noise 4.84e-09 times the clipping no",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_names_the_flag_its_value_and_the_way_out(dp, line):
    code, out, err = dp(line)
    assert (code, out) == (2, "")
    assert err.startswith("medpfl: error: ")
    assert MISTAKES[line] in words(err)
    assert "Traceback" not in err


def test_help_shows_every_flag_and_examples_that_run(dp, monkeypatch):
    from medpfl.dp.flags import FLAGS, MODES

    code, out, err = dp("--help")
    assert (code, err) == (0, "")
    assert all(f"  {flag}" in out for flag in (*FLAGS, *MODES, "--json", "--version"))
    shown = out.replace("\\\n", " ").split("examples:")[1].splitlines()
    examples = [line.strip() for line in shown if line.strip().startswith("medpfl-dp ")]
    assert len(examples) == 6
    for example in examples:
        code, out, err = dp(example.removeprefix("medpfl-dp "))
        assert (code, err) == (0, "")
        assert "epsilon" in out


def test_version(dp):
    import medpfl

    assert dp("--version")[:2] == (0, f"medpfl {medpfl.__version__}\n")
