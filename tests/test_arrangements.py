"""Which image is behind which local step: what is possible, what is tried, what the updates say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from helpers import config, context, experiment, observe, payload_of, seeded, spec_of, victim_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from medpfl.attacks.arrangements import Arrangements
from medpfl.attacks.epochs import OrderInvariance, SeparateEpochs
from medpfl.attacks.matching import Targets
from medpfl.attacks.reading import as_gradient
from medpfl.attacks.stages import Key
from medpfl.errors import ConfigurationError
from medpfl.experiment import build
from medpfl.optim.scheduler import Outcome, Row, Scheduler
from medpfl.outcomes import Status
from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import Observation

SPEC = spec_of(1, 12, 12, num_classes=4)
ATTACK = (
    "attack=scale_free",
    "dataset=phantom",
    "preprocess.size=12",
    "federation=fedavg",
    "federation.batch_size=4",
    "federation.local.batch_size=2",
    "federation.local.epochs=2",
    "federation.local.lr=0.5",
    "n_images=4",
    "attack.determination=false",
    "attack.restarts=2",
    "device=cpu",
)

TWO_BY_TWO = LocalTraining(algorithm="fedavg", epochs=2, batch_size=2, lr=0.1)


def observed(images: int, training: LocalTraining | None, *, ordered: bool = False) -> Observation:
    """Return an update of which only what arrangements read is of interest."""
    observation = observe(payload_of("dlg_cnn", SPEC), SPEC, victim_of(SPEC, [0] * images))
    if training is not None and ordered:
        training = training.drawn(images, seeded(5))
    return replace(observation, local_training=training, num_examples=images)


def tried(
    observation: Observation,
    labels: list[int] | None,
    *,
    classes: int | None = None,
    considered: int = 100,
) -> list[tuple[list[int] | None, list[int] | None]]:
    found = Arrangements(considered=considered).of(
        observation,
        None if labels is None else torch.tensor(labels),
        classes=classes,
        generator=seeded(),
    )
    return [
        (
            None if a.labels is None else a.labels.tolist(),
            None if a.order is None else a.order.tolist(),
        )
        for a in found
    ]


def batches_of(order: list[int]) -> list[set[int]]:
    """Return the images of the four steps of `TWO_BY_TWO`."""
    return [set(order[first : first + 2]) for first in range(0, 8, 2)]


def renumbered(labels: list[int], order: list[int]) -> frozenset[object]:
    """Return everything that an arrangement says under any numbering of its images."""
    said = set()
    for numbers in itertools.permutations(range(4)):
        named = tuple(labels[numbers.index(i)] for i in range(4))
        steps = tuple(frozenset(numbers[i] for i in batch) for batch in batches_of(order))
        said.add((named, steps))
    return frozenset(said)


@pytest.mark.parametrize(
    ("labels", "count"), [([0, 1, 2, 3], 36), ([1, 1, 2, 3], 20), ([2, 2, 3, 3], 12), ([1] * 4, 3)]
)
def test_all_different_arrangements_of_two_epochs_of_two_batches_are_tried(labels, count) -> None:
    possible = {
        renumbered(list(placed), [0, 1, 2, 3, *second])
        for placed in itertools.permutations(labels)
        for second in itertools.permutations(range(4))
    }
    found = [renumbered(*arrangement) for arrangement in tried(observed(4, TWO_BY_TWO), labels)]
    assert len(found) == len(set(found)) == len(possible) == count
    assert set(found) == possible


def test_a_known_order_leaves_the_places_of_counted_labels_open() -> None:
    observation = observed(4, TWO_BY_TWO, ordered=True)
    found = tried(observation, [0, 0, 1, 2], classes=4, considered=400)
    assert all(order is None for _, order in found)
    assert found[0][0] == [0, 0, 1, 2]
    # Over several steps counts are no more than a guess: every number of each label is tried.
    assert len({tuple(sorted(labels or ())) for labels, _ in found}) == 35


@pytest.mark.parametrize(
    ("images", "training", "ordered", "labels"),
    [
        (1, TWO_BY_TWO, False, [2]),
        (4, None, False, [0, 1, 2, 3]),
        (4, replace(TWO_BY_TWO, batch_size=None), False, [0, 1, 2, 3]),
        (4, TWO_BY_TWO, True, [3, 1, 2, 0]),
        (4, TWO_BY_TWO, True, None),
    ],
    ids=["one image", "unknown training", "all at once", "granted", "labels searched for"],
)
def test_where_nothing_is_open_there_is_one_arrangement(images, training, ordered, labels) -> None:
    observation = observed(images, training, ordered=ordered)
    (only,) = tried(observation, labels)
    assert only[0] == labels


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 6), st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(0, 3), min_size=6)
)
def test_every_arrangement_takes_each_image_once_an_epoch(images, size, epochs, labels) -> None:
    training = replace(TWO_BY_TWO, epochs=epochs, batch_size=size)
    wanted = sorted(labels[:images])
    for placed, order in tried(observed(images, training), wanted, considered=10):
        assert placed is not None
        assert sorted(placed) == wanted
        taken = list(range(images)) * epochs if order is None else order
        for epoch in range(epochs):
            assert sorted(taken[epoch * images : (epoch + 1) * images]) == list(range(images))


def test_rows_may_each_have_an_order_of_their_own() -> None:
    observation = observed(4, TWO_BY_TWO)
    payload, inputs = observation.payload, victim_of(SPEC, [0, 1, 2, 3]).inputs.double()
    parameters = {n: p.double() for n, p in payload.parameters.items()}
    labels = functional.one_hot(torch.arange(4), 4).double()
    trainings = [TWO_BY_TWO.drawn(4, seeded(s)) for s in range(3)]
    orders = torch.tensor([[i for b in t.order or () for i in b] for t in trainings])

    def update(order: Tensor) -> dict[str, Tensor]:
        map_ = UpdateMap.of(TWO_BY_TWO.in_turn(4))
        return map_(payload.forward(), parameters, inputs, labels, order=order)

    found = vmap(update)(orders)
    for row, training in enumerate(trainings):
        wanted = UpdateMap.of(training)(payload.forward(), parameters, inputs, labels)
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name][row], tensor, rtol=1e-10, atol=1e-12)


def test_one_arrangement_alone_explains_an_update() -> None:
    observation = observed(3, TWO_BY_TWO)
    payload, inputs = observation.payload, victim_of(SPEC, [0, 1, 1]).inputs.double()
    parameters = {n: p.double() for n, p in payload.parameters.items()}
    labels, done = torch.tensor([1, 0, 1]), TWO_BY_TWO.drawn(3, seeded(3))

    def update(images: Tensor, placed: Tensor, order: Tensor | None = None) -> Tensor:
        probabilities = functional.one_hot(placed, 4).double()
        moved = UpdateMap.of(done)(
            payload.forward(), parameters, images, probabilities, order=order
        )
        return torch.cat([m.flatten() for m in moved.values()])

    sent = update(inputs, labels)
    errors = sorted(
        min(
            float(
                (update(inputs[list(p)], torch.tensor(placed), torch.tensor(order)) - sent).norm()
            )
            for p in itertools.permutations(range(3))
            if labels[list(p)].tolist() == placed
        )
        for placed, order in tried(observation, [0, 1, 1])
        if placed is not None and order is not None
    )
    assert errors[0] < 1e-12 * float(sent.norm())
    assert errors[1] > 1e-6 * float(sent.norm())


class Known(Scheduler[Key, Targets]):
    """Ends every row at an objective that its labels have, and counts its steps."""

    def __init__(self, objective: Callable[[Key], float], steps: int, log: list[int]) -> None:
        self._known, self._steps, self._log = objective, steps, log

    def run(self, queue: Iterator[Row[Key, Targets]]) -> Iterator[Outcome[Key]]:
        rows = list(queue)
        self._log.append(len(rows))
        for row in rows:
            value = self._known(row.key)
            point = row.start + self._steps
            yield Outcome(row.key, point, value, Status.OUT_OF_STEPS, self._steps, 7, 0.1, ())


def test_the_better_arrangements_go_on_from_where_they_were() -> None:
    parts = experiment(*ATTACK, "threat.local_training=partial")
    observation = as_gradient(parts.source.sample().observation)
    solver = parts.attack._solver(parts.attack._problem(observation), context())
    log: list[int] = []

    def objective(key: Key) -> float:
        placed = key.arrangement.labels
        assert placed is not None
        # Failed searches come last, whatever else.
        return math.nan if int(placed[0]) == 0 else float(placed[0]) + key.restart / 1000

    screening = replace(
        solver._screening, restarts=2, scheduler=lambda steps: Known(objective, steps, log)
    )
    key = solver.rows.key(observation)
    key = screening.led(key)
    assert log[0] > log[1] >= 2
    assert [math.ceil(a / 3) for a in log[:-1]] <= log[1:]
    assert len(key.leads) == 2
    first = [int(lead.arrangement.labels[0]) for lead in key.leads]
    assert first == [1, 1]
    row = solver.rows.row(key, torch.float64)
    assert torch.equal(row.start, key.leads[0].point.double())
    assert key.spent[0] == 2 * 512 + 7 * sum(log)
    anew = solver.rows.row(replace(key, restart=2), torch.float64)
    assert key.point is not None
    assert not torch.equal(anew.start, row.start)
    assert anew.key.arrangement is key.leads[0].arrangement


def test_separate_epochs_are_matched_before_they_are_averaged() -> None:
    images = torch.rand(3, 1, 4, 4, generator=seeded())
    epochs = torch.cat([images, images[[2, 0, 1]] + 0.02, images[[1, 2, 0]] - 0.02])
    together = SeparateEpochs().together(epochs, 3)
    torch.testing.assert_close(together, images)


@pytest.mark.parametrize("features", [0, 8])
def test_the_prior_is_blind_to_the_order_and_sees_other_images(features: int) -> None:
    images, others = torch.rand(2, 3, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    prior = SeparateEpochs(weight=0.5, features=features).prior(2, SPEC)
    assert float(prior(torch.cat([images, images[[1, 2, 0]]]), SPEC)) < 1e-12
    apart = torch.cat([images, others])
    assert float(prior(apart, SPEC)) > 1e-6
    assert float(prior.residual(apart, SPEC).square().sum()) == pytest.approx(
        float(prior(apart, SPEC))
    )


def test_the_prior_is_half_the_mean_difference_of_all_pairs() -> None:
    epochs = torch.rand(6, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    means = epochs.reshape(3, 2, 1, 4, 4).mean(1)
    pairs = [(means[i] - means[j]).square().mean() for i in range(3) for j in range(3)]
    prior = OrderInvariance(weight=1.0, epochs=3, kernels=None)
    assert float(prior(epochs, SPEC)) == pytest.approx(float(torch.stack(pairs).mean() / 2))


def test_separate_epochs_train_on_their_own_images() -> None:
    observation = observed(4, TWO_BY_TWO)
    update = SeparateEpochs().update_map(observation)
    assert update.batches == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert update.lr == TWO_BY_TWO.lr


def test_dimitrovs_attack_hands_in_as_many_images_as_the_client_has() -> None:
    settings_ = [s for s in ATTACK if "restarts" not in s and "attack=" not in s]
    parts = experiment("attack=dimitrov", *settings_, "attack.optimizer.max_steps=8")
    (capture,) = parts.source.captures()
    (found,) = parts.attack.reconstruct([capture.observation], context())
    assert found.inputs.shape == (4, *parts.data.spec.shape)
    assert found.unknowns == 2 * 4 * 12 * 12 * (1 if parts.data.spec.greyscale else 3)
    assert found.trace is not None
    assert found.trace.inputs.shape[1:] == found.inputs.shape


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        (
            (
                "attack=dimitrov",
                "+attack.arrangements={_target_: medpfl.attacks.arrangements.Arrangements}",
            ),
            "attack.epochs=null",
        ),
        (("attack=dimitrov", "attack.labels={_target_: medpfl.attacks.labels.Joint}"), "Counted"),
        (
            ("attack=scale_free", "attack.group_consistency=0.1", "attack.restart_above=null"),
            "attack.arrangements=null",
        ),
        (("attack=scale_free", "attack.arrangements.keep=1"), "keep"),
    ],
)
def test_what_does_not_go_together_is_said(settings_, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build(config(*settings_, "dataset=phantom"))


def test_blank_images_tell_the_likely_arrangements() -> None:
    parts = experiment(*ATTACK, "federation.local.lr=0.05", "threat.local_training=partial")
    capture = parts.source.sample()
    observation = as_gradient(capture.observation)
    solver = parts.attack._solver(parts.attack._problem(observation), context())
    screening, key = solver._screening, solver.rows.key(observation)
    possible = screening.arrangements.of(observation, None, classes=6, generator=seeded())
    labels = torch.tensor([[0, 2, 4, 1], [3, 3, 3, 3], capture.truth.labels.tolist()])
    possible = [replace(possible[0], labels=placed) for placed in labels]
    likeliest = replace(screening, arrangements=Arrangements(considered=3, most=1))._likeliest(
        key, possible
    )
    assert sorted(likeliest[0].labels.tolist()) == sorted(capture.truth.labels.tolist())
