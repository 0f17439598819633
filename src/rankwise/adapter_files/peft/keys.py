"""Keys of PEFT's tensor files, both ways: which module, and which part of its adapter."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.peft.config import variant_of
from rankwise.adapter_files.peft.layer_tensors import KEY_ENDS
from rankwise.lora.trained_modules import joined
from rankwise.lora.variants import VARIANTS, Variant

PREFIX = "base_model.model"
BASE_LAYER = "base_layer"
"""PEFT's name between an adapted layer and its own parameters."""

OWN_KEYS = {
    tensor.key: name
    for name, variant in VARIANTS.items()
    for tensor in variant.tensors
    if tensor.key and not tensor.shared
}
"""End of the key of what a variant has in every module in addition to A and B, or in their place -> the variant."""

SHARED_KEYS = {
    f"base_model.{tensor.key}": name for name, variant in VARIANTS.items() for tensor in variant.shared if tensor.key
}
"""Key of what all modules of a variant share -> the variant."""

TOKENS_OWNER = "token_adapter"
"""PEFT's wrapper of a layer with single trained rows."""

TOKENS_KEY = f"{TOKENS_OWNER}.trainable_tokens_delta"
"""End of the key of single rows, which are what they have become, whatever the name says."""

BIAS_KEY = "lora_B.bias"
"""End of the key of the bias that B has with `lora_bias`."""

LINEAR_KEYS = ("lora_A.weight", "lora_B.weight")
"""Ends of the keys of A and B, where a layer type has none of its own."""

_RESIZED = {"embed_tokens", "lm_head"}
"""Layers whose weight PEFT saves whole, without saying so in its settings, after the vocabulary was resized."""

_CAUSES = {
    **{
        rf".*{key}.*": f"It is of a {variant.label} adapter, but the settings don't say {variant.peft.mark}."
        for key, name in {**OWN_KEYS, **SHARED_KEYS}.items()
        for variant in [VARIANTS[name]]
    },
    r".*lora_B\.bias": "It is a bias of an adapter, but the settings don't say lora_bias.",
    r".*\.lora_[AB]": "It is of loralib; load_loralib reads its files.",
    r".*lora_[AB]\.[^.]+\.weight": "It names an adapter inside the key: was it saved with state_dict()?",
    rf"(?!{re.escape(PREFIX)}\.).*lora_[AB]\.weight": f'It lacks the prefix "{PREFIX}.".',
}
"""Form of a key that can't be used -> why."""


_OF_ADAPTERS = re.compile(rf"(^|\.)(lora_(A|B|embedding_A|embedding_B)|{'|'.join(OWN_KEYS)})(\.|$)")
"""Parts of adapters' keys that a base's keys hardly ever have."""


@dataclass
class Parts:
    """The tensors of a file, sorted.

    Args:
        pairs: Module path -> (A, B).
        replacements: Path of a parameter or buffer of the base -> what the adapter has in its place.
        own: Module path -> what its variant has there in addition to A and B, by name, in PEFT's shape.
        shared: What all modules of its variant share, by name.
        tokens: Module path -> rows of single tokens.
        biases: Module path -> the bias of its B.
    """

    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    replacements: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


def key_of(name: str, end: str) -> str:
    """Return the key of a module's A or B.

    Examples:
        >>> key_of("h.0.up", "lora_A.weight")
        'base_model.model.h.0.up.lora_A.weight'
    """
    return joined(PREFIX, name, end)


def is_pair(A: Tensor, B: Tensor) -> bool:
    """Tell whether A and B have one r; a grouped convolution's B has r / groups columns."""
    same = A.shape[0] % B.shape[1] == 0 if A.ndim > 2 else A.shape[0] == B.shape[1]
    return A.ndim == B.ndim >= 2 and same


def saved_key_of(name: str, adapted: Collection[str]) -> str:
    """Return the key of a parameter that is saved whole; one of an adapted layer lies in its `base_layer`.

    Examples:
        >>> saved_key_of("up.bias", {"up"}), saved_key_of("head.weight", {"up"})
        ('base_model.model.up.base_layer.bias', 'base_model.model.head.weight')
    """
    owner, _, leaf = name.rpartition(".")
    return joined(PREFIX, owner, BASE_LAYER if owner in adapted else "", leaf)


def sorted_parts(
    where: object,
    flat: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    findings: Findings,
    known: Collection[str] = (),
    embeddings: Collection[str] = (),
    buffers: Collection[str] = (),
) -> Parts:
    """Sort a file's tensors by what they are.

    Args:
        where: The file, for messages.
        flat: Key -> tensor.
        fields: The settings, which say what is saved whole.
        findings: Takes what can't be used.
        known: Paths of the model's own parameters and buffers, where the model is known: one may be called "lora_A", or
            lie in a module called "base_layer".
        embeddings: Paths of the model's embeddings, where the model is known.
        buffers: Paths of the buffers that the file holds because training had changed them.
    """
    variant, parts = VARIANTS[variant_of(fields)], Parts()
    ends = {tensor.key: tensor.name for tensor in variant.tensors if tensor.key and not tensor.shared}
    found = _by_kind(where, flat, fields, findings, known, parts)
    for name, half in found.halves.items():
        if _is_pair(where, name, half, findings):
            parts.pairs[name] = (half["A"], half["B"])
    if variant.shared:
        _share_pairs(where, variant, found.own, parts, findings)
    for name in sorted(found.own.keys() | parts.pairs.keys()) if ends else ():
        missing = [end for end, tensor in ends.items() if tensor not in found.own.get(name, {})]
        missing += [] if name in parts.pairs else [LINEAR_KEYS[0]]
        if missing:
            *before, last = [*([] if variant.shared else "AB"), *ends.values()]
            every = f"{', '.join(before)} and {last}"
            findings.add(
                f'{where} has no "{key_of(name, missing[0])}"; with {variant.peft.mark} every module has {every}.'
            )
            parts.pairs.pop(name, None)
    parts.own = {name: tensors for name, tensors in found.own.items() if name in parts.pairs}
    for name in sorted(found.biases.keys() ^ parts.pairs.keys()) if fields.get("lora_bias") else ():
        missing = BIAS_KEY if name in parts.pairs else LINEAR_KEYS[0]
        findings.add(f'{where} has no "{key_of(name, missing)}"; with lora_bias every module has A, B and a bias.')
        parts.pairs.pop(name, None)
    parts.biases = {name: tensor for name, tensor in found.biases.items() if name in parts.pairs}
    saved_here = _test_of_saved(fields, {*found.halves, *parts.tokens}, embeddings)
    for key, inside in found.others.items():
        name = _in_base(inside, known) or _path_of_saved(inside)
        if not {inside, name} & {*buffers} and not saved_here(name, inside):
            findings.add(_of_no_use(where, key))
        elif name:
            parts.replacements[name] = flat[key]
    return parts


@dataclass
class _Kinds:
    """Tensors by what their keys say, by module.

    Args:
        halves: "A" and "B" of modules.
        own: What the variant has in modules, by name.
        biases: Of B.
        others: Key -> path inside the model, of tensors that may be saved whole.
    """

    halves: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def _by_kind(
    where: object,
    flat: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    findings: Findings,
    known: Collection[str],
    parts: Parts,
) -> _Kinds:
    """Sort tensors by their keys alone; rows of tokens and what all modules share go into `parts` at once."""
    found, variant = _Kinds(), VARIANTS[variant_of(fields)]
    ends = {tensor.key: tensor.name for tensor in variant.tensors if tensor.key and not tensor.shared}
    shared = {f"base_model.{tensor.key}": tensor.name for tensor in variant.shared}
    for key, tensor in flat.items():
        inside = key.removeprefix(f"{PREFIX}.")
        in_model = inside != key
        if in_model and _in_base(inside, known):
            found.others[key] = inside
        elif in_model and (name := _module_before(inside, TOKENS_KEY)) is not None:
            parts.tokens[name] = tensor
        elif fields.get("lora_bias") and in_model and (name := _module_before(inside, BIAS_KEY)) is not None:
            found.biases[name] = tensor
        elif key in shared:
            parts.shared[shared[key]] = tensor
        elif in_model and (own := next((end for end in ends if _module_before(inside, end) is not None), None)):
            found.own.setdefault(_module_before(inside, own) or "", {})[ends[own]] = tensor
        else:
            end = next((end for end in KEY_ENDS if _module_before(inside, end) is not None), None)
            if not in_model or (end is None and _OF_ADAPTERS.search(key)):
                findings.add(_of_no_use(where, key))
            elif end is None:
                found.others[key] = inside
            elif _is_kernel(where, key, tensor, findings):
                found.halves.setdefault(_module_before(inside, end) or "", {})[KEY_ENDS[end]] = tensor
    return found


def _module_before(inside: str, end: str) -> str | None:
    """The module before the end of a key; None where the key has another end.

    Examples:
        >>> _module_before("h.up.lora_A.weight", "lora_A.weight"), _module_before("lora_A.weight", "lora_A.weight")
        ('h.up', '')
    """
    return inside.removesuffix(end).rstrip(".") if f".{inside}".endswith(f".{end}") else None


def _share_pairs(
    where: object, variant: Variant, own: Mapping[str, Mapping[str, Tensor]], parts: Parts, findings: Findings
) -> None:
    """Assign the shared A and B to every module of a file, before they are cut to its size."""
    missing = [tensor.key for tensor in variant.shared if tensor.name not in parts.shared]
    if missing:
        findings.add(
            f'{where} has no "base_model.{missing[0]}", which all modules of a {variant.label} adapter share, and '
            "drawing it again may give other numbers on another machine. Save the adapter with its projections."
        )
    elif _is_pair(where, "base_model", parts.shared, findings):
        parts.pairs |= dict.fromkeys(own, (parts.shared["A"], parts.shared["B"]))


def _in_base(inside: str, known: Collection[str]) -> str:
    """Return the base's parameter or buffer that a key means, whatever words are in its path; empty for none."""
    if BASE_LAYER not in inside:
        return inside if inside in known else ""
    adapted = re.sub(rf"(^|\.){BASE_LAYER}\.([^.]+)$", r"\1\2", inside)
    return next((path for path in (inside, adapted, re.sub(_WRAPPED, r"\1\2", inside)) if path in known), "")


_WRAPPED = rf"(^|\.)(?:{TOKENS_OWNER}\.)?{BASE_LAYER}\.([^.]+)$"
"""PEFT's prefix of a parameter's name in a wrapped module."""


def _path_of_saved(inside: str) -> str:
    """Return the parameter's path in the base; empty for PEFT's copy of what the adapter doesn't use.

    With `bias` and `modules_to_save` together PEFT writes a bias three times: as used, as the wrapper's copy and
    as the original.
    """
    if re.search(r"(^|\.)(original_module|modules_to_save)\.", inside):
        return ""
    return re.sub(_WRAPPED, r"\1\2", inside)


def _test_of_saved(
    fields: Mapping[str, Any], adapted: Collection[str], embeddings: Collection[str]
) -> Callable[[str, str], bool]:
    """Return (path in the base, path in the file) -> can this parameter be in the file?"""
    bias = fields.get("bias")

    def saved_here(name: str, inside: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        if not name:
            return True
        if leaf == "bias" and (bias == "all" or (bias == "lora_only" and owner in adapted)):
            return True
        resized = owner in embeddings or owner.rpartition(".")[2] in _RESIZED
        if resized or inside.endswith(joined(BASE_LAYER, "weight")):
            return True
        return is_saved(owner, fields)

    return saved_here


def is_saved(path: str, fields: Mapping[str, Any]) -> bool:
    """Tell whether `modules_to_save` announces a module, as PEFT finds them: its path ends in the name, or one around
    it does.
    """
    modules = tuple(fields.get("modules_to_save") or ())
    # Settings name modules as the model does, also those inside one that PEFT wraps.
    outers = {*with_ancestors(path), *with_ancestors(path.replace(f"{BASE_LAYER}.", ""))} if modules else ()
    return any(outer.endswith(modules) for outer in outers)


def with_ancestors(path: str) -> list[str]:
    """Return a path and those of the modules around it.

    Examples:
        >>> with_ancestors("head.fc")
        ['head', 'head.fc']
    """
    pieces = path.split(".")
    return [".".join(pieces[: end + 1]) for end in range(len(pieces))]


def _is_kernel(where: object, key: str, tensor: Tensor, findings: Findings) -> bool:
    if tensor.ndim >= 2 and tensor.is_floating_point() and 0 not in tensor.shape:
        return True
    findings.add(
        f'"{key}" in {where} has shape {tuple(tensor.shape)} and type {tensor.dtype}; a matrix of '
        "floating-point numbers, or the kernel of a convolution, is needed."
    )
    return False


def _is_pair(where: object, name: str, half: Mapping[str, Tensor], findings: Findings) -> bool:
    missing = [end for end, letter in zip(LINEAR_KEYS, "AB", strict=True) if letter not in half]
    if missing:
        findings.add(f'{where} has no "{key_of(name, missing[0])}", the other half of a pair it has.')
    elif not is_pair(half["A"], half["B"]):
        findings.add(
            f'lora_A of "{name}" has shape {tuple(half["A"].shape)}, lora_B {tuple(half["B"].shape)}; '
            "(r, d_in) and (d_out, r) are needed, with one r."
        )
    else:
        return True
    return False


def _of_no_use(where: object, key: str) -> str:
    cause = next(
        (cause for form, cause in _CAUSES.items() if re.fullmatch(form, key)), "Is it an adapter of another tool?"
    )
    usual = key_of("<module>", LINEAR_KEYS[0])
    return (
        f'{where} has a tensor "{key}" of no use here; keys are "{usual}", "...lora_B.weight" and what bias and '
        f"modules_to_save announce. {cause}"
    )
