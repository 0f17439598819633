"""`rankwise.predict`, and what a prediction is. Light: transformers and the rest load when texts are labelled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from rankwise.errors import DataError, arguments_named


@dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for one text.

    Args:
        label: The likeliest label; of several, all that are likelier than not; of numbers, the number.
        probabilities: Label -> probability, in the order of the labels; empty for numbers.
    """

    label: str | tuple[str, ...] | float
    probabilities: Mapping[str, float]

    @property
    def probability(self) -> float | tuple[float, ...] | None:
        """Of the label, or of each of several; None for numbers."""
        if isinstance(self.label, tuple):
            return tuple(self.probabilities[name] for name in self.label)
        return self.probabilities[self.label] if isinstance(self.label, str) else None

    def shown(self, *, every: bool = False) -> str:
        """A sentence, the likeliest label first.

        Args:
            every: Whether all labels are named, or the predicted ones alone.

        Examples:
            >>> Prediction("b", {"a": 0.25, "b": 0.75}).shown(every=True)
            'b 0.750, a 0.250'
        """
        if not isinstance(self.label, str | tuple):
            return f"{self.label:.6g}"
        predicted = (self.label,) if isinstance(self.label, str) else self.label
        named = list(self.probabilities) if every else list(predicted)
        names = sorted(named, key=lambda name: -self.probabilities[name])
        return ", ".join(f"{name} {self.probabilities[name]:.3f}" for name in names) or "none"


Text = str | tuple[str, str]
"""A text, or a pair of them."""


@overload
def predict(
    adapters: str | Path,
    texts: str | Sequence[Text],
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> list[Prediction]: ...


@overload
def predict(
    adapters: Sequence[str | Path],
    texts: str | Sequence[Text],
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, list[Prediction]]: ...


@arguments_named()
def predict(
    adapters: str | Path | Sequence[str | Path],
    texts: str | Sequence[Text],
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> list[Prediction] | dict[str, list[Prediction]]:
    """Label texts or images with a classifier that `rankwise sweep` or `rankwise train` has saved.

    The base is loaded at every call, so give all texts at once.

    Args:
        adapters: The folder of an adapter, or several of one base and one set of labels.
        texts: A text, or a list of texts, or of pairs of texts for a classifier of pairs; for a classifier of images
            the image files.
        model: The base; None takes what the adapter names.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes CUDA, then MPS, then the CPU.
        dtype: Of the base: "float32", "bfloat16" or "float16".

    Returns:
        A prediction for each text; for several adapters, adapter -> predictions.

    Raises:
        RankwiseError: An adapter or its base can't be loaded, or gives no labels; or a text is empty.

    Examples:
        ```python
        (said,) = rankwise.predict("runs/train/adapters/r8-s0", "How do I locate my card?")
        print(said.label, said.probability)
        ```
    """
    from rankwise.tasks.images.reading import LabelledImage
    from rankwise.tasks.text.data.prompts import as_text
    from rankwise.tasks.text.use.images import load_adapted_images, predict_images
    from rankwise.tasks.text.use.options import UseOptions
    from rankwise.tasks.text.use.predicting import predict_texts
    from rankwise.tasks.text.use.served import load_adapted, reads_images

    one = isinstance(adapters, str | Path)
    folders = [Path(folder) for folder in ([adapters] if one else adapters)]
    use_options = UseOptions(model=model, device=device, dtype=dtype)
    if reads_images(folders):
        files = [LabelledImage(i, str(file), "") for i, file in enumerate([texts] if isinstance(texts, str) else texts)]
        served = load_adapted_images(folders, use_options)
        labelled = predict_images(served, files)
        return labelled[served.names[0]] if one else labelled
    given: list[Text] = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(given, start=1):
        parts = [text] if isinstance(text, str) else list(text) if isinstance(text, tuple | list) else []
        if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            raise DataError(f"Text {i} is {text!r}; give texts, or pairs of texts.")
    pairs = [(text, None) if isinstance(text, str) else text for text in given]
    examples = [as_text(i, text, pair) for i, (text, pair) in enumerate(pairs, start=1)]
    if empty := next((example.line for example in examples if not example.text.strip()), None):
        raise DataError(f"Text {empty} is empty; give texts with at least a letter.")
    if not examples:
        raise DataError("There are no texts; give one or more.")
    adapted = load_adapted(folders, use_options)
    found, _ = predict_texts(adapted, examples)
    return found[adapted.names[0]] if one else found
