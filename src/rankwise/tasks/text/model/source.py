"""The source of a model: a folder, a hub name or a GGUF file; errors are one line each."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import ConfigError, suggest
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.model.hub_names import check_model_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

POOLINGS = ("auto", "mean", "model")

_OF_FILES = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError)
"""What files with other fields and values than expected make transformers raise."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The settings that load a model.

    Args:
        dtype: Of the base: "float32", "bfloat16" or "float16".
        device: Where it goes: "cpu", "cuda", "cuda:1", ...
        attention: "sdpa", "eager" or another implementation of transformers; None takes its choice.
        trust_remote_code: Run Python code that comes with the model.
        pooling: Of classifiers: "model" (the architecture's own classifier, `AutoModelForSequenceClassification`),
            "mean" (a new head over the mean of an encoder's outputs), or "auto": "model" where the architecture has a
            classifier, else "mean".
        quantization: A quantisation configuration of transformers, handed on.
    """

    dtype: str = "float32"
    device: str = "cpu"
    attention: str | None = None
    trust_remote_code: bool = False
    pooling: str = "auto"
    quantization: Any = None

    def __post_init__(self) -> None:
        for what, value, known in (("dtype", self.dtype, tuple(DTYPES)), ("pooling", self.pooling, POOLINGS)):
            if value not in known:
                raise ConfigError(f'--{what} is "{value}"; it is one of {", ".join(known)}.{suggest(value, known)}')


class ModelSource:
    """Loads the parts of a model with transformers.

    Args:
        name: A folder, a hub name, or a .gguf file.
        options: How it is loaded.

    Raises:
        ConfigError: There is no such .gguf file, folder or model on the hub.
    """

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.name, self.options = name, options
        path = Path(name).expanduser()
        self.gguf = path.name if path.suffix == ".gguf" else None
        if self.gguf and not path.is_file():
            raise ConfigError(f"There is no file {path}; give a .gguf file, a folder or a hub name.")
        self.place = str(path.parent if self.gguf else path) if path.exists() else name
        if not path.exists():
            with requires_extra("language models"):
                import_module("huggingface_hub")
            check_model_name(name)

    def load(self, auto_class: str, **more: Any) -> Any:
        """`transformers.<auto_class>.from_pretrained`.

        Raises:
            ConfigError: It can't be loaded.
        """
        import transformers
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        if self.gguf:
            with requires_extra("GGUF files"):
                import_module("gguf")
            more["gguf_file"] = self.gguf
        try:
            # A name whose owner says "run my code" must be asked for; None would ask on the terminal.
            trust = self.options.trust_remote_code
            return getattr(transformers, auto_class).from_pretrained(self.place, trust_remote_code=trust, **more)
        except (*_OF_FILES, SafetensorError, StrictDataclassError) as error:
            raise ConfigError(self._explain(auto_class, error)) from error

    def load_model(
        self, auto_class: str, *, in_head: Callable[[Any, str], bool] = lambda model, name: False, **more: Any
    ) -> tuple[Any, list[str]]:
        """The model, and the parameters that its checkpoint does not have (or has in another shape).

        Args:
            auto_class: Of transformers.
            in_head: (model, parameter) -> whether it belongs to the head, which may have another shape than in the
                checkpoint.
            more: Handed on.

        Raises:
            ConfigError: It can't be loaded, or a weight has another shape than its configuration says.
        """
        options = self.options
        more |= {"attn_implementation": options.attention, "quantization_config": options.quantization}
        given = {key: value for key, value in more.items() if value is not None}
        # Weights of another shape are refused here: transformers' own error does not say which they are.
        given |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = self.load(auto_class, dtype=DTYPES[options.dtype], **given)
        mismatched = sorted((name, tuple(own), tuple(wanted)) for name, own, wanted in info["mismatched_keys"])
        if wrong := [entry for entry in mismatched if not in_head(model, entry[0])]:
            name, own, wanted = wrong[0]
            raise ConfigError(
                f'{len(wrong)} weights of "{self.name}" have another shape than its config.json says ("{name}" is '
                f"{own}, and would be {wanted}); take the config.json that belongs to these weights."
            )
        return model, [*info["missing_keys"], *(name for name, _, _ in mismatched)]

    def _explain(self, auto_class: str, error: Exception) -> str:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        first = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
        path = Path(self.place)
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            return (
                f'"{self.name}" needs Python code that comes with it, which is not run unasked; '
                "read that code, then give --trust-remote-code."
            )
        if path.is_dir() and not self.gguf and not (path / "config.json").is_file():
            return f"{path} has no config.json; a model's folder holds config.json, weights and a tokenizer."
        if auto_class == "AutoConfig" and isinstance(error, OSError) and not path.exists():
            return (
                f'There is no folder "{self.name}", and no model of that name on the hub or among the files kept from '
                f"it ({first})"
            )
        what = {"AutoConfig": "configuration", "AutoTokenizer": "tokenizer"}.get(auto_class, "model")
        other = what == "model" and isinstance(error, ImportError) and self.options.attention is not None
        advice = " Install it, or leave --attention out." if other else ""
        return f'The {what} of "{self.name}" can\'t be loaded: {first}{advice}'
