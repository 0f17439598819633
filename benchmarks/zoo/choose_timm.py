"""Find the smallest model of each timm family and the smallest image it takes: prints the table of `timm_models.py`.

    python benchmarks/zoo/choose_timm.py > benchmarks/zoo/timm_models.csv

Takes about ten minutes: 1,400 models are made, those that can be on the meta device.
"""

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from zoo.torchvision_stand_in import torchvision_stand_in

with torchvision_stand_in():
    import timm

SIZES = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 288, 320, 384, 512)


def parameters(name: str) -> float:
    """Numbers in a model; infinity where it can't be made without a download."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except (RuntimeError, NotImplementedError, ValueError):
        try:
            model = timm.create_model(name)
        except (RuntimeError, ValueError, OSError):
            return float("inf")
    return sum(parameter.numel() for parameter in model.parameters())


def takes(name: str, size: int, with_argument: bool) -> bool:
    """Whether the model runs on two images of this size, in eval and in training mode."""
    try:
        model = timm.create_model(name, **({"img_size": size} if with_argument else {}))
        x = torch.randn(2, *model.default_cfg["input_size"][:1], size, size)
        with torch.no_grad():
            model.eval()
            return bool(torch.isfinite(model(x)).all())
    except Exception:  # whatever a model raises, it does not take this size
        return False


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("family,model,image_size,size_as_argument", flush=True)
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        name = min(names, key=parameters)
        found = next(((s, a) for s in SIZES for a in (True, False) if takes(name, s, a)), None)
        print(f"{family},{name},{found[0] if found else ''},{int(found[1]) if found else ''}", flush=True)


if __name__ == "__main__":
    main()
