"""Images a second that are decoded in the process, and apart (`security.decode`); and what decoding ahead gains.

    python -m bench.decoding [--seconds 3]

In the first table one thread decodes, as `preprocess` of one model does. The second is of rows of a photograph of 1 MB,
decoded and preprocessed for a ResNet-18. The ways take turns, and the medians of five turns count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from io import BytesIO

from bson.timestamp import Timestamp
from PIL import Image

from bench.kinds import photographs
from bench.photographs import preprocess
from components import images, images_apart
from components.datatypes import datatype
from components.key import Key
from components.model import ObjectModel
from daemon.handlers.predict.decoding import Decoders
from daemon.handlers.predict.dirty_keys import Batch
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.stages import Judged, prepare

TURNS = 5
ROWS = 32


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


def prepared(decoders: int) -> float:
    """Photographs a second that become a model's input, decoded by so many threads."""
    threads = ModelThreads(decoders=Decoders(decoders))
    live = Live(ObjectModel("model", len, preprocess), 1, 1, Key.parse("img"), (datatype("pil_image"),), threads)
    rows = tuple(Row(n, (data,), b"", Seen()) for n, data in enumerate(photographs(ROWS)))
    began = time.perf_counter()
    ready = prepare(Judged(Batch(()), Timestamp(1, 1), live, rows, (), frozenset()))
    assert len(ready.rows) == ROWS
    return ROWS / (time.perf_counter() - began)


def main() -> None:
    """Prints both tables."""
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
    images_apart.use([], "here")
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    prepared(1)
    for _ in range(TURNS):
        for decoders, measured in rates.items():
            measured.append(prepared(decoders))
    print(f"\n{'threads that decode':24} {'rows/s':>16}")
    for decoders, found_rates in rates.items():
        print(f"{decoders:<24} {statistics.median(found_rates):16,.1f}")


if __name__ == "__main__":
    main()
