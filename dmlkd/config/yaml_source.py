"""A YAML file whose every key knows its line, and the ``--set`` options laid over it."""

import re
from pathlib import Path
from typing import Any

import yaml

from dmlkd.errors import ConfigError

Keys = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-3 as a number, as YAML 1.2 and everybody but YAML 1.1 does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class YamlSource:
    """What a file says and where it says it.

    Attributes:
        values: the mapping read, overrides applied.
    """

    def __init__(self, path: Path, values: dict[str, Any], lines: dict[Keys, int]) -> None:
        self.path = path
        self.values = values
        self._lines = lines
        self._overridden: dict[Keys, str] = {}

    @classmethod
    def read(cls, path: Path) -> "YamlSource":
        """Read a file with the safe loader.

        Raises:
            ConfigError: if it is missing or empty, not YAML, not a mapping, or gives a key twice.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from None
        try:
            node = yaml.compose(text, Loader=_Loader)
            values = yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            found = "nothing" if values is None else f"a {type(values).__name__}"
            raise ConfigError(f"{path}: must be a mapping of sections such as data and train, found {found}")
        lines: dict[Keys, int] = {}
        try:
            _collect_lines(path, node, (), lines)
        except RecursionError:
            raise ConfigError(f"{path}: not a configuration: a YAML alias refers to itself") from None
        return cls(path, values, lines)

    def override(self, option: str) -> None:
        """Apply one ``a.b.0.c=value``; the value is read as YAML, and an index one past the end appends.

        Raises:
            ConfigError: if it is not of that form or leads through something that has no such key.
        """
        dotted, equals, text = option.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--set {option}: must have the form section.key=value")
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {option}: value is not valid YAML: {' '.join(str(error).split())}") from None
        here: Any = self.values
        keys = dotted.split(".")
        taken: list[str | int] = []
        for key, following in zip(keys, [*keys[1:], None], strict=True):
            step, there = _step(here, key, option)
            if following is None:
                there = value
            elif there is None:
                there = [] if following.isdecimal() else {}
            elif isinstance(there, str):  # a bare name, which stands for a part without arguments
                there = {"name": there}
            if isinstance(here, list) and step == len(here):
                here.append(there)
            else:
                here[step] = there
            taken.append(step)
            here = there
        self._overridden[tuple(taken)] = f"--set {option}"

    def located(self, error: ConfigError) -> ConfigError:
        """The error with the place in front that its path stands at: a ``--set`` option, or file and line."""
        dotted = ".".join(map(str, error.path))
        shown = f"{dotted}: {error}" if dotted else str(error)
        for length in range(len(error.path), 0, -1):
            key = error.path[:length]
            if key in self._overridden:
                return ConfigError(f"{self._overridden[key]}: {shown}")
            if key in self._lines:
                return ConfigError(f"{self.path}:{self._lines[key]}: {shown}")
        return ConfigError(f"{self.path}: {shown}")


def _step(here: Any, key: str, option: str) -> tuple[str | int, Any]:
    """The key as this container takes it, and what is there (None if nothing is)."""
    if isinstance(here, dict):
        return key, here.get(key)
    if isinstance(here, list):
        if key.isdecimal() and int(key) <= len(here):
            return int(key), here[int(key)] if int(key) < len(here) else None
        raise ConfigError(f"--set {option}: {key!r} must be an index from 0 to {len(here)}")
    raise ConfigError(f"--set {option}: {here!r} is a single value, it has no {key!r} to set")


def _collect_lines(path: Path, node: yaml.Node | None, keys: Keys, lines: dict[Keys, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            here = (*keys, key_node.value)
            line = key_node.start_mark.line + 1
            if here in lines:
                raise ConfigError(
                    f"{path}:{line}: {'.'.join(map(str, here))} is given twice, first in line {lines[here]}"
                )
            lines[here] = line
            _collect_lines(path, value_node, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value_node in enumerate(node.value):
            lines[*keys, index] = value_node.start_mark.line + 1
            _collect_lines(path, value_node, (*keys, index), lines)
