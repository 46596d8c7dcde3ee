"""Real images of two clients, and the plain training of a user's own federation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from capture_files import DLG
from helpers import experiment, sample_images
from torch import Tensor, nn

from medpfl.captures import CapturedUpdate
from medpfl.models.sigmoid_cnn import SigmoidCNN
from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import DataSpec

MODEL = DLG
IMAGES = 4
LOCAL = LocalTraining(algorithm="fedavg", epochs=2, batch_size=3, lr=0.05, momentum=0.5)
SPEC = DataSpec(shape=(3, 32, 32), num_classes=4, mean=(0.4,) * 3, std=(0.3,) * 3, greyscale=True)

Clients = Sequence[tuple[Tensor, Tensor]]


def brain_images() -> Clients:
    """Return images `(4, 3, 32, 32)` in [0, 1] and labels `(4,)` of two clients."""
    sample_images("brain_mri")
    data = experiment("dataset=brain_mri", "preprocess=squash32", f"n_images={2 * IMAGES}").data
    groups = data.selected[:IMAGES], data.selected[IMAGES : 2 * IMAGES]
    return [
        (torch.stack([data.images.load(i) for i in group]), data.images.labels[list(group)])
        for group in groups
    ]


class Net(SigmoidCNN):
    """The network that `MODEL` names, as a user's own code has it."""

    def __init__(self) -> None:
        from medpfl.models import DLGCNN

        super().__init__(
            convolutions=DLGCNN.convolutions, in_channels=3, size=(8, 8), num_classes=4
        )


def trained(state: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Train as `LOCAL` says, on one thread, and return the state dict."""
    model = Net()
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=LOCAL.lr, momentum=LOCAL.momentum)
    loss = nn.CrossEntropyLoss()
    for _ in range(LOCAL.epochs):
        for first in range(0, len(labels), 3):
            batch = slice(first, first + 3)
            optimizer.zero_grad()
            loss(model((inputs[batch] - 0.4) / 0.3), labels[batch]).backward()
            optimizer.step()
    return model.state_dict()


def mapped(capture: CapturedUpdate, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the delta of the project's own client, given what the captured one was sent."""
    before = capture.payload.parameters
    after = UpdateMap.of(LOCAL.in_turn(len(labels))).train(
        capture.payload.forward(),
        before,
        capture.spec.normalise(inputs),
        nn.functional.one_hot(labels, SPEC.num_classes).float(),
    )
    return {name: tensor - before[name] for name, tensor in after.parameters.items()}
