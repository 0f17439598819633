"""Random streams by name: the same key gives the same numbers, whatever was drawn before.

Initial weights, the order of the data and every dropout mask come from a stream keyed on what they are
for (seed, module, step, ...), never on when or where they are drawn. That is why an adapter trained in a
pack meets the same numbers as alone.
"""

import hashlib

import torch


def stream(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose numbers depend on `key` and nothing else; on a GPU, on its model too.

    `torch.rand` from a CPU's is prefix-stable: the first n of m draws are the n draws one would get alone
    (`torch.randn` is not, so normal numbers are made from uniform ones). A GPU's depend on m.

    Args:
        key: Parts that have a stable `str` (names, whole numbers).
        device: Where the numbers are drawn.

    Examples:
        >>> a = torch.rand(5, generator=stream(0, "layer1"))
        >>> bool((torch.rand(3, generator=stream(0, "layer1")) == a[:3]).all())
        True
    """
    return torch.Generator(device).manual_seed(stream_seed(*key))


def stream_seed(*key: object) -> int:
    """Return the 63-bit seed of `stream(*key)`: BLAKE2b over the parts joined by "/"."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
