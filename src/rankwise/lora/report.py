"""The report of `inject` and `load_adapter`: modules adapted and left out, with reasons."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from rankwise.lora.targets.find import ALL_LINEAR, BY_NAME_ONLY
from rankwise.lora.targets.target import LeftOut, Target
from rankwise.tables import text_table


@dataclass(frozen=True)
class Report:
    """The report of `inject`; prints as a table.

    Args:
        adapter: Name of the adapter.
        adapted: The adapted modules.
        left_out: Modules with weights that got no adapter, and why.
        base_parameters: Numbers in the frozen base.
        replacements: Path -> numbers of each parameter that is trained in full.
        frozen_statistics: Normalisation layers whose running statistics stay the base's, also in train mode.
    """

    adapter: str
    adapted: list[Target]
    left_out: list[LeftOut]
    base_parameters: int
    replacements: Mapping[str, int] = field(default_factory=dict)
    frozen_statistics: tuple[str, ...] = ()

    @property
    def trainable_parameters(self) -> int:
        """Numbers in A and B of this adapter, and in what it trains in full."""
        return sum(target.parameters for target in self.adapted) + sum(self.replacements.values())

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        return f"<pre>{escape(str(self), quote=False)}</pre>"

    def __str__(self) -> str:
        """One row for each group of modules that differ only in numbers of their path."""
        groups: dict[tuple[str, str, str, int], list[Target]] = {}
        for target in self.adapted:
            groups.setdefault((_numberless(target.name), target.type, target.shape, target.r), []).append(target)
        rows = [
            (
                (group[0].name or "(the model)") if len(group) == 1 else pattern,
                len(group),
                kind,
                shape,
                r,
                sum(target.parameters for target in group),
            )
            for (pattern, kind, shape, r), group in groups.items()
        ]
        rows += [(name, 1, "trained in full", "", "", numbers) for name, numbers in self.replacements.items()]
        share = self.trainable_parameters / self.base_parameters if self.base_parameters else 0.0
        lines = [
            text_table(["module", "count", "type", "shape", "r", "parameters"], rows),
            f'adapter "{self.adapter}": {self.trainable_parameters:,} trainable parameters in {len(self.adapted)} '
            f"modules, {share:.2%} of the base's {self.base_parameters:,}",
        ]
        left: dict[tuple[str, str, str], int] = {}
        for out in self.left_out:
            key = (_numberless(out.name), out.type, out.reason)
            left[key] = left.get(key, 0) + 1
        if left:
            listed = [[name, count, kind, why] for (name, kind, why), count in left.items()]
            lines.append(text_table(["left out", "count", "type", "why"], listed))
        lines += [
            f'the adapter of "{target.name}" acts in "{tie.name}" too, which has the same weight'
            for target in self.adapted
            for tie in target.ties
        ]
        lines += [
            f'"{target.name}" is read, not called: its adapter acts through the weight during the forward of '
            f"{target.reader_name}{_rounding(target)}"
            for target in self.adapted
            if target.reader is not None
        ]
        if self.frozen_statistics:
            layers = "layer keeps" if len(self.frozen_statistics) == 1 else "layers keep"
            lines.append(
                f"{len(self.frozen_statistics)} normalisation {layers} the base's running statistics in train mode too "
                f'("{self.frozen_statistics[0]}"); to train them: modules_to_save'
            )
        by_name = [out.name for out in self.left_out if out.reason == BY_NAME_ONLY]
        if by_name:
            lines.append(f'to adapt what is taken by name only: target_modules=["{ALL_LINEAR}", "{by_name[0]}", ...]')
        return "\n".join(lines)


def _rounding(target: Target) -> str:
    """Note the type that W + delta is rounded to, where it holds fewer digits than delta."""
    dtype = getattr(target.module, target.parameter).dtype
    return "" if dtype.itemsize > 2 else f", rounded to {str(dtype).removeprefix('torch.')}: a small delta is lost"


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)
