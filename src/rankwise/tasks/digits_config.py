"""The options of the digits experiment as YAML; a run repeats from it."""

from dataclasses import asdict
from typing import Any

import yaml

from rankwise.tasks.options import DigitsOptions


def config_of(options: DigitsOptions) -> dict[str, Any]:
    """The complete configuration, without the place of the results."""
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
    del config["out"]
    if len(options.seeds) == 1:
        # A bare number would be read as how many seeds.
        config["seeds"] = f"{options.seeds[0]}:{options.seeds[0]}"
    return {"digits": {key.replace("_", "-"): value for key, value in config.items() if value is not None}}


def config_yaml(options: DigitsOptions) -> str:
    """The configuration as a file to be read with --config."""
    return yaml.safe_dump(config_of(options), sort_keys=False)
