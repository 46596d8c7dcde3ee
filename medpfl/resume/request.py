"""What ``medpfl resume=<folder> ...`` asks for."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medpfl.errors import ConfigurationError
from medpfl.resume.notes import key_of


@dataclass(frozen=True)
class Request:
    """A command line with ``resume=``.

    Args:
        folder: of a run, or of a sweep.
        overrides: the settings beside it; they may repeat the recorded ones, not change them.
        config_dir: the user's own configurations, or None.
    """

    folder: Path
    overrides: tuple[str, ...] = ()
    config_dir: Path | None = None

    @property
    def is_sweep(self) -> bool:
        """Whether the folder is a sweep's."""
        return (self.folder / "multirun.yaml").is_file() and not (self.folder / "run.json").exists()


def read_request(arguments: Sequence[str]) -> Request | None:
    """Read the command line; None where it does not ask to resume anything.

    Raises:
        ConfigurationError: it asks for something else at the same time.
    """
    if not any(_is_resume(argument) for argument in arguments):
        return None
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("settings", nargs="*")
    given, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        raise ConfigurationError(f"resume= goes on as before: leave out {' '.join(unknown)}")
    asked = [setting.partition("=")[2] for setting in given.settings if _is_resume(setting)]
    if len(asked) != 1 or not asked[0]:
        raise ConfigurationError("resume= takes one folder: that of a run or of a sweep")
    return Request(
        folder=Path(asked[0]).expanduser().resolve(),
        overrides=tuple(setting for setting in given.settings if not _is_resume(setting)),
        config_dir=Path(given.config_dir).resolve() if given.config_dir else None,
    )


def _is_resume(argument: str) -> bool:
    return "=" in argument and key_of(argument) == "resume"
