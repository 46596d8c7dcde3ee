"""`malicious`: an imprint's share of images recovered, beside what is expected and breaching's."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from medpfl._atomic import make_private_folder, write_text
from medpfl.attacks import AttackContext
from medpfl.bench import breaching_imprint, breaching_side
from medpfl.bench.breaching_imprint import PlantedByBreaching
from medpfl.bench.machine import machine, show_note, show_table
from medpfl.bench.recovery_panels import Panel, recovery_panels
from medpfl.bench.updates import Clock, dataset_overrides
from medpfl.cli import conf_dir
from medpfl.errors import ConfigurationError
from medpfl.experiment import Experiment, build
from medpfl.federated.client import Client
from medpfl.image_score import ImageScore
from medpfl.metrics.readout import expected_share
from medpfl.metrics.recovery import ReadoutSummary, Recovered, readouts_of
from medpfl.report.console import make_console, paths
from medpfl.report.figures import GalleryItem, gallery
from medpfl.report.tables import (
    csv_table,
    format_interval,
    format_number,
    format_percent,
    format_seconds,
    markdown_table,
)
from medpfl.types import Capture, Reconstruction, Truth

OURS = "medpfl"

HEADER = (
    *("images an update", "attacker", "updates", "images", "expected", "PSNR > 40 dB", "95 %"),
    *("PSNR > 30 dB", "SSIM > 0.9", "black image > 30 dB", "median PSNR", "parameters added"),
    *("bytes each way", "CPU s / read-out"),
)

_NOTE = (
    "Expected: (1 - 1/K)^(B-1), of images that fall into K equally likely bins. Shares are of the "
    "true images, each matched with one read-out at most; 95 %: Wilson, of the share over 40 dB. "
    "Every attacker reads updates of the same images on the same network with its own rows ahead "
    "of it. CPU seconds: of the read-out alone."
)


@dataclass(frozen=True)
class Scene:
    """What all attackers share on updates of one size.

    Args:
        experiment: medpfl's, whose captures are read.
        mean_image: of the training split.
        bins: K.
    """

    experiment: Experiment
    mean_image: Tensor
    bins: int


@dataclass
class Tried:
    """What one attacker made of all updates of one size.

    Args:
        attacker: its name.
        batch: images an update.
        entries: parameters that its server adds.
        scores: a row of ``metrics.csv`` an image.
        items: of the first update, for the gallery.
        updates: how many.
        cpu_seconds: of all of them.
    """

    attacker: str
    batch: int
    entries: int = 0
    scores: list[ImageScore] = field(default_factory=list)
    items: list[GalleryItem] = field(default_factory=list)
    updates: int = 0
    cpu_seconds: float = 0.0

    @property
    def summary(self) -> ReadoutSummary:
        """What was recovered.

        Raises:
            ValueError: there are no images.
        """
        found = readouts_of(self.scores)
        if found is None:
            raise ValueError("there are no images to sum up")
        return found

    def add(self, scene: Scene, capture: Capture, found: Reconstruction, clock: Clock) -> None:
        """Score what was read out of one update."""
        self.cpu_seconds += clock.read()[1]
        judged = scene.experiment.scorer.judge(capture, found, scene.mean_image)
        if not self.updates and capture.truth is not None:
            self.items += _items(capture.truth, found, judged.order.tolist(), judged.scores)
        self.updates += 1
        self.scores += judged.scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the measurement can be told."""
    parser.add_argument(
        "--dataset",
        default="brain_mri",
        metavar="NAME[@FOLDER]",
        help="an option of conf/dataset; phantom needs no download; %(default)s",
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[8, 32, 64], help="images an update; 8 32 64"
    )
    parser.add_argument(
        "--images", type=int, default=128, help="images of each size of update; %(default)s"
    )
    parser.add_argument("--bins", type=int, default=1000, help="K; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="which images, and queries")
    parser.add_argument(
        "--out", type=Path, help="a new folder; outputs/malicious/ with date and time by default"
    )
    parser.add_argument(
        "--override",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of medpfl, such as preprocess=squash32 or server.auxiliary=normal",
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print the table, and leave it with its pictures in a private folder.

    Raises:
        MedpflError: a mistake in the settings.
    """
    if min(arguments.batches) < 1 or arguments.images < max(arguments.batches):
        raise ConfigurationError(
            f"--images {arguments.images}: at least one update of each of --batches "
            f"{' '.join(map(str, arguments.batches))} is needed, each of at least one image"
        )
    stamp = time.strftime("%Y-%m-%d/%H-%M-%S")
    folder = arguments.out or Path("outputs") / "malicious" / stamp
    installed = breaching_side.is_installed()
    tried = [one for b in arguments.batches for one in _tried(arguments, b, installed)]
    make_private_folder(folder)
    beside = f" beside breaching {version('breaching')}'s" if installed else ""
    name = arguments.dataset.partition("@")[0]  # not where it lies
    title = f"medpfl's imprint{beside}: {name}, {arguments.bins} bins"
    rows = [_row(one, arguments.bins) for one in tried]
    show_table(title, HEADER, rows, command=command)
    notes = [_NOTE] if installed else [_NOTE, breaching_side.HOW_TO_GET]
    for note in notes:
        show_note(note)
    text = "\n\n".join([f"# {title}", machine(), markdown_table(HEADER, rows), *notes])
    write_text(folder / "malicious.md", f"{text}\n")
    write_text(folder / "malicious.csv", csv_table(HEADER, rows))
    paths({"table": folder / "malicious.md", **_draw(tried, arguments, folder, title)})


def _tried(arguments: argparse.Namespace, batch: int, installed: bool) -> list[Tried]:
    """Attack as many updates as hold the images, one after another: each may be large."""
    e = _experiment(arguments, batch)
    scene = Scene(e, e.data.mean_image(), arguments.bins)
    own = Tried(OURS, batch)
    others = {name: Tried(name, batch) for name in breaching_imprint.VARIANTS if installed}
    sent: dict[str, PlantedByBreaching] = {}
    for capture in e.source.captures():
        _read(scene, capture, own)
        for name, one in others.items():
            sent[name] = sent.get(name) or _let_breaching_plant(scene, capture, name)
            _let_breaching_read(scene, capture, one, sent[name])
    return [own, *others.values()]


def _experiment(arguments: argparse.Namespace, batch: int) -> Experiment:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose(
            "config",
            overrides=[
                "attack=imprint",
                "preprocess=imagenet224",
                "device=cpu",
                *dataset_overrides(arguments.dataset),
                f"server.bins={arguments.bins}",
                f"seed={arguments.seed}",
                "dataset.select=random",
                f"federation.batch_size={batch}",
                f"n_images={arguments.images // batch * batch}",
                *arguments.override,
            ],
        )
    return build(config)


def _read(scene: Scene, capture: Capture, own: Tried) -> None:
    e, clock = scene.experiment, Clock()
    context = AttackContext(seed=e.seed, device=e.device)
    (found,) = e.attack.reconstruct([capture.observation], context)
    own.entries = _rows_of(capture)
    own.add(scene, capture, found, clock)
    _say(own)


def _let_breaching_plant(scene: Scene, capture: Capture, variant: str) -> PlantedByBreaching:
    """Let breaching's server plant its rows ahead of the network that ours are ahead of."""
    seen = capture.observation
    return breaching_imprint.plant(
        _honest(seen.payload.model),
        seen.payload,
        seen.spec,
        breaching_imprint.VARIANTS[variant],
        bins=scene.bins,
        seed=scene.experiment.seed,
    )


def _let_breaching_read(
    scene: Scene, capture: Capture, one: Tried, planted: PlantedByBreaching
) -> None:
    """Let a client compute on what breaching's server sent, and breaching read."""
    e, seen, truth = scene.experiment, capture.observation, _known(capture)
    one.entries = planted.entries
    update, _ = Client(spec=e.data.spec, device=e.device).update(truth, planted.payload)
    theirs = e.threat.observe(
        capture_id=seen.capture_id, payload=planted.payload, update=update, spec=seen.spec
    )
    clock = Clock()
    found = breaching_imprint.read(theirs, truth.labels, planted, seed=e.seed)
    one.add(scene, capture, found, clock)
    _say(one)


def _honest(model: nn.Module) -> nn.Module:
    """Return the network behind the rows, with the numbers that every client is sent."""
    return model.get_submodule("network")


def _rows_of(capture: Capture) -> int:
    seen = capture.observation
    if seen.planted is None:
        raise ValueError(f"{seen.capture_id}: nothing was planted")
    names = (*seen.planted.weights, *seen.planted.biases)
    return sum(seen.payload.parameters[name].numel() for name in names)


def _known(capture: Capture) -> Truth:
    if capture.truth is None:
        raise ValueError(f"{capture.capture_id}: nobody knows its images")
    return capture.truth


def _items(
    truth: Truth, found: Reconstruction, order: Sequence[int], scores: Sequence[ImageScore]
) -> Iterator[GalleryItem]:
    for n, score in enumerate(scores):
        image = found.inputs[order[n]] if score.matched else None
        yield GalleryItem(score.image_id, truth.inputs[n], image, score.ssim, score.status)


def _row(one: Tried, bins: int) -> tuple[str, ...]:
    s = one.summary
    best, good, alike = (s.recovered[name] for name in ("psnr_40", "psnr_30", "ssim_90"))
    return (
        str(one.batch),
        one.attacker,
        str(one.updates),
        str(s.n),
        format_percent(expected_share(bins, one.batch)),
        _counted(best, s.n),
        format_interval(best.low, best.high),
        _counted(good, s.n),
        _counted(alike, s.n),
        format_percent(good.zeros),
        format_number(median(score.psnr_db for score in one.scores), 1),
        f"{one.entries:,}",
        f"{4 * one.entries:,}",
        format_seconds(one.cpu_seconds / one.updates),
    )


def _counted(recovered: Recovered, n: int) -> str:
    return f"{format_percent(recovered.share)}, {round(recovered.share * n)} of {n}"


def _say(one: Tried) -> None:
    best = one.summary.recovered["psnr_40"]
    told = f"B = {one.batch}, {one.attacker}: over 40 dB {_counted(best, one.summary.n)}"
    make_console(stderr=True).print(told, soft_wrap=True)


def _draw(
    tried: Sequence[Tried], arguments: argparse.Namespace, folder: Path, title: str
) -> dict[str, Path]:
    synthetic = arguments.dataset.startswith("phantom")
    panels = [
        Panel(
            f"{b} images an update",
            expected_share(arguments.bins, b),
            {one.attacker: one.scores for one in tried if one.batch == b},
        )
        for b in arguments.batches
    ]
    files = {"recovery": folder / "recovery.png"}
    recovery_panels(files["recovery"], panels, title=title, synthetic=synthetic)
    largest = max(arguments.batches)
    for number, one in enumerate(one for one in tried if one.batch == largest):
        name = f"gallery_{number}" if number else "gallery"
        files[name] = folder / f"{name}.png"
        own = f"{one.attacker}: {largest} images an update, {arguments.bins} bins"
        gallery(files[name], one.items, title=own, synthetic=synthetic, threshold=0.9)
    return files
