"""Torchvision's classifiers as networks under attack, and ResNet-18 with group normalisation."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers import config, experiment, seeded, spec_of
from test_models import from_conf, same
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional
from torchvision import models as torchvision_models
from torchvision.ops import StochasticDepth

from medpfl import feasible, runner
from medpfl.compare.runs import read_run
from medpfl.errors import ConfigurationError
from medpfl.models import ResNet18, TorchvisionModel
from medpfl.models.init import DefaultInit
from medpfl.models.resnet import group_norm
from medpfl.trial import try_network

EVERY = torchvision_models.list_models(module=torchvision_models)
SPEC = spec_of(3, 64, 64)


def factory(name: str, **settings) -> TorchvisionModel:
    return TorchvisionModel(init=DefaultInit(), name=name, **settings)


def built(name: str, *shape: int, num_classes: int = 3, seed: int = 0) -> nn.Module:
    spec = spec_of(*(shape or SPEC.shape), num_classes=num_classes)
    return factory(name).build(spec, seeded(seed))


def on_meta(name: str, *shape: int, num_classes: int) -> nn.Module:
    """Construct a network without its numbers; regnets compute their widths with numbers."""
    spec = spec_of(*shape, num_classes=num_classes)
    if name.startswith("regnet"):
        return factory(name).construct(spec)
    with torch.device("meta"):
        return factory(name).construct(spec)


# The smallest of each family.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_y_400mf", "resnet34", "resnext50_32x4d", "shufflenet_v2_x0_5"),
    *("swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)


def test_every_classifier_is_known_by_its_name():
    assert len(EVERY) >= 80
    refused = [name for name in EVERY if name.startswith("squeezenet")]
    for name in set(EVERY) - set(refused):
        assert factory(name).label == name
    for name in refused:
        with pytest.raises(ConfigurationError, match="ends in a convolution"):
            factory(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_classifier_can_be_made_without_noise_for_any_classes_and_channels(name):
    side = 224
    three, one = (
        on_meta(name, 3, side, side, num_classes=5),
        on_meta(name, 1, side, side, num_classes=7),
    )
    for model in (three, one):
        assert not [m for m in model.modules() if isinstance(m, (nn.Dropout, StochasticDepth))]
        assert not [m for m in model.modules() if isinstance(m, nn.Hardsigmoid)]
    other = [
        (n, tuple(p.shape), tuple(q.shape))
        for (n, p), (m, q) in zip(three.named_parameters(), one.named_parameters(), strict=True)
        if n == m and p.shape != q.shape
    ]
    first, *heads = other
    assert first[1][1] == 3
    assert first[2] == (first[1][0], 1, *first[1][2:])
    assert [(before[0], after[0]) for _, before, after in heads] in ([(5, 7)], [(5, 7)] * 2)
    layers = [n for n, m in three.named_modules() if isinstance(m, nn.Linear)]
    assert {n.rpartition(".")[0] for n, _, _ in heads} == {layers[-1]}


TRIED = {
    "densenet121": (3, 32, 32),
    "regnet_x_400mf": (3, 32, 32),
    "shufflenet_v2_x0_5": (1, 40, 48),
    "googlenet": (3, 48, 32),
}


@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_finite_and_the_same_every_time(name, training):
    shape = TRIED[name]
    model = built(name, *shape).train(training)
    x = torch.rand(4, *shape, generator=seeded())
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def gradients() -> list[Tensor]:
        for n, b in model.named_buffers():
            b.copy_(buffers[n])
        loss = functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
        return list(torch.autograd.grad(loss, list(model.parameters())))

    first, second = gradients(), gradients()
    assert all(bool(g.isfinite().all()) for g in first)
    assert max(float(g.abs().max()) for g in first) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


THEIRS = {
    "mobilenet_v3_small": {},
    "vit_b_32": {"image_size": 64},
    "googlenet": {"aux_logits": False, "init_weights": False},
}


@pytest.mark.parametrize("name", THEIRS)
def test_outputs_are_torchvisions_own_in_eval_mode(name):
    model = randomised(built(name, num_classes=1000)).eval()
    theirs = torchvision_models.get_model_builder(name)(weights=None, **THEIRS[name])
    theirs.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=seeded())
    with torch.no_grad():
        given = model(x)
        torch.testing.assert_close(given, theirs.eval()(x), rtol=1e-4, atol=1e-5)
    assert float(given.std()) > 0


def randomised(model: nn.Module) -> nn.Module:
    """Draw the head anew: that of a ViT begins at zero."""
    head = list(model.parameters())[-2]
    with torch.no_grad():
        head.normal_(generator=seeded(1))
    return model


def test_a_network_comes_from_its_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (built("googlenet", seed=s) for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_32"])
def test_what_torch_differentiates_once_can_be_differentiated_twice(name):
    model = randomised(built(name, 3, 32, 32)).eval()
    state = {n: p.detach() for n, p in model.named_parameters()}
    buffers = {n: b.detach() for n, b in model.named_buffers()}

    def norm(x: Tensor) -> Tensor:
        def loss(state: dict[str, Tensor]) -> Tensor:
            logits = functional_call(model, (state, buffers), (x,))
            return functional.cross_entropy(logits, torch.tensor([0]))

        return sum((g.square().sum() for g in grad(loss)(state).values()), torch.zeros(()))

    slope = grad(norm)(torch.rand(1, 3, 32, 32, generator=seeded()))
    assert bool(slope.isfinite().all())
    assert float(slope.abs().max()) > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("densnet121", "did you mean densenet121?"),
        ("DenseNet121", "did you mean densenet121?"),
        ("fasterrcnn_resnet50_fpn", "no classifier"),
        ("r3d_18", "no classifier"),
        ("nonsense", "listed at https://"),
        ("", "model.name="),
    ],
)
def test_an_unknown_name_is_refused_with_a_near_one(name, words):
    with pytest.raises(ConfigurationError, match=r"^model\.name=") as refused:
        factory(name)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vit_b_16", (3, 30, 30), "vit_b_16 cannot be made for pictures of 30x30"),
        ("vit_b_16", (3, 32, 48), "vit_b_16 takes square pictures"),
        ("maxvit_t", (3, 32, 32), "maxvit_t cannot be made for pictures of 32x32"),
        ("densenet121", (1, 8, 8, 8), "densenet121 takes pictures"),
    ],
)
def test_pictures_that_a_network_is_not_made_for_are_refused(name, shape, words):
    with pytest.raises(ConfigurationError, match=words):
        built(name, *shape)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 32), ("densenet121", 8)])
def test_pictures_that_are_too_small_are_a_message(name, side):
    with pytest.raises(ConfigurationError, match=r"preprocess\.size"):
        experiment(
            "model=torchvision",
            f"model.name={name}",
            f"preprocess.size={side}",
            "attack=dlg",
            "n_images=1",
            "dataset.per_class=1",
        )


def test_a_network_too_large_for_the_machine_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(feasible, "machine_memory", lambda: 10**9)
    with pytest.raises(ConfigurationError, match="TorchvisionModel takes"):
        feasible.check_network(factory("vit_h_14"), (3, 28, 28), 1)
    feasible.check_network(factory("shufflenet_v2_x0_5"), (3, 32, 32), 1)
    feasible.check_network(factory("alexnet"), (3, 8, 8), 1)  # too small: the trial says so


def saved(model: nn.Module, path: Path) -> str:
    torch.save(model.state_dict(), path)
    return str(path)


def test_weights_are_loaded_and_a_head_of_other_classes_is_left_out(tmp_path, caplog):
    path = saved(built("shufflenet_v2_x0_5", seed=7), tmp_path / "w.pt")
    same_classes = factory("shufflenet_v2_x0_5", weights=path).build(SPEC, seeded(1))
    assert same(same_classes, built("shufflenet_v2_x0_5", seed=7))
    with caplog.at_level(logging.INFO):
        other = factory("shufflenet_v2_x0_5", weights=path).build(
            spec_of(3, 64, 64, num_classes=5), seeded(1)
        )
    assert "its head of shape (3, 1024) is left out" in caplog.text
    state, loaded = torch.load(path, weights_only=True), other.state_dict()
    heads = {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[n], t) for n, t in state.items() if n not in heads)
    assert loaded["fc.weight"].shape[0] == 5
    with pytest.raises(ConfigurationError, match="does not fit"):
        factory("shufflenet_v2_x1_0", weights=path).build(SPEC, seeded())


def test_googlenets_weights_may_have_its_extra_heads(tmp_path):
    theirs = torchvision_models.googlenet(weights=None, num_classes=3, init_weights=False)
    path = saved(theirs, tmp_path / "w.pt")
    own = factory("googlenet", weights=path).build(SPEC, seeded()).state_dict()
    assert all(torch.equal(own[n], t) for n, t in theirs.state_dict().items() if n in own)
    assert not [n for n in own if n.startswith("aux")]


def test_a_run_of_one_step(tmp_path):
    settings = (
        *("attack=dlg", "model=torchvision", "model.name=mobilenet_v3_small", "n_images=1"),
        *("preprocess.size=32", "dataset.per_class=1", "attack.optimizer.max_steps=1"),
        "attack.optimizer.max_iter=2",
    )
    runner.run(config(*settings, "attack.trace_points=2"), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 2


def test_plans_and_comparisons_call_networks_by_torchvisions_names(tmp_path):
    model = {"_target_": "medpfl.models.TorchvisionModel", "name": "densenet121"}
    names = {"attack": {"name": "dlg"}, "dataset": {"name": "covid"}}
    record = {"status": "complete", "config": {**names, "model": model}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "metrics.csv").write_text("image_id,ssim,success\na,0.5,False\n")
    assert read_run(tmp_path).network == "densenet121"
    assert factory("densenet121").label == "densenet121"
    assert ResNet18(init=DefaultInit()).label == "ResNet18"


def test_resnet_with_group_normalisation_has_no_statistics():
    model = from_conf("resnet18", "model.norm=group").build(SPEC, seeded())
    assert not list(model.buffers())
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert {n.num_groups for n in norms} == {32}
    batch = from_conf("resnet18").build(SPEC, seeded())
    assert [tuple(p.shape) for p in model.parameters()] == [
        tuple(p.shape) for p in batch.parameters()
    ]
    try_network(model, SPEC, batch_size=2, batch_norm="train_private", thoroughly=True)


def test_images_do_not_touch_each_other_under_group_normalisation():
    model = ResNet18(init=DefaultInit(), norm="group").build(SPEC, seeded()).train()
    x = torch.rand(3, 3, 64, 64, generator=seeded())
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (8, 8), (31, 31), (33, 11), (48, 24), (37, 1), (512, 32)]
)
def test_groups_divide_the_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_imagenets_weights_are_not_for_group_normalisation():
    with pytest.raises(ConfigurationError, match=r"model\.norm=group.*model\.norm=batch"):
        ResNet18(init=DefaultInit(), norm="group", weights="imagenet")
    with pytest.raises(ConfigurationError, match=r"model\.norm=layer: choose batch or group"):
        ResNet18(init=DefaultInit(), norm="layer")
    assert from_conf("resnet18_imagenet").norm == "batch"
