"""``python -m medpfl.paper.unrelated_pairs``: each protocol on guesses that know nothing.

A protocol that scores two unrelated images at 0.8 cannot tell an attack that works from one that
does not. Here every protocol scores pairs of different images of one dataset, and trivial guesses.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from medpfl._atomic import make_private_folder, write_text
from medpfl.data import KaggleDataset, LoadedData, Preprocess
from medpfl.data.pairs import unrelated_pairs
from medpfl.errors import MedpflError
from medpfl.metrics import ALL_PROTOCOLS, ssim
from medpfl.paper.reported import DATASETS
from medpfl.report.console import error as print_error
from medpfl.report.console import make_console, paths
from medpfl.report.figures import new_figure, save_both, write_head
from medpfl.report.palette import GRID, INK, MUTED, SERIES
from medpfl.report.tables import csv_table, format_number, markdown_table
from medpfl.seeding import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADER = ("guess", "protocol", "mean", "5 %", "95 %", "reach 0.9 %", "n")
_MISTAKE = 2
_THRESHOLD = 0.9
_COLOURS = {"rigorous": SERIES[0], "paper_cpl": SERIES[2], "paper_gradinv": SERIES[1]}


@dataclass(frozen=True)
class Scored:
    """All scores of one kind of guess under one protocol; undefined ones are left out."""

    guess: str
    protocol: str
    values: tuple[float, ...]

    def line(self) -> list[str]:
        """Return the line of the table."""
        if not self.values:
            return [self.guess, self.protocol, *[format_number(None)] * 4, "0"]
        low, high = np.quantile(self.values, (0.05, 0.95))
        numbers = (float(np.mean(self.values)), float(low), float(high))
        cells = (format_number(value, 3) for value in numbers)
        successes = sum(value >= _THRESHOLD for value in self.values) / len(self.values)
        share = format_number(100 * successes, 1)
        return [self.guess, self.protocol, *cells, share, str(len(self.values))]


def protocols(first: Tensor, second: Tensor, data: LoadedData) -> dict[str, float]:
    """Return the rigorous SSIM and every published one, by name, for two images `(C, *S)`."""
    published = {f"paper_{k}": p(first, second, data.spec) for k, p in ALL_PROTOCOLS.items()}
    return {"rigorous": ssim(first, second), **published}


def measure(data: LoadedData, pairs: int, seed: int) -> list[Scored]:
    """Score random pairs of different images, and trivial guesses at the first of each pair.

    Args:
        data: a dataset with at least two images.
        pairs: how many, at least 1.
        seed: which.
    """
    stream = generator(seed, "unrelated pairs")
    mean_image = data.mean_image()
    values: dict[tuple[str, str], list[float]] = {}
    for places in unrelated_pairs(len(data.images), pairs, stream):
        first, second = (data.images.load(place) for place in places)
        if torch.equal(first, second):
            continue  # one image under two names
        guesses = {
            "another image": second,
            "mean image": mean_image,
            "grey": torch.full_like(first, 0.5),
            "black": torch.zeros_like(first),
            "noise": torch.rand(first.shape, generator=stream),
        }
        for guess, picture in guesses.items():
            for protocol, value in protocols(first, picture, data).items():
                values.setdefault((guess, protocol), []).append(value)
    return [
        Scored(guess, protocol, tuple(v for v in own if not math.isnan(v)))
        for (guess, protocol), own in values.items()
    ]


def load(dataset: str, root: str | None, size: int) -> LoadedData:
    """Load a dataset's paper split at a size, normalised as GradInv's notebooks do."""
    shape = Preprocess(
        size=size, resize="crop", channels=3, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD)
    )
    source = KaggleDataset(name=dataset, root=root)
    return source.load(preprocess=shape, n_images=None, seed=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measurement; exit 2 where there is no data."""
    given = _parser().parse_args(arguments)
    names = [given.dataset] if given.dataset else list(DATASETS)
    try:
        measured = {n: measure(load(n, given.root, given.size), given.pairs, 0) for n in names}
        make_private_folder(given.out)
        show(measured, given.size, given.out)
    except MedpflError as mistake:
        print_error(str(mistake))
        sys.exit(_MISTAKE)


def show(measured: Mapping[str, Sequence[Scored]], size: int, folder: Path) -> None:
    """Print the table, and write it with its figure."""
    out = make_console()
    sections = []
    for dataset, scores in measured.items():
        table = Table(title=f"{dataset}, {size} px", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in HEADER:
            table.add_column(heading)
        for scored in scores:
            table.add_row(*scored.line())
        out.print(table)
        lines = [scored.line() for scored in scores]
        sections.append(f"## {dataset}, {size} px\n\n{markdown_table(HEADER, lines)}")
    write_text(folder / "unrelated_pairs.md", "\n".join(sections))
    rows = [
        [d, s.guess, s.protocol, v] for d, own in measured.items() for s in own for v in s.values
    ]
    write_text(
        folder / "unrelated_pairs.csv", csv_table(["dataset", "guess", "protocol", "ssim"], rows)
    )
    files = _draw(measured, size, folder / "unrelated_pairs")
    out.print(Text(""))
    paths({"table": folder / "unrelated_pairs.md", **files})


def _draw(measured: Mapping[str, Sequence[Scored]], size: int, stem: Path) -> dict[str, Path]:
    figure = new_figure(8.0, 1.3 + 1.5 * len(measured))
    panels = np.atleast_1d(figure.subplots(len(measured), 1, sharex=True))
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.12, right=0.97, top=1 - 0.85 / height, bottom=0.5 / height)
    bins = np.linspace(-0.2, 1.0, 61)
    for axes, (dataset, scores) in zip(panels, measured.items(), strict=True):
        pairs = {s.protocol: s.values for s in scores if s.guess == "another image"}
        for name, colour in _COLOURS.items():
            axes.hist(pairs[name], bins=bins, color=colour, alpha=0.65, label=name, zorder=2)
        axes.axvline(_THRESHOLD, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set(ylabel=f"{dataset}\npairs")
        axes.grid(color=GRID, linewidth=0.5, zorder=0)
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=3, loc="upper right")
    panels[-1].set(xlabel="SSIM of two unrelated images; dotted: counted as a success from here")
    count = len(next(iter(measured.values()))[0].values)
    caption = f"{count} pairs a dataset, {size} px. paper_dlg is rigorous after 8 bits: the same."
    write_head(figure, "Unrelated images under each protocol", caption, synthetic=False)
    return save_both(figure, stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m medpfl.paper.unrelated_pairs",
        description="Score unrelated images and trivial guesses under every protocol.",
    )
    parser.add_argument("--dataset", choices=DATASETS, help="default: all three")
    parser.add_argument("--root", help="the dataset's folder; default: below $MEDPFL_DATA_ROOT")
    parser.add_argument("--pairs", type=int, default=200, help="pairs a dataset (200)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (224)")
    parser.add_argument("--out", type=Path, default=Path("outputs/paper/unrelated_pairs"))
    return parser


if __name__ == "__main__":
    main()
