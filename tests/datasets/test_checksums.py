import pytest

from shotnoise.datasets.checksums import require_digest
from shotnoise.errors import DataError

ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_right_digest_passes_and_a_wrong_one_says_what_arrived():
    require_digest(b"abc", "sha256", ABC_SHA256, where="toy", advice="Try again.")
    with pytest.raises(DataError) as caught:
        require_digest(b"abd", "sha256", ABC_SHA256, where="toy", advice="Try again.")
    text = str(caught.value)
    assert text.startswith("toy is not the well-known file: sha256 of its 3 bytes is a52d159f")
    assert f"expected {ABC_SHA256}. Try again." in text
