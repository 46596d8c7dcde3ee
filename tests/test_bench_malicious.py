"""`make malicious` on small drawn images; and clients that have too few of the selected ones."""

from __future__ import annotations

import pytest
import torch
from helpers import payload_of, spec_of, victim_of
from test_bench import table
from torch.nn import functional

from medpfl.bench import __main__ as bench
from medpfl.bench import breaching_side
from medpfl.errors import ConfigurationError
from medpfl.federated.capturing import Capturing, probes
from medpfl.training import UpdateMap


def test_the_share_stands_beside_the_expected_one(tmp_path, capsys):
    out = tmp_path / "found"
    small = ("preprocess=squash32", "preprocess.size=12", "model=dlg_cnn")
    arguments = ["--dataset", "phantom", "--batches", "2", "--images", "2", "--bins", "500"]
    given = ["malicious", *arguments, "--out", str(out), "--override", *small]
    assert bench.main(given) == 0
    ours, *others = table(capsys.readouterr().out)
    assert (ours["attacker"], ours["expected"]) == ("medpfl", "99.8 %")
    assert ours["PSNR > 40 dB"] == "100.0 %, 2 of 2"
    assert ours["parameters added"] == f"{500 * (3 * 12 * 12 + 1):,}"
    assert len(others) == (2 if breaching_side.is_installed() else 0)
    names = {path.name for path in out.iterdir()}
    assert {"malicious.md", "malicious.csv", "recovery.png", "gallery.png"} <= names
    assert out.stat().st_mode & 0o077 == 0


def test_a_batch_larger_than_the_images_is_refused(capsys):
    assert bench.main(["malicious", "--dataset", "phantom", "--images", "4"]) == 2
    assert "--images 4" in capsys.readouterr().err


def test_clients_with_too_few_of_the_selected_images_take_others_that_are_visited():
    own, visited = [["a"], ["d", "e"]], [["a", "b", "c"], ["d", "e", "f"]]
    planned = probes(own, Capturing(), batch_size=2, n_images=4, most=100, spare=visited)
    assert [p.image_ids for p in planned] == [("a", "b"), ("d", "e")]
    with pytest.raises(ConfigurationError, match="client 0 has 1 images"):
        probes(own, Capturing(), batch_size=2, n_images=4, most=100)


def test_weights_that_nobody_wants_are_not_made():
    spec = spec_of(1, 12, 12)
    payload, victim = payload_of("dlg_cnn", spec), victim_of(spec, [0, 1])
    labels = functional.one_hot(victim.labels, 3).float()
    update = UpdateMap(batches=((0,), (1,)), lr=0.1)
    arguments = payload.forward(), payload.parameters, victim.inputs, labels
    whole, moved = update.train(*arguments), update.train(*arguments, to_the_end=False)
    assert moved.parameters == {}
    assert all(torch.equal(moved.moved[name], tensor) for name, tensor in whole.moved.items())
