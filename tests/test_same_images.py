"""Several updates of the same images, matched together by whoever knows which these are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CPU, context, experiment, observe, payload_of, seeded, sent, spec_of, victim_of
from torch import Tensor, nn

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import Cosine, Distance, NormalisedError
from medpfl.attacks.image_prior import natural
from medpfl.attacks.labels import Known
from medpfl.attacks.likelihood import NoiseLikelihood
from medpfl.attacks.priors import OutOfRange
from medpfl.attacks.solver import Solver
from medpfl.attacks.starts import Smooth
from medpfl.captures import FileSource
from medpfl.defenses import Gaussian, Perturbation
from medpfl.errors import ConfigurationError
from medpfl.optim import LBFGS
from medpfl.threat import ThreatModel
from medpfl.types import ClientUpdate, Observation, ServerPayload

SPEC = spec_of(1, 4, 4, num_classes=3)
STD = 0.05
TRUTH = 0.5 + 0.12 * torch.randn(2, *SPEC.shape, generator=seeded(3))


def attack(distance: Distance | None = None) -> GradientMatching:
    search = LBFGS(
        max_steps=60,
        max_iter=1,
        max_eval=25,
        line_search="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
        scale_free=True,
    )
    return GradientMatching(
        name="test",
        start=Smooth(cells=2),
        labels=Known(),
        distance=distance or Cosine(),
        optimizer=search,
        priors={"out_of_range": OutOfRange(weight=0.1)},
        precision="float64",
        trace_points=0,
    )


def linear(bias: list[float]) -> ServerPayload:
    """Send a network whose gradient is linear in the image: only its bias is not zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor(bias)
    return sent(model)


NETWORKS = [linear([0.0, 0.0, 0.0]), linear([0.6, -0.4, 0.1]), linear([-0.5, 0.2, 0.9])]


def noisy(payload: ServerPayload, image: int, seed: int, name: str = "v") -> Observation:
    victim = replace(victim_of(SPEC, [1]), inputs=TRUTH[image : image + 1])
    clean = observe(payload, SPEC, victim, capture_id=name)
    noise = Perturbation(noise=Gaussian(std=STD))
    update, _ = noise.on_update(ClientUpdate("gradient", clean.tensors, 1), seeded(seed))
    return replace(clean, tensors=update.tensors, defense=(noise.facts(),))


def over_rounds(
    image: int, networks: list[ServerPayload] = NETWORKS, name: str = "v"
) -> Observation:
    *before, last = (noisy(p, image, 10 * image + n, name) for n, p in enumerate(networks))
    return replace(last, same_images=tuple(before))


def posterior_mean(seen: Observation) -> Tensor:
    """By Gaussian algebra: (sum A_t'A_t / s^2 + S^-1)^-1 (sum A_t'y_t / s^2 + S^-1 m)."""
    gaussian, identity = natural(SPEC.shape), torch.eye(16, dtype=torch.float64)
    root = gaussian.image(identity) - gaussian.mean
    precision = torch.linalg.inv(root.T @ root)
    right = precision @ gaussian.mean.flatten()
    for one in seen.rounds:
        probabilities = one.payload.parameters["1.bias"].double().softmax(0)
        error = probabilities - nn.functional.one_hot(torch.tensor(1), 3)
        system = torch.kron(error.unsqueeze(1), identity)  # from pixels to the weights' gradient
        precision = precision + system.T @ system / STD**2
        right = right + system.T @ one.tensors["1.weight"].double().flatten() / STD**2
    return torch.linalg.solve(precision, right)


# What is matched ---------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True], ids=["alone", "side by side"])
def test_the_most_likely_image_is_the_posterior_mean_over_all_rounds(together: bool) -> None:
    seen = [over_rounds(0, name="a"), over_rounds(1, name="b")][: 1 + together]
    found = {r.capture_id: r.inputs for r in attack().reconstruct(seen, context())}
    for one in seen:
        wanted = posterior_mean(one)
        assert bool(((wanted > 0) & (wanted < 1)).all())
        pixels = found[one.capture_id].double().flatten()
        torch.testing.assert_close(pixels, wanted, atol=2e-3, rtol=0)
        alone = posterior_mean(replace(one, same_images=None))
        assert float((alone - wanted).abs().max()) > 0.02  # rounds do tell more


def test_rows_bring_the_networks_of_all_their_rounds() -> None:
    seen = [over_rounds(0, name="a"), over_rounds(1, NETWORKS[::-1], name="b")]
    found = {r.capture_id: r.inputs for r in attack().reconstruct(seen, context())}
    for one in seen:
        pixels = found[one.capture_id].double().flatten()
        torch.testing.assert_close(pixels, posterior_mean(one), atol=2e-3, rtol=0)


def solver_of(seen: Observation, distance: Distance, *, shared: bool) -> Solver:
    one = attack(distance)
    problem = replace(one._problem(one._read(seen)), shared=shared)
    return one._solver(problem, context())


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("network", ["dlg_cnn", "lenet"])
@pytest.mark.parametrize(
    "distance", [NormalisedError(), NoiseLikelihood(law="gaussian", scale=STD)], ids=["mean", "sum"]
)
def test_copies_of_one_update_say_what_it_says(
    distance: NormalisedError | NoiseLikelihood, network: str, shared: bool
) -> None:
    """Distances are averaged; likelihoods add up, and the prior beside them does not."""
    spec = spec_of(1, 32, 32, num_classes=3) if network == "lenet" else SPEC
    seen = observe(payload_of(network, spec), spec, victim_of(spec, [1]))
    copied = replace(seen, same_images=(seen, seen))
    values, gradients, curved = [], [], []
    z = torch.randn(2, spec.shape[1] ** 2, generator=seeded()).double()
    for one in (seen, copied):
        solver = solver_of(one, distance, shared=shared)
        target = solver.rows.target(solver.rows.key(one), torch.float64)
        targets = target.join(target)
        objective = solver.objective(solver.search.stages[0], chunk=2)
        value, gradient = objective(z, targets)
        values.append(value)
        gradients.append(gradient)
        curved.append(objective.curvature(z, targets)(z.unsqueeze(1)).squeeze(1))
    if isinstance(distance, NoiseLikelihood):  # take two of three likelihoods away
        solver = solver_of(seen, distance, shared=shared)
        bare = replace(solver, parts=replace(solver.parts, priors=()))
        objective = bare.objective(solver.search.stages[0], chunk=2)
        target = solver.rows.target(solver.rows.key(seen), torch.float64)
        value, gradient = objective(z, target.join(target))
        values[0] += 2 * value
        gradients[0] += 2 * gradient
        product = objective.curvature(z, target.join(target))
        curved[0] += 2 * product(z.unsqueeze(1)).squeeze(1)
    for single, joint in (values, gradients, curved):
        torch.testing.assert_close(joint, single, rtol=1e-9, atol=1e-12)


def test_of_one_round_nothing_changes_and_what_is_empty_is_left_out() -> None:
    alone = noisy(NETWORKS[0], 0, seed=1)
    empty = replace(alone, tensors={n: torch.zeros_like(t) for n, t in alone.tensors.items()})
    (plain,) = attack().reconstruct([alone], context())
    for before in ((), (empty,)):
        (found,) = attack().reconstruct([replace(alone, same_images=before)], context())
        assert torch.equal(found.inputs, plain.inputs)
        assert found.objective == plain.objective


# Who knows which updates these are ---------------------------------------------------------------

FEDERATION = (
    "attack=scale_free",
    "preprocess.size=12",
    "dataset.per_class=4",
    "n_images=6",
    "federation=fedsgd",
    "federation.clients=2",
    "federation.rounds=3",
    "capture.rounds=[0,1,3]",
    "defense=perturbation",
    "noise=gaussian",
)
GRANTED = "threat.knows=[num_examples,local_training,defense,same_images]"


def test_a_capture_shows_those_before_it_of_the_same_images_to_whom_it_is_granted() -> None:
    alone = list(experiment(*FEDERATION).source.captures())
    assert [c.observation.same_images for c in alone] == [None] * 6
    tensors = {c.capture_id: c.observation.tensors for c in alone}
    source = experiment(*FEDERATION, GRANTED).source
    for capture in source.captures():
        seen, before = capture.observation, capture.observation.same_images or ()
        rounds = [r for r in (0, 1, 3) if r < capture.round]
        assert [s.capture_id for s in before] == [
            f"round-{r:03d}/client-{capture.client}" for r in rounds
        ]
        for one in seen.rounds:
            for name, tensor in one.tensors.items():
                assert torch.equal(tensor, tensors[one.capture_id][name])
        assert all(one.same_images is None for one in before)
    assert len(source.sample().observation.rounds) == 3  # of which a forecast is made


def test_a_run_that_goes_on_shows_the_same() -> None:
    source = experiment(*FEDERATION, GRANTED).source
    whole = {c.capture_id: c.observation for c in source.captures()}
    done = [name for name in whole if name != "round-003/client-1"]
    (left,) = source.captures(done)
    wanted = whole["round-003/client-1"]
    assert left.capture_id == wanted.capture_id
    for one, other in zip(left.observation.rounds, wanted.rounds, strict=True):
        assert one.capture_id == other.capture_id
        for name, tensor in one.payload.parameters.items():
            assert torch.equal(tensor, other.payload.parameters[name])
        for name, tensor in one.tensors.items():
            assert torch.equal(tensor, other.tensors[name])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["federation.clients=null", "federation.rounds=0", "capture.rounds=[0]"], "sent once"),
        (["capture.rounds=[3]"], "no images are captured twice"),
        (["defense=secure_aggregation", "~noise"], "the server sees sums"),
        (
            [
                "attack.group_consistency=0.1",
                "attack.restart_above=null",
                "attack.arrangements=null",
            ],
            r"attack\.group_consistency pulls restarts",
        ),
        (
            [
                *("federation=fedavg", "federation.batch_size=2", "n_images=12"),
                "federation.local.batch_size=1",
            ],
            r"attack\.arrangements tries which of 2 images .* 2 local steps",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        experiment(*FEDERATION, GRANTED, *changes)


def test_captured_updates_do_not_say_of_which_images_they_are() -> None:
    with pytest.raises(ConfigurationError, match="captures do not say which"):
        FileSource(path="captures").open(ThreatModel(knows=["same_images"]), CPU)
