"""The run-time check of shapes and types that the tests put on every function of the package.

jaxtyping binds the arguments of each call several times, and makes the checks of an inner function anew whenever it is
defined: half of the suite's time. Only functions with shapes in their signature need that. The others have their
arguments and results checked by beartype, with checks made once; a call that fails goes to jaxtyping for its error.
"""

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeException
from jaxtyping import AbstractArray, _decorator, config

# PEP 484's numeric tower: an int is good where a float is asked for, as for pyright.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

Checks = tuple[Callable[..., Any], Callable[[Any], Any] | None]

_with_shapes = _decorator.jaxtyped
_checks: dict[CodeType, Checks | None] = {}


def _has_shape(annotation: Any) -> bool:
    """Whether an array's type stands in an annotation."""
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    inner = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    return any(map(_has_shape, inner))


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    return annotation if annotation is inspect.Parameter.empty else _decorator._destring_annotation(annotation, names)


def _checks_of(function: Callable[..., Any]) -> Checks | None:
    """What checks a function's arguments and its result; None where shapes must be known to do so."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_resolved(parameter.annotation, function.__globals__))
        for parameter in signature.parameters.values()
    ]
    result = _resolved(signature.return_annotation, function.__globals__)
    if _has_shape([parameter.annotation for parameter in parameters]) or _has_shape(result):
        return None
    names = (function.__name__, function.__qualname__, function.__module__)
    asked = signature.replace(parameters=parameters, return_annotation=Any)
    arguments = check(_decorator._make_fn_with_signature(*names, asked, output=False))
    if result is inspect.Signature.empty:
        return arguments, None
    given = inspect.Signature([inspect.Parameter("result", inspect.Parameter.POSITIONAL_ONLY, annotation=result)])
    return arguments, check(_decorator._make_fn_with_signature(*names, given, output=False))


def _plain(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    code = function.__code__
    if code not in _checks:
        _checks[code] = _checks_of(function)
    checks = _checks[code]
    if checks is None:
        return _with_shapes(function, typechecker=typechecker)
    arguments, result = checks

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        try:
            arguments(*args, **kwargs)
        except (BeartypeException, TypeError):
            return _with_shapes(function, typechecker=typechecker)(*args, **kwargs)
        out = function(*args, **kwargs)
        if result is not None:
            result(out)
        return out

    return checked


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, which passes functions without shapes on to beartype."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if config.jaxtyping_disable:
        return function  # as a compiler that traces the definition of an inner function must find it
    if inspect.isfunction(function) and not getattr(function, "__no_type_check__", False):
        return _plain(function, typechecker)
    return _with_shapes(function, typechecker=typechecker)


jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
