"""What Hydra refuses, in words about the command line instead of Hydra."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from medpfl._conf import conf_dir
from medpfl._near import did_you_mean
from medpfl.command.overrides import options_of
from medpfl.errors import ConfigurationError, MedpflError
from medpfl.settings.renamed import now_called

_LISTED = 40
_HINT = ", set env var HYDRA_FULL_ERROR=1 to see chained exception."


def explained(fault: Exception) -> MedpflError:
    """Return the error for people behind what Hydra raised before a job began."""
    for cause in _causes(fault):
        if isinstance(cause, MedpflError):
            return cause
        if isinstance(cause, RecursionError):
            return ConfigurationError(_loop(cause))
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            return ConfigurationError(_unknown(cause))
    if isinstance(fault, MissingConfigException):
        return ConfigurationError(_missing(fault))
    return ConfigurationError(": ".join(dict.fromkeys(_told(fault))))


def of_omegaconf(fault: OmegaConfBaseException) -> str:
    """Return what OmegaConf says of a setting, with the setting's name in front."""
    told, key = str(fault).split("\n")[0], str(fault.full_key or "")
    return told if not key or key in told else f"{key}: {told}"


def _causes(fault: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = fault
    while cause is not None:
        yield cause
        cause = cause.__cause__


# Groups of parts by names of the user's own; OmegaConf shows others as empty, too.
_OF_NAMES = ("measures", "priors", "projections")


def _unknown(fault: OmegaConfBaseException) -> str:
    """Say of a setting that nothing reads what is there instead."""
    key, parent = str(fault.key), fault.parent_node
    full = str(fault.full_key or key)
    if now := now_called(full):
        return now
    if not isinstance(parent, DictConfig) or not len(parent):
        above = full.rpartition(".")[0]
        if above.rpartition(".")[2] in _OF_NAMES:
            return f"{full}: {above} is empty. To add to it, put a + in front: +{full}..."
        return f"{full}: {above} is a single value, there is no setting below it"
    if full == f"defense.{key}" and key in options_of([Path(conf_dir())])["defense"]:
        return (
            f"{full}: {key} is not chosen. Choose it with defense={key}, or in a list: "
            f"defense=[{key},...]"
        )
    names = [str(name) for name in parent if not (str(name) == "hydra" or str(name)[:1] == "_")]
    hint = did_you_mean(key, names, below=full.removesuffix(key))
    return f"{full}: no such setting{hint} Choose from {', '.join(names[:_LISTED])}"


def _missing(fault: MissingConfigException) -> str:
    name, options = str(fault.missing_cfg_file or ""), [str(o) for o in fault.options or ()]
    if not options:
        return " ".join(str(fault).split("\nConfig search path:")[0].split())
    group, _, option = name.rpartition("/")
    return (
        f"{group}={option}: no such option{did_you_mean(option, options)} Choose one of "
        f"{', '.join(options)}"
    )


def _loop(fault: RecursionError) -> str:
    """Name the configurations whose defaults lead back to themselves."""
    found = []
    for frame, _ in traceback.walk_tb(fault.__traceback__):
        root = frame.f_locals.get("root")
        read_path = getattr(getattr(root, "node", None), "get_config_path", None)
        if frame.f_code.co_name == "_create_defaults_tree_impl" and read_path is not None:
            found.append(str(read_path()))
    for place, name in enumerate(found):
        if name in found[:place]:
            circle = found[found.index(name) : place + 1]
            return f"the defaults of a configuration lead back to itself: {' -> '.join(circle)}"
    return "the configuration is nested too deep, or its parts refer to each other in a circle"


def _told(fault: Exception) -> Iterator[str]:
    """Yield what an error and its causes say; of one that says nothing, the line that raised it."""
    for cause in _causes(fault):
        text = str(cause).split("\nSee https")[0].replace(_HINT, "")
        if isinstance(cause, OmegaConfBaseException):
            text = of_omegaconf(cause)
        elif isinstance(cause, OSError) and cause.strerror is not None:
            text = f"{cause.filename}: {cause.strerror}"
        elif isinstance(cause, KeyError | AssertionError):
            lines = [f.line for f in traceback.extract_tb(cause.__traceback__) if f.line]
            text = f"{type(cause).__name__} {text} ({lines[-1] if lines else 'unknown'})"
        yield " ".join(text.split())
