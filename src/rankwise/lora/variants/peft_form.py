"""A variant in PEFT's settings: its type, the switch that turns it on, words that differ from LoRA's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


def nothing(source: Any) -> Mapping[str, Any]:
    """Return no settings."""
    return NOTHING


@dataclass(frozen=True)
class PeftForm:
    """A variant in `adapter_config.json`.

    Args:
        type: `peft_type`.
        switch: The field that is true for this variant and false for the others of its type.
        words: LoRA's name of a field -> this type's name of it.
        lacks: LoRA's fields that this type doesn't have.
        written: `LoRAConfig` -> fields that only this type has.
        read: Fields of a file -> arguments of `LoRAConfig` that only this type gives.
        fields: Names of the fields that `written` writes.
    """

    type: str = "LORA"
    switch: str = ""
    words: Mapping[str, str] = field(default_factory=dict[str, str])
    lacks: tuple[str, ...] = ()
    written: Callable[[Any], Mapping[str, Any]] = nothing
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = nothing
    fields: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """What settings of this variant say.

        Examples:
            >>> PeftForm(switch="use_dora").mark, PeftForm("VERA").mark
            ('use_dora', 'peft_type = "VERA"')
        """
        return self.switch or f'peft_type = "{self.type}"'

    def as_peft(self, fields: Mapping[str, Any], config: Any) -> dict[str, Any]:
        """Return LoRA's fields as this type's.

        Examples:
            >>> form = PeftForm("VERA", words={"lora_dropout": "vera_dropout"}, lacks=("lora_alpha",))
            >>> form.as_peft({"peft_type": "LORA", "lora_dropout": 0.1, "lora_alpha": 8}, None)
            {'peft_type': 'VERA', 'vera_dropout': 0.1}
        """
        named = {self.words.get(name, name): value for name, value in fields.items() if name not in self.lacks}
        return {**named, "peft_type": self.type, **self.written(config)}

    def as_lora(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a file under LoRA's names; those of this type alone stay as they are.

        Examples:
            >>> PeftForm("VERA", words={"lora_dropout": "vera_dropout"}).as_lora({"vera_dropout": 0.1, "r": 4})
            {'lora_dropout': 0.1, 'r': 4}
        """
        names = {own: name for name, own in self.words.items()}
        return {names.get(name, name): value for name, value in fields.items()}
