"""The options of the digits experiment as YAML; a run repeats from it."""

from dataclasses import asdict
from typing import Any

import yaml

from rankwise.errors import ConfigError
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


def check_same(options: DigitsOptions, config: str) -> None:
    """Refuse options that an unfinished run did not begin with.

    Args:
        options: Those of the run, changed by flags.
        config: The configuration that the run was begun with, YAML.

    Raises:
        ConfigError: They differ.
    """
    now, begun = config_of(options)["digits"], yaml.safe_load(config)["digits"]
    for key in [*begun, *now]:
        if now.get(key) != begun.get(key):
            raise ConfigError(
                f"--{key} is {now.get(key)}, and {begun.get(key)} in {options.out}; a run goes on with the options it "
                "began with, so leave the flag out."
            )
