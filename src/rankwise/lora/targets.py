"""From patterns to the modules they match, each with its rank and scale; and what was left out, and why."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rankwise.errors import TargetError, suggest
from rankwise.lora.config import LoRAConfig, TargetPattern
from rankwise.lora.layer_types import LayerType, layer_type_of, obstacle
from rankwise.lora.maths import parameter_count
from rankwise.lora.ties import Tie, sharers, tied_to

ALL_LINEAR = "all-linear"
BY_NAME_ONLY = "by name only"
"""Why "all-linear" leaves out what could be adapted but is no matrix."""
ADAPTER_CHILD = "lora"
"""Name of the submodule that holds A and B of an adapted layer."""


@dataclass(frozen=True)
class Target:
    """A module to adapt, with the numbers of its adapter.

    Args:
        name: First path of the module in the model; "" where the model is the layer itself.
        module: The layer.
        layer_type: Its row in `LAYER_TYPES`.
        d_in: Inputs.
        d_out: Outputs.
        r: Rank here.
        alpha: Alpha here.
        scale: s in h = W x + s B A x.
        aliases: Other paths of the same module, and those of its ties.
        ties: Other modules with the same weight, in which the adapter acts too.
        untie: Whether the module is to get a copy of a weight that it shares.
    """

    name: str
    module: nn.Module
    layer_type: LayerType
    d_in: int
    d_out: int
    r: int
    alpha: float
    scale: float
    aliases: tuple[str, ...] = ()
    ties: tuple[Tie, ...] = ()
    untie: bool = False

    @property
    def parameters(self) -> int:
        """Trainable numbers: r (d_in + d_out)."""
        return parameter_count(self.r, self.d_in, self.d_out)


@dataclass(frozen=True)
class LeftOut:
    """A module with weights that gets no adapter, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class Targets:
    """What `find_targets` found, in the model's order."""

    adapted: list[Target]
    left_out: list[LeftOut]


def walk(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every path and its module, a shared module under each of its names; adapters are passed over."""
    yield name, model
    adaptable = layer_type_of(model) is not None
    for child_name, child in model._modules.items():  # pyright: ignore[reportPrivateUsage]
        if child is not None and not (adaptable and child_name == ADAPTER_CHILD):
            yield from walk(child, f"{name}.{child_name}" if name else child_name)


class Patterns:
    """Patterns that find what they match, and remember which of them matched anything.

    A name matches a module of that path and one whose path ends in it after a dot. A glob or a regular
    expression ("re:...") must match the whole path. A predicate is called with (name, module).

    Args:
        patterns: As `LoRAConfig` takes them.

    Raises:
        TargetError: A regular expression is not one.

    Examples:
        >>> Patterns(["q_proj", "*.up", "re:h[.]0"]).matching(["h.0.q_proj"], nn.ReLU())
        ['q_proj']
    """

    def __init__(self, patterns: Iterable[TargetPattern]) -> None:
        self.all = list(patterns)
        # Plain names are looked up, not searched: 2,000 names over 2,000 modules stay cheap.
        self.plain: dict[str, int] = {}
        self.tests: list[tuple[int, Callable[[str, nn.Module], Any]]] = []
        for place, pattern in enumerate(self.all):
            if isinstance(pattern, str) and is_plain(pattern):
                self.plain.setdefault(pattern, place)
            else:
                self.tests.append((place, _test_of(pattern)))
        self.used: set[TargetPattern] = set()

    def matching(self, names: Sequence[str], module: nn.Module) -> list[TargetPattern]:
        """Return the patterns that match a module under any of its names, in the order they were given."""
        if not self.all:
            return []
        places = {self.plain[tail] for name in names for tail in _tails(name) if tail in self.plain}
        places.update(place for place, test in self.tests if any(test(name, module) for name in names))
        return [self.all[place] for place in sorted(places)]

    def mark(self, patterns: Iterable[TargetPattern]) -> None:
        """Note that these patterns found something that can be used."""
        self.used.update(patterns)

    def unused(self) -> list[TargetPattern]:
        """Return the patterns that matched nothing so far."""
        return [pattern for pattern in self.all if pattern not in self.used]


def is_plain(pattern: str) -> bool:
    """Tell a name from a glob and a regular expression."""
    return not pattern.startswith("re:") and not any(sign in pattern for sign in "*?[")


def _tails(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.split(".", 1)[1]
        yield name


def _test_of(pattern: TargetPattern) -> Callable[[str, nn.Module], Any]:
    if not isinstance(pattern, str):
        return pattern
    expression = pattern.removeprefix("re:") if pattern.startswith("re:") else fnmatch.translate(pattern)
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise TargetError(f'"{pattern}" is no regular expression: {error}.') from error
    return lambda name, module: compiled.fullmatch(name)


def as_list(patterns: TargetPattern | Sequence[TargetPattern]) -> list[TargetPattern]:
    """Return one pattern or several as a list."""
    return [patterns] if isinstance(patterns, str) or callable(patterns) else list(patterns)


def find_targets(model: nn.Module, config: LoRAConfig, *, untie: bool = False) -> Targets:
    """Find the modules that a configuration adapts. The model is not changed.

    Args:
        model: Any module; it may itself be the layer.
        config: Whose `target_modules`, `exclude_modules`, `rank_pattern` and `alpha_pattern` are read.
        untie: Whether a target that shares its weight is to get a copy of its own. Else its adapter acts in
            every module that has the weight.

    Returns:
        The targets in the model's order, and the modules with weights that are left out.

    Raises:
        TargetError: A pattern matches nothing, or a name matches something that can't be adapted; a target's
            weight is shared by something that can't use its adapter; nothing is left to adapt.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = find_targets(model, LoRAConfig(r=2, target_modules="0"))
        >>> [(t.name, t.parameters) for t in found.adapted], [(o.name, o.reason) for o in found.left_out]
        ([('0', 24)], [('2', 'no target names it')])
    """
    modules = named_once(model)
    wanted = as_list(config.target_modules)
    targets = Patterns(pattern for pattern in wanted if pattern != ALL_LINEAR)
    excludes = Patterns(as_list(config.exclude_modules))
    heads = _output_heads(modules) if ALL_LINEAR in wanted else {}
    adapted: list[tuple[nn.Module, list[str]]] = []
    left_out: list[LeftOut] = []
    shared = sharers(modules)
    out: set[nn.Module] = set()
    for module, names in modules:
        found = targets.matching(names, module)
        excluded = excludes.matching(names, module)
        blocked = obstacle(module)
        row = layer_type_of(module)
        if excluded:
            out.add(module)
        if not blocked:
            targets.mark(found)
            excludes.mark(excluded)
        elif any(isinstance(pattern, str) and is_plain(pattern) for pattern in found) and not excluded:
            raise TargetError(_cannot_adapt(module, names[0], blocked))
        if not found and (row is None or ALL_LINEAR not in wanted):
            reason = "no target names it" if row else blocked if ALL_LINEAR in wanted and _has_matrix(module) else ""
        elif excluded:
            reason = "excluded" if row else ""
        elif blocked:
            reason = blocked if _has_matrix(module) or row else ""
        else:
            reason = "" if found else heads.get(module, "") if row is None or row.linear else BY_NAME_ONLY
            if not reason:
                adapted.append((module, names))
        if reason:
            left_out.append(LeftOut(names[0], type(module).__name__, reason))

    if targets.unused() or excludes.unused():
        adaptable = [name for module, names in modules if not obstacle(module) for name in names]
        _require_all_used(targets, "module matches target", adaptable)
        _require_all_used(excludes, "layer matches exclude_modules", adaptable)
    if not adapted:
        reasons = ", ".join(f'"{out.name}" ({out.reason})' for out in left_out[:5]) or "it has no linear layer"
        raise TargetError(f"Nothing in the {type(model).__name__} is left to adapt: {reasons}.")
    weights = {module: _weight_parameter(module) for module, _ in adapted}
    ties: dict[nn.Module, tuple[Tie, ...]] = {}
    if shared and not untie:
        adapted, ties = _joined(adapted, shared, weights, out, [module for module, _ in modules])
        acting = {names[0] for _, names in adapted} | {tie.name for found in ties.values() for tie in found}
        left_out = [entry for entry in left_out if entry.name not in acting]
    untied = {module for module, weight in weights.items() if untie and weight in shared}
    targets_found = [
        replace(target, ties=ties.get(target.module, ()), untie=target.module in untied)
        for target in _with_numbers(adapted, config)
    ]
    return Targets(targets_found, left_out)


def _weight_parameter(module: nn.Module) -> nn.Parameter | None:
    return module._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]  (None where it is computed)


def _joined(
    adapted: list[tuple[nn.Module, list[str]]],
    shared: Mapping[nn.Parameter, list[tuple[nn.Module, list[str]]]],
    weights: Mapping[nn.Module, nn.Parameter | None],
    excluded: set[nn.Module],
    positions: Sequence[nn.Module],
) -> tuple[list[tuple[nn.Module, list[str]]], dict[nn.Module, tuple[Tie, ...]]]:
    """Put the first of the modules with one weight in the place of all; the others use its adapter."""
    firsts: list[tuple[nn.Module, list[str]]] = []
    ties: dict[nn.Module, tuple[Tie, ...]] = {}
    for module, names in adapted:
        weight = weights[module]
        users = shared.get(weight, []) if weight is not None else []
        if not users:
            firsts.append((module, names))
        elif users[0][0] not in ties:
            tied_to(module, users, excluded)  # the target itself is named where one of the others can't follow
            first, first_names = users[0]
            ties[first] = tied_to(first, users, excluded)
            firsts.append((first, [*first_names, *(name for _, others in users[1:] for name in others)]))
    place = {module: i for i, module in enumerate(positions)}
    return sorted(firsts, key=lambda named: place[named[0]]), ties


def named_once(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Return every module once, in the model's order, with all its paths."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in walk(model):
        names.setdefault(module, []).append(name)
    return list(names.items())


def matching_values(patterns: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the value of the first pattern that matches, for each name that one matches.

    Examples:
        >>> matching_values({"h.0.up": 4, "up": 2}, ["h.0.up", "h.1.up", "down"])
        {'h.0.up': 4, 'h.1.up': 2}
    """
    known, nothing = Patterns(patterns), nn.Module()
    found = {name: known.matching([name], nothing) for name in names}
    return {name: patterns[str(matches[0])] for name, matches in found.items() if matches}


def pinned(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return a pattern that gives each module its value and matches none by accident.

    Examples:
        >>> pinned({"a": 4, "b": 8}, 8)
        {'a': 4}
        >>> pinned({"a": 4, "block.a": 8}, 8)
        {'re:a': 4}
    """
    # In the order that a file will have, for the first match counts.
    differing = {name: value for name, value in sorted(values.items()) if value != default}
    reached = matching_values(differing, values)
    if all(reached.get(name, default) == value for name, value in values.items()):
        return differing
    return {f"re:{re.escape(name)}": value for name, value in differing.items()}


def _with_numbers(adapted: list[tuple[nn.Module, list[str]]], config: LoRAConfig) -> list[Target]:
    ranks, alphas = Patterns(config.rank_pattern), Patterns(config.alpha_pattern)
    result: list[Target] = []
    for module, names in adapted:
        row = layer_type_of(module)
        if row is None:
            continue
        rank_keys, alpha_keys = ranks.matching(names, module), alphas.matching(names, module)
        ranks.mark(rank_keys)
        alphas.mark(alpha_keys)
        r = config.rank_pattern[str(rank_keys[0])] if rank_keys else config.r
        alpha = config.alpha_pattern[str(alpha_keys[0])] if alpha_keys else config.alpha
        d_in, d_out = row.dims(module)
        result.append(
            Target(names[0], module, row, d_in, d_out, r, alpha, config.scale(r, alpha), aliases=tuple(names[1:]))
        )
    names = [name for _, names in adapted for name in names]
    _require_all_used(ranks, "adapted module matches rank_pattern", names)
    _require_all_used(alphas, "adapted module matches alpha_pattern", names)
    return result


def _require_all_used(patterns: Patterns, what: str, names: list[str]) -> None:
    """Raise for the first pattern that found nothing, with what there is and the nearest name."""
    for pattern in patterns.unused():
        ends = sorted({name.rsplit(".", 1)[-1] for name in names})
        shown = ", ".join(ends[:12]) + (", ..." if len(ends) > 12 else "")
        there = f"Those there are end in: {shown}." if shown else "There are none at all."
        if not isinstance(pattern, str):
            raise TargetError(f"No {what} {getattr(pattern, '__name__', pattern)!r} (a predicate). {there}")
        if what.startswith("module"):
            there = there.replace("Those there are", "Those that can be adapted")
        raise TargetError(f'No {what} "{pattern}". {there}{suggest(pattern, [*ends, *names])}')


def _cannot_adapt(module: nn.Module, name: str, why: str) -> str:
    message = f'"{name}" ({type(module).__name__}) can\'t be adapted: {why}.'
    if any(not obstacle(child) for child in module.modules()):
        message += f' Name the layers inside it, for example "{name}.*".'
    return message


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _output_heads(modules: list[tuple[nn.Module, list[str]]]) -> dict[nn.Module, str]:
    """Find the output heads of transformers models, which "all-linear" leaves out."""
    heads: dict[nn.Module, str] = {}
    for module, _ in modules:
        get_head = getattr(type(module), "get_output_embeddings", None)
        head = get_head(module) if get_head else None
        if isinstance(head, nn.Module):
            heads[head] = "output head; name it to adapt it"
    return heads
