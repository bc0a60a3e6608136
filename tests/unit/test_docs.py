"""docs/configuration.md is the reference of service.toml: it has every key, no other, and true defaults and
examples.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.datatypes import NAMES
from components.declarations import ListenerDeclaration, TrainerArguments
from components.torch import TorchTrainer
from daemon.config import Config, load
from daemon.config.problems import section_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def keys(model: type[BaseModel] = Config, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of the pydantic models by its path, NAME standing for the name of a table, a model and so on."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            yield above + name, field
        else:
            yield from keys(section[0], f"{above}{name}." + ("NAME." if section[1] else ""))


@dataclass(frozen=True)
class Entry:
    """One row of the page's tables."""

    example: str
    type: str
    default: str | None
    """None: the key must be given."""
    meaning: str


def entries() -> Iterator[tuple[str, Entry]]:
    """Yield each row of the page by the path of its key."""
    for heading, text in re.findall(r"^###? \[([^\]]+)\]\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL):
        for found in re.finditer(r"^\| `([^|]+)` \| (.+); (required|default (.+?)) \| (.+) \|$", text, re.MULTILINE):
            path = f"{heading}.{found[1].partition(' = ')[0]}"
            yield path, Entry(found[1], found[2], found[4], found[5])


KEYS = dict(keys())
ENTRIES = dict(entries())


def test_every_key_is_documented() -> None:
    """A key of the models without an entry in the page fails here."""
    assert len(KEYS) > 25
    missing = sorted(KEYS.keys() - ENTRIES.keys())
    assert not missing, f"undocumented in docs/configuration.md: {missing}"


def test_every_documented_key_exists() -> None:
    """An entry for a key that the models do not have fails here."""
    invented = sorted(ENTRIES.keys() - KEYS.keys())
    assert not invented, f"documented, but no key of service.toml: {invented}"


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_is_whole(key: str) -> None:
    """Type, default and meaning are there, and the example is TOML that sets the key."""
    assert list(tomllib.loads(ENTRIES[key].example)) == [key.rpartition(".")[2]]


def test_every_row_is_an_entry() -> None:
    """No row of a table is passed over for its form."""
    assert len(re.findall(r"^\| `[^`]+ = ", TEXT, re.MULTILINE)) == len(ENTRIES)


@pytest.mark.parametrize("key", [key for key in ENTRIES if key in KEYS])
def test_the_default_is_the_model_s(key: str) -> None:
    """What the page says about a default is what the models do."""
    said, field = ENTRIES[key].default, KEYS[key]
    if said is None or field.is_required():
        assert said is None
        assert field.is_required()
        return
    default = field.get_default(call_default_factory=True)
    assert default is not PydanticUndefined
    if default is None:
        assert said.startswith("none")
    elif said.startswith("`") and key != "service.state_dir":
        assert tomllib.loads(f"value = {said.strip('`')}")["value"] == default


NEEDED = """
[tables.mnist.fields]
title = "str"
img = "pil_image"
class = "int"
_fold = "str"
weight = "float"
[trainers.lenet]
table = "mnist"
key = ["img", "class"]
objective = "torch.nn:MSELoss"
[validations.v]
model = "lenet"
key = ["img", "class"]
[validations.v.datasets.valid]
table = "mnist"
[validations.v.metrics.acc]
object = "examples.mnist:accuracy"
"""
INDEXED = """
[indexes.i]
listener = "digit"
"""
NAMED = {
    "tables": "tables.mnist",
    "models": "models.lenet",
    "listeners": "listeners.digit",
    "trainers": "trainers.lenet",
    "validations": "validations.v",
    "indexes": "indexes.i",
    "datasets": "validations.v.datasets.valid",
    "metrics": "validations.v.metrics.acc",
}


def test_the_examples_are_right(tmp_path: Path) -> None:
    """The page's first file loads, and so does each example put into it."""
    file = tmp_path / "service.toml"
    whole = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert whole is not None
    file.write_text(whole[1])
    assert load(file, {}).warnings == ()
    for key, entry in ENTRIES.items():
        section, _, name = key.rpartition(".")
        text = whole[1]
        if section.startswith(("trainers", "validations")) or key == "listeners.NAME.key":
            text = re.sub(r"\[tables\.mnist\]\nfields = .*\n", NEEDED, text)
        if section.startswith("indexes"):
            text = text.replace("[listeners.digit]", '[listeners.digit]\noutput = "vector[10]"') + INDEXED
        if name == "batched":
            text = text.replace("[models.lenet]", '[models.lenet]\ntype = "object"')
        if name in {"loop", "loop_arguments"}:
            text = re.sub(r"objective = .*", 'type = "loop"', text)
        if key == "validations.NAME.datasets.NAME.seed":
            text = text.replace("[validations.v.datasets.valid]", "[validations.v.datasets.valid]\nsample = 500")
        parts = section.split(".")
        header = f"[{NAMED[parts[-2]] if parts[-1] == 'NAME' else section}]"
        if header not in text:
            text += f"\n{header}\n"
        start = text.index(header) + len(header)
        below = re.sub(rf"^{name} = .*\n", "", text[start:].partition("\n[")[0] + "\n", count=1, flags=re.MULTILINE)
        rest = text[start:].partition("\n[")
        file.write_text(f"{text[:start]}\n{entry.example}{below}{rest[1]}{rest[2]}")
        load(file, {"MONGO_URI": "mongodb://127.0.0.1:27017"})


API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """The part of docs/api.md under this heading."""
    return API.partition(f"\n### {name}\n")[2].partition("\n### ")[0]


def test_every_argument_of_a_trainer_is_in_the_api() -> None:
    """The table of TorchTrainer has a row for each, and the docstring names it."""
    documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\|(.*?)\|", section("TorchTrainer"), re.MULTILINE))))
    arguments = set(signature(TorchTrainer).parameters) - {"identifier"}
    assert documented >= arguments > set(TrainerArguments.model_fields)
    assert not [name for name in arguments if not re.search(rf"\b{name}\b", TorchTrainer.__doc__ or "")]


def test_every_default_of_a_trainer_is_in_the_api() -> None:
    """The numbers and words in the table are the declaration's."""
    for name, field in TrainerArguments.model_fields.items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", section("TorchTrainer"), re.MULTILINE)
        default = field.get_default(call_default_factory=True)
        if row is not None and isinstance(default, int | float | str):
            assert row[1].strip("`").strip('"') == str(default), name


def test_the_options_of_a_listener_are_in_the_api() -> None:
    """Its signature there has each field with its default."""
    written = re.search(r"`Listener\((.*?)\)`", section("Listener"), re.DOTALL)
    assert written is not None
    said = dict(part.split("=") for part in written[1].replace("\n", " ").split(", ") if "=" in part)
    fields = {name: field for name, field in ListenerDeclaration.model_fields.items() if not field.is_required()}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()} | {"worker": None}
    assert said == {name: repr(value).replace("'", '"') for name, value in defaults.items()}


def test_every_datatype_is_named() -> None:
    """The page names every datatype that a field may have."""
    said = ENTRIES["tables.NAME.fields"].meaning
    assert all(f"`{name}" in said for name in NAMES)
