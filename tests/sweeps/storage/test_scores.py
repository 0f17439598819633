"""Scores come back from a checkpoint as they were."""

from dataclasses import asdict

import numpy as np
from safetensors.torch import load, save

from rankwise.sweeps.problem import Scores
from rankwise.sweeps.storage.scores import scores_as_tensors, scores_from


def test_scores_come_back_as_they_were() -> None:
    draw = np.random.default_rng(0)
    whole = Scores(
        validation=draw.random(5).astype(np.float32),
        validation_loss=0.1 + 1e-17 + 1 / 3,
        test=draw.random(3).astype(np.float32),
        other={"elsewhere/b": draw.random(2), "a": draw.random(4).astype(np.float32)},
        deciding=draw.random(5),
        rows=np.array([3, 1, 4]),
        losses=np.array([np.nan, 1.0]),
    )
    bare = Scores(whole.validation[:0], float("inf"), np.empty(0), {})
    given = {"r2": whole, "r1": bare}
    tensors = scores_as_tensors(given, ["r1", "other", "r2"])
    back = scores_from(load(save(tensors)), ["r1", "other", "r2"])
    assert back.keys() == given.keys()
    for name, scores in given.items():
        mine, theirs = asdict(scores), asdict(back[name])
        assert list(mine["other"]) == list(theirs["other"]), "in their order"
        mine, theirs = (of.pop("other") | of for of in (mine, theirs))
        for key, values in mine.items():
            found = theirs[key]
            assert type(found) is type(values)
            assert np.array_equal(found, values, equal_nan=True) if values is not None else found is None
            assert getattr(found, "dtype", None) == getattr(values, "dtype", None)
    assert scores_as_tensors({}, []) == {}
    assert scores_from({}, []) == {}
