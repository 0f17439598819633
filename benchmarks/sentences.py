"""Draws sentences from the docstrings of the package, to be read aloud.

python benchmarks/sentences.py --seed 0 --n 20
"""

import argparse
import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "rankwise"


def sentences() -> Iterator[tuple[str, str]]:
    """Every sentence of a docstring outside its lists and examples, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = re.split(
                r"\n\s*(?:Args|Returns|Yields|Raises|Examples|References|Attributes|Parameters)\b", _doc(node)
            )
            for paragraph in text[0].split("\n\n"):
                if "$" in paragraph or paragraph.lstrip().startswith(("-", "|", "1.", "Example")):
                    continue
                for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z`])", " ".join(paragraph.split())):
                    if len(sentence.split()) > 3:
                        yield path.relative_to(PACKAGE).as_posix(), sentence


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ast.get_docstring(node) or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=20)
    args = parser.parse_args()
    for path, sentence in random.Random(args.seed).sample(list(sentences()), args.n):
        print(f"- `{path}`: {sentence}")


if __name__ == "__main__":
    main()
