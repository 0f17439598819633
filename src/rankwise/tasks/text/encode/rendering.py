"""One prepared example shown with the tokens that carry loss marked."""

from itertools import groupby

from rankwise.tasks.text.encode.tokens import IGNORED, Tokenizer, Tokens

LOSS_MARKS = ("«", "»")
"""Around what carries loss, in plain text."""


def loss_runs(example: Tokens, tokenizer: Tokenizer, encoder_decoder: bool = False) -> list[tuple[str, bool]]:
    """The example's text in runs: (text, whether its tokens carry loss)."""
    if encoder_decoder:
        return [(tokenizer.decode(example.ids), False), (tokenizer.decode(example.labels), True)]
    pairs = groupby(zip(example.ids, example.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return [(tokenizer.decode([token for token, _ in pair]), learnt) for learnt, pair in pairs]


def show_plain(example: Tokens, tokenizer: Tokenizer, encoder_decoder: bool = False) -> str:
    """The example as plain text, with « » around what carries loss."""
    first, last = LOSS_MARKS
    runs = loss_runs(example, tokenizer, encoder_decoder)
    shown = "".join(f"{first}{text}{last}" if learnt else text for text, learnt in runs)
    return f"{_heading(example)}; it stands between {first} and {last}:\n{shown}"


def _heading(example: Tokens) -> str:
    learnt = sum(label != IGNORED for label in example.labels)
    return f"Example of line {example.line}: loss on {learnt:,} tokens"
