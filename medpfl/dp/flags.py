"""The flags of ``medpfl-dp``: what there is, what goes together, and what is out of range."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from medpfl._flags import FlagParser
from medpfl._near import did_you_mean
from medpfl.dp.words import DESCRIPTION, EXAMPLES
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value, wrong_value
from medpfl.settings.ranges import Budget, Delta, Range, SampleRate, Steps

FEDERATION, FLOWER, SVT, PERCENTILE = (
    "",
    "--flower-local-dp",
    "--nvflare-svt",
    "--nvflare-percentile",
)
MODES = (FLOWER, SVT, PERCENTILE)

_Positive = Annotated[float, Range(0, 1e18, "(]")]
_NotNegative = Annotated[float, Range(0, 1e18)]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag with a value.

    Args:
        kind: its type with its range, or the words that it takes.
        modes: where it means something.
        words: for ``--help``.
    """

    kind: Any
    modes: tuple[str, ...]
    words: str


_EVERYWHERE = (FEDERATION, *MODES)
FLAGS: Mapping[str, Flag] = {
    "--noise-multiplier": Flag(
        kind=Annotated[float, Range(0, 1e6)],
        modes=(FEDERATION,),
        words="the noise's scale over the clipping norm: standard deviation, or b of Laplace",
    ),
    "--noise-std": Flag(
        kind=Annotated[float, Range(0, 1e18)],
        modes=(FEDERATION,),
        words="the noise's scale itself, on the sum; goes with --clipping-norm",
    ),
    "--target-epsilon": Flag(
        kind=Budget,
        modes=(FEDERATION,),
        words="instead of noise: find the noise multiplier that stays within this epsilon",
    ),
    "--clipping-norm": Flag(
        kind=_Positive,
        modes=(FEDERATION, FLOWER),
        words="the norm that contributions are clipped to (L2; L1 for Laplace noise)",
    ),
    "--clipping": Flag(
        kind=("example", "update", "batch", "none"),
        modes=(FEDERATION,),
        words="what is clipped: each example's gradient (default), a client's whole update, the "
        "mean over a batch, or nothing. The last two are no differential privacy",
    ),
    "--sample-rate": Flag(
        kind=SampleRate,
        modes=(FEDERATION,),
        words="the probability with which each contribution takes part in a release (Poisson); "
        "1 by default: all do",
    ),
    "--steps": Flag(
        kind=Steps, modes=(FEDERATION,), words="how often noise is added and the result released"
    ),
    "--rounds": Flag(
        kind=Steps,
        modes=(FEDERATION, FLOWER, SVT),
        words="rounds of training; with --local-steps instead of --steps",
    ),
    "--local-steps": Flag(
        kind=Steps, modes=(FEDERATION,), words="noisy steps a round; 1 by default"
    ),
    "--delta": Flag(
        kind=Delta,
        modes=(FEDERATION, FLOWER),
        words="the probability with which epsilon may fail, below 1 / number of contributions",
    ),
    "--candidates": Flag(
        kind=Annotated[int, Range(2, 1_000_000_000)],
        modes=_EVERYWHERE,
        words="how many images the attacker has to choose from; 1000 by default",
    ),
    "--noise": Flag(
        kind=("gaussian", "laplace"), modes=(FEDERATION,), words="the noise's law (gaussian)"
    ),
    "--neighbours": Flag(
        kind=("add-remove", "replace"),
        modes=(FEDERATION, FLOWER),
        words="what epsilon hides: whether a contribution is there, or which of two it is; "
        "add-remove by default, replace for Flower",
    ),
    "--accountant": Flag(
        kind=("pld", "rdp"),
        modes=(FEDERATION,),
        words="which of the two --target-epsilon is for (pld)",
    ),
    "--sensitivity": Flag(
        kind=_NotNegative, modes=(FLOWER,), words="as given to LocalDpMod, which does not check it"
    ),
    "--epsilon": Flag(kind=_Positive, modes=(FLOWER, SVT), words="as given to the mod or filter"),
    "--fraction": Flag(
        kind=Annotated[float, Range(0, 1, "(]")],
        modes=(SVT,),
        words="of the parameters that the filter sends; 0.1 by default",
    ),
    "--noise-var": Flag(kind=_Positive, modes=(SVT,), words="as given to the filter; 0.1"),
    "--epsilon-release": Flag(
        kind=_Positive, modes=(SVT,), words="as given to the filter; by default from --noise-var"
    ),
    "--parameters": Flag(
        kind=Annotated[int, Range(1, 10**13)], modes=(SVT,), words="how many the network has"
    ),
    "--percentile": Flag(
        kind=Annotated[float, Range(0, 100)], modes=(PERCENTILE,), words="as given to the filter"
    ),
    "--gamma": Flag(
        kind=_Positive, modes=(SVT, PERCENTILE), words="as given to the filter; changes no epsilon"
    ),
}
_SWITCHES = {
    FLOWER: "account for Flower's LocalDpMod(clipping_norm, sensitivity, epsilon, delta)",
    SVT: "account for NVFlare's SVTPrivacy filter",
    PERCENTILE: "account for NVFlare's PercentilePrivacy filter",
    "--json": "print JSON for scripts; an infinite epsilon is the text inf",
}


@dataclass(frozen=True)
class Asked:
    """A command line.

    Args:
        mode: one of `MODES`, or `FEDERATION`.
        values: ``{flag: value}`` of the flags that are given, checked one by one.
        json: whether a script reads the answer.
    """

    mode: str
    values: Mapping[str, Any]
    json: bool

    def get(self, flag: str, default: Any) -> Any:
        """Return a flag's value, or a default where it is not given."""
        return self.values.get(flag, default)

    def need(self, flag: str, why: str) -> Any:
        """Return the value of a flag that must be there.

        Raises:
            ConfigurationError: it is not.
        """
        if flag not in self.values:
            raise ConfigurationError(f"{flag} is missing: {why}")
        return self.values[flag]


def read_flags(line: Sequence[str]) -> Asked:
    """Read a command line; ``--help`` and ``--version`` are answered here.

    Raises:
        ConfigurationError: an unknown flag, one without its value, a value out of range, or flags
            that do not go together.
    """
    given, unknown = _parser().parse_known_args(_joined(line))
    if unknown:
        name = unknown[0].partition("=")[0]
        near = did_you_mean(name, [*FLAGS, *_SWITCHES, "--help", "--version"])
        raise ConfigurationError(
            f"{unknown[0]}: there is no such flag{near} `medpfl-dp --help` says what there is"
        )
    texts = {flag: getattr(given, _name(flag)) for flag in FLAGS}
    values = {flag: _value(flag, text) for flag, text in texts.items() if text is not None}
    modes = [mode for mode in MODES if getattr(given, _name(mode))]
    if len(modes) > 1:
        raise ConfigurationError(f"{modes[1]}: give only one of {' and '.join(modes)}")
    asked = Asked(modes[0] if modes else FEDERATION, values, given.json)
    _refuse_foreign(asked)
    return asked


def _refuse_foreign(asked: Asked) -> None:
    for flag, value in asked.values.items():
        modes = FLAGS[flag].modes
        if asked.mode in modes:
            continue
        homes = " and ".join(mode for mode in modes if mode)
        belongs = f"it belongs to {homes}" if homes else f"it says nothing beside {asked.mode}"
        if not asked.mode:
            raise ConfigurationError(f"{flag}={value}: {belongs}; give that flag, too, or neither")
        raise ConfigurationError(f"{flag}={value}: {belongs}; leave it out")


def _value(flag: str, text: str) -> Any:
    kind = FLAGS[flag].kind
    if isinstance(kind, tuple):
        if text not in kind:
            near = did_you_mean(text, kind).rstrip(".")
            raise ConfigurationError(f"{flag}={text}: choose {' or '.join(kind)}{near}")
        return text
    number = _number(flag, text, get_args(kind)[0] if get_origin(kind) is Annotated else kind)
    check_value(flag, number, kind)
    return number


def _number(flag: str, text: str, kind: type) -> float:
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise wrong_value(flag, text, words) from None


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="medpfl-dp",
        usage="medpfl-dp [FLAG VALUE ...] [--json]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    groups = {mode: parser.add_argument_group(title) for mode, title in _groups()}
    for switch, words in _SWITCHES.items():
        groups.get(switch, parser).add_argument(switch, action="store_true", help=words)
    for flag, facts in FLAGS.items():
        home = groups[facts.modes[0]]
        home.add_argument(flag, metavar=_metavar(facts.kind), help=facts.words.replace("%", "%%"))
    return parser


def _groups() -> Iterator[tuple[str, str]]:
    yield FEDERATION, "noise on clipped contributions"
    yield FLOWER, "Flower"
    yield SVT, "NVFlare, sparse vector technique"
    yield PERCENTILE, "NVFlare, percentile"


def _metavar(kind: Any) -> str:
    if isinstance(kind, tuple):
        return "{" + ",".join(kind) + "}"
    return "N" if get_args(kind)[0] is int else "X"


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _joined(line: Sequence[str]) -> list[str]:
    """Return the command line with values behind their flags: argparse takes -1e-5 for a flag."""
    joined: list[str] = []
    for word in line:
        takes = joined and joined[-1] in FLAGS
        if takes and re.fullmatch(r"-(\d|\.\d|inf|nan).*", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
