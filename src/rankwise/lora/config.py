"""`LoRAConfig`: what an adapter is, and the only place with its defaults."""

import importlib
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rankwise.errors import ConfigError, known_arguments, suggest
from rankwise.lora.inits import INITS, init_conflict
from rankwise.lora.layer_types.sliced import Slice
from rankwise.lora.maths import SCALINGS
from rankwise.lora.variants import VARIANTS

TargetPattern = str | Callable[[str, nn.Module], bool]
"""A name, a suffix, a glob, a range of layers in these, "re:..." (matched in full), or a predicate."""

LARGEST = torch.finfo(torch.float32).max
"""Size of alpha at most: the scale multiplies tensors of float32."""

BIASES = ("none", "all", "lora_only")
"""The biases that an adapter trains."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """The settings of one adapter.

    Args:
        r: Rank: rows of A, columns of B. Trainable parameters grow as r (d_in + d_out) a layer.
        alpha: Numerator of the scale. With alpha / r and alpha fixed the best learning rate hardly moves with r.
        dropout: Probability that an input of the adapter (not of the base) is dropped in training.
        target_modules: Which modules: "all-linear", or one or several patterns: a name or dotted suffix
            ("q_proj", "layers.0.mlp.up"), a glob ("*.mlp.*"), either with a range of layers in it
            ("layers.{8..15}.q_proj", "*.{8..}.mlp.*"), "re:" and a regular expression, or a predicate on
            (name, module). Every pattern must match something.
        exclude_modules: Patterns of modules to leave out; each must match something too.
        rank_pattern: Pattern -> r, where it differs from `r`.
        alpha_pattern: Pattern -> alpha, where it differs from `alpha`.
        slices: Pattern -> slices of the outputs of a fused layer that are adapted, each with A and B of rank r of its
            own; the other outputs stay the base's. "0/3" is the first of three equal parts (q of q, k, v), (0, 64) the
            outputs 0 to 63. They have one length. `slices={"c_attn": ["0/3", "2/3"]}` adapts q and v of GPT-2.
        init: How A and B start: a name in `rankwise.lora.inits.INITS`: drawn ("kaiming", "gaussian", "notebook",
            "orthogonal"), from the weight ("pissa", "olora"), from what quantising took from it ("loftq"), or from
            training data ("eva", "lora-ga").
        scaling: "alpha/r" (the paper) or "alpha/sqrt(r)" (rank-stabilised, rsLoRA).
        modules_to_save: Patterns of modules that are trained in full, in addition to A and B, such as a new head: each
            adapter has a copy of all their parameters and buffers.
        bias: Biases that are trained too: "none", "all", or "lora_only" (those of the target modules).
        variant: What is trained in a layer and made of it, a name in `rankwise.lora.variants.VARIANTS`: "lora" (A and
            B), "lora-fa" (B alone, A stays as it was drawn), "dora", which trains a magnitude for each output with A
            and B, or "vera" (two vectors over a random A and B). With "dora" dropout acts on the input of A alone.
        trainable_tokens: Tokens whose rows of the embedding are trained, each adapter having its own: numbers, for the
            input embedding, or pattern -> numbers. Layers that share the weight (a tied output head) see the rows too.
            New tokens need `model.resize_token_embeddings` first.
        seed: Fixes the initial A. A of rank r is the first r rows of one stream for (seed, module), so
            adapters of different rank start alike.
        extra: Settings of the file the adapter came from that mean nothing here. They are written back.

    Raises:
        ConfigError: A value is out of its range, or a name is not known.

    Examples:
        >>> LoRAConfig(r=4, target_modules=["q_proj", "v_proj"]).scale()
        8.0

    References:
        Hu et al., LoRA, 2021, section 4. Defaults: Biderman et al., LoRA Learns Less and Forgets Less,
        2024, section 5 (all linear layers); Schulman et al., LoRA Without Regret, 2025 (alpha 32, alpha / r).
    """

    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: TargetPattern | Sequence[TargetPattern] = "all-linear"
    exclude_modules: TargetPattern | Sequence[TargetPattern] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, Sequence[Slice]] = field(default_factory=dict[str, Sequence[Slice]])
    init: str = "kaiming"
    scaling: str = "alpha/r"
    modules_to_save: TargetPattern | Sequence[TargetPattern] = ()
    bias: str = "none"
    variant: str = "lora"
    trainable_tokens: Sequence[int] | Mapping[str, Sequence[int]] = ()
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for r in (self.r, *self.rank_pattern.values()):
            if isinstance(r, bool) or not isinstance(r, int) or r < 1:
                raise ConfigError(f"r is {r!r}; a rank is a whole number of at least 1.")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            # The comparison keeps out NaN.
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST:
                raise ConfigError(f"alpha is {alpha!r}; it must be a finite number that float32 holds.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout!r}; a probability in [0, 1) is needed.")
        named = (
            ("init", self.init, INITS),
            ("scaling", self.scaling, SCALINGS),
            ("bias", self.bias, BIASES),
            ("variant", self.variant, VARIANTS),
        )
        for what, name, table in named:
            if name not in table:
                known = ", ".join(f'"{key}"' for key in sorted(table))
                raise ConfigError(f'{what} "{name}" is not known; there are {known}.{suggest(name, table)}')
        for pattern, slices in self.slices.items():
            for one in slices if not isinstance(slices, str) else [slices]:
                is_part = isinstance(one, str) and re.fullmatch(r"\d+/[1-9]\d*", one)
                is_range = isinstance(one, tuple) and len(one) == 2 and all(isinstance(n, int) for n in one)
                if isinstance(slices, str) or not (is_part or is_range):
                    raise ConfigError(
                        f'slices of "{pattern}" are {slices!r}; a list of parts like "0/3" or pairs like (0, 64) is '
                        "needed."
                    )
        given = self.trainable_tokens
        for tokens in given.values() if isinstance(given, Mapping) else [given]:
            usable = all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in tokens)
            if not usable or len({*tokens}) < len(tokens) or (isinstance(given, Mapping) and not tokens):
                raise ConfigError(f"trainable_tokens are {tokens!r}; numbers of tokens are needed, each once.")
        if conflict := VARIANTS[self.variant].conflict(self):
            raise ConfigError(f'variant "{self.variant}" {conflict}')
        if conflict := init_conflict(self):
            raise ConfigError(f'init "{self.init}" {conflict}')
        if not self.target_modules:
            raise ConfigError('target_modules is empty; name modules, or give "all-linear".')

    def scale(self, r: int | None = None, alpha: float | None = None) -> float:
        """The number s in h = W x + s B A x, for this rank and alpha or for given ones; 1 of a variant without s."""
        if not VARIANTS[self.variant].scaled:
            return 1.0
        r = self.r if r is None else r
        alpha = self.alpha if alpha is None else alpha
        return SCALINGS[self.scaling](alpha, r)

    @classmethod
    def grid(cls, **settings: Any) -> "list[LoRAConfig]":
        """Return every combination of settings, for a sweep; the last setting varies fastest.

        Args:
            settings: Name -> a value, or a list or tuple of values to try. Of `target_modules`, a list of names is one
                value; a list with lists in it has several.

        Raises:
            ConfigError: A value is out of its range, a name is not known, or a combination can't be.

        Examples:
            >>> [(c.init, c.r) for c in LoRAConfig.grid(init=["kaiming", "pissa"], r=[4, 8])]
            [('kaiming', 4), ('kaiming', 8), ('pissa', 4), ('pissa', 8)]
            >>> [c.target_modules for c in LoRAConfig.grid(target_modules=[["q", "v"], "all-linear"])]
            [['q', 'v'], 'all-linear']
        """
        axes = {name: _values(name, given) for name, given in settings.items()}
        return [cls(**dict(zip(axes, chosen, strict=True))) for chosen in itertools.product(*axes.values())]

    @classmethod
    def from_peft(
        cls, source: str | os.PathLike[str] | Mapping[str, Any] | object, *, strict: bool = True
    ) -> "LoRAConfig":
        """Take over PEFT's settings, for `inject`.

        Args:
            source: A `LoraConfig` of peft, a dictionary of its fields, the folder of an adapter, or its
                `adapter_config.json`. Nothing of peft is needed for the last three.
            strict: Whether a field that isn't known here, and whose name says that it changes the adapter's
                function, is an error. Other unknown fields are warned of, kept in `extra` and written back.

        Returns:
            The configuration. Fields that PEFT leaves out have PEFT's defaults (r 8, alpha 8), not ours.

        Raises:
            ConfigError: It is none of these, or has a value that can't be used.
            AdapterFileError: A field has a wrong type, or changes the maths in a way that isn't supported.

        Examples:
            >>> LoRAConfig.from_peft({"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]}).scale()
            4.0
        """
        # A door: what PEFT's fields mean is known in `files`, which stands below and is loaded when it is asked.
        return importlib.import_module("rankwise.adapter_files.peft.from_peft").config_from_peft(source, strict=strict)


_LISTS = ("target_modules", "exclude_modules", "modules_to_save", "trainable_tokens")
"""Settings whose values may be lists themselves."""


def _values(name: str, given: Any) -> Sequence[Any]:
    """The values of a setting to try."""
    if not isinstance(given, list | tuple):
        return [given]
    nested = any(isinstance(one, list | tuple) for one in given)  # pyright: ignore[reportUnknownVariableType]
    return [given] if name in _LISTS and not nested else given  # pyright: ignore[reportUnknownVariableType]


OF_PEFT = {
    "lora_alpha": "give alpha",
    "lora_dropout": "give dropout",
    "init_lora_weights": "give init",
    "use_rslora": 'give scaling="alpha/sqrt(r)"',
    "use_dora": 'give variant="dora"',
    "task_type": 'give extra={"task_type": ...}',
    "rank": "give r",
}
"""Settings as PEFT and others call them -> what to write here; `LoRAConfig.from_peft` takes a whole configuration."""

LoRAConfig.__init__ = known_arguments(OF_PEFT)(LoRAConfig.__init__)
