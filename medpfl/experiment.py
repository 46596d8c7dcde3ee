"""From a configuration to the parts of one experiment, every one checked before any compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from medpfl import feasible
from medpfl._near import did_you_mean
from medpfl.attacks import Attack
from medpfl.attacks.base import Joining, Particular, Selective
from medpfl.batch_norm import BatchNormPolicy, runs_in_train_mode
from medpfl.bounds.updates import Bounding, BoundUpdates, PublicImages
from medpfl.captures.source import FileCaptures, FileSource
from medpfl.data import LoadedData
from medpfl.data.dataset import DatasetSource, evenly_spaced
from medpfl.data.preprocess import Preprocess
from medpfl.defenses.configured import defenses_at
from medpfl.device import pick_device
from medpfl.errors import FAULTS, ConfigurationError, DataError, MedpflError
from medpfl.federated import Capturing, Federation, Simulated, Simulation
from medpfl.federated.malicious import HonestServer, Server
from medpfl.federated.malicious.agreement import check_captured, check_server
from medpfl.federated.repeated import check_repeated
from medpfl.federated.secure import settled
from medpfl.metrics import Scorer
from medpfl.metrics.image_quality import check_window
from medpfl.models import ModelFactory
from medpfl.models.own import factory_of
from medpfl.profiling import UNPROFILED, Profiler, RunProfiler
from medpfl.settings.build import group_at, instantiate, require_kind
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Seed
from medpfl.source import CaptureSource
from medpfl.threat import CAPABILITIES, ThreatModel
from medpfl.trial import try_network
from medpfl.types import DataSpec

# What stands in each group, and what it must offer. Of `defense` and its `noise` there may be many.
_SLOTS: Mapping[str, Any] = {
    "dataset": DatasetSource,
    "preprocess": Preprocess,
    "model": ModelFactory,
    "federation": Federation,
    "capture": Capturing,
    "threat": ThreatModel,
    "metrics": Scorer,
    "attack": Attack,
    "bounds": Bounding,
    "server": Server,
}
_PLAIN: Mapping[str, Any] = {"n_images": int | None, "seed": Seed, "profile": bool}
_KEYS = (*_SLOTS, "source", "defense", "noise", *_PLAIN, "device")
# What conf/paper adds: rows of tables, read from the record, and how many images they take.
_PAPER_KEYS = {"paper", "budget"}
_REFERENCE = re.compile(r"\$\{(\w+)")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of one run, before anything heavy has happened."""

    data: LoadedData
    source: CaptureSource
    threat: ThreatModel
    attack: Attack
    scorer: Scorer
    seed: int
    device: torch.device
    profiler: Profiler = UNPROFILED
    bounds: BoundUpdates | None = None


def check_keys(config: DictConfig) -> None:
    """Refuse top-level keys that nothing reads, such as a group's name mistyped behind a plus.

    A key that another setting refers to by ``${...}`` is read, whatever its name.

    Raises:
        ConfigurationError: names the key, and the known one that looks like it.
    """
    known = {*_KEYS, *_PAPER_KEYS, *_REFERENCE.findall(str(OmegaConf.to_container(config)))}
    for key in map(str, config):
        if key not in known:
            raise ConfigurationError(unread(key))


def unread(key: str) -> str:
    """Say that nothing reads a top-level key, and which one may have been meant."""
    meant = did_you_mean(key, _KEYS)
    return f"{key}: nothing reads a setting of this name{meant} Choose from {', '.join(_KEYS)}"


def build(config: DictConfig) -> Experiment:
    """Instantiate and check everything that a configuration names.

    Raises:
        MedpflError: anything that would make the run fail later.
    """
    for key, hint in _PLAIN.items():
        check_value(key, config[key] if key != "profile" else config.get(key, False), hint)
    device = pick_device(config.device)
    threat, attack = _part(config, "threat"), _part(config, "attack")
    threat.require(attack.requires, who=f"attack={attack.name}")
    scorer, origin = _part(config, "metrics"), _origin(config)
    if isinstance(origin, FileSource):
        check_captured(attack)
    data, source = (
        _from_files(origin.open(threat, device), attack)
        if isinstance(origin, FileSource)
        else _simulated(config, threat, attack, device)
    )
    scorer.check(data.spec)
    return Experiment(
        data=data,
        source=source,
        threat=threat,
        attack=attack,
        scorer=scorer,
        seed=config.seed,
        device=device,
        profiler=_profiler(config, device),
        bounds=_bounds(config, data),
    )


def _origin(config: DictConfig) -> Simulated | FileSource:
    if "source" not in config:
        return Simulated()
    origin = instantiate(group_at(config, "source"))
    if not isinstance(origin, Simulated | FileSource):
        raise ConfigurationError("source: choose source=simulation or source=file")
    return origin


def _simulated(
    config: DictConfig, threat: ThreatModel, attack: Attack, device: torch.device
) -> tuple[LoadedData, CaptureSource]:
    """Build the federation that a configuration describes, and try the attack on it."""
    defense = settled(threat, defenses_at(config))
    federation, factory = _part(config, "federation"), _part(config, "model")
    # Records of runs from before there were rounds have no such group.
    capturing = _part(config, "capture") if "capture" in config else Capturing()
    server = _part(config, "server") if "server" in config else HonestServer()
    check_server(server, threat, attack, capturing)
    data = _load(config, factory, federation)
    source = Simulation(
        data=data,
        factory=factory,
        federation=federation,
        threat=threat,
        defense=defense,
        capturing=capturing,
        n_images=config.n_images,
        seed=config.seed,
        device=device,
        server=server,
    )
    _check_updates(source, attack)
    return data, source


def _from_files(source: FileCaptures, attack: Attack) -> tuple[LoadedData, CaptureSource]:
    """Try the attack on captured updates, without making a reconstruction."""
    data = source.data()
    check_window(torch.zeros(data.spec.shape))
    for capture in source.captures():
        observation = capture.observation
        model, training = observation.payload.model, observation.local_training
        images = observation.num_examples or 1
        attack.check(model, images)
        _check_statistics(attack, observation.payload.batch_norm)
        if isinstance(attack, Particular):
            attack.check_data(data.spec, images, source.device)
        if isinstance(attack, Selective):
            summed = observation.aggregate is not None
            attack.check_update(
                model, training, observation.kind, observation.tensors, summed=summed
            )
    return data, source


def _check_updates(source: Simulation, attack: Attack) -> None:
    """Try the attack and the network on updates as they are going to be captured."""
    federation, spec, factory = source.federation, source.data.spec, source.factory
    _check_statistics(attack, federation.batch_norm)
    trial = _trial_network(factory, spec)
    source.defense.check(trial.train(runs_in_train_mode(federation.batch_norm)), spec)
    if federation.batch_size is not None:
        attack.check(trial, federation.batch_size)
    if isinstance(attack, Selective):
        names = [name for name, _ in trial.named_parameters()]
        captured = source.capturing.names_of(names)
        known, summed = source.threat.known_training(federation.local), source.sees_sums
        attack.check_update(trial, known, federation.local.kind, captured, summed=summed)
    if not source.plan:
        raise ConfigurationError(
            f"federation.batch_size={federation.batch_size}, but only {len(source.data.selected)} "
            "images are attacked: raise n_images or lower the batch size"
        )
    largest = max(planned.images for planned in source.plan)
    if "same_images" in source.threat.granted:
        _check_repeated(source, attack, largest)
    _ = source.auxiliary  # read now: a dataset without public images is refused at once
    if largest != federation.batch_size:
        feasible.check_network(factory, spec.shape, largest)
        attack.check(trial, largest)
    if not source.server.is_honest:
        delta = federation.local.kind == "delta"
        summed = source.defense.aggregation is not None
        feasible.check_planted(source.rows_planted, source.server.size, delta=delta, summed=summed)
    if isinstance(attack, Particular):
        attack.check_data(spec, largest, source.device)
    try_network(
        trial,
        spec,
        batch_size=largest,
        batch_norm=federation.batch_norm,
        thoroughly=not _is_ours(factory),
    )


def _check_repeated(source: Simulation, attack: Attack, batch_size: int) -> None:
    """Refuse what no attacker can match over rounds."""
    federation = source.federation
    check_repeated(source.plan, shared=federation.is_shared, summed=source.sees_sums)
    if isinstance(attack, Joining):
        attack.check_rounds(source.threat.known_training(federation.local), batch_size)


def _check_statistics(attack: Attack, batch_norm: BatchNormPolicy) -> None:
    """Refuse an attack on statistics that never leave the client, whatever the attacker may see."""
    if "buffers" in attack.requires and batch_norm != "train_shared":
        raise ConfigurationError(
            f"attack={attack.name} needs 'buffers' ({CAPABILITIES['buffers']}), and under "
            f"batch_norm={batch_norm} none do. Attack clients with federation.batch_norm="
            "train_shared, or choose an attack that does without"
        )


def _part(config: DictConfig, slot: str) -> Any:
    """Build what stands in a slot, and make sure that it is what is needed there."""
    group = group_at(config, slot)
    part = factory_of(group) if slot == "model" else instantiate(group)
    require_kind(slot, part, _SLOTS[slot])
    return part


def _load(config: DictConfig, factory: ModelFactory, federation: Federation) -> LoadedData:
    dataset = _part(config, "dataset")
    # One's own dataset need not say: then it has pictures.
    preprocess = _part(config, "preprocess").over(getattr(dataset, "dimensions", 2))
    feasible.check_image(preprocess.shape)
    if federation.batch_size is not None:
        feasible.check_network(factory, preprocess.shape, federation.batch_size)
    # Of a shared split, every client's images are attacked, as far as they are wanted.
    n_images = None if federation.is_shared else config.n_images
    data: LoadedData = dataset.load(preprocess=preprocess, n_images=n_images, seed=config.seed)
    require_kind("dataset.load()", data, LoadedData)
    check_window(torch.zeros(data.spec.shape))
    return data


def _bounds(config: DictConfig, data: LoadedData) -> BoundUpdates | None:
    # Records of runs from before there were bounds have no such group.
    if "bounds" not in config:
        return None
    bounding: Bounding = _part(config, "bounds")
    public = partial(_public_images, data)
    return bounding.over(spec=data.spec, public=public, seed=config.seed)


def _public_images(data: LoadedData, most: int) -> PublicImages | None:
    """Read held-out images, evenly spaced; those that cannot be read are left out."""
    if data.held_out is None or not len(data.held_out):
        return None
    held, kept, images = data.held_out, [], []
    for index in evenly_spaced(len(held), most):
        with suppress(DataError):
            images.append(held.load(index))
            kept.append(index)
    return PublicImages(inputs=torch.stack(images), labels=held.labels[kept]) if images else None


def _trial_network(factory: ModelFactory, spec: DataSpec) -> nn.Module:
    stream = torch.Generator().manual_seed(0)
    if _is_ours(factory):
        return factory.build(spec, stream)
    try:
        network = factory.build(spec, stream)
    except MedpflError:
        raise
    except FAULTS as fault:
        raise ConfigurationError(
            f"model: {type(factory).__name__} cannot be made for data of shape {spec.shape} "
            f"and {spec.num_classes} classes: {type(fault).__name__}: {fault}"
        ) from fault
    require_kind("model.build()", network, nn.Module)
    return network


def _is_ours(part: object) -> bool:
    return type(part).__module__.partition(".")[0] == __name__.partition(".")[0]


def _profiler(config: DictConfig, device: torch.device) -> Profiler:
    # Compiled code hides its operations from whoever counts them.
    counts_work = not group_at(config, "attack").get("compile", False)
    wanted = config.get("profile", False)
    return RunProfiler(device=device, counts_work=counts_work) if wanted else UNPROFILED
