"""Captures of a Flower federation in one process: to the bit, and without an effect on it."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from federated_images import IMAGES, LOCAL, MODEL, SPEC, Clients, Net, brain_images, mapped, trained
from helpers import ROOT

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    Result,
    Strategy,
)
from flwr.supercore.task_identity import TaskIdentity

from medpfl.captures import CapturedUpdate, load_captures, read_captures
from medpfl.errors import MedpflError
from medpfl.integrations.flower import CapturingMod, capturing
from medpfl.training import LocalTraining

NODES = (77, 99)


class OneProcess(Grid):
    """Calls a client app where Flower would send messages over a network."""

    run: Any = None

    def __init__(self, app: ClientApp) -> None:
        self.app = app
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": number},
                state=RecordDict(),
                run_config={},
            )
            for number, node in enumerate(NODES)
        }

    def set_run(self, run: Any) -> None:
        self.run = run

    def create_message(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    push_messages = pull_messages = create_message

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return [self.app(m, self.contexts[m.metadata.dst_node_id]) for m in messages]


@pytest.fixture(autouse=True)
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def clients() -> Clients:
    return brain_images()


Reply = Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], Any]


def as_state(state: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> Any:
    return ArrayRecord(trained(state, inputs, labels))


def app_of(
    clients: Clients,
    reply: Reply = as_state,
    mods: Sequence[Any] = (),
    saw: Callable[[torch.Tensor, torch.Tensor], None] = lambda *_: None,
) -> ClientApp:
    """Return a user's client app: it trains, and sends its weights."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        inputs, labels = clients[int(context.node_config["partition-id"])]
        saw(inputs, labels)
        (record,) = message.content.array_records.values()
        arrays = [torch.tensor(array) for array in record.to_numpy_ndarrays()]
        state = dict(zip(Net().state_dict(), arrays, strict=True))
        metrics = MetricRecord({"num-examples": len(labels)})
        content = RecordDict({"arrays": reply(state, inputs, labels), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def federate(strategy: Strategy, app: ClientApp, rounds: int = 2, **sent: Any) -> Result:
    torch.manual_seed(0)
    first = sent.get("arrays", ArrayRecord(Net().state_dict()))
    return strategy.start(grid=OneProcess(app), initial_arrays=first, num_rounds=rounds)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {"folder": folder, "model": MODEL, "spec": SPEC, **more}


def captured(folder: Path) -> list[CapturedUpdate]:
    return list(load_captures(read_captures(folder)))


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What medpfl's captures say went wrong, filled as it is logged."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener = Listener(logging.ERROR)
    logger = logging.getLogger("medpfl.captures")
    logger.addHandler(listener)
    yield told
    logger.removeHandler(listener)


@pytest.mark.real_data
def test_the_server_captures_to_the_bit_what_clients_trained(tmp_path, clients, errors):
    federate(capturing(FedAvg(), **settings(tmp_path, local_training=LOCAL)), app_of(clients))
    captures = captured(tmp_path)
    assert [capture.capture_id for capture in captures] == [
        f"round-00{round_}/client-{client}" for round_ in (0, 1) for client in (0, 1)
    ]
    for capture in captures:
        expected = mapped(capture, *clients[capture.client])
        assert capture.update.kind == "delta"
        assert capture.update.num_examples == IMAGES
        assert capture.update.local_training == LOCAL
        assert capture.update.tensors.keys() == expected.keys()
        assert all(torch.equal(capture.update.tensors[n], t) for n, t in expected.items())
    assert captures[0].payload is captures[1].payload
    assert errors == []


@pytest.mark.real_data
@pytest.mark.parametrize(
    "strategy",
    [
        lambda: FedAvg(),
        lambda: FedAdam(),
        lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 0.1, 2),
    ],
)
def test_the_federation_is_what_it_was_without_captures(tmp_path, clients, strategy, errors):
    plain = federate(strategy(), app_of(clients))
    watched = federate(capturing(strategy(), **settings(tmp_path)), app_of(clients))
    assert {n: a.data for n, a in watched.arrays.items()} == {
        n: a.data for n, a in plain.arrays.items()
    }
    assert watched.train_metrics_clientapp == plain.train_metrics_clientapp
    assert watched.evaluate_metrics_clientapp == plain.evaluate_metrics_clientapp
    first = captured(tmp_path)[0]
    expected = mapped(first, *clients[0])  # as it came, before the strategy clips it
    assert all(torch.equal(first.update.tensors[n], t) for n, t in expected.items())
    assert errors == []


@pytest.mark.real_data
def test_a_strategy_of_ones_own_keeps_its_methods_and_is_not_changed(tmp_path, clients):
    class Mine(FedAvg):
        started = ""

        def start(self, *arguments: Any, **settings: Any) -> Result:
            self.started = "yes"
            return super().start(*arguments, **settings)

        def configure_train(self, *arguments: Any) -> Iterator[Message]:
            yield from super().configure_train(*arguments)

    mine = Mine(fraction_evaluate=0.0)
    watched = capturing(mine, **settings(tmp_path))
    federate(watched, app_of(clients), rounds=1)
    assert isinstance(watched, Mine)
    assert (watched.started, mine.started) == ("yes", "")
    assert type(mine) is Mine
    assert len(captured(tmp_path)) == 2


@pytest.mark.real_data
def test_only_the_rounds_that_are_wanted_are_captured(tmp_path, clients):
    federate(capturing(FedAvg(), **settings(tmp_path, rounds=[2])), app_of(clients), rounds=3)
    found = read_captures(tmp_path)
    assert [capture.manifest.round for capture in found] == [1, 1]
    told = [capture.manifest.framework for capture in found]
    assert [(f.round, f.client) for f in told if f] == [("2", "77"), ("2", "99")]


@pytest.mark.real_data
def test_arrays_without_names_are_those_of_the_state_dict_in_its_order(tmp_path, clients):
    def as_list(*arguments: Any) -> Any:
        return ArrayRecord([tensor.numpy() for tensor in trained(*arguments).values()])

    arrays = ArrayRecord([tensor.numpy() for tensor in Net().state_dict().values()])
    strategy = capturing(FedAvg(), **settings(tmp_path))
    federate(strategy, app_of(clients, as_list), rounds=1, arrays=arrays)
    for capture in captured(tmp_path):
        expected = mapped(capture, *clients[capture.client])
        assert all(torch.equal(capture.update.tensors[n], t) for n, t in expected.items())


@pytest.mark.real_data
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_mod_captures_where_it_stands_among_others(tmp_path, clients, where):
    noise = LocalDpMod(clipping_norm=100.0, sensitivity=0.01, epsilon=1.0, delta=1e-5)
    mod = CapturingMod(**settings(tmp_path / "mod", local_training=LOCAL))
    mods = getattr(mod, where)([noise])
    order = [list(range(3)), [3]] * LOCAL.epochs
    app = app_of(clients, mods=mods, saw=lambda x, y: mod.saw(x, y, order=order))
    federate(capturing(FedAvg(), **settings(tmp_path / "server")), app, rounds=1)
    at_client, at_server = captured(tmp_path / "mod"), captured(tmp_path / "server")
    assert len(at_client) == len(at_server) == 2
    for mine, servers in zip(at_client, at_server, strict=True):
        inputs, labels = clients[mine.client]
        assert mine.truth is not None
        assert torch.equal(mine.truth.inputs, inputs)
        assert torch.equal(mine.truth.labels, labels)
        assert mine.update.local_training == LOCAL.in_turn(IMAGES)
        assert servers.truth is None
        expected = mapped(mine, inputs, labels)
        noiseless = [torch.equal(mine.update.tensors[n], t) for n, t in expected.items()]
        sent = [torch.equal(t, servers.update.tensors[n]) for n, t in mine.update.tensors.items()]
        assert noiseless == [where == "inside"] * len(expected)
        assert sent == [where == "outside"] * len(expected)
        assert mine.defense is not None
        words = "after" if where == "outside" else "before"
        assert mine.defense.description == f"captured {words} LocalDpMod"


@pytest.mark.real_data
def test_images_of_one_round_are_not_taken_for_those_of_the_next(tmp_path, clients):
    mod = CapturingMod(**settings(tmp_path))
    seen: list[int] = []

    def once(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        if len(seen) < 2:
            mod.saw(inputs, labels)
        seen.append(len(labels))

    federate(FedAvg(), app_of(clients, mods=[mod], saw=once))
    assert [capture.truth is not None for capture in captured(tmp_path)] == [
        *(True, True),
        *(False, False),
    ]


def broken_arrays(state: dict[str, torch.Tensor], *_: Any) -> Any:
    return ArrayRecord({n: torch.full_like(t, torch.nan) for n, t in state.items()})


def another_network(*_: Any) -> Any:
    return ArrayRecord({"weight": torch.ones(2)})


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("reply", "words"),
    [(broken_arrays, "NaN or infinite"), (another_network, "unknown to it: weight")],
)
def test_a_capture_that_fails_is_told_once_and_training_goes_on(
    tmp_path, clients, reply, words, errors
):
    plain = federate(FedAvg(), app_of(clients, reply), rounds=1)
    strategy = capturing(FedAvg(), **settings(tmp_path / "captures"))
    watched = federate(strategy, app_of(clients, reply), rounds=1)
    assert watched.arrays.keys() == plain.arrays.keys()
    assert len(errors) == len(NODES)
    assert all(words in told and "training goes on" in told for told in errors)
    assert not (tmp_path / "captures").exists()


@pytest.mark.real_data
def test_a_full_disk_or_a_fault_of_ours_does_not_end_the_training(
    tmp_path, clients, errors, monkeypatch
):
    def fault(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a fault")

    (tmp_path / "file").write_text("")
    result = federate(capturing(FedAvg(), **settings(tmp_path / "file")), app_of(clients), 1)
    assert result.arrays
    assert len(errors) == 2
    strategy = capturing(FedAvg(), **settings(tmp_path / "captures"))
    mod = CapturingMod(**settings(tmp_path / "mod"))
    monkeypatch.setattr("medpfl.integrations.flower.arrays_of", fault)
    federate(strategy, app_of(clients, mods=[mod]), rounds=1)
    assert len(errors) == 6
    assert all("please report it" in told for told in errors[2:])


@pytest.mark.real_data
def test_a_second_federation_does_not_write_over_the_first(tmp_path, clients, errors):
    for expected in (0, 2):
        federate(capturing(FedAvg(), **settings(tmp_path)), app_of(clients), rounds=1)
        assert len(errors) == expected
    assert "there already" in errors[0]


def test_a_client_that_fails_is_passed_over(tmp_path, errors):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from flwr.app import Error

        return Message(Error(code=1, reason="no data"), reply_to=message)

    strategy = capturing(FedAvg(fraction_evaluate=0.0), **settings(tmp_path))
    federate(strategy, app, rounds=1)
    assert errors == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda **given: capturing(FedAvg(), **given),
        lambda **given: CapturingMod(**given),
    ],
)
def test_a_network_that_cannot_be_built_is_told_before_training(tmp_path, make):
    with pytest.raises(MedpflError, match="cannot be found"):
        make(**settings(tmp_path, model={"_target_": "nobody.has.This"}))


def test_a_mod_needs_to_know_the_round(tmp_path, clients_of_noise, errors):
    mod = CapturingMod(**settings(tmp_path))
    app = app_of(clients_of_noise, mods=[mod])
    grid = OneProcess(app)
    content = RecordDict(
        {"arrays": ArrayRecord(Net().state_dict()), "config": ConfigRecord({"lr": 0.1})}
    )
    message = Message(content=content, message_type="train", dst_node_id=NODES[0])
    (reply,) = grid.send_and_receive([message])
    assert not reply.has_error()
    assert len(errors) == 1
    assert "no server-round" in errors[0]


@pytest.fixture
def clients_of_noise() -> Clients:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand((4, 3, 32, 32), generator=generator), torch.arange(4)) for _ in NODES]


def test_the_example_captures_its_first_round(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flower_capture.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "flower_capture.py"), run_name="__main__")
    assert capsys.readouterr().out == ("round-000/client-0  N = 1\nround-000/client-1  N = 1\n")
    for capture in captured(tmp_path):
        assert capture.update.local_training == LocalTraining(algorithm="fedavg", lr=0.1)
