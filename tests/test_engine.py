"""The engine under strain: memory that runs out, long queues, other batch sizes, compilers."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from helpers import CPU, context, experiment, observe, payload_of, seeded, spec_of, victim_of
from torch import Tensor

from medpfl.attacks import GradientMatching
from medpfl.attacks.compiled import Compiled
from medpfl.attacks.distances import NormalisedError, SquaredError
from medpfl.attacks.evaluator import Evaluator, Rows
from medpfl.attacks.labels import Known
from medpfl.attacks.matching import MatchingObjective, Targets, rows_at_once
from medpfl.attacks.starts import Normal
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError, MedpflError
from medpfl.metrics.image_quality import ssim
from medpfl.optim import LBFGS
from medpfl.optim.base import RowState
from medpfl.optim.capacity import bytes_of, is_out_of_memory, memory_for_rows, rows_that_fit
from medpfl.optim.rows import RowTable
from medpfl.optim.scheduler import Outcome, Row, Scheduler
from medpfl.types import Observation, Reconstruction, Truth

FAULT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


# ---- how many rows


def test_rows_follow_from_memory_and_bytes() -> None:
    cuda = torch.device("cuda")
    assert rows_that_fit(memory=6_000, bytes_a_row=10, device=cuda) == 100
    assert rows_that_fit(memory=6_000, bytes_a_row=10, device=CPU) == 64
    for at_once, rows in ((1, 8), (17, 8), (40, 20), (500, 64)):
        found = rows_that_fit(memory=6_000, bytes_a_row=10, device=CPU, at_once=at_once)
        assert found == rows
    assert rows_that_fit(memory=6_000, bytes_a_row=10, device=cuda, at_once=17) == 100
    assert rows_that_fit(memory=600, bytes_a_row=10, device=CPU) == 10
    assert rows_that_fit(memory=1, bytes_a_row=10**9, device=cuda) == 1


def test_a_setting_bounds_the_memory() -> None:
    assert memory_for_rows(CPU, 0.001) == 1_000_000
    assert memory_for_rows(CPU, 10.0**9) == memory_for_rows(CPU, None) > 0
    with pytest.raises(ConfigurationError, match=r"attack\.memory_gb=0: must be positive"):
        memory_for_rows(CPU, 0)


def test_bytes_are_counted_without_memory() -> None:
    optimizer = LBFGS(history=10)
    real = optimizer.init(torch.zeros(3, 7, dtype=torch.float64))
    counted = bytes_of(optimizer.init(torch.empty(3, 7, dtype=torch.float64, device="meta")))
    assert counted == bytes_of(real) > 2 * 3 * 10 * 7 * 8


def test_less_memory_means_fewer_rows_at_once() -> None:
    spec = spec_of(3, 8, 8)
    payload, unknowns = payload_of("dlg_cnn", spec), Unknowns(spec, 1, 3, joint_labels=False)
    plenty, scarce = (rows_at_once(payload, unknowns, memory=m) for m in (10**9, 10**7))
    assert plenty > scarce > 1
    assert rows_at_once(payload, unknowns, memory=1) == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("attack.rows=0", "attack.rows=0: must be at least 1"),
        ("attack.rows=many", "attack.rows=many: must be an integer or auto"),
        ("attack.memory_gb=-1", "attack.memory_gb=-1: must be positive and at most"),
        ("attack.compile=fast", "attack.compile=fast: choose true, false or cudagraphs"),
    ],
)
def test_settings_that_cannot_work(setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        experiment("n_images=1", setting)


# ---- memory runs out


@dataclass
class Centre(RowTable):
    """`(B, 2)`: where each row's bowl is lowest; `(B,)` how long it is."""

    end: Tensor
    length: Tensor


def bowl(z: Tensor, centre: Centre) -> tuple[Tensor, Tensor]:
    """Rosenbrock's valley, elementwise: the same bits for any number of rows."""
    x, y = (z - centre.end + 1).unbind(1)
    bend = y - x**2
    value = centre.length * bend**2 + (1 - x) ** 2
    along_x = -4 * centre.length * x * bend - 2 * (1 - x)
    return value, torch.stack([along_x, 2 * centre.length * bend], 1)


class Scarce:
    """An objective for which memory suffices up to a number of rows."""

    def __init__(self, most: int, fault: Exception | None = None) -> None:
        self.most = most
        self.fault = RuntimeError(FAULT) if fault is None else fault
        self.refused: list[int] = []

    def __call__(self, z: Tensor, centre: Centre) -> tuple[Tensor, Tensor]:
        if len(z) > self.most:
            self.refused.append(len(z))
            raise self.fault
        return bowl(z, centre)


def bowls(count: int) -> Iterator[Row[int, Centre]]:
    for key in range(count):
        numbers = torch.rand(5, generator=seeded(key), dtype=torch.float64)
        length = torch.tensor([10.0 ** (key % 3)], dtype=torch.float64)
        yield Row(key, 3 * numbers[:2], Centre(numbers[None, 2:4], length))


def scheduler(objective: object, capacity: int, optimizer: object = None) -> Scheduler[int, Centre]:
    return Scheduler(
        optimizer=optimizer or LBFGS(max_steps=4, max_iter=6, line_search="strong_wolfe"),
        objective=objective,
        capacity=capacity,
        snapshot_growth=1.5,
    )


def assert_same(a: Outcome[int], b: Outcome[int]) -> None:
    assert (a.status, a.steps, a.evaluations) == (b.status, b.steps, b.evaluations)
    torch.testing.assert_close(a.z, b.z, rtol=1e-9, atol=1e-12)
    assert [s.step for s in a.snapshots] == [s.step for s in b.snapshots]


@pytest.mark.parametrize("capacity", [2, 8, 64])
@pytest.mark.parametrize("most", [1, 3])
def test_running_out_of_memory_changes_no_outcome(capacity: int, most: int) -> None:
    plain = {o.key: o for o in scheduler(bowl, capacity).run(bowls(11))}
    scarce = Scarce(most)
    running = scheduler(scarce, capacity)
    ended = list(running.run(bowls(11)))
    assert sorted(o.key for o in ended) == list(range(11))
    for outcome in ended:
        assert_same(outcome, plain[outcome.key])
    assert bool(scarce.refused) == (capacity > most)
    assert running.capacity <= max(most, 1) or capacity <= most
    assert all(b <= a // 2 for a, b in itertools.pairwise(scarce.refused))


def test_the_older_half_goes_on_and_ended_rows_are_not_computed_again() -> None:
    class LaterScarce(Scarce):
        ticks = 0

        def __call__(self, z: Tensor, centre: Centre) -> tuple[Tensor, Tensor]:
            self.ticks += 1
            self.most = 2 if self.ticks == 12 else 8
            return super().__call__(z, centre)

    scarce = LaterScarce(8)
    evaluated = 0
    keys = []
    for outcome in scheduler(scarce, 4).run(bowls(9)):
        keys.append(outcome.key)
        evaluated += outcome.evaluations
    assert sorted(keys) == list(range(9))
    assert scarce.refused == [4]
    assert keys[0] in (0, 1)  # the oldest two were not thrown back


@pytest.mark.parametrize("moment", ["init", "tell"])
def test_memory_may_run_out_at_any_moment(moment: str) -> None:
    class Torn(LBFGS):
        calls = 0

        def fail(self, at: str, rows: int) -> None:
            self.calls += at == moment
            if at == moment and self.calls in (1, 7) and rows > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        def init(self, z: Tensor) -> RowState:
            self.fail("init", len(z) + 1)
            return super().init(z)

        def tell(self, state: RowState, value: Tensor, gradient: Tensor) -> None:
            state.z += 0.125  # torn: half of a step has been taken
            self.fail("tell", len(value))
            state.z -= 0.125
            super().tell(state, value, gradient)

    settings = {"max_steps": 4, "max_iter": 6, "line_search": "strong_wolfe"}
    plain = {o.key: o for o in scheduler(bowl, 8, LBFGS(**settings)).run(bowls(11))}
    torn = {o.key: o for o in scheduler(bowl, 8, Torn(**settings)).run(bowls(11))}
    assert torn.keys() == plain.keys()
    for key, outcome in torn.items():
        assert outcome.evaluations == plain[key].evaluations
        torch.testing.assert_close(outcome.z, plain[key].z, rtol=1e-6, atol=1e-8)


def test_a_single_row_that_does_not_fit_is_refused_with_advice() -> None:
    scarce = Scarce(0)
    with pytest.raises(MedpflError, match=r"single row \(DefaultCPUAllocator.*precision=float32"):
        list(scheduler(scarce, 8).run(bowls(3)))
    assert scarce.refused == [3, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    scarce = Scarce(1, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(scheduler(scarce, 2).run(bowls(3)))


def test_what_torch_says_when_memory_runs_out_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))


def small_problem(
    *, chunk: int, rows: int = 9, compiling: bool = False
) -> tuple[MatchingObjective, Tensor, Targets]:
    spec = spec_of(1, 8, 8)
    payload, unknowns = payload_of("dlg_cnn", spec), Unknowns(spec, 1, 3, joint_labels=False)
    objective = MatchingObjective(
        payload=payload,
        unknowns=unknowns,
        distance=SquaredError(),
        dtype=torch.float64,
        chunk=chunk,
        compiling=compiling,
    )
    count = sum(p.numel() for p in payload.parameters.values())
    draw = {"generator": seeded(3), "dtype": torch.float64}
    labels = torch.eye(3, dtype=torch.float64)[torch.arange(rows) % 3].unsqueeze(1)
    none = torch.zeros(rows, 0, dtype=torch.float64)
    targets = Targets(torch.randn(rows, count, **draw), labels, none, none, none.long())
    return objective, torch.randn(rows, 64, **draw), targets


def test_an_evaluation_without_memory_takes_fewer_rows_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, z, targets = small_problem(chunk=8)
    value, gradient = objective(z, targets)
    evaluate, sizes = Evaluator._evaluate, []

    def scarce(self: Evaluator, given: Sequence[Rows], part: slice) -> tuple[Tensor, ...]:
        sizes.append(len(given[0][part]))
        if sizes[-1] > 2:
            raise RuntimeError(FAULT)
        return evaluate(self, given, part)

    monkeypatch.setattr(Evaluator, "_evaluate", scarce)
    again = objective(z, targets)
    assert sizes == [5, 3, 2, 2, 2, 2, 1]
    torch.testing.assert_close(again, (value, gradient))


# ---- row independence


SPEC = spec_of(1, 12, 12)


def victims(count: int) -> list[tuple[Truth, Observation]]:
    payload = payload_of("dlg_cnn", SPEC)
    made = []
    for seed in range(count):
        victim = victim_of(SPEC, [seed % 3], seed=seed, capture_id=f"v{seed}")
        made.append((victim, observe(payload, SPEC, victim, capture_id=f"v{seed}")))
    return made


def attacked(rows: int, count: int) -> dict[str, Reconstruction]:
    attack = GradientMatching(
        name="test",
        start=Normal(),
        labels=Known(),
        distance=NormalisedError(),
        optimizer=LBFGS(
            max_steps=1000,
            max_iter=1,
            max_eval=25,
            history=50,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search="strong_wolfe",
            objective_below=1e-9,
            on_stall="reset",
        ),
        rows=rows,
        precision="float64",
        trace_points=0,
    )
    observations = [seen for _, seen in victims(count)]
    return {r.capture_id: r for r in attack.reconstruct(observations, context())}


def test_the_number_of_rows_changes_neither_images_nor_success() -> None:
    # Not to the last bit: oneDNN's convolutions and torch.bmm choose another order of summation
    # for fewer than 8 rows, and for numbers of rows that are no multiple of 8. One evaluation
    # differs by some 1e-15 (float32: 1e-7) of the largest entry, images by what the search makes
    # of that before it ends: most in the corners, which the gradient says least about.
    truth = {seen.capture_id: victim.inputs for victim, seen in victims(4)}
    alone = attacked(1, 4)
    for rows, count in ((2, 4), (7, 8)):
        beside = attacked(rows, count)
        assert beside.keys() >= alone.keys()
        for capture_id, one in alone.items():
            many = beside[capture_id]
            assert many.status is one.status
            both = [ssim(r.inputs[0], truth[capture_id][0]) for r in (one, many)]
            assert (both[0] > 0.9) == (both[1] > 0.9)
            difference = (many.inputs - one.inputs).abs()
            assert difference.mean() < 1e-3
            assert difference.max() < 2e-2


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 16])
def test_an_evaluation_depends_on_its_row_alone(rows: int) -> None:
    objective, z, targets = small_problem(chunk=64, rows=64)
    values, gradients = objective(z, targets)
    value, gradient = objective(z[:rows], targets.select(torch.arange(rows)))
    torch.testing.assert_close(value, values[:rows], rtol=1e-13, atol=0)
    largest = gradients.abs().max().item()
    torch.testing.assert_close(gradient, gradients[:rows], rtol=0, atol=1e-14 * largest)


# ---- long queues


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def test_ten_thousand_victims_queue_in_bounded_memory() -> None:
    def quick(z: Tensor, centre: Centre) -> tuple[Tensor, Tensor]:
        return (z - centre.end).square().sum(1), 2 * (z - centre.end)

    def ended() -> Iterator[Outcome[int]]:
        optimizer = LBFGS(max_steps=1, max_iter=2, history=2)
        end, length = torch.zeros(1, 2), torch.zeros(1)
        queue = (
            Row(key, torch.full((2,), 1.0 + key), Centre(end, length)) for key in range(10_000)
        )
        running = Scheduler(optimizer=optimizer, objective=quick, capacity=250)
        return running.run(queue)

    counts = [live_tensors() for n, _ in enumerate(ended()) if n % 2000 == 500]
    assert len(counts) == 5
    # What is alive is the rows side by side, not the rows that have been.
    assert max(counts) <= counts[0] + 10 * 250


# ---- compiled evaluations


def plain(z: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
    return (z * shared).sum(1), z * shared


def test_numbers_of_rows_are_padded_to_two_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def compiles(function: object, **options: object) -> object:
        assert options == {"dynamic": False, "mode": None}

        def run(*arguments: Tensor) -> tuple[Tensor, ...]:
            assert all(a.is_contiguous() for a in arguments)
            shapes.append(tuple(arguments[0].shape))
            return plain(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", compiles)
    compiled = Compiled(plain, rowwise=(True, False), size=16, cudagraphs=False)
    for rows in (16, 1, 2, 3, 9):
        z = torch.randn(1, 5, generator=seeded()).expand(rows, 5)
        torch.testing.assert_close(compiled(z, torch.ones(5)), plain(z, torch.ones(5)))
    assert shapes == [(16, 5), (2, 5), (2, 5), (16, 5), (16, 5)]


def test_where_nothing_compiles_the_plain_function_runs_after_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def compiles(function: object, **options: object) -> object:
        def run(*arguments: Tensor) -> tuple[Tensor, ...]:
            nonlocal calls
            calls += 1
            raise RuntimeError("No working C++ compiler found\nmore")

        return run

    monkeypatch.setattr(torch, "compile", compiles)
    compiled = Compiled(plain, rowwise=(True, False), size=4, cudagraphs=False)
    z = torch.ones(3, 5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            torch.testing.assert_close(compiled(z, torch.ones(5)), plain(z, torch.ones(5)))
    assert calls == 1
    assert [r.message for r in caplog.records] == [
        "attack.compile: this machine cannot compile the attack, which now runs without "
        "(RuntimeError: No working C++ compiler found)"
    ]


def test_errors_of_the_function_itself_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    compiled = Compiled(plain, rowwise=(True, False), size=4, cudagraphs=False)
    with pytest.raises(RuntimeError, match="must match the size"):
        compiled(torch.ones(3, 5), torch.ones(4))


@pytest.mark.skipif(
    not os.environ.get("MEDPFL_TEST_COMPILE"), reason="takes a minute: set MEDPFL_TEST_COMPILE=1"
)
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_evaluations_agree(caplog: pytest.LogCaptureFixture) -> None:
    objective, z, targets = small_problem(chunk=8)
    compiled, _, _ = small_problem(chunk=8, compiling=True)
    torch.testing.assert_close(compiled(z, targets), objective(z, targets), rtol=1e-12, atol=1e-12)
    assert not [r for r in caplog.records if r.name.startswith("medpfl")]
