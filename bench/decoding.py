"""What `security.decode = "apart"` costs: images a second that are decoded in the process, and apart.

    python -m bench.decoding [--seconds 3]

One thread decodes, as `preprocess` of one model does. The two ways take turns, and the medians of five turns count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from io import BytesIO

from PIL import Image

from components import images, images_apart

TURNS = 5


def encoded(kind: str, size: tuple[int, int]) -> bytes:
    """A picture that does not compress to nothing: noise, enlarged as a photograph's is."""
    small = Image.effect_noise((max(1, size[0] // 8), max(1, size[1] // 8)), 80)
    image = small.resize(size) if kind == "PNG" else Image.merge("RGB", [small.resize(size)] * 3)
    buffer = BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


PICTURES = {
    "PNG of 28 x 28, grey": encoded("PNG", (28, 28)),
    "JPEG of 640 x 480": encoded("JPEG", (640, 480)),
    "JPEG of 4000 x 3000": encoded("JPEG", (4000, 3000)),
}


def rate(data: bytes, where: str, seconds: float) -> float:
    """Images a second."""
    images_apart.use([], where)
    images.decode(data)
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        images.decode(data)
        count += 1
    return count / passed


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each turn takes (default: 3)")
    seconds = parser.parse_args().seconds
    print(f"{'image':24} {'here, images/s':>16} {'apart, images/s':>16} {'more for each':>14}")
    for name, data in PICTURES.items():
        found: dict[str, list[float]] = {"here": [], "apart": []}
        for _ in range(TURNS):
            for where in random.sample(sorted(found), 2):
                found[where].append(rate(data, where, seconds / TURNS))
        here, apart = (statistics.median(found[where]) for where in ("here", "apart"))
        print(f"{name:24} {here:16,.0f} {apart:16,.0f} {1e6 * (1 / apart - 1 / here):11,.0f} us")


if __name__ == "__main__":
    main()
