"""Say which classes a run gave away, from the table that it left:  python read_record.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from medpfl.metrics import wilson


def main(folder: Path) -> None:
    """Print one line a class: images, those rebuilt, and the rate with its 95 % interval."""
    table = pd.read_csv(folder / "metrics.csv")
    table["class"] = table["image_id"].str.split("/").str[0]
    for name, images in table.groupby("class"):
        n, rebuilt = len(images), int(images["success"].sum())
        low, high = wilson(rebuilt, n)
        print(f"{name:16s} {rebuilt} of {n} rebuilt: {rebuilt / n:.1%} [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
