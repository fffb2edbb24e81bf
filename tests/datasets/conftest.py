"""Where the tests find the real files: SHOTNOISE_DATA, or ../shared/data beside the repository."""

import os
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    folder = Path(os.environ.get("SHOTNOISE_DATA") or _BESIDE_THE_REPOSITORY)
    if not folder.is_dir():
        pytest.skip("no real data files: SHOTNOISE_DATA is not set and ../shared/data does not exist")
    return folder


@pytest.fixture
def no_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOTNOISE_DATA", raising=False)
