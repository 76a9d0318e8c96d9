"""Seeds derived by name, so that the order of work changes nothing."""

import hashlib


def derive_seed(root: int, *names: object) -> int:
    """A 31-bit seed that depends on `root` and `names` alone.

    The names are hashed with their boundaries, so ("a", "bc") and ("ab", "c") differ.
    """
    text = "\x1f".join([str(root), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 33
