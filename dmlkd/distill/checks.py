"""The one place where the numbers a method is given are checked."""

import math
from numbers import Real
from typing import TypeVar

Choice = TypeVar("Choice", bound=str)


def positive(name: str, value: object) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: naming the argument and its value, unless it is a finite number above 0.

    >>> positive("temperature", -1)
    Traceback (most recent call last):
    ValueError: temperature must be a finite number above 0, got -1
    """
    number = _finite(value)
    if number is not None and number > 0:
        return number
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def not_negative(name: str, value: object) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: naming the argument and its value, unless it is a finite number of at least 0.
    """
    number = _finite(value)
    if number is not None and number >= 0:
        return number
    raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def within(name: str, value: object, low: float, high: float) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: naming the argument and its value, unless it is a number from ``low`` to ``high``.
    """
    number = _finite(value)
    if number is not None and low <= number <= high:
        return number
    raise ValueError(f"{name} must be a number from {low} to {high}, got {value!r}")


def below(name: str, value: object, low: float, high: float) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: naming the argument and its value, unless it is a number from ``low`` to below ``high``.
    """
    number = _finite(value)
    if number is not None and low <= number < high:
        return number
    raise ValueError(f"{name} must be a number of at least {low} and below {high}, got {value!r}")


def whole(name: str, value: object) -> int:
    """Return ``value``.

    Raises:
        ValueError: naming the argument and its value, unless it is a whole number of at least 1.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def one_of(name: str, value: object, valid: tuple[Choice, ...]) -> Choice:
    """Return ``value``.

    Raises:
        ValueError: naming the argument and its value, unless it is one of ``valid``.
    """
    for choice in valid:
        if isinstance(value, str) and value == choice:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)
