"""What a command line asks for: flags and settings."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from medpfl.errors import ConfigurationError

# As Hydra names them, less --experimental-rerun: that one unpickles a file.
_SWITCHES = {
    "help": "-h",
    "hydra-help": None,
    "version": None,
    "resolve": None,
    "run": "-r",
    "multirun": "-m",
    "shell-completion": "-sc",
}
_FOLDERS = {"config-path": "-cp", "config-dir": "-cd"}
_VALUES = {"config-name": "-cn", "package": "-p"}
_CHOICES = {
    "cfg": ("-c", ("job", "hydra", "all")),
    "info": ("-i", ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
_ACTIONS = ("run", "multirun", "shell-completion", "cfg", "info")


@dataclass(frozen=True)
class Arguments:
    """A command line.

    Args:
        flags: ``{name: value}`` of those that are given; a switch has the value True.
        settings: ``key=value``, as typed.
    """

    flags: dict[str, str | bool]
    settings: tuple[str, ...]

    @property
    def config_dir(self) -> Path | None:
        """The user's own configurations, as an absolute path."""
        folder = self.flags.get("config-dir")
        return None if folder is None else Path(str(folder))

    @property
    def answers_tab(self) -> bool:
        """Whether a shell asks what the Tab key could complete: it shows whatever is printed."""
        completes = "shell-completion" in self.flags
        return completes and any(s.startswith("query=") for s in self.settings)

    def for_hydra(self) -> list[str]:
        """Return the same command line in the words of Hydra's own parser."""
        flags = [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in self.flags.items()
        ]
        return [*flags, *self.settings]


def read_arguments(line: Sequence[str]) -> Arguments:
    """Read a command line; folders are meant from the current one.

    Raises:
        ConfigurationError: an unknown flag, one without its value, or two that exclude each other.
    """
    given = _parser().parse_intermixed_args(list(line))
    flags = dict(_given(given))
    asked = [name for name in _ACTIONS if name in flags]
    if len(asked) > 1:
        raise ConfigurationError(f"give only one of --{' and --'.join(asked)}")
    if "resolve" in flags and not {"cfg", "help"} & flags.keys():
        raise ConfigurationError("--resolve goes with --cfg job: it shows the values of references")
    if "package" in flags and "cfg" not in flags:
        raise ConfigurationError("--package goes with --cfg job: it shows a part of it")
    stray = [setting for setting in given.settings if setting.startswith("-")]
    if stray:
        raise ConfigurationError(f"{stray[0]}: flags go before a --, or there is no such flag")
    return Arguments(flags, tuple(given.settings))


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}. `medpfl --help` says what there is")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="medpfl", add_help=False)
    for name, short in _SWITCHES.items():
        parser.add_argument(*_names(name, short), action="store_true")
    for name, short in {**_FOLDERS, **_VALUES}.items():
        parser.add_argument(*_names(name, short))
    for name, (short, choices) in _CHOICES.items():
        optional = {"nargs": "?", "const": "all"} if name == "info" else {}
        parser.add_argument(*_names(name, short), choices=choices, **optional)  # type: ignore[arg-type]
    parser.add_argument("settings", nargs="*")
    return parser


def _names(name: str, short: str | None) -> Iterator[str]:
    yield f"--{name}"
    if short is not None:
        yield short


def _given(given: Namespace) -> Iterator[tuple[str, str | bool]]:
    for name in (*_SWITCHES, *_FOLDERS, *_VALUES, *_CHOICES):
        value = getattr(given, name.replace("-", "_"))
        if value is None or value is False:
            continue
        yield name, _folder(name, value) if name in _FOLDERS else value


def _folder(flag: str, given: str) -> str:
    folder = os.path.abspath(os.path.expanduser(given))
    if not os.path.isdir(folder):
        raise ConfigurationError(f"--{flag}={given}: no such folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigurationError(f"--{flag}={given}: this folder is not yours to read")
    return folder
