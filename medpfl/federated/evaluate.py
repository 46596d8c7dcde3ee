"""How well a network does what it is trained for: the utility that a defense costs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medpfl.errors import DataError
from medpfl.types import DataSpec

_BATCH = 32  # fixed: the last bits of a result depend on it


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What a network achieves on images that it was not trained on.

    Args:
        accuracy: share of the images whose class is predicted, in [0, 1].
        balanced_accuracy: mean over the classes that occur of the share of each, in [0, 1].
        auc: area under the ROC curve, one class against the rest, mean over the classes; NaN where
            a class does not occur or a logit is not finite.
        loss: mean cross-entropy in nats, over all outputs of the network.
        n: how many images it was measured on.
    """

    accuracy: float
    balanced_accuracy: float
    auc: float
    loss: float
    n: int


class Images(Protocol):
    """Labelled images that are read when they are asked for; an `ImageSet` is one."""

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64."""
        ...

    @property
    def on_error(self) -> str:
        """``skip`` where images that cannot be read are left out."""
        ...

    def load(self, index: int) -> Tensor:
        """Return image `(C, *S)` in [0, 1]."""
        ...


def evaluate(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Images,
    *,
    spec: DataSpec,
    device: torch.device,
) -> Utility:
    """Measure a network on images, in eval mode.

    Images are read batch by batch and forgotten; of each only K probabilities are kept. The module
    is left as it was: its own parameters, its buffers and the mode of each of its layers.

    Args:
        model: the architecture, called statelessly.
        parameters: `{name: P_i}`, on any device.
        buffers: `{name: shape}`, on any device.
        images: what to measure on.
        spec: the data; of a network with more outputs than the data have classes, such as one with
            ImageNet's head, the first K outputs decide what is predicted.
        device: where to compute.

    Raises:
        DataError: there is no image, or one cannot be read and is not to be left out.
    """
    state = {name: tensor.to(device) for name, tensor in (*parameters.items(), *buffers.items())}
    probabilities, labels, loss = [], [], 0.0
    with _eval_mode(model), torch.no_grad():
        for batch, batch_labels in _batches(images):
            logits = functional_call(model, state, (spec.normalise(batch.to(device)),)).double()
            true = batch_labels.to(device)
            loss += float(functional.cross_entropy(logits, true, reduction="sum"))
            probabilities.append(logits[:, : spec.num_classes].softmax(1).cpu())
            labels.append(batch_labels)
    if not labels:
        raise DataError("utility: there is no image to measure the network on that can be read")
    truth = torch.cat(labels)
    accuracy, balanced_accuracy, auc = _scores(truth, torch.cat(probabilities))
    return Utility(
        accuracy=accuracy,
        balanced_accuracy=balanced_accuracy,
        auc=auc,
        loss=loss / len(truth),
        n=len(truth),
    )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the module in eval mode, then give each layer back the mode it had."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _batches(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `(B, C, *S)` and `(B,)`, all but the last of one size."""
    batch, indices = [], []
    for index in range(len(images.labels)):
        try:
            batch.append(images.load(index))
        except DataError:
            if images.on_error != "skip":
                raise
            continue
        indices.append(index)
        if len(batch) == _BATCH:
            yield torch.stack(batch), images.labels[indices]
            batch, indices = [], []
    if batch:
        yield torch.stack(batch), images.labels[indices]


def _scores(labels: Tensor, probabilities: Tensor) -> tuple[float, float, float]:
    """Return accuracy, balanced accuracy and AUC of `(n,)` labels and `(n, K)` probabilities."""
    # A third of a second to import, which runs without utility need not wait for.
    from sklearn.metrics import balanced_accuracy_score

    finite = probabilities.isfinite().all(1)
    # a row of NaN predicts nothing: a class that no image has
    predicted = torch.where(finite, probabilities.argmax(1), -1)
    accuracy = float((predicted == labels).double().mean())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", "A single label was found")
        balanced = float(balanced_accuracy_score(labels.numpy(), predicted.numpy()))
    if not bool(finite.all()) or len(set(labels.tolist())) < max(2, probabilities.shape[1]):
        return accuracy, balanced, math.nan
    return accuracy, balanced, _auc(labels.numpy(), probabilities.numpy())


def _auc(labels: Any, probabilities: Any) -> float:
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))
