"""The run-time check of shapes and types that the tests put on every function of the package.

jaxtyping checks the arguments of each call twice and binds them to names once more, and makes the checks of an inner
function anew whenever it is defined: half of the suite's time. Here beartype's checks are made at a function's first
call, inner functions share those of their code object, and only functions with shapes in their signature have a record
of dimensions, which jaxtyping's annotations write and read. A dimension can't name an argument's value ("{n}").
"""

import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NamedTuple, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, _decorator, _storage, config


# PEP 484's numeric tower: an int is good where a float is asked for, as for pyright.
class WrongTypeError(TypeError):
    """An argument or a result isn't what the signature says. A pack takes a TypeError of the model's as a reason to
    run it in another way; so it must be one."""


check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=WrongTypeError))

Function = Callable[..., Any]


class Checks(NamedTuple):
    """The checks that all functions of one code object share.

    Args:
        has_shapes: Whether an array's type stands in the signature.
        arguments: Checks the arguments that it is called with.
        result: Checks a result; None where the signature promises none.
    """

    has_shapes: bool
    arguments: Function
    result: Callable[[Any], Any] | None


_classes = _decorator.jaxtyped
_checks: dict[CodeType, Checks] = {}


def _has_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    inner = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    return any(map(_has_shape, inner))


def _resolved(function: FunctionType) -> inspect.Signature:
    """A function's signature, with types in place of their names."""

    def resolved(annotation: Any) -> Any:
        if annotation is inspect.Signature.empty:
            return annotation
        return _decorator._destring_annotation(annotation, function.__globals__)

    signature = inspect.signature(function)
    parameters = [p.replace(annotation=resolved(p.annotation)) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=resolved(signature.return_annotation))


def _annotated(signature: inspect.Signature) -> dict[str, Any]:
    """A signature's types by name, as in `__annotations__`."""
    given = {p.name: p.annotation for p in signature.parameters.values()} | {"return": signature.return_annotation}
    return {name: annotation for name, annotation in given.items() if annotation is not inspect.Signature.empty}


def _checks_of(function: FunctionType) -> Checks:
    """The checks of an inner function, made once: its arguments' and its result's, apart from its call."""
    if function.__code__ not in _checks:
        signature, empty = _resolved(function), inspect.Signature.empty
        names, returned = (function.__name__, function.__qualname__, function.__module__), signature.return_annotation
        asked = signature.replace(return_annotation=empty)
        arguments = check(_decorator._make_fn_with_signature(*names, asked, output=False))
        result = None
        if returned is not empty:
            given = inspect.Signature([inspect.Parameter("it", inspect.Parameter.POSITIONAL_ONLY, annotation=returned)])
            result = check(_decorator._make_fn_with_signature(*names, given, output=False))
        shapes = any(map(_has_shape, _annotated(signature).values()))
        _checks[function.__code__] = Checks(shapes, arguments, result)
    return _checks[function.__code__]


def _recorded(function: Function) -> Function:
    """A function in whose calls each dimension has one size."""

    def recorded(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        sizes = _storage.push_shape_memo({})
        try:
            return function(*args, **kwargs)
        except WrongTypeError as error:
            error.add_note(_storage.shape_str(sizes))
            raise
        finally:
            _storage.pop_shape_memo()

    return recorded


def _made_inner(function: FunctionType) -> Function:
    has_shapes, arguments, result = _checks_of(function)

    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        arguments(*args, **kwargs)
        out = function(*args, **kwargs)
        if result is not None:
            result(out)
        return out

    return _recorded(called) if has_shapes else called


def _made(function: FunctionType) -> Function:
    """The checked function. A generator's result is looked at and not run through, as for inner functions."""
    if "<locals>" in function.__qualname__ or inspect.isgeneratorfunction(function):
        return _made_inner(function)
    code, names, given, cells = function.__code__, function.__globals__, function.__defaults__, function.__closure__
    whole = FunctionType(code, names, function.__name__, given, cells)
    whole.__kwdefaults__, whole.__qualname__ = function.__kwdefaults__, function.__qualname__
    whole.__module__, whole.__annotations__ = function.__module__, _annotated(_resolved(function))
    has_shapes = any(map(_has_shape, whole.__annotations__.values()))
    checked = check(whole)
    return _recorded(checked) if has_shapes else checked


def _checked(function: FunctionType) -> Function:
    made: Function | None = None

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal made
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        if made is None:
            made = _made(function)
        return made(*args, **kwargs)

    return checked


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, which passes functions on to beartype."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if config.jaxtyping_disable:
        return function  # as a compiler that traces the definition of an inner function must find it
    if inspect.isfunction(function):
        return function if getattr(function, "__no_type_check__", False) else _checked(function)
    return _classes(function, typechecker=typechecker)


jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
