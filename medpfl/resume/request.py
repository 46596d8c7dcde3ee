"""What ``medpfl resume=<folder> ...`` asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medpfl.command.arguments import Arguments
from medpfl.errors import ConfigurationError
from medpfl.resume.settings import key_of

_BESIDE = ("config-dir", "multirun")


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


def read_request(arguments: Arguments) -> Request | None:
    """Read the command line; None where it does not ask to resume anything.

    Raises:
        ConfigurationError: it asks for something else at the same time, or for a folder that
            cannot be opened.
    """
    asked = [setting.partition("=")[2] for setting in arguments.settings if _is_resume(setting)]
    if not asked:
        return None
    others = [name for name in arguments.flags if name not in _BESIDE]
    if others:
        raise ConfigurationError(f"resume= goes on as before: leave out --{others[0]}")
    if len(asked) != 1 or not asked[0]:
        raise ConfigurationError("resume= takes one folder: that of a run or of a sweep")
    return Request(
        folder=_opened(asked[0]),
        overrides=tuple(setting for setting in arguments.settings if not _is_resume(setting)),
        config_dir=arguments.config_dir,
    )


def _opened(given: str) -> Path:
    folder = os.path.realpath(os.path.expanduser(given))
    try:
        os.listdir(folder)
        os.stat(os.path.join(folder, "."))
    except FileNotFoundError as error:
        raise ConfigurationError(f"resume={given}: no such folder") from error
    except OSError as error:
        raise ConfigurationError(
            f"resume={given}: {error.strerror or error}. Give a folder that is yours to read, to "
            "search and to write"
        ) from error
    return Path(folder)


def _is_resume(argument: str) -> bool:
    return "=" in argument and key_of(argument) == "resume"
