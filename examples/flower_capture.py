"""A Flower federation of two clients whose updates are captured at the server.

Needs the extra: pip install 'medpfl[flower]'. Writes a folder of captures:

    python examples/flower_capture.py captures
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from medpfl.captures import read_captures
from medpfl.data import Phantom, Preprocess
from medpfl.integrations.flower import capturing
from medpfl.models import DLGCNN
from medpfl.models.init import UniformInit
from medpfl.training import LocalTraining

# What a federation has anyway: images, a network, and a client that trains it. ------------------

DATA = Phantom(name="phantom", kinds=["head"], per_class=8).load(
    preprocess=Preprocess(size=32, resize="squash", channels=3), n_images=2, seed=0
)
client_app = ClientApp()


def network() -> nn.Module:
    """Return a new network, its weights drawn from a fixed seed."""
    return DLGCNN(init=UniformInit()).build(DATA.spec, torch.Generator().manual_seed(0))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Take one step on the image that this client has, and send the weights back."""
    mine = [DATA.selected[int(context.node_config["partition-id"])]]
    inputs = DATA.spec.normalise(torch.stack([DATA.images.load(i) for i in mine]))
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(inputs), DATA.images.labels[mine]).backward()
    optimizer.step()
    arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": len(mine)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


# What is added: the strategy is wrapped. --------------------------------------------------------


def strategy(folder: str) -> Any:
    """Return the federation's strategy, which captures the first round."""
    return capturing(
        FedAvg(fraction_evaluate=0.0),
        folder=folder,
        model={
            "_target_": "medpfl.models.DLGCNN",
            "init": {"_target_": "medpfl.models.init.UniformInit"},
        },
        spec=DATA.spec,
        rounds=[1],
        local_training=LocalTraining(algorithm="fedavg", epochs=1, lr=0.1),
    )


# In place of `flwr run`, so that this script needs no second process: one that calls the clients.


class OneProcess(Grid):
    """Hands messages to the client app, and its replies back."""

    run: Any = None

    def __init__(self, nodes: Iterable[int]) -> None:
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": number},
                state=RecordDict(),
                run_config={},
            )
            for number, node in enumerate(nodes)
        }

    def set_run(self, run: Any) -> None:
        """Not needed here."""

    def create_message(self, *_: Any, **__: Any) -> Any:
        """Not needed here."""
        raise NotImplementedError

    push_messages = pull_messages = create_message

    def get_node_ids(self) -> list[int]:
        """Return the clients."""
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Let every client answer."""
        return [client_app(m, self.contexts[m.metadata.dst_node_id]) for m in messages]


def main(folder: str) -> None:
    """Federate for two rounds, and list what was captured."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    first = ArrayRecord(network().state_dict())
    strategy(folder).start(grid=OneProcess([77, 99]), initial_arrays=first, num_rounds=2)
    for capture in read_captures(folder):
        print(f"{capture.capture_id}  N = {capture.manifest.num_examples}")


if __name__ == "__main__":
    main(*sys.argv[1:])
