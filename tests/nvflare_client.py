"""A client of an NVFlare federation, as its user writes it; NVFlare imports it by this name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from federated_images import trained
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor


class Trainer(Executor):
    """Trains on a site's images, and sends its weights or their difference.

    Args:
        images: a file with the images and labels of every site.
        kind: of the result.
    """

    def __init__(self, images: str, kind: str) -> None:
        super().__init__()
        self.images, self.kind = images, kind

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        torch.set_num_threads(1)
        before = {n: torch.as_tensor(v) for n, v in from_shareable(shareable).data.items()}
        site = fl_ctx.get_identity_name()
        with np.load(self.images) as arrays:
            inputs, labels = (torch.from_numpy(arrays[f"{site}-{n}"]) for n in ("inputs", "labels"))
        after = trained(before, inputs, labels)
        data = after
        if self.kind == DataKind.WEIGHT_DIFF:
            data = {name: tensor - before[name] for name, tensor in after.items()}
        result = DXO(
            self.kind,
            data={name: tensor.numpy() for name, tensor in data.items()},
            meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 4},
        )
        return result.to_shareable()
