"""Is this the well-known file? Compares the digest of bytes with a published one."""

import hashlib

from shotnoise.errors import DataError


def require_digest(content: bytes, algorithm: str, expected: str, *, where: str, advice: str) -> None:
    """DataError unless the digest of `content` is `expected`; `advice` says what the user may do about it.

    >>> require_digest(b"abc", "md5", "900150983cd24fb0d6963f7d28e17f72", where="abc.bin", advice="")
    """
    arrived = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if arrived != expected:
        raise DataError(
            f"{where} is not the well-known file: {algorithm} of its {len(content)} bytes is {arrived}, "
            f"expected {expected}. {advice}"
        )


UNVERIFIED = "Get the file again, or pass verify=False to use this one as it is."
