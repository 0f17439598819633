"""Every generator of random numbers that a model can draw from without being asked: read, seeded and put back."""

import _random
import ctypes
import pickle
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from rankwise.streams import stream_seed

Result = TypeVar("Result")

MT19937_BYTES = 2500
"""The state of an MT19937 in memory: 624 words of 32 bits and a place among them."""

_PYTHONS: Any = random.getstate.__self__  # pyright: ignore[reportFunctionMemberAccess]
_NUMPYS: Any = np.random.randn.__self__  # pyright: ignore[reportAttributeAccessIssue]
"""The global generators, whose methods `random` and `numpy.random` have as functions."""


def _memory(own: object, size: int) -> ctypes.Array[ctypes.c_char]:
    """An object's memory up to a size, without its head, in which references are counted."""
    head = object.__basicsize__
    return (ctypes.c_char * (size - head)).from_address(id(own) + head)


_NUMPYS_MEMORY = _memory(_NUMPYS, type(_NUMPYS).__basicsize__)
_PYTHONS_MEMORY = _memory(_PYTHONS, _random.Random.__basicsize__)
_IN_OBJECT = _random.Random.__basicsize__ >= object.__basicsize__ + MT19937_BYTES
"""Whether the state of Python's generator lies in the object itself."""


class Generators:
    """The global generators of torch, numpy and Python, and those that modules hold as attributes.

    Args:
        model: The model; None for the global generators alone.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        model = model or nn.Module()
        self._devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
        kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
        self._own = {
            f'"{name}.{key}"': value
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, kinds)
        }

    def drawn_by(self, run: Callable[[], Result]) -> tuple[Result, str]:
        """Call a function; return what it returned, and the generator that it drew from ("" for none)."""
        before = self.marks()
        result = run()
        after = self.marks()
        return result, "" if after == before else next(what for what in before if after[what] != before[what])

    def marks(self) -> dict[str, object]:
        """For each, by what draws from it, a value that changes when it advances: a tenth of the time of `states`."""
        torchs = torch.default_generator.get_state().numpy().tobytes()
        marks: dict[str, object] = {"torch": torchs, "numpy.random": _numpy_mark()}
        for i in self._devices:
            marks[f"torch on cuda:{i}"] = torch.cuda.get_rng_state(i).numpy().tobytes()
        marks["random"] = _python_mark()
        for name, own in self._own.items():
            marks[name] = pickle.dumps(_state(own))
        return marks

    def states(self) -> dict[str, bytes]:
        """The state of each, by what draws from it."""
        found = {"torch": bytes(torch.get_rng_state().numpy())}
        found |= {f"torch on cuda:{i}": bytes(torch.cuda.get_rng_state(i).numpy()) for i in self._devices}
        found |= {"numpy.random": pickle.dumps(np.random.get_state()), "random": pickle.dumps(random.getstate())}
        return found | {name: pickle.dumps(_state(own)) for name, own in self._own.items()}

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Restore the states that `states` returned."""
        torch.set_rng_state(_tensor(states["torch"]))
        for i in self._devices:
            torch.cuda.set_rng_state(_tensor(states[f"torch on cuda:{i}"]), i)
        np.random.set_state(pickle.loads(states["numpy.random"]))
        random.setstate(pickle.loads(states["random"]))
        for name, own in self._own.items():
            _set_state(own, pickle.loads(states[name]))

    @contextmanager
    def keyed(self, *key: object) -> Generator[None]:
        """Inside this block all of them draw what follows from the key; afterwards they are as they were."""
        before, seed = self.states(), stream_seed("own stream", *key)
        try:
            torch.default_generator.manual_seed(seed)
            for i in self._devices:
                torch.cuda.default_generators[i].manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            for own in self._own.values():
                _seed(own, seed)
            yield
        finally:
            self.restore(before)


def _numpy_mark() -> object:
    """The state of numpy's global generator, as bytes where that is known how: reading it as numpy does takes 70 us."""
    bits: Any = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]  (not in its stubs)
    # In the generator around it a second normal number lies that is still to be returned.
    state = _words_of(bits).raw if isinstance(bits, np.random.MT19937) else pickle.dumps(bits.state)
    return state, _NUMPYS_MEMORY.raw


@lru_cache(maxsize=1)
def _words_of(bits: Any) -> ctypes.Array[ctypes.c_char]:
    """The memory that a generator of numpy has its state in; finding out where it lies takes 6 us."""
    return (ctypes.c_char * MT19937_BYTES).from_address(bits.ctypes.state_address)


def _python_mark() -> object:
    """The state of Python's global generator, as bytes where it lies in the object: `getstate` takes 20 us."""
    return _PYTHONS_MEMORY.raw if _IN_OBJECT else random.getstate(), _PYTHONS.gauss_next


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _state(own: Any) -> Any:
    if isinstance(own, torch.Generator):
        return own.get_state().numpy()
    if isinstance(own, np.random.Generator):
        return own.bit_generator.state
    return own.get_state() if isinstance(own, np.random.RandomState) else own.getstate()


def _set_state(own: Any, state: Any) -> None:
    if isinstance(own, torch.Generator):
        own.set_state(torch.from_numpy(state))
    elif isinstance(own, np.random.Generator):
        own.bit_generator.state = state
    elif isinstance(own, np.random.RandomState):
        own.set_state(state)
    else:
        own.setstate(state)


def _seed(own: Any, seed: int) -> None:
    if isinstance(own, torch.Generator):
        own.manual_seed(seed)
    elif isinstance(own, np.random.Generator):
        own.bit_generator.state = type(own.bit_generator)(seed).state
    elif isinstance(own, np.random.RandomState):
        own.seed(seed % 2**32)
    else:
        own.seed(seed)
