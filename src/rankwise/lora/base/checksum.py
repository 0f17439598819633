"""A checksum of all bits of a tensor, in one pass: it shows changes that a sample would miss."""

import torch
from torch import Tensor

_WORDS = 1024
"""8-byte words of which one sum is taken; sums of different places count differently, so moved rows show too."""


def checksum(tensor: Tensor) -> Tensor:
    """A 64-bit checksum of a tensor, computed on its device.

    A change of one number always changes it; of many, it stays the same by a chance of about 2^-64.

    Args:
        tensor: Any strided tensor with data.

    Examples:
        >>> a = torch.zeros(3000)
        >>> before = checksum(a)
        >>> a[7] = 1e-30
        >>> bool(checksum(a) == before)
        False
    """
    plain = tensor.detach().resolve_conj().resolve_neg()
    plain = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()
    if plain.storage_offset() * plain.itemsize % 8:
        plain = plain.clone()
    bits = plain.view(-1).view(torch.uint8)
    full_words = bits.numel() // (8 * _WORDS) * (8 * _WORDS)
    sums = bits[:full_words].view(torch.int64).view(-1, _WORDS).sum(1)
    odd = torch.arange(1, 2 * len(sums) + 1, 2, device=sums.device)
    rest = bits[full_words:].to(torch.int64)
    places = torch.arange(1, 2 * len(rest) + 1, 2, device=rest.device)
    return (sums * odd).sum() + (rest * places).sum() * 2**32
