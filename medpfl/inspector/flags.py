"""The flags of ``medpfl-inspect``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medpfl._flags import FlagParser
from medpfl._near import did_you_mean
from medpfl.errors import ConfigurationError

DESCRIPTION = """\
Say what a client can see of a model before it trains it: rows that all measure the same, weights in
pairs, a layer that looks at whole images ahead of the first convolution, another architecture than
the one agreed on. Nothing in the file is run."""

EPILOG = """\
examples:
  medpfl-inspect received.safetensors --input-shape 3x224x224
  medpfl-inspect agreed.safetensors --hash
  medpfl-inspect received.safetensors --agreed agreed.safetensors --json
  medpfl-inspect captures/round-005/client-2

exit code: 0 nothing found, 3 suspicious, 2 no such model, or flags that are wrong, 1 a failure"""

_FLAGS = ("--json", "--hash", "--agreed", "--input-shape", "--help", "--version")
_LARGEST = 10**6


@dataclass(frozen=True)
class Asked:
    """A command line.

    Args:
        path: of the model.
        json: whether a script reads the answer.
        hash: whether the hash of the architecture is all that is wanted.
        agreed: the hash agreed on, or a model that has it; None where nobody says.
        input_shape: ``(C, *S)``, or None.
    """

    path: str
    json: bool
    hash: bool
    agreed: str | None
    input_shape: tuple[int, ...] | None


def read_flags(line: Sequence[str]) -> Asked:
    """Read a command line; ``--help`` and ``--version`` are answered here.

    Raises:
        ConfigurationError: an unknown flag, one without its value, or no path.
    """
    given, unknown = _parser().parse_known_args(list(line))
    if unknown:
        near = did_you_mean(unknown[0].partition("=")[0], _FLAGS)
        what = "there is no such flag" if unknown[0].startswith("-") else "one model at a time"
        raise ConfigurationError(
            f"{unknown[0]}: {what}{near} `medpfl-inspect --help` says what there is"
        )
    if given.path is None:
        raise ConfigurationError(
            "give the model: a .safetensors, .pt or .pth file of weights, or the folder of a "
            "capture. `medpfl-inspect --help` says what there is"
        )
    shape = None if given.input_shape is None else _shape(given.input_shape)
    return Asked(given.path, given.json, given.hash, given.agreed, shape)


def _shape(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"\d+(x\d+){2,3}", text)
    sizes = tuple(map(int, text.split("x"))) if found else ()
    if not found or min(sizes) < 1 or max(sizes) > _LARGEST:
        raise ConfigurationError(
            f"--input-shape={text}: give channels and sides, such as 3x224x224, or 1x64x64x64 for "
            "volumes"
        )
    return sizes


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="medpfl-inspect",
        usage="medpfl-inspect PATH [--agreed HASH|PATH] [--input-shape CxHxW] [--hash] [--json]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a .safetensors, .pt or .pth state dict, or the folder of a capture",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument(
        "--hash",
        action="store_true",
        help="print the hash of the architecture (names and shapes), and look at nothing else",
    )
    parser.add_argument(
        "--agreed",
        metavar="HASH|PATH",
        help="the hash of the architecture agreed on, or a model that has it",
    )
    parser.add_argument(
        "--input-shape",
        metavar="CxHxW",
        help="of the images, such as 3x224x224: whether a layer looks at whole ones",
    )
    return parser
