"""Where medpfl's own configurations are."""

from __future__ import annotations

import os


def conf_dir() -> str:
    """Return the folder of the configuration: inside an installed package, or the checkout's.

    Raises:
        FileNotFoundError: medpfl is installed without it.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in (os.path.join(here, "conf"), os.path.join(os.path.dirname(here), "conf")):
        if os.path.isfile(os.path.join(folder, "config.yaml")):
            return folder
    raise FileNotFoundError(f"medpfl is installed without its configuration: no conf beside {here}")


def is_option(name: str) -> bool:
    """Say whether a configuration can be chosen: ``_engine`` is what others begin with."""
    return not name.startswith("_")
