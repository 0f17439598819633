"""Forms of examples, found by their columns: adding one is one entry in `FORMS`.

A form is a set of roles; a role is filled by the column of its own name, or by the one that the user names for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.errors import DataError, suggest
from rankwise.tasks.text.data.examples import Chat, Example, Labelled, PlainText, PromptPair
from rankwise.tasks.text.data.label_values import count_places, label_of, places_of_ones, several_of
from rankwise.tasks.text.data.messages import WrongValueError, has_text, read_chat, read_history, with_system
from rankwise.tasks.text.read.bad_lines import NAMED
from rankwise.tasks.text.read.sources import Records


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
        raise WrongValueError(f'no "{role}"')
    if not isinstance(value, str):
        raise WrongValueError(f'"{role}" is a {type(value).__name__}, not a text')
    if not value.strip():
        raise WrongValueError(f'"{role}" is empty')
    return value


def _chat(line: int, values: Mapping[str, Any]) -> Chat:
    return _answered(_read(line, values))


def _answered(chat: Chat) -> Chat:
    if chat.messages[-1]["role"] != "assistant":
        raise WrongValueError(
            f'the last message is of role "{chat.messages[-1]["role"]}", not "assistant": there is no answer'
        )
    return chat


def _read(line: int, values: Mapping[str, Any]) -> Chat:
    return read_chat(line, values["messages"], values.get("tools"), values.get("system"))


def _pair(line: int, values: Mapping[str, Any]) -> PromptPair:
    return PromptPair(line, _text(values, "prompt"), _text(values, "completion"))


def _instructed(values: Mapping[str, Any]) -> str:
    instruction, more = _text(values, "instruction"), values.get("input") or ""
    if not isinstance(more, str):
        raise WrongValueError(f'"input" is a {type(more).__name__}, not a text')
    return f"{instruction}\n\n{more}" if more.strip() else instruction


def _instruction(line: int, values: Mapping[str, Any]) -> PromptPair | Chat:
    return _after_others(line, values, _instructed(values), _text(values, "output"))


def _after_others(line: int, values: Mapping[str, Any], instruction: str, output: str) -> PromptPair | Chat:
    """An instruction and its output: with a system prompt or earlier turns a conversation."""
    turns = read_history(values.get("history"))
    system = values.get("system")
    if not turns and not has_text(system):
        return PromptPair(line, instruction, output, chat=True)
    return with_system(
        Chat(line, (*turns, {"role": "user", "content": instruction}, {"role": "assistant", "content": output})),
        system,
    )


def _chat_to_answer(line: int, values: Mapping[str, Any]) -> Chat:
    chat = _read(line, values)
    asked = chat.messages[:-1] if chat.messages[-1]["role"] == "assistant" else chat.messages
    return replace(chat, messages=(*asked, {"role": "assistant", "content": ""}), context=frozenset[int]())


def _prompt(line: int, values: Mapping[str, Any]) -> PromptPair:
    return PromptPair(line, _text(values, "prompt"), "")


def _instruction_to_follow(line: int, values: Mapping[str, Any]) -> PromptPair | Chat:
    return _after_others(line, values, _instructed(values), "")


def _plain(line: int, values: Mapping[str, Any]) -> PlainText:
    return PlainText(line, _text(values, "text"))


def _labelled(line: int, values: Mapping[str, Any]) -> Labelled:
    pair = None if values.get("text_pair") is None else _text(values, "text_pair")
    return Labelled(line, _text(values, "text"), values["label"], pair)


def _to_label(line: int, values: Mapping[str, Any]) -> Labelled:
    return _labelled(line, {**values, "label": "?"})


_AROUND = ("input", "system", "history")
"""Parts that may surround an instruction."""

FORMS: dict[str, Form] = {
    "messages": Form(("messages",), _chat, optional=("tools", "system")),
    "prompt and completion": Form(("prompt", "completion"), _pair),
    "instruction and output": Form(("instruction", "output"), _instruction, optional=_AROUND),
    "text": Form(("text",), _plain),
    "text and label": Form(("text", "label"), _labelled, optional=("text_pair",), tasks=("classify",)),
    "text to label": Form(("text",), _to_label, optional=("text_pair",), tasks=("predict",)),
    "messages to answer": Form(("messages",), _chat_to_answer, optional=("tools", "system"), tasks=("generate",)),
    "prompt": Form(("prompt",), _prompt, optional=("completion",), tasks=("generate",)),
    "instruction": Form(("instruction",), _instruction_to_follow, (*_AROUND, "output"), ("generate",)),
}
"""In the order in which they are tried."""


def read_examples(
    records: Records,
    task: str,
    columns: Mapping[str, str] | None = None,
    *,
    several: bool = False,
    places: int | None = None,
    skip_bad_lines: bool = False,
) -> tuple[list[Example], list[str]]:
    """Make examples of records.

    Args:
        records: From `read_records`.
        task: "sft" or "classify"; "generate" for prompts without their answers, "predict" for texts without labels.
        columns: Role -> column, where a column is not called as its role; {"prompt": "mr", "completion": "ref"}.
        several: Whether a label may be several, so that a text such as '["a", "b"]' is a list of them.
        places: How many labels there are where each is a place in a row of 0 and 1; from `find_places`.
        skip_bad_lines: Leave out records that can't be used, and say so, instead of refusing them.

    Returns:
        The examples, and notes for the user.

    Raises:
        DataError: No form fits the columns, a named column is missing, or a record has no usable value.

    Examples:
        >>> from rankwise.tasks.text.read.sources import RawRecord, Records
        >>> row = RawRecord(2, {"mr": "name[Aromi]", "ref": "Aromi is a place."})
        >>> records = Records("e2e.csv", (row,), ("mr", "ref"), {})
        >>> read_examples(records, "sft", {"prompt": "mr", "completion": "ref"})[0]
        [PromptPair(line=2, source='name[Aromi]', answer='Aromi is a place.', chat=False)]
    """
    columns = dict(columns or {})
    forms = {name: form for name, form in FORMS.items() if task in form.tasks}
    _check_columns(records, forms, columns)
    columns, notes = _only_choice(records, forms, columns)
    form = _find_form(records, task, forms, columns)
    column_of = {role: columns.get(role, role) for role in (*form.roles, *form.optional)}
    notes += _unused(records, [*column_of.values()])
    examples: list[Example] = []
    bad: list[str] = []
    for row in records.rows:
        try:
            values = {role: row.values.get(c) for role, c in column_of.items()}
            if "label" in values:
                label = several_of(values["label"]) if several else values["label"]
                values["label"] = label_of(label) if places is None else places_of_ones(label, places)
            examples.append(form.make(row.line, values))
        except WrongValueError as error:
            bad.append(f"line {row.line} ({error})")
    if not bad:
        return examples, notes
    more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    what = f"{len(bad):,} of {len(records.rows):,} examples can't be used: {'; '.join(bad[:NAMED])}{more}."
    if not skip_bad_lines or not examples:
        raise DataError(f"{records.source}: {what} Mend them, or give --skip-bad-lines to leave them out.")
    return examples, [*notes, f"{records.source}: {what} They were left out."]


def find_places(records: Records, column: str, *, several: bool) -> int | None:
    """The number of labels of a column of rows of 0 and 1; None for other columns.

    Args:
        records: The training data.
        column: The labels' column.
        several: Whether a text may be a JSON list.
    """
    values = [row.values.get(column) for row in records.rows]
    try:
        return count_places([several_of(value) for value in values] if several else values)
    except WrongValueError:  # named with its line when examples are made
        return None


def _unused(records: Records, used: Sequence[str]) -> list[str]:
    unused = [f'"{column}"' for column in records.columns if column not in used]
    if not unused:
        return []
    what = f"the columns {', '.join(unused)} are" if len(unused) > 1 else f"the column {unused[0]} is"
    return [f"{records.source}: {what} not used."]


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
    """Assign the only column that is left to the only role without one; a note reports it."""
    filled = {role: columns.get(role, role) for form in forms.values() for role in form.roles}
    if any(all(filled[role] in records.columns for role in form.roles) for form in forms.values()):
        return columns, []
    for form in forms.values():
        lacking = [role for role in form.roles if filled[role] not in records.columns]
        left = [column for column in records.columns if column not in [filled[role] for role in form.roles]]
        if len(lacking) == len(left) == 1 and len(form.roles) > 1:
            role, column = lacking[0], left[0]
            return {**columns, role: column}, [f'{records.source}: the column "{column}" is read as "{role}".']
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


_OTHER_NAMES = {
    "prompt": ("question", "query", "input", "source", "context", "document", "article", "problem", "mr"),
    "completion": ("answer", "response", "output", "target", "summary", "highlights", "solution", "reply", "ref"),
    "instruction": ("task", "question", "prompt"),
    "output": ("response", "answer", "completion"),
    "input": ("context",),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat"),
    "text": ("sentence", "content", "body", "review", "tweet", "document", "comment", "title"),
    "label": ("labels", "category", "class", "sentiment", "target", "intent", "topic", "score", "rating", "stars"),
}
"""Other common names of a role's column."""


def _shown(forms: Mapping[str, Form], records: Records) -> str:
    """A hint on naming columns: candidates by the common names of a form's roles, else only the roles.

    Of several forms the one of which most roles have columns of their own names.
    """
    known = {column.casefold(): column for column in records.columns}
    fitting: list[tuple[int, dict[str, str]]] = []
    for form in forms.values():
        found = {role: _column_for(role, known) for role in form.roles}
        named = {role: column for role, column in found.items() if column is not None}
        if len(named) < len(form.roles) or len({*named.values()}) < len(named):
            continue
        for role in form.optional:
            column = _column_for(role, known)
            if column not in (None, role) and column not in named.values():
                named[role] = str(column)
        fitting.append((sum(role == column for role, column in named.items()), named))
    if fitting:
        _, named = max(fitting, key=lambda one: one[0])
        return ",".join(f"{role}={column}" for role, column in named.items())
    # The form with the fewest roles that has more than one, if any: a text alone is rarely what is meant.
    roles = min((form.roles for form in forms.values()), key=lambda roles: (len(roles) != 2, len(roles)))
    return ",".join(f"{role}=COLUMN" for role in roles)


def _column_for(role: str, known: Mapping[str, str]) -> str | None:
    """The column that is called as a role, or as it often is."""
    return next((known[name] for name in (role, *_OTHER_NAMES.get(role, ())) if name in known), None)
