"""Several images behind one update: labels with repeats, tied channels, all images at once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import config, experiment

from medpfl.attacks import AttackContext
from medpfl.attacks.labels import Counted, SmallestRow
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.metrics import match, ssim
from medpfl.types import DataSpec

GREY = DataSpec(
    shape=(3, 4, 5), num_classes=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), greyscale=True
)


def test_tied_channels_are_one_unknown_a_pixel() -> None:
    unknowns = Unknowns(GREY, images=2, classes=2, joint_labels=True, tied=True)
    grey = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0)).expand(2, 3, 4, 5)
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    z = unknowns.pack(GREY.normalise(grey), scores)
    assert z.shape == (2 * 20 + 4,)
    images, found = unknowns.unpack(z)
    torch.testing.assert_close(GREY.denormalise(images), grey)
    assert found is not None
    assert torch.equal(found, scores)


@pytest.mark.parametrize(("kind", "greyscale"), [("head", True), ("skin", False)])
def test_data_says_whether_it_is_grey(kind: str, greyscale: bool) -> None:
    e = experiment("attack=dlg", f"dataset.kinds=[{kind}]", "dataset.per_class=2")
    assert e.data.spec.greyscale is greyscale


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_labels_are_counted_with_repeats(batch_size: int) -> None:
    e = experiment(
        "attack=dlg",
        f"federation.batch_size={batch_size}",
        "dataset.select=random",
        "n_images=30",
    )
    right = total = 0
    for capture in e.source.captures():
        found = Counted().labels(capture.observation)
        assert found is not None
        assert len(found) == batch_size
        truth = capture.truth.labels
        right += sum((Counter(found.tolist()) & Counter(truth.tolist())).values())
        total += batch_size
    assert right >= 0.95 * total


def test_one_label_is_the_smallest_rows() -> None:
    for capture in experiment("attack=cpl", "n_images=6").source.captures():
        observation = capture.observation
        found, rule = Counted().labels(observation), SmallestRow().labels(observation)
        assert found is not None
        assert rule is not None
        assert torch.equal(found, rule)


def test_counting_needs_a_bias() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    Counted().check(layer, 1)
    with pytest.raises(ConfigurationError, match="bias"):
        Counted().check(layer, 2)


def test_both_images_of_an_update_are_found() -> None:
    e = experiment(
        "attack=scale_free",
        "dataset.kinds=[head]",
        "dataset.select=[head_lesion/0000,head_lesion/0004]",
        "federation.batch_size=2",
        "preprocess.size=16",
        "attack.restarts=1",
        "attack.optimizer.max_steps=300",
        "attack.trace_points=0",
    )
    captures = {c.capture_id: c for c in e.source.captures()}
    seen = (capture.observation for capture in captures.values())
    context = AttackContext(seed=0, device=torch.device("cpu"))
    for found in e.attack.reconstruct(seen, context):
        truth = captures[found.capture_id].truth
        order = match(truth.inputs, found.inputs)
        pairs = zip(truth.inputs, order, strict=True)
        assert min(ssim(image, found.inputs[i]) for image, i in pairs) > 0.9


def test_tied_channels_and_projections_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match=r"attack\.channels"):
        experiment("attack=gradinv", "preprocess.size=64", "attack.channels=tied")


def test_the_configuration_says_free_for_the_papers_attacks() -> None:
    for name in ("cpl", "dlg", "idlg"):
        assert config(f"attack={name}").attack.get("channels", "free") == "free"
