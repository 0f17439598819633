"""Conversations as data hold them: turns, tools, turns marked as not to be learnt, a separate system prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rankwise.tasks.text.data.examples import Chat, ChatMessage

ROLES = ("system", "user", "assistant", "tool")

LEARNT_KEYS = ("weight", "train", "loss")
"""Keys of a turn that say whether it is learnt: OpenAI's (0 or 1), axolotl's and ms-swift's (true or false)."""


class WrongValueError(ValueError):
    """A record's value that can't be used; the message says why, the caller adds the line."""


def json_list(text: str, role: str) -> Any:
    """A list as a column of a CSV file holds it.

    Raises:
        WrongValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise WrongValueError(f'"{role}" is a text that is no JSON list') from None


def read_chat(line: int, messages: Any, tools: Any = None, system: Any = None) -> Chat:
    """A conversation with all that its messages hold.

    Args:
        line: Where it stands.
        messages: Its messages, or JSON of them.
        tools: Descriptions of tools, or JSON of them; None for none.
        system: A separate system prompt; None for none.

    Raises:
        WrongValueError: Something in it can't be used.

    Examples:
        >>> said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
        >>> read_chat(1, said).context
        frozenset({1})
    """
    if isinstance(messages, str):
        messages = json_list(messages, "messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise WrongValueError('"messages" is no list of messages')
    turns = tuple(_message(i, message) for i, message in enumerate(messages, start=1))
    marked = {i: learnt for i, message in enumerate(messages) if (learnt := _learnt(i + 1, message)) is not None}
    context = frozenset(i for i, learnt in marked.items() if not learnt and turns[i]["role"] == "assistant")
    return with_system(Chat(line, turns, _tools(tools), context), system)


def _message(i: int, message: Any) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise WrongValueError(f'message {i} is not {{"role": ..., "content": text}}')
    role, content = message.get("role"), message.get("content")
    calls = message.get("tool_calls")
    if content is None and role == "assistant" and calls:
        content = ""
    if not isinstance(content, str):
        has = ", ".join(f'"{key}"' for key, value in message.items() if value is not None)
        what = f"has the keys {has}" if content is None else f"has content of type {type(content).__name__}"
        raise WrongValueError(f'message {i} {what}; a message is {{"role": ..., "content": text}}')
    if role not in ROLES:
        raise WrongValueError(f'message {i} has the role "{role}"; roles are {", ".join(ROLES)}')
    # A table of messages has every key in every message, empty where a message lacks it.
    more = {
        str(key): value
        for key, value in message.items()
        if key not in ("role", "content", *LEARNT_KEYS) and value is not None and value != []
    }
    if calls:
        more["tool_calls"] = _calls(i, calls)
    return {"role": role, "content": content, **more}


def _calls(i: int, calls: Any) -> list[Any]:
    """Tool calls with their arguments as objects, which OpenAI's form has as JSON text and templates write as JSON."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise WrongValueError(f'"tool_calls" of message {i} is no list')
    return [_call(call) for call in calls]


def _call(call: Any) -> Any:
    inner = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("arguments"), str):
        return call
    try:
        arguments = json.loads(inner["arguments"])
    except json.JSONDecodeError:
        return call
    return {**call, "function": {**inner, "arguments": arguments}} if isinstance(arguments, dict) else call


def _learnt(i: int, message: Mapping[str, Any]) -> bool | None:
    """Whether a turn is marked as to be learnt or not; None where it bears no mark."""
    marks = {key: message[key] for key in LEARNT_KEYS if message.get(key) is not None}
    for key, value in marks.items():
        if value not in (0, 1):
            raise WrongValueError(
                f'message {i} has "{key}": {json.dumps(value, default=str)}; only 0 and 1 can be used'
            )
        if value and key != "weight" and message.get("role") != "assistant":
            raise WrongValueError(
                f'message {i} of the role "{message.get("role")}" has "{key}": {json.dumps(value)}; only what an '
                "assistant says is learnt"
            )
    if len({bool(value) for value in marks.values()}) > 1:
        raise WrongValueError(f"message {i} has marks that contradict each other ({', '.join(marks)})")
    return bool(next(iter(marks.values()))) if marks else None


def _tools(tools: Any) -> tuple[Any, ...]:
    if isinstance(tools, str):
        tools = json_list(tools, "tools") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not all(isinstance(t, Mapping) for t in tools):
        raise WrongValueError('"tools" is no list of objects')
    return tuple(tools)


def has_text(value: Any) -> bool:
    """Whether a column holds anything.

    Raises:
        WrongValueError: It holds something else than a text.
    """
    if value is not None and not isinstance(value, str):
        raise WrongValueError(f'"system" is a {type(value).__name__}, not a text')
    return bool(value and value.strip())


def with_system(chat: Chat, system: Any) -> Chat:
    """The conversation with a separate system prompt.

    Raises:
        WrongValueError: It has one already, another.
    """
    if not has_text(system):
        return chat
    first = chat.messages[0]
    if first["role"] == "system":
        if first["content"].strip() == system.strip():
            return chat
        raise WrongValueError('"system" and the first message are two system prompts')
    messages = ({"role": "system", "content": system}, *chat.messages)
    return replace(chat, messages=messages, context=frozenset(i + 1 for i in chat.context))


def read_history(history: Any) -> tuple[ChatMessage, ...]:
    """Earlier turns as pairs of what a user and an assistant said, or JSON of them.

    Raises:
        WrongValueError: They are something else.

    Examples:
        >>> read_history([["one?", "two"]])
        ({'role': 'user', 'content': 'one?'}, {'role': 'assistant', 'content': 'two'})
    """
    if isinstance(history, str):
        history = json_list(history, "history") if history.strip() else None
    if history is None:
        return ()
    wrong = WrongValueError('"history" is no list of pairs [what was asked, what was answered]')
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise wrong
    turns: list[ChatMessage] = []
    for pair in history:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise wrong
        if not all(isinstance(text, str) for text in pair):
            raise wrong
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(turns)
