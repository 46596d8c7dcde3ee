"""Versions of `capture.json`: earlier ones are read as today's, later ones refused."""

from __future__ import annotations

from dataclasses import replace

from medpfl.batch_norm import of_the_pair
from medpfl.captures.fields import Fields, is_whole
from medpfl.errors import DataError

FORMAT = "medpfl-capture"
VERSION = 4

_NAMES = (
    *("format", "version", "medpfl", "framework", "round", "client", "aggregate", "kind", "model"),
    *("batch_norm", "data", "local_training", "num_examples", "labels", "defense", "truth_ids"),
    *("geometry", "tensors", "files"),
)
# Before version 4, where the voxels of volumes lie was not said.
_NAMES_OF_3 = tuple(name for name in _NAMES if name != "geometry")
# Before version 3, every update was one client's.
_NAMES_OF_2 = tuple(name for name in _NAMES_OF_3 if name != "aggregate")
# Version 1 told in two values, `mode` and `buffers`, what `batch_norm` tells in one.
_NAMES_OF_1 = (*(name for name in _NAMES_OF_2 if name != "batch_norm"), "mode", "buffers")


def by_todays_names(top: Fields) -> Fields:
    """Return what a manifest of any version says, by the names of the latest.

    Args:
        top: all that the file holds.

    Raises:
        DataError: it is of another format or a later version, or a name is missing or unknown.
    """
    _check_version(top)
    if top.values["version"] == VERSION:
        top.require(_NAMES)
        return top
    if top.values["version"] == 3:
        top.require(_NAMES_OF_3)
        return replace(top, values={**top.values, "geometry": None})
    unsaid = {"aggregate": None, "geometry": None}
    if top.values["version"] == 2:
        top.require(_NAMES_OF_2)
        return replace(top, values={**top.values, **unsaid})
    top.require(_NAMES_OF_1)
    mode = top.choice("mode", ("train", "eval"))
    buffers = top.choice("buffers", ("private", "shared"))
    kept = {name: value for name, value in top.values.items() if name in _NAMES}
    return replace(top, values={**kept, **unsaid, "batch_norm": of_the_pair(mode, buffers)})


def _check_version(top: Fields) -> None:
    if top.values.get("format") != FORMAT:
        raise DataError(
            f'{top.place}: not a capture: "format" is not "{FORMAT}". Give a folder that '
            "medpfl.captures.write_capture has written"
        )
    version = top.values.get("version")
    if is_whole(version, VERSION + 1, 2**31):
        raise DataError(
            f"{top.place}: version {version} of the format, and this medpfl reads up to "
            f"{VERSION}: install a newer medpfl"
        )
    if not is_whole(version, 1, VERSION):
        raise top.wrong("version", f"a whole number from 1 to {VERSION}")
