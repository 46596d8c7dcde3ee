"""Flags of the commands beside `medpfl`: mistakes in our own words, and the version."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

import medpfl
from medpfl.errors import ConfigurationError


class FlagParser(argparse.ArgumentParser):
    """Parse flags as they are written, and tell of mistakes as every command here does.

    Args:
        kwargs: as ``argparse.ArgumentParser`` has them; `prog` is the command's name.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs
        )
        version = f"medpfl {medpfl.__version__}"
        self.add_argument("--version", action="version", version=version)

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigurationError` that names the flag."""
        found = re.match(r"argument (\S+): (.*)", message)
        told = f"{found[1]}: {found[2]}" if found else message
        told = told.replace("expected one argument", "its value is missing")
        raise ConfigurationError(f"{told}. `{self.prog} --help` says what there is")
