"""A stand-in for the parts of Ray that a driver calls: workers run in this process, and can be made to die."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class RaySystemError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Events:
    """A worker's stream of events; what `next` returns is handed to `get`."""

    generator: Generator[Any]
    dies: Iterator[BaseException | None]

    def __next__(self) -> Callable[[], Any]:
        if (death := next(self.dies, None)) is not None:
            self.generator.close()  # as a killed process does, it lets go of what it held
            return lambda: _raise(death)
        try:
            event = next(self.generator)
        except StopIteration:
            raise
        except Exception as error:
            cause = error
            return lambda: _raise(RayTaskError(cause))
        return lambda: event


def _raise(error: BaseException) -> None:
    raise error


@dataclass
class Method:
    function: Callable[..., Any]

    def options(self, **options: Any) -> "Method":
        return self

    def remote(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class Actor:
    def __init__(self, fake: "FakeRay", made: Any) -> None:
        self.streams: list[Events] = []

        def run(*given: Any) -> Events:
            deaths = fake.deaths.pop(0) if fake.deaths else []
            self.streams.append(Events(made.run(*given), iter(deaths)))
            return self.streams[-1]

        self.ready, self.run = Method(lambda: lambda: True), Method(run)


@dataclass
class FakeRay:
    """The module `ray`.

    Args:
        cpus: Of its only machine.
        gpus: Likewise.
        deaths: For each unit that is started, in turn: what it dies of instead of its nth event.
        killed: Workers that were ended.
    """

    cpus: float = 2.0
    gpus: float = 0.0
    deaths: list[list[BaseException | None]] = field(default_factory=list)
    killed: list[Any] = field(default_factory=list)

    def kill(self, actor: Actor) -> None:
        """End a worker."""
        self.killed.append(actor)
        for stream in actor.streams:
            stream.generator.close()

    def modules(self) -> dict[str, ModuleType]:
        """The modules, by name."""
        ray, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")
        for kind in (RayError, RayActorError, RaySystemError, OutOfMemoryError, WorkerCrashedError, RayTaskError):
            setattr(exceptions, kind.__name__, kind)
        contents: dict[str, Any] = {
            "exceptions": exceptions,
            "is_initialized": lambda: True,
            "nodes": lambda: [{"Alive": True, "Resources": {"CPU": self.cpus, "GPU": self.gpus}}],
            "remote": lambda **options: lambda kind: Method(lambda *given: Actor(self, kind(*given))),
            "wait": lambda waiting, num_returns, timeout, fetch_local: (waiting[:num_returns], waiting[num_returns:]),
            "get": lambda reference: reference(),
            "kill": self.kill,
        }
        for name, value in contents.items():
            setattr(ray, name, value)
        ray.__spec__ = ModuleSpec("ray", None)
        return {"ray": ray, "ray.exceptions": exceptions}
