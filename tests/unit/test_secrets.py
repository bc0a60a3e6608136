"""Secrets in arguments: declared as references, masked wherever a process writes."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

import pytest

from components import secrets
from components.builders import build_model
from components.declarations import ModelDeclaration
from components.errors import DeclarationError
from components.signing_key import SigningKey
from daemon import config as configuration
from daemon.logs.text import brief, masked
from daemon.store.registry.components import object_signature

TOML = """
[service]
name = "s"
[mongo]
database = "d"
[security]
allow_imports = ["builtins"]
[tables.t.fields]
x = "str"
[models.m]
type = "object"
object = "builtins:dict"
[models.m.arguments]
token = "Bearer ${API_TOKEN}"
plain = "$${NOT_A_VARIABLE}"
nested = { list = ["a", "${OTHER}"] }
[listeners.l]
table = "t"
key = "x"
model = "m"
"""
ENVIRON = {"API_TOKEN": "s3cr3t-t0k3n", "OTHER": 'quo"ted\\', "ODD": 'it\'s "bös" <&> a/b\t+'}


class Built(dict):
    def __call__(self, x):
        return x


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch):
    monkeypatch.setattr(secrets, "_hidden", ())


def read(tmp_path: Path, text: str = TOML, **environ: str) -> configuration.Config:
    (tmp_path / "service.toml").write_text(text)
    return configuration.load(tmp_path / "service.toml", {**ENVIRON, **environ})


def test_the_reference_is_declared_and_the_value_is_built_with(tmp_path, monkeypatch):
    """Whatever the configuration turns into, it holds the text of the file."""
    config = read(tmp_path)
    declared = config.declarations()["models"]["m"]
    assert declared["arguments"] == {
        "token": {"$secret": "Bearer ${API_TOKEN}"},
        "plain": "${NOT_A_VARIABLE}",
        "nested": {"list": ["a", {"$secret": "${OTHER}"}]},
    }
    for secret in ENVIRON.values():
        assert secret not in f"{config!r}{config.declarations()}"
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    built = build_model("m", ModelDeclaration(**declared), lambda _: Built)
    assert built.object == {
        "token": "Bearer s3cr3t-t0k3n",
        "plain": "${NOT_A_VARIABLE}",
        "nested": {"list": ["a", ENVIRON["OTHER"]]},
    }


def test_an_override_by_the_environment_is_a_secret_too(tmp_path):
    name = "PREDICTD_MODELS__M__ARGUMENTS__PLAIN"
    config = read(tmp_path, **{name: "over-ridden"})
    assert config.models["m"].arguments["plain"] == {"$secret": f"${{{name}}}"}
    assert masked("over-ridden") == "***"


def test_a_variable_that_is_not_set_is_said(monkeypatch):
    monkeypatch.delenv("API_TOKEN", raising=False)
    declared = ModelDeclaration(type="object", object="a:b", arguments={"x": {"$secret": "${API_TOKEN}"}})
    with pytest.raises(
        DeclarationError, match=r"models\.m\.arguments\.x: the environment variable API_TOKEN is not set"
    ):
        build_model("m", declared, lambda _: dict)


@pytest.mark.parametrize(
    "spell",
    [
        str,
        repr,
        json.dumps,
        lambda text: secrets.quote(text, safe=""),
        secrets.quote,
        secrets.quote_plus,
        html.escape,
        lambda text: str(text.encode()),
        lambda text: text.encode().hex(),
        lambda text: text.encode().hex().upper(),
        ascii,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: json.dumps(json.dumps(text)),
        lambda text: repr(repr(text)),
        lambda text: json.dumps(repr(text)),
        lambda text: str(KeyError(repr(text))),
        lambda text: re.sub("%..", lambda found: found[0].lower(), secrets.quote(text, safe="")),
        lambda text: secrets.quote(secrets.quote(text, safe=""), safe=""),
        lambda text: html.escape(text, quote=False),
        lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    ],
)
def test_what_is_known_is_masked(tmp_path, spell):
    """As it is, and as it is quoted; in the middle of a text, and more than once."""
    read(tmp_path)
    for secret in ENVIRON.values():
        secrets.hide(secret)
        told = masked(f"before {spell(secret)} {spell('Bearer ' + secret)} after")
        assert secret not in told
        assert spell(secret).strip("'\"") not in told
        assert told.count("***") == 2


@pytest.mark.parametrize("before", ["", "a:", "me:", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_header_that_holds_a_secret_is_masked(before, encode):
    """`Authorization: Basic`, whatever the user is called; at most the first and the last letter stay."""
    secrets.hide("s3cr3t~>?~t0k3n")
    told = masked(encode(f"{before}s3cr3t~>?~t0k3n".encode()).decode())
    left = base64.urlsafe_b64decode("".join(told.replace("+", "-").replace("/", "_").split("***")[:1]) + "===")
    assert "***" in told
    assert len(left.removeprefix(before.encode())) <= 1
    assert len(told.split("***")[1]) <= 4


def test_each_line_of_a_secret_is_masked():
    """A private key that is printed line by line, or made one line."""
    secret = "-----BEGIN KEY-----\nAbCdEfGh\nIjKlMnOp\n-----END KEY-----\n"
    secrets.hide(secret)
    for told in (*secret.splitlines(), " ".join(secret.split()), secret):
        assert not {"AbCdEfGh", "IjKlMnOp"} & set(masked(told).split())


@pytest.mark.parametrize("secret", [ENVIRON["ODD"], "x" * 100 + "~?" * 20])
def test_what_is_encoded_after_it_was_quoted_is_masked(secret):
    """A web token's JSON in Base64, and the lines of a mail."""
    secrets.hide(secret)
    document = base64.b64encode(json.dumps({"token": secret}).encode()).decode()
    assert "***" in masked(document)
    lines = base64.encodebytes(secret.encode()).decode().splitlines()
    assert {masked(line) for line in lines} == {"***"}


def test_a_variable_that_is_not_utf8_is_masked():
    """As Python reads it from the environment."""
    secrets.hide("geheim\udcff!")
    assert masked("it is geheim\udcff!") == "it is ***"


def test_a_text_is_masked_before_it_is_cut():
    """Else the beginning of a secret would stay."""
    secrets.hide("a-very-long-token-of-an-api")
    assert brief("x" * 20 + "a-very-long-token-of-an-api", 30) == "x" * 20 + "***"


def test_a_short_value_is_not_masked():
    """It is part of too many words."""
    secrets.hide("abc")
    secrets.hide("")
    assert masked("abc") == "abc"


def test_the_hash_tells_a_changed_secret_and_nothing_else():
    """Under this key; and the weights of a model do not depend on it."""
    key, other = SigningKey.fresh(), SigningKey.fresh()
    given = {"x": {"$secret": "${T}"}, "y": [1, {"$secret": "${T}"}]}

    def hashed(value: str, by: SigningKey = key) -> object:
        return secrets.sealed(given, {"T": value}, by.seal)

    assert hashed("one") == hashed("one")
    assert hashed("one") != hashed("two")
    assert hashed("one") != hashed("one", other)
    assert "one" not in json.dumps(hashed("one"))
    assert secrets.unsealed(hashed("one")) == secrets.unsealed(hashed("two")) != given
    models = [ModelDeclaration(type="object", object="a:b", arguments=hashed(value)) for value in ("one", "two")]
    assert object_signature(models[0]) == object_signature(models[1])
