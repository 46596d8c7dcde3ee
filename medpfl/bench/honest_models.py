"""Honest networks of many kinds, untrained, trained, fine-tuned, pruned and quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from medpfl.cli import conf_dir
from medpfl.models import CPLCNN, DLGCNN, IDLGCNN, LeNet, ResNet18, ResNet18Volume
from medpfl.models.init import DefaultInit, UniformInit
from medpfl.settings.build import instantiate
from medpfl.types import DataSpec

STATES = (
    *("untrained", "trained", "fine-tuned", "pruned 50 %", "pruned 90 %"),
    *("8-bit levels", "float16"),
)
Maker = Callable[[DataSpec, torch.Generator], nn.Module]


@dataclass(frozen=True)
class Images:
    """What networks are trained on.

    Args:
        inputs: `(N, C, *S)` in [0, 1].
        labels: `(N,)`.
        spec: shape and classes.
    """

    inputs: Tensor
    labels: Tensor
    spec: DataSpec

    def resized(self, size: int) -> Images:
        """Return the same images at another size."""
        dims = self.inputs.dim() - 2
        mode = "bilinear" if dims == 2 else "trilinear"
        inputs = functional.interpolate(self.inputs, size=(size,) * dims, mode=mode)
        shape = (self.spec.shape[0], *(size,) * dims)
        return Images(inputs, self.labels, replace(self.spec, shape=shape))

    def some(self, indices: Tensor) -> Images:
        """Return some of the images."""
        return Images(self.inputs[indices], self.labels[indices], self.spec)

    def normalised(self) -> Images:
        """Return the same images with mean 0 and standard deviation 1."""
        inputs = (self.inputs - self.inputs.mean()) / self.inputs.std()
        return Images(inputs, self.labels, self.spec)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained.

    Args:
        adam: Adam instead of SGD with momentum.
        lr: learning rate.
        decay: weight decay.
        steps: of 16 images.
        normalised: whether images are.
    """

    adam: bool = False
    lr: float = 0.05
    decay: float = 0.0
    steps: int = 100
    normalised: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One network under one training.

    Args:
        name: for tables.
        maker: makes it.
        training: how it is trained.
        size: of the images' sides.
        volumes: whether it takes volumes.
        seed: of its numbers and batches.
    """

    name: str
    maker: Maker
    training: Training
    size: int = 32
    volumes: bool = False
    seed: int = 0


def images_of(dataset: str, size: int, most: int = 256) -> Images:
    """Read images of an option of conf/dataset.

    Raises:
        MedpflError: there are none.
    """
    overrides = [f"dataset={dataset}", f"preprocess.size={size}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=overrides)
    source = instantiate(config.dataset)
    preprocess = instantiate(config.preprocess).over(getattr(source, "dimensions", 2))
    data = source.load(preprocess=preprocess, n_images=None, seed=0)
    train = data.train
    every = max(1, len(train) // most)
    kept = list(range(0, len(train), every))[:most]
    inputs = torch.stack([train.load(index) for index in kept])
    return Images(inputs, train.labels[kept], data.spec)


def kinds(seeds: int, *, large: bool) -> Iterator[Kind]:
    """Yield all networks, each with trainings of its own.

    Args:
        seeds: how often each small network is drawn anew.
        large: whether those of more than 20 million parameters are among them.
    """
    for seed in range(seeds):
        yield from _perceptrons(seed)
        yield from _papers(seed)
    yield from _torchvision(_SMALL, Training(adam=True, lr=1e-3, steps=30))
    yield from _torchvision(_SMALL[::2], Training(lr=0.05, steps=30, decay=1e-4), seed=1)
    yield from _residual()
    if large:
        yield from _torchvision(_LARGE, Training(adam=True, lr=1e-4, steps=4))
        yield Kind(
            name="r3d_18",
            maker=ResNet18Volume(init=DefaultInit()).build,
            training=Training(steps=4),
            size=16,
            volumes=True,
        )


def states(kind: Kind, images: Images) -> Iterator[tuple[str, nn.Module]]:
    """Yield one network in every state of `STATES`, one after the other: it is changed in between.

    Args:
        kind: the network.
        images: to train on.
    """
    own = images.resized(kind.size)
    own = own.normalised() if kind.training.normalised else own
    stream = torch.Generator().manual_seed(kind.seed)
    model = kind.maker(own.spec, stream)
    yield "untrained", model
    train(model, own, kind.training, stream)
    yield "trained", model
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = Images(own.inputs, own.labels.flip(0), own.spec)
    less = replace(kind.training, lr=kind.training.lr / 5, steps=1 + kind.training.steps // 3)
    train(model, other, less, stream)
    yield "fine-tuned", model
    changes: Mapping[str, Callable[[Tensor], Tensor]] = {
        "pruned 50 %": partial(_pruned, share=0.5),
        "pruned 90 %": partial(_pruned, share=0.9),
        "8-bit levels": _levels,
        "float16": lambda tensor: tensor.half().float(),
    }
    for state, change in changes.items():
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                weight = kept[name].dim() > 1
                tensor.copy_(change(kept[name]) if weight else kept[name])
        yield state, model


def train(model: nn.Module, images: Images, how: Training, stream: torch.Generator) -> None:
    """Train a network, in place."""
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=how.lr, weight_decay=how.decay)
        if how.adam
        else torch.optim.SGD(parameters, lr=how.lr, momentum=0.9, weight_decay=how.decay)
    )
    model.train()
    for _ in range(how.steps):
        batch = images.some(torch.randint(len(images.labels), (16,), generator=stream))
        outputs = model(batch.inputs)
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(outputs, batch.labels))
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
    model.eval()


def _pruned(tensor: Tensor, share: float) -> Tensor:
    """Return a tensor whose smallest entries are zero."""
    least = tensor.abs().flatten().kthvalue(max(1, round(share * tensor.numel()))).values
    return torch.where(tensor.abs() > least, tensor, torch.zeros_like(tensor))


def _levels(tensor: Tensor) -> Tensor:
    step = tensor.abs().max().clamp_min(1e-30) / 127
    return (tensor / step).round() * step


def _perceptrons(seed: int) -> Iterator[Kind]:
    trainings = (
        Training(lr=0.01, steps=300),
        Training(lr=0.1, steps=200, decay=1e-3),
        Training(adam=True, lr=1e-3, steps=300, normalised=True),
        Training(adam=True, lr=1e-2, steps=150),
        Training(adam=True, lr=1e-3, steps=300, decay=1e-2),
    )
    widths = (64, 256, 1000)
    for number, training in enumerate(trainings):
        width = widths[(number + seed) % 3]
        smooth = (number + seed) % 4 == 3
        yield Kind(
            name=f"perceptron {width}",
            maker=partial(_perceptron, width, nn.Sigmoid if smooth else nn.ReLU),
            training=training,
            size=(32, 16, 32, 28, 32)[number],
            seed=seed,
        )


def _perceptron(
    width: int, activation: type[nn.Module], spec: DataSpec, stream: torch.Generator
) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(torch.Size(spec.shape).numel(), width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, spec.num_classes),
    )
    DefaultInit().apply(model, stream)
    return model


def _papers(seed: int) -> Iterator[Kind]:
    init = UniformInit() if seed % 2 == 0 else DefaultInit()
    slow, fast = Training(lr=0.01, steps=60), Training(adam=True, lr=1e-3, steps=60)
    for number, factory in enumerate((CPLCNN, DLGCNN, IDLGCNN, LeNet)):
        yield Kind(
            name=factory.__name__,
            maker=factory(init=init).build,
            training=(slow, fast)[(seed + number) % 2],
            seed=seed,
        )
        if factory in (CPLCNN, LeNet):
            yield Kind(
                name=f"{factory.__name__}, volumes",
                maker=factory(init=init).build,
                training=replace((fast, slow)[(seed + number) % 2], steps=12),
                size=16,
                volumes=True,
                seed=seed,
            )


def _residual() -> Iterator[Kind]:
    for seed, (norm, training) in enumerate(
        (
            ("batch", Training(lr=0.05, steps=60)),
            ("group", Training(lr=0.02, steps=40)),
            ("batch", Training(adam=True, lr=1e-3, steps=40, decay=1e-3)),
        )
    ):
        factory = ResNet18(init=DefaultInit(), norm="group" if norm == "group" else "batch")
        yield Kind(
            name=f"ResNet18, {norm}", maker=factory.build, training=training, size=64, seed=seed
        )


_SMALL = (
    *("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"),
    *("efficientnet_b0", "densenet121", "squeezenet1_1", "regnet_y_400mf", "regnet_x_400mf"),
)
_LARGE = ("vgg11", "alexnet", "convnext_tiny", "swin_t", "vit_b_32", "resnet50")


_HEADS = {"vgg11": ("0", 512), "alexnet": ("1", 256)}


def _torchvision(names: tuple[str, ...], training: Training, seed: int = 0) -> Iterator[Kind]:
    for name in names:
        yield Kind(
            name=name, maker=partial(_of_torchvision, name), training=training, size=64, seed=seed
        )


def _of_torchvision(name: str, spec: DataSpec, stream: torch.Generator) -> nn.Module:
    """Return a network with torchvision's own initial numbers, or others of the same laws."""
    options = {"image_size": spec.shape[1]} if name.startswith("vit") else {}
    with torch.random.fork_rng():
        torch.set_rng_state(stream.get_state())
        model: nn.Module = models.get_model(
            name, weights=None, num_classes=spec.num_classes, **options
        )
    if name in _HEADS:  # most of their parameters are for features of 6 x 6 or 7 x 7
        place, features = _HEADS[name]
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        model.get_submodule("classifier").add_module(place, nn.Linear(4 * features, 4096))
    return model
