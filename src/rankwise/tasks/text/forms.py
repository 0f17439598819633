"""Forms of examples, found by their columns: adding one is one entry in `FORMS`.

A form is a set of roles; a role is filled by the column of its own name, or by the one that the user names for it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.errors import DataError, suggest
from rankwise.tasks.text.examples import Chat, Example, Label, Labelled, Message, Pair, Plain
from rankwise.tasks.text.sources import NAMED, Records

ROLES = ("system", "user", "assistant", "tool")


class _WrongValueError(ValueError):
    """A record's value that can't be used; the message says why, the caller adds the line."""


@dataclass(frozen=True)
class Form:
    """One shape of examples.

    Args:
        roles: What a record must have.
        make: (line, role -> value) -> the example.
        optional: What it may have.
        tasks: For which tasks; "generate" and "predict" read what is asked, and no answers.
    """

    roles: tuple[str, ...]
    make: Callable[[int, Mapping[str, Any]], Example]
    optional: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("sft",)


def _text(values: Mapping[str, Any], role: str) -> str:
    value = values.get(role)
    if value is None:
        raise _WrongValueError(f'no "{role}"')
    if not isinstance(value, str):
        raise _WrongValueError(f'"{role}" is a {type(value).__name__}, not a text')
    if not value.strip():
        raise _WrongValueError(f'"{role}" is empty')
    return value


def _json_list(text: str, role: str) -> Any:
    """A list as a column of a CSV file holds it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise _WrongValueError(f'"{role}" is a text that is no JSON list') from None


def _messages(values: Mapping[str, Any]) -> tuple[Message, ...]:
    given = values["messages"]
    if isinstance(given, str):
        given = _json_list(given, "messages")
    if not isinstance(given, Sequence) or not given:
        raise _WrongValueError('"messages" is no list of messages')
    return tuple(_message(i, message) for i, message in enumerate(given, start=1))


def _chat(line: int, values: Mapping[str, Any]) -> Chat:
    messages = _messages(values)
    if messages[-1]["role"] != "assistant":
        raise _WrongValueError(
            f'the last message is of role "{messages[-1]["role"]}", not "assistant": there is no answer'
        )
    return Chat(line, messages)


def _message(i: int, message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise _WrongValueError(f'message {i} is not {{"role": ..., "content": text}}')
    role = message.get("role")
    if role not in ROLES:
        raise _WrongValueError(f'message {i} has the role "{role}"; roles are {", ".join(ROLES)}')
    return {"role": role, "content": message["content"]}


def _pair(line: int, values: Mapping[str, Any]) -> Pair:
    return Pair(line, _text(values, "prompt"), _text(values, "completion"))


def _instructed(values: Mapping[str, Any]) -> str:
    instruction, more = _text(values, "instruction"), values.get("input") or ""
    if not isinstance(more, str):
        raise _WrongValueError(f'"input" is a {type(more).__name__}, not a text')
    return f"{instruction}\n\n{more}" if more.strip() else instruction


def _instruction(line: int, values: Mapping[str, Any]) -> Pair:
    return Pair(line, _instructed(values), _text(values, "output"), chat=True)


def _chat_to_answer(line: int, values: Mapping[str, Any]) -> Chat:
    messages = _messages(values)
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return Chat(line, (*asked, {"role": "assistant", "content": ""}))


def _prompt(line: int, values: Mapping[str, Any]) -> Pair:
    return Pair(line, _text(values, "prompt"), "")


def _instruction_to_follow(line: int, values: Mapping[str, Any]) -> Pair:
    return Pair(line, _instructed(values), "", chat=True)


def _plain(line: int, values: Mapping[str, Any]) -> Plain:
    return Plain(line, _text(values, "text"))


def _labelled(line: int, values: Mapping[str, Any]) -> Labelled:
    pair = None if values.get("text_pair") is None else _text(values, "text_pair")
    return Labelled(line, _text(values, "text"), _label(values.get("label")), pair)


def _to_label(line: int, values: Mapping[str, Any]) -> Labelled:
    return _labelled(line, {**values, "label": "?"})


def _several(value: Any) -> Any:
    """Several labels, where a CSV file holds them as a JSON list; a text is one label."""
    if not (isinstance(value, str) and value.strip().startswith("[")):
        return value
    return _json_list(value, "label")


def _label(value: Any) -> Label:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(dict.fromkeys(str(item) for item in value))
    raise _WrongValueError("the label is empty")


FORMS: dict[str, Form] = {
    "messages": Form(("messages",), _chat),
    "prompt and completion": Form(("prompt", "completion"), _pair),
    "instruction and output": Form(("instruction", "output"), _instruction, optional=("input",)),
    "text": Form(("text",), _plain),
    "text and label": Form(("text", "label"), _labelled, optional=("text_pair",), tasks=("classify",)),
    "text to label": Form(("text",), _to_label, optional=("text_pair",), tasks=("predict",)),
    "messages to answer": Form(("messages",), _chat_to_answer, tasks=("generate",)),
    "prompt": Form(("prompt",), _prompt, optional=("completion",), tasks=("generate",)),
    "instruction": Form(("instruction",), _instruction_to_follow, optional=("input", "output"), tasks=("generate",)),
}
"""In the order in which they are tried."""


def read_examples(
    records: Records,
    task: str,
    columns: Mapping[str, str] | None = None,
    *,
    several: bool = False,
    skip_bad_lines: bool = False,
) -> tuple[list[Example], list[str]]:
    """Make examples of records.

    Args:
        records: From `read_records`.
        task: "sft" or "classify"; "generate" for prompts without their answers, "predict" for texts without labels.
        columns: Role -> column, where a column is not called as its role; {"prompt": "mr", "completion": "ref"}.
        several: Whether a label may be several, so that a text such as '["a", "b"]' is a list of them.
        skip_bad_lines: Leave out records that can't be used, and say so, instead of refusing them.

    Returns:
        The examples, and what the user should be told.

    Raises:
        DataError: No form fits the columns, a named column is missing, or a record has no usable value.

    Examples:
        >>> from rankwise.tasks.text.sources import Record, Records
        >>> row = Record(2, {"mr": "name[Aromi]", "ref": "Aromi is a place."})
        >>> records = Records("e2e.csv", (row,), ("mr", "ref"), {})
        >>> read_examples(records, "sft", {"prompt": "mr", "completion": "ref"})[0]
        [Pair(line=2, source='name[Aromi]', answer='Aromi is a place.', chat=False)]
    """
    columns = dict(columns or {})
    forms = {name: form for name, form in FORMS.items() if task in form.tasks}
    _check_columns(records, forms, columns)
    columns, notes = _only_choice(records, forms, columns)
    form = _find_form(records, task, forms, columns)
    column_of = {role: columns.get(role, role) for role in (*form.roles, *form.optional)}
    examples: list[Example] = []
    bad: list[str] = []
    for row in records.rows:
        try:
            values = {role: row.values.get(c) for role, c in column_of.items()}
            if several:
                values["label"] = _several(values["label"])
            examples.append(form.make(row.line, values))
        except _WrongValueError as error:
            bad.append(f"line {row.line} ({error})")
    if not bad:
        return examples, notes
    more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    what = f"{len(bad):,} of {len(records.rows):,} examples can't be used: {'; '.join(bad[:NAMED])}{more}."
    if not skip_bad_lines or not examples:
        raise DataError(f"{records.source}: {what} Mend them, or give --skip-bad-lines to leave them out.")
    return examples, [*notes, f"{records.source}: {what} They were left out."]


def _check_columns(records: Records, forms: Mapping[str, Form], columns: Mapping[str, str]) -> None:
    known = list(dict.fromkeys(role for form in forms.values() for role in (*form.roles, *form.optional)))
    for role, column in columns.items():
        if role not in known:
            raise DataError(f'No form of example has a "{role}"; there are {", ".join(known)}.{suggest(role, known)}')
        if column not in records.columns:
            raise DataError(
                f'{records.source} has no column "{column}" for "{role}"; its columns are '
                f"{', '.join(records.columns)}.{suggest(column, records.columns)}"
            )


def _only_choice(
    records: Records, forms: Mapping[str, Form], columns: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Where all but one role of a form have columns and one column is left, it is the last role's; that is said."""
    filled = {role: columns.get(role, role) for form in forms.values() for role in form.roles}
    if any(all(filled[role] in records.columns for role in form.roles) for form in forms.values()):
        return columns, []
    for form in forms.values():
        lacking = [role for role in form.roles if filled[role] not in records.columns]
        left = [column for column in records.columns if column not in [filled[role] for role in form.roles]]
        if len(lacking) == len(left) == 1 and len(form.roles) > 1:
            role, column = lacking[0], left[0]
            return {**columns, role: column}, [f'{records.source}: the column "{column}" is taken for "{role}".']
    return columns, []


def _find_form(records: Records, task: str, forms: Mapping[str, Form], columns: Mapping[str, str]) -> Form:
    for form in forms.values():
        # Roles that the user named a column for decide: a form without them is not what was meant.
        named = set(columns) <= {*form.roles, *form.optional}
        if named and all(columns.get(role, role) in records.columns for role in form.roles):
            return form
    wanted = "; or ".join(", ".join(form.roles) for form in forms.values())
    raise DataError(
        f"{records.source} has the columns {', '.join(records.columns)}; {task} needs {wanted}. "
        f"Name the columns, as in --columns {_shown(forms, records)}."
    )


def _shown(forms: Mapping[str, Form], records: Records) -> str:
    """An example of naming columns: the form with as many roles as there are columns, else the last."""
    fitting = [form for form in forms.values() if len(form.roles) == len(records.columns)]
    roles = (fitting or list(forms.values()))[-1].roles
    return ",".join(f"{role}={column}" for role, column in zip(roles, records.columns, strict=False))
