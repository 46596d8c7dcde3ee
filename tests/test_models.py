"""Networks: their published sizes, their seeds, and what is refused before any compute."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchvision.models import resnet18

from medpfl.errors import ConfigurationError, DataError
from medpfl.models import CPLCNN, DLGCNN, IDLGCNN, LeNet, ResNet18, last_linear
from medpfl.models.init import DefaultInit, UniformInit
from medpfl.models.windows import Window
from medpfl.types import DataSpec

CONF = Path(__file__).parents[1] / "conf"
SIGMOID_CNNS = {"cpl_cnn": CPLCNN, "dlg_cnn": DLGCNN, "idlg_cnn": IDLGCNN}
MODELS = [*SIGMOID_CNNS, "lenet", "resnet18"]


def spec_of(*shape: int, num_classes: int = 4) -> DataSpec:
    return DataSpec(shape=shape, num_classes=num_classes, mean=(0.0,) * 3, std=(1.0,) * 3)


SPEC = spec_of(3, 32, 32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def from_conf(name: str, *overrides: str):
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return instantiate(compose(f"model/{name}", overrides=list(overrides)).model)


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("factory", "features", "count"),
    [
        # 16 (3 * 4 + 1) + 5 * 16 (16 * 4 + 1), and so on, plus K (features + 1)
        (CPLCNN, 40_000, 208 + 5 * 1040 + 4 * 40_001),
        (DLGCNN, 768, 912 + 3 * 3612 + 4 * 769),
        (IDLGCNN, 768, 912 + 2 * 3612 + 4 * 769),
    ],
)
def test_published_sizes_at_32(factory, features, count):
    model = factory(init=UniformInit()).build(SPEC, seeded())
    weight, bias = last_linear(model)
    parameters = dict(model.named_parameters())
    assert parameters[weight].shape == (4, features)
    assert parameters[bias].shape == (4,)
    assert sum(p.numel() for p in model.parameters()) == count


def test_lenet_is_lenet5():
    model = LeNet(init=DefaultInit()).build(spec_of(1, 32, 32, num_classes=10), seeded())
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim > 1]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]


def test_sigmoid_cnn_computes_what_its_layers_say():
    model = IDLGCNN(init=UniformInit()).build(SPEC, seeded())
    x = torch.rand(2, 3, 32, 32, generator=seeded())
    p = {name: value.detach() for name, value in model.named_parameters()}
    hidden = x
    for layer, stride in zip((0, 2, 4), (2, 2, 1), strict=True):
        weight, bias = p[f"body.{layer}.weight"], p[f"body.{layer}.bias"]
        hidden = torch.sigmoid(nn.functional.conv2d(hidden, weight, bias, stride, padding=2))
    expected = hidden.reshape(2, -1) @ p["fc.weight"].T + p["fc.bias"]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 40, 33)])
def test_every_config_builds_and_gives_logits(name, shape):
    model = from_conf(name).build(spec_of(*shape), seeded()).eval()
    assert model(torch.rand(2, *shape, generator=seeded())).shape == (2, 4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", MODELS)
def test_every_config_works_under_vmap_of_grad(name):
    model = from_conf(name).build(SPEC, seeded()).eval()
    state = {n: t.detach() for n, t in model.state_dict().items()}

    def loss(x: Tensor) -> Tensor:
        return functional_call(model, state, (x[None],)).logsumexp(1).sum()

    x = torch.rand(2, 3, 32, 32, generator=seeded())
    alone = torch.stack([grad(loss)(row) for row in x])
    torch.testing.assert_close(vmap(grad(loss))(x), alone, rtol=1e-3, atol=1e-6)
    assert alone.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_init_is_a_choice_of_the_command_line(name):
    assert from_conf(name, "model/init=default").init == DefaultInit()
    chosen = from_conf(name, "model/init=uniform", "model.init.bound=0.25")
    assert chosen.init == UniformInit(bound=0.25)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_comes_from_its_generator_alone(name):
    factory = from_conf(name)
    before = torch.get_rng_state()
    first = factory.build(SPEC, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    stream = seeded(3)
    assert same(first, factory.build(SPEC, stream))
    assert not same(first, factory.build(SPEC, stream)), "a stream must move on"


@pytest.mark.parametrize("factory", SIGMOID_CNNS.values())
def test_uniform_weights_are_those_of_the_usual_script(factory):
    """``torch.manual_seed(50); net = Net(); net.apply(init)``, as the published notebooks do."""

    def script_init(module: nn.Module) -> None:
        if hasattr(module, "weight"):
            module.weight.data.uniform_(-0.5, 0.5)
        if hasattr(module, "bias"):
            module.bias.data.uniform_(-0.5, 0.5)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(50)
        expected = factory(init=UniformInit()).construct(SPEC).apply(script_init)
    assert same(factory(init=UniformInit()).build(SPEC, seeded(50)), expected)


def test_default_resnet_is_torchvisions_own():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        expected = resnet18(weights=None, num_classes=4)
    assert same(ResNet18(init=DefaultInit()).build(SPEC, seeded(7)), expected)


def test_uniform_law():
    model = CPLCNN(init=UniformInit(bound=0.5)).build(SPEC, seeded())
    values = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    n, variance = values.numel(), 1 / 12
    assert values.abs().max() <= 0.5
    assert abs(values.mean()) < 5 * (variance / n) ** 0.5
    # The variance of (U - 1/2)^2 is 1/80 - 1/144.
    assert abs(values.square().mean() - variance) < 5 * ((1 / 80 - 1 / 144) / n) ** 0.5


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_uniform_bound_is_checked(bound):
    with pytest.raises(ConfigurationError, match=r"model\.init\.bound"):
        UniformInit(bound=bound)


def test_window_arithmetic_agrees_with_torch():
    for kernel in (1, 2, 5):
        for stride in (1, 2, 3):
            for padding in range(kernel // 2 + 1):
                window = Window(kernel=kernel, stride=stride, padding=padding)
                layer = nn.Conv1d(1, 1, kernel, stride, padding)
                smallest = window.smallest_input(1)
                for side in range(smallest, 12):
                    assert window.output(side) == layer(torch.zeros(1, 1, side)).shape[-1]
                assert smallest == 1 or window.output(smallest - 1) < 1


def test_lenet_names_the_smallest_size_and_takes_it():
    factory = LeNet(init=DefaultInit())
    with pytest.raises(ConfigurationError, match=r"lenet .*40x15.* 16x16"):
        factory.build(spec_of(1, 40, 15), seeded())
    model = factory.build(spec_of(1, 16, 16), seeded())
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 4)


def test_volumes_are_refused():
    with pytest.raises(ConfigurationError, match="resnet18 takes pictures"):
        from_conf("resnet18").build(spec_of(1, 16, 16, 16), seeded())


def test_imagenet_head_has_1000_classes():
    factory = ResNet18(init=DefaultInit(), head="imagenet")
    assert factory.build(SPEC, seeded()).fc.out_features == 1000
    with pytest.raises(ConfigurationError, match=r"model\.head=dataset"):
        factory.build(spec_of(3, 32, 32, num_classes=1001), seeded())
    with pytest.raises(ConfigurationError, match=r"model\.head=own"):
        ResNet18(init=DefaultInit(), head="own")


def test_last_linear():
    assert last_linear(LeNet(init=DefaultInit()).build(SPEC, seeded())) == (
        "fc3.weight",
        "fc3.bias",
    )
    assert last_linear(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))) == (
        "1.weight",
        None,
    )
    assert last_linear(nn.Linear(2, 3)) == ("weight", "bias")
    with pytest.raises(ConfigurationError, match="no fully connected layer"):
        last_linear(nn.Conv2d(1, 1, 1))


# Weights from files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_weights_come_back_from_a_file(tmp_path, suffix):
    donor = DLGCNN(init=UniformInit()).build(SPEC, seeded(1))
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(donor.state_dict(), path)
    taker = DLGCNN(init=UniformInit(), weights=str(path)).build(SPEC, seeded(2))
    assert same(donor, taker)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = DLGCNN(init=UniformInit()).build(SPEC, seeded()).state_dict()
    state["extra"] = state.pop("body.0.bias")
    state["fc.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "w.pt")
    factory = DLGCNN(init=UniformInit(), weights=str(tmp_path / "w.pt"))
    with pytest.raises(ConfigurationError) as caught:
        factory.build(SPEC, seeded())
    message = str(caught.value)
    assert "missing: body.0.bias" in message
    assert "unexpected: extra" in message
    assert "of another shape: fc.bias (7,) for (4,)" in message


def test_long_lists_of_faults_are_cut(tmp_path):
    torch.save({}, tmp_path / "w.pt")
    factory = DLGCNN(init=UniformInit(), weights=str(tmp_path / "w.pt"))
    with pytest.raises(ConfigurationError, match=r"body\.2\.weight and 7 more"):
        factory.build(SPEC, seeded())


class Crafted:
    """Unpickled by plain pickle, this makes a file: the mark that code was run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain", [True, False])
def test_a_crafted_pickle_is_refused_and_never_run(tmp_path, plain):
    mark, path = tmp_path / "mark", tmp_path / "w.pth"
    if plain:
        path.write_bytes(pickle.dumps({"fc.weight": Crafted(mark)}, protocol=2))
    else:
        torch.save({"fc.weight": Crafted(mark)}, path)
    with pytest.raises(DataError, match=r"model\.weights=.*nothing in it was run"):
        DLGCNN(init=UniformInit(), weights=str(path)).build(SPEC, seeded())
    assert not mark.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 broken zip", b"\x80\x02.."])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not a readable file"):
        DLGCNN(init=UniformInit(), weights=str(tmp_path / name)).build(SPEC, seeded())


def test_files_of_another_kind_are_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "checkpoint.pt")
    for weights, error, words in [
        (tmp_path / "absent.pt", DataError, "no such file"),
        (tmp_path, ConfigurationError, r"\.safetensors"),
        ("imagenet", ConfigurationError, "resnet18 alone"),
        (tmp_path / "list.pt", ConfigurationError, "a list, not a state dict"),
        (tmp_path / "checkpoint.pt", ConfigurationError, r"epoch, state_dict"),
    ]:
        with pytest.raises(error, match=words):
            DLGCNN(init=UniformInit(), weights=str(weights)).build(SPEC, seeded())


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """Point torch.hub at an empty cache and cut the network off."""

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"


def test_imagenet_weights_come_from_the_hub_cache(hub_cache, caplog):
    donor = ResNet18(init=DefaultInit(), head="imagenet").build(SPEC, seeded(1))
    state = donor.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    torch.save({n: t for n, t in state.items() if n not in counters}, hub_cache)

    whole = ResNet18(init=DefaultInit(), head="imagenet", weights="imagenet")
    assert same(whole.build(SPEC, seeded(2)), donor)

    with caplog.at_level(logging.INFO):
        adapted = ResNet18(init=DefaultInit(), weights="imagenet").build(SPEC, seeded(2))
    assert "head of shape (1000, 512) is left out" in caplog.text
    fresh = ResNet18(init=DefaultInit()).build(SPEC, seeded(2))
    assert torch.equal(adapted.fc.weight, fresh.fc.weight)
    assert torch.equal(adapted.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)

    one_channel = ResNet18(init=DefaultInit(), weights="imagenet")
    with pytest.raises(ConfigurationError, match=r"conv1\.weight \(64, 3, 7, 7\)"):
        one_channel.build(spec_of(1, 32, 32), seeded())


def test_imagenet_weights_offline_say_what_to_do(hub_cache):
    with pytest.raises(DataError, match=r"offline.*model\.weights=PATH"):
        ResNet18(init=DefaultInit(), weights="imagenet").build(SPEC, seeded())


def test_a_head_of_the_same_classes_is_loaded(tmp_path):
    donor = ResNet18(init=DefaultInit()).build(SPEC, seeded(1))
    torch.save(donor.state_dict(), tmp_path / "w.pt")
    taker = ResNet18(init=DefaultInit(), weights=str(tmp_path / "w.pt"))
    assert same(taker.build(SPEC, seeded(2)), donor)
