"""Ctrl-C and SIGTERM while training: heard after the present step, when everything can be kept."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether someone has asked training to stop."""

    asked = False


@contextmanager
def stop_on_signals(*, heard: bool = True) -> Generator[Stop]:
    """Note the first Ctrl-C or SIGTERM inside this block; a second one raises KeyboardInterrupt at once.

    Outside the main thread signals don't arrive, and one that the process ignores stays ignored.

    Args:
        heard: False to leave signals as they are.

    Yields:
        What tells whether one has come.
    """
    stop = Stop()
    if not heard or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
