"""Every file that Hydra composes is checked as it is read: it may be a user's own."""

from __future__ import annotations

import builtins
from pathlib import Path

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf.errors import OmegaConfBaseException
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from medpfl._conf import is_option
from medpfl._yaml import YamlError, compose_file, line_of
from medpfl.errors import ConfigurationError


class CheckedSource(FileConfigSource):
    """Hydra's own reader of configurations in a folder, for files that can be broken."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a configuration.

        Raises:
            ConfigurationError: the file cannot be read or is not a configuration.
        """
        path = Path(self.path) / self._normalize_file_name(config_path)
        if path.is_file():
            check_file(path)
        try:
            return super().load_config(config_path)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from error

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """Name the options of a group, for ``--help``, Tab, patterns and messages."""
        return [name for name in super().list(config_path, results_filter) if is_option(name)]


def check_files_as_they_are_read() -> None:
    """Make Hydra read every folder of configurations as `CheckedSource` does."""
    Plugins.instance()  # it registers its own readers
    SourcesRegistry.instance().types[CheckedSource.scheme()] = CheckedSource


def check_file(path: Path) -> None:
    """Make sure that a file holds settings which Hydra can take in.

    Raises:
        ConfigurationError: with the file, the line, and what is wrong there.
    """
    try:
        root = compose_file(path)
        _check_root(root)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    except YamlError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _check_root(root: Node | None) -> None:
    if root is None:
        raise YamlError("holds no settings. An empty mapping is written {}")
    if not isinstance(root, MappingNode):
        raise YamlError(f"line {line_of(root)}: settings are written as name: value")
    for key, value in root.value:
        if key.value == "defaults":
            _check_defaults(value)


def _check_defaults(node: Node) -> None:
    form = "a list of `- group: option`, `- /path/to/file` or `- _self_`"
    if not isinstance(node, SequenceNode):
        raise YamlError(f"line {line_of(node)}: defaults must be {form}")
    for item in node.value:
        entries = item.value if isinstance(item, MappingNode) else [(item, item)]
        named = len(entries) == 1 and isinstance(entries[0][0], ScalarNode)
        if not named or isinstance(entries[0][1], MappingNode):
            raise YamlError(f"line {line_of(item)}: defaults must be {form}")
