"""From a model to an adapter's folder, and from a folder onto a model."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.adapter_files.base.checksums import BaseRecord, check_base
from rankwise.adapter_files.base.record import adapted_weights, other_tensors
from rankwise.adapter_files.base.savable import check_base_as_before, check_savable
from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.fit import (
    as_here,
    differences_in_peft,
    find_missing,
    find_not_finite,
    replacements_of_biases,
    replacements_of_file,
    saved_modules_of_file,
)
from rankwise.adapter_files.folder import FileBase, OtherTensors, config_of, read_through, write_adapter
from rankwise.adapter_files.peft.base_facts import base_facts
from rankwise.adapter_files.peft.config import CONFIG_FILE
from rankwise.adapter_files.peft.embeddings import embeddings_of, embeddings_to_save
from rankwise.adapter_files.peft.foreign_keys import known_of
from rankwise.adapter_files.peft.saved_modules import also_meant
from rankwise.adapter_files.placing import (
    FileLayout,
    as_filed,
    own_of_file,
    settings_names,
    targets_of_file,
    weights_of_file,
)
from rankwise.adapter_files.token_rows import find_unfiled, tokens_as_filed, tokens_of_fields, tokens_of_file
from rankwise.collector import collector_paused
from rankwise.errors import AdapterFileError
from rankwise.lora.adapter import LoRA, layers_with
from rankwise.lora.base.buffers import changed_buffers
from rankwise.lora.checks.foreign import check_attachable, check_unwrapped_by_peft
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, attach, check_new_name
from rankwise.lora.layer.initial import init_obstacle, initial_tensors
from rankwise.lora.targets.find import Target, Targets
from rankwise.lora.targets.modules import base_tensors, named_once, structure_kept
from rankwise.lora.targets.patterns import pattern_list
from rankwise.lora.trained_modules import replacement_tensors
from rankwise.lora.variants import FORMS, VARIANTS


@dataclass(frozen=True)
class LoadReport(Report):
    """The report of `load_adapter`: the report of `inject`, and what didn't fit.

    Args:
        findings: What `strict=True` would have refused.
        notes: What couldn't be checked, and where PEFT may have trained another function.
    """

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The table of `inject`, then a line for each finding and note."""
        return "\n".join([super().__str__(), *(f"- {line}" for line in [*self.findings, *self.notes])])


def save_adapter(
    model: nn.Module,
    directory: str | os.PathLike[str],
    name: str = "default",
    base_name: str | None = None,
    *,
    save_embeddings: bool | None = None,
    strict: bool = True,
) -> Path:
    """Save one adapter of a model as a folder that Rankwise and PEFT read.

    An interrupted save leaves the old adapter or none, never a mixture. Other files in the folder stay. The file
    holds checksums of itself and of the base's adapted weights, which `load_adapter` compares.

    Of a model under DistributedDataParallel, one process saves. Of one that is sharded over processes (`fully_shard`),
    all of them must call this: each gathers, the first writes, and all return when the file is there.

    Args:
        model: An injected model, or a wrapper of one (DistributedDataParallel, torch.compile).
        directory: The folder; made if need be.
        name: Which adapter.
        base_name: What the base is called (a path or hub name), for whoever loads the adapter.
        save_embeddings: Whether the file holds the input and output embeddings too (models of transformers). None:
            where the vocabulary was enlarged and the adapter doesn't train all new rows, whose values nobody could
            know otherwise. That is seen where the base's config.json lies in a folder or in the hub's cache.
        strict: Whether it is an error if adapted layers have left the model (a head that was replaced) or if values are
            not finite; False saves what there is and warns.

    Returns:
        The folder.

    Raises:
        AdapterError: The model has no such adapter, or it can't be saved as it was trained; see `strict`.
        OutputError: The folder can't be written.

    Examples:
        >>> import rankwise, tempfile
        >>> layer = nn.Sequential(nn.Linear(4, 2))
        >>> _ = rankwise.inject(layer, rankwise.LoRAConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in save_adapter(layer, folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    with collector_paused(), structure_kept():  # names and patterns make many small objects too
        with_tokens = layers_with(model, name)
        check_unwrapped_by_peft(model)
        modules = named_once(model)
        config = next(iter(with_tokens.values()))[1].configs[name]
        replacements = replacement_tensors(model, name)
        check_savable(model, name, with_tokens, replacements, strict)
        layers = {path: (layer, lora) for path, (layer, lora) in with_tokens.items() if not lora.kind_of(name).tokens}
        filed = as_filed(modules, layers, name, config)
        _warn_of_dropout(config, filed)
        rows = tokens_as_filed(with_tokens, name, replacements)
        chosen = {path: {*lora.kind_of(name).tokens} for path, (_, lora) in with_tokens.items()}
        replacements |= embeddings_to_save(model, base_name, save_embeddings, chosen, replacements)
        also = also_meant(model, tuple(map(str, pattern_list(config.modules_to_save))), with_tokens)
        drifted = {path: now for path, (_, now) in changed_buffers(model).items() if path not in replacements}
        drifted |= {
            path: base_tensors(model)[path] for path in check_base_as_before(model, {*replacements, *drifted}, strict)
        }
        replacements |= drifted
        # What the file itself brings need not be the base's, nor rows of tokens that were drawn at random.
        compared = {path: it for path, it in layers.items() if f"{path}.weight" not in replacements}
        adapted = {path: (layer, lora.parameter) for path, (layer, lora) in compared.items()}
        without = {*replacements} - {*drifted} | {*_weight_paths(with_tokens)}
        replacements |= {path: tensor for path, tensor in also.items() if path not in replacements}
        if save_embeddings is False:
            without |= {f"{path}.weight" for path in embeddings_of(model)}
        return write_adapter(
            directory,
            filed.config,
            filed.tensors,
            others=OtherTensors(
                replacements={
                    filed.paths.saved_name(path, filed.tensors, rows): tensor for path, tensor in replacements.items()
                },
                own=filed.own,
                shared=filed.shared,
                tokens=rows,
                key_ends=filed.key_ends,
                setting_names=filed.setting_names,
            ),
            base=FileBase(
                record=BaseRecord(adapted_weights(adapted), other_tensors(model, without), drifted),
                facts=base_facts(model, replacements),
                model_names=[paths[0] for _, paths in modules],
                fan_in_fan_out=all(lora.layer_type.name == "Conv1D" for _, lora in layers.values()),
            ),
            base_name=base_name,
            model=model,
        )


def _weight_paths(layers: Mapping[str, tuple[nn.Module, LoRA]]) -> list[str]:
    """Return the paths of the adapted weights themselves."""
    return [path if lora.is_parameter else f"{path}.weight".lstrip(".") for path, (_, lora) in layers.items()]


def _warn_of_dropout(config: LoRAConfig, filed: FileLayout) -> None:
    """Note that a file with adapted parameters has no dropout: it would have no input there."""
    bare = {named.bare for named in filed.setting_names.values()}
    if config.dropout and bare == {True, False}:
        warnings.warn(
            f"The file says lora_dropout = 0, not {config.dropout:g}: PEFT refuses dropout in an adapter that has "
            "parameters among its targets. It matters only where the adapter is trained on.",
            stacklevel=4,
        )


@torch.inference_mode(False)
def load_adapter(
    model: nn.Module,
    directory: str | os.PathLike[str],
    name: str = "default",
    *,
    strict: bool = True,
    allow_pickle: bool = False,
    untie: bool = False,
) -> LoadReport:
    """Attach a saved adapter to a model, as `inject` attaches a fresh one.

    Args:
        model: The base the adapter was trained on.
        directory: A folder written by `save_adapter` or by PEFT, or one with such a folder called `name` inside.
        name: What the adapter is to be called in this model.
        strict: Whether it is an error if tensors are missing, unexpected or of a wrong shape, if the base isn't the
            one the adapter was saved over, or if a setting is unknown; False uses what fits and lists the rest in
            the report. A damaged file is an error always.
        allow_pickle: Whether an old `adapter_model.bin` may be read where there is no safetensors file. Only
            tensors are taken from it.
        untie: Whether modules that share their weight each get a copy. Without it a file that has one adapter for
            the weight, under every name, loads as one; any other loads too, but can't be merged.

    Returns:
        The report of `inject`, with what didn't fit.

    Raises:
        AdapterFileError: The file is damaged, of an unsupported kind, or doesn't fit the model; the model is
            then untouched.
        AdapterError: The name is taken.

    Examples:
        >>> import rankwise, tempfile
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> _ = rankwise.inject(model, rankwise.LoRAConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_adapter(model, save_adapter(model, folder), "again").trainable_parameters
        6
    """
    findings = Findings(strict)
    with collector_paused(), structure_kept():
        check_new_name(model, name)
        check_attachable(model)
        fitting = read_for(model, directory, name, findings, allow_pickle, untie)
        targets = Targets(fitting.targets, [])
        report = attach(model, targets, fitting.tensors, fitting.config, name, fitting.replacements, fitting.shared)
    return LoadReport(**vars(report), findings=findings.listed, notes=fitting.notes)


@dataclass(frozen=True)
class Fitting:
    """The parts of a file that fit a model.

    Args:
        config: The file's settings.
        targets: The weights it adapts.
        tensors: Their names -> what the variant has there, A and B as matrices; shared tensors apart.
        shared: What all layers share.
        replacements: Path of a parameter -> what the file has in its place.
        notes: What couldn't be checked, and where PEFT may have trained another function.
    """

    config: LoRAConfig
    targets: list[Target]
    tensors: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]
    replacements: dict[str, Tensor]
    notes: list[str]


def read_for(
    model: nn.Module,
    directory: str | os.PathLike[str],
    name: str,
    findings: Findings,
    allow_pickle: bool,
    untie: bool = False,
) -> Fitting:
    """Read an adapter's folder, and find in a model what it is for; the model is left as it is."""
    folder = Path(directory)
    if not (folder / CONFIG_FILE).exists() and (folder / name / CONFIG_FILE).exists():
        folder = folder / name
    read = read_through(folder, findings, allow_pickle, known_of(model))
    find_not_finite(read, findings)
    modules = named_once(model)
    read = replace(read, parts=replace(read.parts, replacements=as_here(model, read.parts.replacements)))
    weights = weights_of_file(modules, read.fields, read.parts.pairs)
    config = config_of(read, settings_names(weights, read.parts.pairs), findings)
    pairs = read.parts.pairs
    targets, converted, paths = targets_of_file(model, modules, weights, config, pairs, untie, findings)
    own = own_of_file(targets, paths, read.parts.own, findings) if read.parts.own else {}
    # Any stand-in for magnitudes would change the layer, so its A and B are of no use without them.
    targets = [target for target in targets if not read.parts.own or target.name in own]
    replacements = replacements_of_file(model, read, findings)
    find_missing(modules, read, targets, findings)
    chosen = tokens_of_fields(read.fields, list(read.parts.tokens))
    find_unfiled(model, modules, read.path, read.fields, read.parts.tokens, findings)
    tokens, of_tokens = tokens_of_file(
        model, modules, read.parts.tokens, chosen, targets, replacements, findings, untie
    )
    if read.parts.biases:
        config = replace(config, bias="lora_only" if config.bias == "none" else config.bias)
        replacements |= replacements_of_biases(targets, paths, read.parts.biases, replacements, findings)
    if not targets:
        raise AdapterFileError(f"Nothing of {read.path} fits the model: {findings.listed[0]}")
    base = BaseRecord(
        adapted_weights({target.name: (target.module, target.parameter) for target in targets}),
        other_tensors(model, {*replacements, *_weights_of(tokens)}),
        paths=base_tensors(model),
    )
    embeddings = [f"{path}.weight" for path in embeddings_of(model)]
    notes = check_base(read.path, read.metadata, base, findings, embeddings)
    for difference in differences_in_peft(read, [*targets, *tokens]):
        warnings.warn(difference, stacklevel=3)
        notes.append(difference)
    config = replace(config, modules_to_save=saved_modules_of_file(modules, read, replacements))
    place = {module: i for i, (module, _) in enumerate(modules)}
    targets = sorted([*targets, *tokens], key=lambda target: place[target.module])
    both = {**converted, **of_tokens}
    shared = {one.name for one in VARIANTS[config.variant].shared}
    tensors = {
        target.name: {
            **_taken_off(target, config, findings),
            **{key: tensor for key, tensor in zip("AB", both[target.name], strict=True) if key not in shared},
            **own.get(target.name, {}),
        }
        for target in targets
    }
    return Fitting(config, targets, tensors, read.parts.shared, replacements, notes)


def _taken_off(target: Target, config: LoRAConfig, findings: Findings) -> dict[str, Tensor]:
    """What the file's A and B started as, where that is taken off the base: it follows from the base's weight."""
    drawn = [one.name for one in FORMS[target.variant].tensors if one.name in ("A0", "B0")]
    if not drawn:
        return {}
    if reason := init_obstacle(target, config):
        findings.add(f'"{target.name}" can\'t start with init_lora_weights = "{config.init}": {reason}.')
        return {}
    found = initial_tensors(target, config)
    return {name: found[name] for name in drawn}


def _weights_of(tokens: Sequence[Target]) -> Iterator[str]:
    """Yield the paths of weights of which a file has single rows."""
    for target in tokens:
        yield from (f"{name}.weight" for name in (target.name, *target.aliases))
