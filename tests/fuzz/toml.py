"""service.toml of any shape: loaded, or refused with sentences."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuzz.target import Target
from hypothesis import strategies as st

from components.errors import ConfigurationError
from daemon import config as configuration

SHIPPED = (Path(__file__).parents[2] / "service.toml").read_text()
KEYS = sorted(
    {
        *"service mongo http security log limits tables models listeners trainers validations".split(),  # noqa: SIM905
        *"name uri database listen hosts token_file allow_imports fields object arguments type table key".split(),  # noqa: SIM905
        *"model where when every cron rows below datasets metrics loader objective optimizer promote".split(),  # noqa: SIM905
        *"state_dir stop_timeout signing_key_file level format queue_rows device max_batch digit lenet".split(),  # noqa: SIM905
    }
)
VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(["${HOME}", "${", "mnist", "torch:nn", "a:b", "int", "img", "6h", "0 3 * * *", "x" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=16,
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Sections with known and unknown keys; or the shipped file with a part exchanged; or bytes."""
    match draw(st.integers(0, 4)):
        case 0:
            return draw(st.binary(max_size=200))
        case 1 | 2:
            lines = SHIPPED.splitlines()
            for _ in range(draw(st.integers(1, 3))):
                place = draw(st.integers(0, len(lines) - 1))
                name, sign, _rest = lines[place].partition("=")
                lines[place] = f"{name}= {_toml(draw(VALUES))}" if sign else draw(st.text(max_size=20))
            return "\n".join(lines).encode("utf-8", "surrogatepass")
        case _:
            document = draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
            return "\n".join(f"{_name(name)} = {_toml(value)}" for name, value in document.items()).encode()


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Writes the file, and loads it."""
    path = folder / "service.toml"

    def check(text: bytes) -> None:
        path.write_bytes(text)
        try:
            config = configuration.load(path, {"HOME": "/"})
        except ConfigurationError as error:
            if not all(map(str, error.problems)) or not error.problems:
                raise AssertionError("a refusal without a reason") from error
        else:
            assert config.worker_fingerprints is not None
            assert config.warnings is not None

    yield Target(texts(), check)


def _name(name: str) -> str:
    plain = name and not set(name) - set(string.ascii_letters + string.digits + "_-")
    return name if plain else _text(name)


def _text(text: str) -> str:
    escaped = json.dumps(text, ensure_ascii=True)
    return escaped.replace("\\u007f", "\\u007F") if "\\ud" not in escaped else json.dumps(text, ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_name(name)} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else str(value)
