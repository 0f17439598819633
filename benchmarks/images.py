"""Sweeps over images: an answer for three models of ten labels, and memory against the number of images.

    python benchmarks/images.py [--models timm,vit,resnet] [--images 200] [--memory]

The embedded digits are written as PNG files. The models are small and random: a convolutional network of timm (needs
torchvision), a ViT and a ResNet of transformers. Printed are seconds, those of the processor too (on a machine that is shared
only they tell), and verdict of each sweep, or, with --memory, the peak memory of a process that trains on n and on 10 n
images of 224 x 224.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

KINDS = {"timm": "test_resnet", "vit": "vit", "resnet": "resnet"}
SIZE = {"timm": 32, "vit": 28, "resnet": 28}


def rankwise(*arguments: str) -> tuple[float, float, float]:
    """Run a command in a process of its own: seconds, seconds of the processor, and its peak memory in MiB."""
    clock = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "rankwise", *arguments, "--quiet"], cwd=ROOT
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rankwise {arguments[0]} failed.")
    return time.perf_counter() - clock, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def answers(root: Path, models: list[str], n: int) -> None:
    """A sweep for each model."""
    from image_models import make_image_model, make_images
    from rankwise.report import answer_words, read_results

    data = make_images(root / "data", n)
    for name in models:
        model = make_image_model(root / name, KINDS[name], size=SIZE[name])
        out = root / f"run-{name}"
        seconds, of_processor, peak = rankwise(
            *("sweep", "--task", "images", "--model", str(model), "--data", str(data), "--out", str(out)),
            *("--ranks", "1,2,4", "--epochs", "5", "--lr", "1e-3,3e-3", "--seeds", "4", "--tolerance", "5%"),
        )
        results = read_results(out / "results.json")
        took = f"{seconds:.0f} s, of the processor {of_processor:.0f} s, {peak:.0f} MiB"
        print(f"{name}: {took}, {len(results.runs)} runs: {answer_words(results)}", flush=True)


def memory(root: Path, n: int) -> None:
    """Peak memory of training on n and on 10 n images."""
    from image_models import make_image_model, make_images

    model = make_image_model(root / "vit", "vit", size=224)
    for times in (1, 10):
        data = make_images(root / f"data-{times}", n * times)
        found = len(list(data.rglob("*.png")))
        seconds, of_processor, peak = rankwise(
            *("train", "--task", "images", "--model", str(model), "--data", str(data), "--rank", "2", "--epochs", "1"),
            *("--out", str(root / f"run-{times}")),
        )
        print(f"{found:,} images: {peak:.0f} MiB, {seconds:.0f} s, of the processor {of_processor:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="timm,vit,resnet")
    parser.add_argument("--images", type=int, default=200, help="of each label")
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.memory:
            memory(Path(folder), given.images)
        else:
            answers(Path(folder), given.models.split(","), given.images)


if __name__ == "__main__":
    main()
