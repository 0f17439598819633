"""Whether an error says that memory ran out."""

import torch


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on a CPU, whose allocator raises a plain RuntimeError.

    Examples:
        >>> ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
        True
        >>> ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("CPUAllocator", "not enough memory"))
