"""The JSON schema of `results.json`, generated from its types.

python -m rankwise.results.schema > src/rankwise/results/results.schema.json
"""

import json
import re
from importlib import resources
from typing import Any, cast

import msgspec

from rankwise.results.content import Results
from rankwise.results.record import OTHERS, OpenRecord, Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def shipped_schema() -> dict[str, Any]:
    """Return the shipped JSON schema (draft 2020-12) of `results.json`.

    Examples:
        >>> shipped_schema()["title"]
        'Rankwise results'
    """
    return json.loads(resources.files("rankwise.results").joinpath("results.schema.json").read_text("utf-8"))


def generated_schema() -> dict[str, Any]:
    """Return the schema that the types give: what each object must have, may have, and what its keys mean.

    Unlike reading, the schema allows no keys that an object doesn't name (unless it is open): it is for those who
    write results.
    """
    (reference,), definitions = msgspec.json.schema_components([Results])
    for kind in _records(Record):
        if kind.__name__ in definitions:
            _complete(definitions[kind.__name__], kind)
    content = definitions.pop(reference["$ref"].rpartition("/")[2])
    plain_refs = json.loads(json.dumps(content).replace("#/components/schemas/", "#/$defs/"))
    defs = json.loads(json.dumps(definitions).replace("#/components/schemas/", "#/$defs/"))
    return {"$schema": DIALECT, **plain_refs, "title": "Rankwise results", "$defs": defs}


def _records(kind: type[Record]) -> list[type[Record]]:
    return [kind, *(below for inner in kind.__subclasses__() for below in _records(inner))]


def _complete(definition: dict[str, Any], kind: type[Record]) -> None:
    """Add what msgspec doesn't know: meanings, from the docstring, and whether further keys may be there."""
    text, _, arguments = (kind.__doc__ or "").partition("\n    Args:\n")
    definition["description"] = " ".join(text.split())
    properties = cast("dict[str, dict[str, Any]]", definition["properties"])
    meanings = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", arguments, re.MULTILINE))
    others = " ".join(meanings.get(OTHERS, "").split())
    for name, rule in properties.items():
        rule.pop("default", None)
        if name in meanings and "$ref" not in rule:
            properties[name] = {"description": " ".join(meanings[name].split()), **rule}
    definition["additionalProperties"] = {"description": others} if issubclass(kind, OpenRecord) else False
    properties.pop(OTHERS, None)


if __name__ == "__main__":
    print(json.dumps(generated_schema(), indent=1, ensure_ascii=False))
