"""``defense=inspect``: what a client that refuses sends, and what the record says of it."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from conftest import Command
from helpers import CPU, config, payload_of, victim_of
from planted_models import SPEC, imprinted

from medpfl.defenses import Clipping, Defenses, Inspect
from medpfl.defenses.configured import defenses_at
from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.federated.sending import Sender
from medpfl.inspection.agreed import architecture_hash
from medpfl.inspection.received import Received
from medpfl.types import ServerPayload


def sent_of(part: Inspect, payload: ServerPayload):
    defense = Defenses({"inspect": part, "clipping": Clipping(max_norm=1.0)})
    sender = Sender(client=Client(spec=SPEC, device=CPU), defense=defense, seed=0)
    return sender.send("a", victim_of(SPEC, [0, 1]), payload, {})


def test_of_a_suspicious_model_nothing_is_sent():
    sent = sent_of(Inspect(), imprinted())
    assert all(not bool(tensor.any()) for tensor in sent.update.tensors.values())
    facts = sent.facts.defense
    assert (facts["refused"], facts["sent_norm"], facts["bytes_sent"]) == (1, 0, 0)
    assert facts["alarms"] >= 2
    assert sent.facts.gradient_norm > 0  # of what it would have sent


def test_a_flag_is_counted_and_the_update_sent():
    sent = sent_of(Inspect(action="flag"), imprinted())
    assert sent.facts.defense["alarms"] >= 2
    assert sent.facts.defense["refused"] == 0
    assert sent.facts.defense["sent_norm"] == pytest.approx(1)


def test_an_honest_model_is_trained_unless_another_was_agreed_on():
    payload = payload_of("idlg_cnn", SPEC)
    honest = sent_of(Inspect(), payload)
    assert (honest.facts.defense["alarms"], honest.facts.defense["refused"]) == (0, 0)
    assert torch.cat([t.flatten() for t in honest.update.tensors.values()]).norm() > 0
    agreed = architecture_hash(Received.of_payload(payload))
    assert sent_of(Inspect(agreed=agreed), payload).facts.defense["refused"] == 0
    assert sent_of(Inspect(agreed="0" * 64), payload).facts.defense["refused"] == 1


def test_mistakes_are_refused():
    with pytest.raises(ConfigurationError, match="agreed=abc: not a hash"):
        Inspect(agreed="abc")
    with pytest.raises(ConfigurationError, match="list inspect first"):
        defenses_at(config("defense=[clipping,inspect]"))
    assert defenses_at(config("defense=[inspect,dp_sgd]")).name == "inspect, dp_sgd"


def test_a_run_says_that_clients_refused(command: Command, tmp_path):
    run = command(
        *("attack=imprint", "dataset=phantom", "n_images=2", "federation.batch_size=2"),
        *("model=idlg_cnn", "preprocess.size=16", "server.bins=50", "server.auxiliary=normal"),
        *("threat.knows=[num_examples,local_training]", "defense=inspect"),
    )
    assert run.code == 0, run.stderr
    assert "refused, of which zeros stand here" in " ".join(run.stdout.split())
    assert refusals(tmp_path) == [("1.0", "unmatched")] * 2
    record = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert record["summary"]["defense"]["means"]["refused"] == 1


def test_a_search_has_nothing_to_go_by(command: Command, tmp_path):
    agreed = "a" * 64
    run = command(
        *("attack=idlg", "dataset=phantom", "n_images=1", "defense=inspect"),
        f"defense.inspect.agreed={agreed}",
    )
    assert run.code == 0, run.stderr
    assert refusals(tmp_path) == [("1.0", "no_gradient")]


def refusals(folder):
    with next(folder.rglob("metrics.csv")).open() as table:
        return [(row["refused"], row["status"]) for row in csv.DictReader(table)]
