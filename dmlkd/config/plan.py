"""Plans: an ordered set of fits, each a change of common sections, each able to name earlier ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmlkd.config.load import checked_config, read_source
from dmlkd.config.schema import DataConfig, Part, ReplayConfig, RunConfig, TermConfig, named
from dmlkd.config.yaml_source import Keys, YamlSource
from dmlkd.errors import ConfigError, UserError, suggestion

PREVIOUS = "previous"
"""Stands for the fit before, wherever an earlier fit is named."""


@dataclass(frozen=True)
class PlanFit:
    """One fit of a plan.

    Attributes:
        name: unique in the plan; its run folder is called that.
        config: as resolved, earlier fits by their own names.
        located: what is wrong in ``config``, with the path of what says so in the plan.
    """

    name: str
    config: RunConfig
    located: Callable[[ConfigError], ConfigError] = field(compare=False, repr=False)


@dataclass(frozen=True)
class PlanConfig:
    """A whole plan.

    Attributes:
        fits: in the order in which they run.
    """

    fits: tuple[PlanFit, ...]

    def to_yaml(self) -> str:
        """The plan as resolved: every fit with all its sections. What a plan folder's ``plan.yaml`` holds."""
        fits = [{"name": fit.name, **yaml.safe_load(fit.config.to_yaml())} for fit in self.fits]
        return yaml.safe_dump({"plan": fits}, sort_keys=False)


def load_training(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig | PlanConfig, YamlSource]:
    """Read a configuration file of one run, or of a plan: one with the section ``plan``.

    Args:
        path: of the YAML file.
        overrides: the values of ``--set``.

    Returns:
        What is to be trained, every fit of it checked, and its source, which knows the line of each key.

    Raises:
        ConfigError: one line that names the file, the line where possible, what is wrong and what would be right.
    """
    source = read_source(path, overrides)
    try:
        return (_plan(source.values) if "plan" in source.values else checked_config(source.values)), source
    except ConfigError as error:
        raise source.located(error) from None


def _plan(values: Mapping[str, Any]) -> PlanConfig:
    common = {key: value for key, value in values.items() if key != "plan"}
    entries = values["plan"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"must be a list of at least one fit, got {entries!r}", ("plan",))
    fits: list[PlanFit] = []
    for index, given in enumerate(entries):
        entry = named(given)
        if not isinstance(entry, dict):
            raise ConfigError(f"must be a fit's name, or a mapping with its name, got {given!r}", ("plan", index))
        own = {key: value for key, value in entry.items() if key not in ("name", "repeat")}
        for name in _names(entry, index, [fit.name for fit in fits]):
            located = _locator(name, common, own, ("plan", index))
            try:
                config = _resolved(checked_config(laid_over(common, own)), fits)
            except ConfigError as error:
                raise located(error) from None
            fits.append(PlanFit(name, config, located))
    return PlanConfig(tuple(fits))


def _names(entry: Mapping[str, Any], index: int, taken: Sequence[str]) -> list[str]:
    """The name of an entry's fit, or the names of its repetitions."""
    from dmlkd.models.saved import fit_name

    path: Keys = ("plan", index)
    valid = ("name", "repeat", *RunConfig.model_fields)
    for key in entry:
        if key not in valid:
            raise ConfigError(f"unknown key {key!r}{suggestion(key, valid)}", (*path, key))
    if "name" not in entry:
        raise ConfigError("key 'name' is missing", path)
    repeat = entry.get("repeat")
    if repeat is not None and (not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1):
        raise ConfigError(f"must be a whole number of at least 1, got {repeat!r}", (*path, "repeat"))
    names = [entry["name"]] if repeat is None else [f"{entry['name']}-{number + 1}" for number in range(repeat)]
    for name in names:
        try:
            fit_name(name)
        except UserError as error:
            raise ConfigError(str(error), (*path, "name")) from None
        if name == PREVIOUS:
            raise ConfigError(f"{PREVIOUS!r} stands for the fit before: choose another name", (*path, "name"))
        if name.casefold() in map(str.casefold, taken):
            raise ConfigError(f"there is a fit {name!r} already", (*path, "name"))
    return names


def laid_over(common: Any, own: Any) -> Any:
    """One value over another: mappings are merged key by key, but a part of another name replaces; so does all else.

    >>> laid_over({"train": {"epochs": 3, "lr": 1}}, {"train": {"epochs": 5}})
    {'train': {'epochs': 5, 'lr': 1}}
    >>> laid_over({"name": "A", "alpha": 2}, {"name": "B"}), laid_over("A", {"name": "A", "beta": 1})
    ({'name': 'B'}, {'name': 'A', 'beta': 1})
    """
    if isinstance(own, dict) and "name" in own:
        common = named(common)
    if not isinstance(own, dict) or not isinstance(common, dict):
        return own
    if own.get("name", common.get("name")) != common.get("name"):
        return own
    return {**common, **{key: laid_over(common.get(key), value) for key, value in own.items()}}


def _locator(name: str, common: object, own: object, entry: Keys) -> Callable[[ConfigError], ConfigError]:
    """Says which fit is wrong, and whether its own entry or a common section says so: the one that says more of it."""

    def located(error: ConfigError) -> ConfigError:
        inside = _depth(own, error.path) >= _depth(common, error.path)
        return ConfigError(f"{error} (fit {name})", (*entry, *error.path) if inside else error.path)

    return located


def _depth(values: Any, path: Keys) -> int:
    """How many keys of a path are there."""
    for depth, key in enumerate(path):
        try:
            values = values[key]
        except (LookupError, TypeError):
            return depth
    return len(path)


def _resolved(config: RunConfig, earlier: Sequence[PlanFit]) -> RunConfig:
    """The configuration with each fit that it names by its own name.

    Raises:
        ConfigError: for one that does not come before, or folds that do not fit together.
    """
    changed: dict[str, Any] = {}
    if config.start is not None and config.start.fit is not None:
        changed["start"] = config.start.model_copy(
            update={"fit": _earlier(config.start.fit, earlier, ("start", "fit"))}
        )
    if config.data.replay is not None:
        changed["data"] = _resolved_memory(config, config.data.replay, earlier)
    terms = [_resolved_term(term, config, earlier, ("distill", index)) for index, term in enumerate(config.distill)]
    return config.model_copy(update={**changed, "distill": tuple(terms)})


def _resolved_term(term: TermConfig, config: RunConfig, earlier: Sequence[PlanFit], path: Keys) -> TermConfig:
    if term.teacher is None:
        return term
    arguments, path = term.teacher.arguments, (*path, "teacher")
    if arguments.get("fit") is not None:
        arguments["fit"] = _earlier(arguments["fit"], earlier, (*path, "fit"))
    if arguments.get("fits") is not None:
        path = (*path, "fits")
        arguments["fits"] = [_earlier(name, earlier, (*path, index)) for index, name in enumerate(arguments["fits"])]
        _check_folds([fit for fit in earlier if fit.name in arguments["fits"]], config, path)
    return term.model_copy(update={"teacher": Part(name=term.teacher.name, **arguments)})


def _resolved_memory(config: RunConfig, replay: ReplayConfig, earlier: Sequence[PlanFit]) -> DataConfig:
    path: Keys = ("data", "replay", "fit")
    name = _earlier(replay.fit, earlier, path)
    theirs = next(fit.config for fit in earlier if fit.name == name)
    if not same_images(theirs, config):
        raise ConfigError(f"fit {name} has another data section or train.seed: its rows are not the same", path)
    return config.data.model_copy(update={"replay": replay.model_copy(update={"fit": name})})


def _earlier(name: str, earlier: Sequence[PlanFit], path: Keys) -> str:
    names = [fit.name for fit in earlier]
    if not names:
        raise ConfigError(f"names the fit {name!r}, but no fit comes before this one", path)
    if name == PREVIOUS:
        return names[-1]
    if name not in names:
        raise ConfigError(f"no fit {name!r} comes before this one{suggestion(name, [*names, PREVIOUS])}", path)
    return name


def _check_folds(fits: Sequence[PlanFit], config: RunConfig, path: Keys) -> None:
    """Refuse fits that do not leave out each image of this one's just once."""
    expected = _images(config)
    for fit in fits:
        data = fit.config.data
        if data.image_folds is None or data.image_fold is None:
            raise ConfigError(
                f"fit {fit.name} leaves no images out: it needs data.image_folds and data.image_fold", path
            )
        if _images(fit.config) != expected:
            raise ConfigError(f"fit {fit.name} has another data section or train.seed: its rows are not the same", path)
    folds = sorted(fit.config.data.image_fold or 0 for fit in fits)
    if folds != list(range(config.data.image_folds or 0)):
        raise ConfigError(f"must name a fit for each of {config.data.image_folds} folds, these have {folds}", path)


def same_images(one: RunConfig, other: RunConfig) -> bool:
    """Whether two fits have the same training images, rows and tasks, whatever task they are of."""
    return _images(one, without=("task", "replay")) == _images(other, without=("task", "replay"))


def _images(config: RunConfig, *, without: Sequence[str] = ("image_fold",)) -> object:
    """What settles the training images and their rows, but for the part of them that is trained on."""
    return config.data.model_dump(exclude={*without, "workers", "in_memory", "cache"}), config.train.seed
