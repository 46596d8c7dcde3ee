"""Utility against hand-counted cases and scikit-learn on all images at once."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import CPU, FACTORIES, seeded, spec_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from medpfl.data import ImageSet, Phantom, Preprocess
from medpfl.errors import DataError
from medpfl.federated.evaluate import Utility, evaluate
from medpfl.types import DataSpec


class PixelsAreLogits(nn.Module):
    """Returns the pixels as logits, shifted by a parameter; refuses train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x.flatten(1)) + self.shift


@dataclass(frozen=True)
class Seen:
    """Images in memory."""

    logits: Tensor
    labels: Tensor
    on_error: str = "raise"

    def load(self, index: int) -> Tensor:
        return self.logits[index].reshape(1, 1, -1)


def measured(logits: Tensor, labels: Tensor, *, classes: int | None = None) -> Utility:
    model = PixelsAreLogits()
    spec = spec_of(1, 1, logits.shape[1], num_classes=classes or logits.shape[1])
    return evaluate(
        model, dict(model.named_parameters()), {}, Seen(logits, labels), spec=spec, device=CPU
    )


def test_a_case_counted_by_hand():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    utility = measured(logits, torch.tensor([0, 0, 0, 1]))
    assert utility.n == 4
    assert utility.accuracy == 0.5
    assert utility.balanced_accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert utility.auc == 0.0  # the one positive has the lowest score
    losses = [math.log1p(math.exp(-2))] * 2 + [math.log1p(math.e), math.log1p(math.exp(3))]
    assert utility.loss == pytest.approx(sum(losses) / 4, rel=1e-6)


@given(n=st.integers(8, 100), classes=st.integers(2, 5), seed=st.integers(0, 1000))
def test_batches_give_what_all_images_at_once_give(n, classes, seed):
    logits = 3 * torch.randn(n, classes, generator=seeded(seed))
    labels = torch.randint(classes, (n,), generator=seeded(seed + 1))
    labels[:classes] = torch.arange(classes)
    utility = measured(logits, labels)
    chosen = logits.argmax(1)
    probabilities = logits.double().softmax(1).numpy()
    score = probabilities[:, 1] if classes == 2 else probabilities
    assert utility.accuracy == pytest.approx(float((chosen == labels).double().mean()))
    assert utility.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, chosen))
    assert utility.auc == pytest.approx(roc_auc_score(labels, score, multi_class="ovr"))
    assert utility.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)


def test_a_class_that_does_not_occur_leaves_no_auc_and_no_warning():
    utility = measured(torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 0, 1]))
    assert math.isnan(utility.auc)
    assert utility.accuracy == utility.balanced_accuracy == 0.5
    one_class = measured(torch.eye(2)[[0, 1]], torch.tensor([0, 0]))
    assert math.isnan(one_class.auc)
    assert one_class.balanced_accuracy == 0.5


def test_a_broken_network_is_wrong_and_does_not_crash():
    logits = torch.eye(2)[[0, 1, 1]]
    logits[2] = math.nan
    utility = measured(logits, torch.tensor([0, 1, 1]))
    assert utility.accuracy == pytest.approx(2 / 3)
    assert utility.balanced_accuracy == pytest.approx(0.75)
    assert math.isnan(utility.auc)
    assert math.isnan(utility.loss)


@pytest.mark.parametrize("classes", [2, 3])
def test_of_more_outputs_the_first_decide(classes):
    logits = torch.randn(40, 10, generator=seeded())
    logits[:, classes:] += 50
    labels = torch.arange(40) % classes
    wide = measured(logits, labels, classes=classes)
    narrow = measured(logits[:, :classes], labels)
    assert wide.accuracy == narrow.accuracy
    assert wide.balanced_accuracy == narrow.balanced_accuracy
    assert wide.auc == pytest.approx(narrow.auc)
    assert wide.loss > narrow.loss + 40


def test_a_network_is_left_as_it_was_and_runs_in_eval_mode():
    spec = spec_of(3, 32, 32)
    model = FACTORIES["resnet18"].build(spec, seeded())
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    parameters = {n: p.detach() * 0.5 for n, p in model.named_parameters()}
    buffers = {
        n: b.clone() + (b + 1 if b.is_floating_point() else 0) for n, b in model.named_buffers()
    }
    before = {n: t.clone() for n, t in (*parameters.items(), *buffers.items())}
    own = {n: t.clone() for n, t in model.state_dict().items()}
    images = torch.rand(6, 3, 32, 32, generator=seeded())
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    held = ImageSet(ids=tuple("abcdef"), labels=labels, read=images.__getitem__)
    utility = evaluate(model, parameters, buffers, held, spec=spec, device=CPU)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(own[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(before[n], t) for n, t in (*parameters.items(), *buffers.items()))
    model.eval().load_state_dict({**parameters, **buffers})
    expected = functional.cross_entropy(model(images), labels)
    assert utility.loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_mode_is_given_back_where_an_image_cannot_be_read():
    model = PixelsAreLogits().train()
    with pytest.raises(DataError, match="broken"):
        evaluate(
            model,
            dict(model.named_parameters()),
            {},
            unreadable("raise"),
            spec=spec_of(1, 1, 2, num_classes=2),
            device=CPU,
        )
    assert all(module.training for module in model.modules())


def unreadable(on_error: str, *, readable: Callable[[int], bool] = lambda index: False) -> ImageSet:
    """Return four images of two classes, those of class 1 white; some cannot be read."""

    def read(index: int) -> Tensor:
        if not readable(index):
            raise DataError(f"{index} is broken")
        return torch.tensor([1.0 - index % 2, float(index % 2)]).reshape(1, 1, 2)

    return ImageSet(
        ids=tuple("abcd"), labels=torch.tensor([0, 1, 0, 1]), read=read, on_error=on_error
    )


def test_unreadable_images_are_left_out_where_that_is_asked_for():
    model, spec = PixelsAreLogits(), spec_of(1, 1, 2, num_classes=2)
    images = unreadable("skip", readable=lambda index: index != 1)
    utility = evaluate(model, dict(model.named_parameters()), {}, images, spec=spec, device=CPU)
    assert (utility.n, utility.accuracy, utility.auc) == (3, 1.0, 1.0)
    with pytest.raises(DataError, match="no image"):
        evaluate(model, {}, {}, unreadable("skip"), spec=spec, device=CPU)


def test_images_are_forgotten_once_measured():
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def read(index: int) -> Tensor:
        nonlocal most
        pixels = np.full((1, 1, 2), index % 2, dtype=np.float32)
        alive.append(weakref.ref(pixels))
        most = max(most, sum(ref() is not None for ref in alive))
        return torch.from_numpy(pixels)

    labels = torch.arange(200) % 2
    images = ImageSet(ids=tuple(map(str, range(200))), labels=labels, read=read)
    model = PixelsAreLogits()
    evaluate(
        model,
        dict(model.named_parameters()),
        {},
        images,
        spec=spec_of(1, 1, 2, num_classes=2),
        device=CPU,
    )
    assert most <= 65


def test_training_raises_the_utility_on_held_out_phantoms():
    data = Phantom(kinds=["head", "skin"], per_class=16).load(
        preprocess=Preprocess(size=16), n_images=None, seed=0
    )
    assert data.held_out is not None
    spec = DataSpec(shape=(3, 16, 16), num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = FACTORIES["lenet"].build(spec, seeded())
    x = spec.normalise(torch.stack([data.images.load(i) for i in range(64)]))

    def now() -> Utility:
        return evaluate(
            model, dict(model.named_parameters()), {}, data.held_out, spec=spec, device=CPU
        )

    before = now()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), data.images.labels).backward()
        optimizer.step()
    after = now()
    assert before.n == after.n == 16
    assert after.loss < before.loss
    assert after.accuracy >= 0.5
    assert after.auc > max(0.6, before.auc)
