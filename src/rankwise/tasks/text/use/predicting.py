"""Predict the labels of texts, with probabilities."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.classify import tokenize_texts
from rankwise.tasks.text.use.outputs import classifier_outputs
from rankwise.tasks.text.use.prediction import Prediction
from rankwise.tasks.text.use.served import ServedModel

LIKELY = 0.5
"""Of several labels, those that are likelier than this are predicted."""


def predictions_of(outputs: Float[Tensor, "rows C"], labels: Labels) -> list[Prediction]:
    """Turn logits into labels with probabilities: softmax where a text has one label, sigmoid where several.

    Examples:
        >>> from torch import tensor
        >>> predictions_of(tensor([[0.0, 0.0, -30.0]]), Labels("one", ("a", "b", "c")))[0].probability
        0.5
        >>> predictions_of(tensor([[9.0, 9.0]]), Labels("several", ("a", "b")))[0].label
        ('a', 'b')
    """
    if labels.kind == "number":
        return [Prediction(value, {}) for value in outputs.squeeze(-1).tolist()]
    rows: list[list[float]] = (outputs.softmax(-1) if labels.kind == "one" else outputs.sigmoid()).tolist()
    likeliest: list[int] = outputs.argmax(-1).tolist()
    found: list[Prediction] = []
    for row, best in zip(rows, likeliest, strict=True):
        probabilities = dict(zip(labels.names, row, strict=True))
        likely = tuple(name for name, p in probabilities.items() if p > LIKELY)
        found.append(Prediction(likely if labels.kind == "several" else labels.names[best], probabilities))
    return found


def predict_texts(adapted: ServedModel, texts: Sequence[Labelled]) -> tuple[dict[str, list[Prediction]], list[str]]:
    """Label texts with every adapter.

    Args:
        adapted: The model and its adapters.
        texts: From `read_texts` or `as_text`.

    Returns:
        Adapter -> its predictions, in the order of the texts; and notes for the user.

    Raises:
        ConfigError: The adapters write texts and don't label them, or read texts of different lengths.
        DataError: A text can't be read by the model.
    """
    labels = adapted.labels
    if labels is None:
        raise ConfigError(
            f"{', '.join(adapted.names) or 'The model'} writes texts and gives no labels; use rankwise generate."
        )
    loaded = adapted.loaded
    prepared = tokenize_texts(texts, loaded.tokenizer, loaded.config, "given", adapted.one_way().max_length)
    found = {name: predictions_of(classifier_outputs(adapted, name, prepared.data), labels) for name in adapted.names}
    return found, list(prepared.notes)
