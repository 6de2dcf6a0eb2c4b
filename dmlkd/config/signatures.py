"""The constructor is the schema: arguments from a configuration are checked against what is called with them."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dmlkd.errors import ConfigError, UserError, suggestion

T = TypeVar("T")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function or class; where a constructor passes ``**kwargs`` up, those above too.

    Of the parameters above, those without default are taken to be the constructor's to fill in, unless it passes
    ``*args`` up as well.

    >>> class A:
    ...     def __init__(self, shape, a=1): ...
    >>> class B(A):
    ...     def __init__(self, b, **kwargs): ...
    >>> list(parameters(B))
    ['b', 'a']
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [c.__dict__["__init__"] for c in target.__mro__ if "__init__" in c.__dict__]
    found: dict[str, inspect.Parameter] = {}
    required_too = True
    for function in functions:
        here = inspect.signature(function).parameters.values()
        for parameter in here:
            given = required_too or parameter.default is not inspect.Parameter.empty
            if parameter.kind in _NAMED and parameter.name != "self" and given:
                found.setdefault(parameter.name, parameter)
        kinds = {p.kind for p in here}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
        required_too = inspect.Parameter.VAR_POSITIONAL in kinds
    return found


def checked(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: tuple[str | int, ...],
    *,
    supplied: Collection[str] = (),
) -> dict[str, Any]:
    """The arguments, converted to the annotated types.

    A parameter without annotation takes what its default's kind allows: a number for a number, anything else freely.

    Args:
        target: what will be called with them.
        arguments: as the user gave them.
        path: where they stand in the configuration.
        supplied: parameters that the caller adds, not the user.

    Raises:
        ConfigError: for an argument that is unknown, missing or of the wrong type.
    """
    valid = {name: p for name, p in parameters(target).items() if name not in supplied}
    for name in arguments:
        if name not in valid:
            raise ConfigError(f"unknown key {name!r}{suggestion(name, valid)}", (*path, name))
    for name, parameter in valid.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"key {name!r} is missing", path)
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return {
        name: _converted(value, hints.get(name), valid[name].default, (*path, name))
        for name, value in arguments.items()
    }


def constructed(
    target: Callable[..., T], arguments: Mapping[str, Any], path: tuple[str | int, ...], **supplied: Any
) -> T:
    """Call a constructor with converted arguments; what it refuses becomes a configuration error at ``path``."""
    converted = checked(target, arguments, path, supplied=supplied)
    try:
        return target(**converted, **supplied)
    except ConfigError as error:
        raise ConfigError(str(error), path + error.path) from None
    except UserError as error:
        raise ConfigError(str(error), path) from None
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{getattr(target, '__name__', target)} refuses its arguments: {reason}", path) from error


def _converted(value: Any, hint: Any, default: Any, path: tuple[str | int, ...]) -> Any:
    if hint is None:
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        if numeric and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise ConfigError(f"must be a number, got {value!r}", path)
        return value
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ConfigError(explain(error.errors()[0]), path) from None


def explain(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as "must be ..., got ..."."""
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message.replace("Input should be", "must be")
    return f"{message}, got {error['input']!r}"
