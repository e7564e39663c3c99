"""Where configuration files are found, and what is refused in them before Hydra reads them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from xor_study.errors import StudyError
from xor_study.sweeps.settings import CONFIG_DIR

_NOT_DECIMAL = re.compile(r"[-+]?(0[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers to YAML 1.1, with another value than their digits have on the command line: 010 is 8, 1:30 is 90."""


class PackagedSearchPath(SearchPathPlugin):
    """Let this package's configuration files be found, too, where --config-path names another folder.

    It is registered by this application alone (`compose.register`): installed as a plugin, it would act in all others.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder, unless it is the application's own."""
        if all(_folder(found.path) != str(CONFIG_DIR) for found in search_path.get_path()):
            search_path.append("xor_study", f"file://{CONFIG_DIR}")


class _Repository(ConfigRepository):
    """Hydra's repository, which refuses a file with a number that is not what it looks like."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None:
            check_numbers(source, config_path)
        return super().load_config(config_path)


@lru_cache(maxsize=16)
def with_folders(loader: ConfigLoader, folders: tuple[str, ...], key: str = "hydra.searchpath") -> ConfigLoader:
    """Return a loader that also finds what is in some folders, and that checks each file that it reads.

    Args:
        loader: of the Hydra application.
        folders: as in Hydra's search path, such as "file:///data/conf" or "pkg://mine.conf"; a path alone is a folder.
        key: which setting gave them.

    Raises:
        StudyError: if one does not exist.
    """
    paths = copy.deepcopy(loader.get_search_path())
    schema = paths.get_path().pop()
    assert schema.provider == "schema"
    for folder in folders:
        # Absolute: a launcher's job may work in another folder.
        plain = _folder(folder)
        paths.append(key, folder if plain is None else f"file://{Path(plain).absolute()}")
    paths.append("schema", "structured://")
    result = ConfigLoaderImpl(paths)
    result.repository = _Repository(paths)
    for source in result.get_sources():
        if source.provider == key and not source.available():
            raise StudyError(f"{key}={source.path}: no such folder")
    return result


def _folder(path: str | None) -> str | None:
    """Return a search path's folder; None if it is a package or anything else."""
    scheme, found, rest = (path or "").partition("://")
    if not found:
        return path
    return rest if scheme == "file" else None


def strings(given: object) -> tuple[str, ...]:
    """Return a search path as it is given.

    Raises:
        StudyError: if it is no list of strings.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(one, str) for one in given):
        raise StudyError(f"hydra.searchpath={given}: must be a list of folders, such as [file:///data/conf]")
    return tuple(given)


def check_numbers(source: ConfigSource, config_path: str) -> None:
    """Raise StudyError if a YAML file has a number that is not decimal.

    Args:
        source: that has the file; nothing is checked in sources that are not folders.
        config_path: the file's path in it, as in Hydra's lists of defaults.
    """
    if source.scheme() != "file":
        return
    file = Path(source.path, source._normalize_file_name(config_path))
    for event in yaml.parse(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _NOT_DECIMAL.fullmatch(event.value):
            raise StudyError(
                f"{file}:{event.start_mark.line + 1}: {event.value}: YAML reads it as {yaml.safe_load(event.value)}; "
                "write a decimal number without leading zeros, or put a text in quotes"
            )
