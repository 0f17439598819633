"""Match a file with a model beyond A and B: parameters trained in full, and missing tensors."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rankwise.adapter_files.base.checksums import BASE, TENSORS
from rankwise.adapter_files.base.finite import first_not_finite
from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.folder import AdapterFile
from rankwise.adapter_files.peft.embeddings import embeddings_of
from rankwise.adapter_files.peft.keys import (
    BASE_LAYER,
    BIAS_KEY,
    LINEAR_KEYS,
    is_saved,
    key_of,
    saved_key_of,
    with_ancestors,
)
from rankwise.adapter_files.peft.layer_tensors import form_of
from rankwise.adapter_files.peft.paths import paths_of_file
from rankwise.adapter_files.peft.targets import PeftTargets
from rankwise.errors import suggest
from rankwise.lora.layer_types import layer_type_of, obstacle
from rankwise.lora.targets.find import ALL_LINEAR, Target
from rankwise.lora.targets.modules import base_tensors
from rankwise.lora.trained_modules import is_inside

Modules = Sequence[tuple[nn.Module, list[str]]]
"""Every module of a model once, with all its paths."""


def replacements_of_file(model: nn.Module, read: AdapterFile, findings: Findings) -> dict[str, Tensor]:
    """Return what the file has in place of the base's parameters; each must be there and have the right shape."""
    own = base_tensors(model)
    embeddings = embeddings_of(model)
    fitting: dict[str, Tensor] = {}
    for name, tensor in read.parts.replacements.items():
        key = saved_key_of(name, read.parts.pairs)
        if name not in own:
            findings.add(
                f'The file has "{key}", which the model lacks.{suggest(name, own)} Was it trained on another model?'
            )
        elif tensor.shape != own[name].shape:
            findings.add(
                f'"{key}" has shape {tuple(tensor.shape)}; the model has {tuple(own[name].shape)} there. '
                + _cause(embeddings, name, tensor)
            )
        elif tensor.dtype.is_floating_point != own[name].dtype.is_floating_point:
            findings.add(f'"{key}" is of type {tensor.dtype}; the model has {own[name].dtype} there.')
        # PEFT adds the base's own embedding to a file that adapts it, or any of an enlarged vocabulary.
        elif _is_announced(name, read) or not torch.equal(tensor, own[name].to("cpu", tensor.dtype)):
            fitting[name] = tensor
    # What isn't announced is the base's, so layers that share it have it too; what is trained is one layer's.
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    shared = [(name, other) for name in fitting if not _is_announced(name, read) for other in names[id(own[name])]]
    return {**{other: fitting[name] for name, other in shared}, **fitting}


def _is_announced(name: str, read: AdapterFile) -> bool:
    owner, _, leaf = name.rpartition(".")
    # Our files name whole paths; PEFT matches ends of paths, so other modules may be listed for it.
    ours = TENSORS in read.metadata
    saved = is_inside(owner, read.fields.get("modules_to_save") or ()) if ours else is_saved(owner, read.fields)
    return saved or (leaf == "bias" and read.fields.get("bias", "none") != "none")


def _cause(embeddings: Collection[str], name: str, tensor: Tensor) -> str:
    """Guess why shapes differ."""
    if name.removesuffix(".weight") in embeddings:
        return (
            f"The adapter was trained with a vocabulary of {tensor.shape[0]}: "
            f"call model.resize_token_embeddings({tensor.shape[0]}) first."
        )
    return "Has the model another number of classes than the one it was trained on?"


def replacements_of_biases(
    targets: Iterable[Target],
    paths: Mapping[str, str],
    biases: Mapping[str, Tensor],
    replacements: Mapping[str, Tensor],
    findings: Findings,
) -> dict[str, Tensor]:
    r"""Return the layers' biases plus those of B: B (A x) + b, times s, changes the layer's bias by s b.

    Args:
        targets: The adapted modules.
        paths: Their names -> PEFT's paths.
        biases: PEFT's path -> b.
        replacements: What the file has in place of the base's parameters, biases among them.
        findings: Takes a bias that no layer can take in.
    """
    sums: dict[str, Tensor] = {}
    # Layers that share their weight have one A and B, and each its own bias.
    for target, user in ((it, user) for it in targets for user in (it, *it.ties)):
        bias, added = getattr(user.module, "bias", None), biases[paths[user.name]]
        if target.type == "Parameter" or bias is None or bias.shape != added.shape:
            findings.add(
                f'"{key_of(paths[user.name], BIAS_KEY)}" has shape {tuple(added.shape)}, and "{user.name}" no bias '
                "of that shape that could take it in. Give the layer a bias of zeros, or leave this one out: "
                "strict=False."
            )
        else:
            name = ".".join(filter(None, (user.name, "bias")))
            own = replacements.get(name, bias.detach())
            sums[name] = own + target.scale * added.to(own.device, own.dtype)
    return sums


def find_not_finite(read: AdapterFile, findings: Findings) -> None:
    """Find numbers of an adapter that no training should have left: one such value spoils every output."""
    parts = read.parts
    tensors = [(path, tensor) for path, pair in parts.pairs.items() for tensor in pair]
    tensors += [
        *((path, t) for path, own in parts.own.items() for t in own.values()),
        *parts.tokens.items(),
        *parts.biases.items(),
    ]
    if (path := first_not_finite(tensors)) is not None:
        findings.add(
            f'The tensors of "{path}" in {read.path} hold values that are not finite (NaN or infinite): training '
            "diverged, or the file is damaged. Train it again."
        )


def find_missing(
    modules: Modules,
    read: AdapterFile,
    targets: Iterable[Target],
    findings: Findings,
) -> None:
    """Find what the settings announce, the model has, and the file lacks."""
    cause = "Was it trained on another model, or is the file incomplete?"
    reached = {path for target in targets for path in (target.name, *target.aliases)}
    there = {*read.parts.pairs, *reached}
    is_target = PeftTargets(read.fields)
    if read.fields.get("target_modules") != ALL_LINEAR:
        for module, names in modules:
            if not there.intersection(names) and any(map(is_target, names)) and not obstacle(module):
                kind = layer_type_of(module)
                key = key_of(names[0], form_of(kind).keys[0] if kind else LINEAR_KEYS[0])
                findings.add(
                    f'The adapter has no tensor "{key}", but its target_modules take in "{names[0]}" '
                    f"of this model. {cause}"
                )
    for name in _missing_parameters(modules, read):
        findings.add(f'The adapter has no tensors for "{name}", but its target_parameters take it in. {cause}')
    saved, bias = tuple(read.fields.get("modules_to_save") or ()), read.fields.get("bias") or "none"
    known = {path for _, names in modules for path in names}
    for module, names in modules if saved or bias != "none" else []:
        for leaf, tensor in module.named_parameters(recurse=False):
            paths = [f"{name}.{leaf}" if name else leaf for name in names]
            is_bias = leaf == "bias" and {"all": True, "lora_only": bool(reached.intersection(names))}.get(bias)
            missing = is_bias or (
                saved and any(_is_saved(path, saved, known) for name in names for path in with_ancestors(name))
            )
            if missing and tensor is not None and not any(path in read.parts.replacements for path in paths):
                findings.add(
                    f'The adapter has no tensor "{saved_key_of(paths[0], reached)}", which modules_to_save or bias '
                    f"announces. {cause}"
                )


def _is_saved(path: str, saved: Sequence[str], known: Collection[str]) -> bool:
    """Whether `modules_to_save` means a module: as PEFT has it by the end of its path, which need not be a whole name.
    An entry that is a module's whole path means that one, also where other names end in it."""
    return any(f".{path}".endswith(f".{entry}") if entry in known else path.endswith(entry) for entry in saved)


def _missing_parameters(modules: Modules, read: AdapterFile) -> Iterator[str]:
    """Yield the parameters that `target_parameters` mean and the file lacks.

    A path that is all of a parameter's means that one, also where other paths end in it.
    """
    wanted: Sequence[str] = read.fields.get("target_parameters") or ()
    paths = paths_of_file(modules, wanted)
    places = [
        paths.place(module, names[0], name)
        for module, names in (modules if wanted else ())
        for name, _ in module.named_parameters(recurse=False)
    ]
    ends = {*wanted} - {place.name for place in places}
    for place in places:
        meant = place.name in wanted or any(place.name.endswith(f".{end}") for end in ends)
        if place.bare and meant and place.path not in read.parts.pairs:
            yield place.name


def as_here(model: nn.Module, replacements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a file has in place of the base's parameters by the paths that these have in the model."""
    own = base_tensors(model).keys()
    inside = {path: path.replace(f"{BASE_LAYER}.", "") for path in replacements}
    return {
        path if path in own or inside[path] not in own else inside[path]: replacements[path] for path in replacements
    }


def saved_modules_of_file(modules: Modules, read: AdapterFile, replacements: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the paths that `modules_to_save` of a file means in this model, where the file has something for them."""
    saved = tuple(read.fields.get("modules_to_save") or ())
    found: list[str] = []
    for _, names in modules if saved else []:
        name = next((name for name in names if name.endswith(saved)), None)
        if name is not None and not is_inside(name, found) and any(is_inside(path, [name]) for path in replacements):
            found.append(name)
    return tuple(found)


def differences_in_peft(read: AdapterFile, targets: Iterable[Target]) -> list[str]:
    """Warn where PEFT 0.21.2 may have trained a different function; our own files are exempt.

    Scaled embeddings (`embed_scale`, of transformers) are the same function there.
    """
    if BASE in read.metadata:
        return []
    layers = [target for target in targets if target.type != "Parameter" and target.reader is not None]
    outputs = [it for it in layers if isinstance(it.module, nn.modules.linear.NonDynamicallyQuantizableLinear)]
    others = [it for it in layers if it not in outputs and not hasattr(it.module, "embed_scale")]
    users = [user for it in targets if it.layer_type.tokens for user in (it, *it.ties)]
    biased = [user.name for user in users if getattr(user.module, "bias", None) is not None]
    said: list[str] = []
    if biased:
        said.append(
            f'"{biased[0]}": PEFT 0.21.2 leaves out the bias of a Linear of which it trains single rows; here it is '
            "added. Set it to zeros if PEFT trained the rows."
        )
    if outputs:
        said.append(
            f"{_some(outputs)}: PEFT 0.21.2 adds delta of an attention's output projection twice, in training too; "
            "here it counts once. Double its B if PEFT trained it."
        )
    if others:
        said.append(
            f"{_some(others)}: the class has its own forward. Here the adapter acts on the weight; PEFT adds to "
            "the output, which may be another function. Compare outputs if PEFT trained it."
        )
    return said


def _some(targets: Sequence[Target]) -> str:
    more = f" and {len(targets) - 1} more" if len(targets) > 1 else ""
    return f'"{targets[0].name}" ({targets[0].type}){more}'
