"""service.toml: what is read from it, and how each way of getting it wrong is told."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, ObjectId
from harness.configurations import GOOD, changed, problems, read

from components.errors import ConfigurationError, DeclarationError
from components.extended_json import decoded as decoded_filter
from components.extended_json import encoded as encoded_filter
from daemon.config import load

ROOT = Path(__file__).parents[2]

CHAIN = """
[listeners.a]
table = "mnist"
key = "_outputs.b.value"
model = "lenet"
[listeners.b]
table = "mnist"
key = ["img", "_outputs.c.value"]
model = "lenet"
[listeners.c]
table = "mnist"
key = "_outputs.a.value.deep"
model = "lenet"
"""


KEY = 'key = "img"'

BAD = {
    "an unknown section": (GOOD + "[loging]\n", "loging", ["unknown section", "did you mean `log`?"]),
    "an unknown key": (
        changed("[models.lenet]", '[models.lenet]\npreproces = "x"'),
        "models.lenet.preproces",
        ["did you mean `preprocess`?"],
    ),
    "a missing name": (changed('name = "mnist"', ""), "service.name", ["is missing", 'name = "mnist"']),
    "a missing section": ("[mongo]\ndatabase = 'x'", "service.name", ["is missing"]),
    "a missing object": (
        changed('object = "examples.mnist:LeNet5"', ""),
        "models.lenet.object",
        ["is missing", "package.module:attribute"],
    ),
    "a value for a section": ("http = 3\n" + GOOD, "http", ["3 is not a section", "[http]"]),
    "a number for a string": (
        changed('database = "mnist"', "database = 3"),
        "mongo.database",
        ["3 is not right", 'database = "mnist"'],
    ),
    "a string for a number": (
        changed(KEY, KEY + '\nmax_batch = "many"'),
        "listeners.digit.max_batch",
        ['"many"', "at least 1"],
    ),
    "true for a number": (
        changed(KEY, KEY + "\nmax_batch = true"),
        "listeners.digit.max_batch",
        ["true", "whole number"],
    ),
    "a batch of none": (
        changed(KEY, KEY + "\nmax_batch = 0"),
        "listeners.digit.max_batch",
        ["0 is not right", "at least 1"],
    ),
    "a bad duration": (
        changed(KEY, KEY + '\nlatency_budget = "soon"'),
        "listeners.digit.latency_budget",
        ['"soon"', "ms, s, m, h or d"],
    ),
    "a duration of nothing": (
        changed(KEY, KEY + "\nlatency_budget = 0"),
        "listeners.digit.latency_budget",
        ["above 0"],
    ),
    "an endless stop": (changed("[mongo]", "stop_timeout = inf\n[mongo]"), "service.stop_timeout", ['up to "1h"']),
    "a bad service name": (
        changed('name = "mnist"', 'name = "9 lives"'),
        "service.name",
        ['"9 lives"', "not beginning with a digit"],
    ),
    "the home of nobody": (
        changed("[mongo]", 'state_dir = "~nobody-of-this-name/x"\n[mongo]'),
        "service.state_dir",
        ["there is no such home on this machine", "a folder"],
    ),
    "a key in the home of nobody": (
        changed("[tables.mnist]", 'signing_key_file = "~nobody-of-this-name/key"\n[tables.mnist]'),
        "security.signing_key_file",
        ["there is no such home on this machine"],
    ),
    "an empty state_dir": (changed("[mongo]", 'state_dir = ""\n[mongo]'), "service.state_dir", ["a folder"]),
    "a foreign uri": (
        changed('"embedded"', '"postgres://h/"'),
        "mongo.uri",
        ["not the address of a MongoDB", "mongodb://"],
    ),
    "a uri without a host": (changed('"embedded"', '"mongodb://"'), "mongo.uri", ["come hosts"]),
    "a port in srv": (
        changed('"embedded"', '"mongodb+srv://a.b.c:27017/"'),
        "mongo.uri",
        ["one host name and no port"],
    ),
    "a port for one's own mongod": (
        changed('"embedded"', '"mongodb://h/"\nport = 27018'),
        "mongo.port",
        ["only an embedded", "remove it"],
    ),
    "a port out of range": (changed('"embedded"', '"embedded"\nport = 70000'), "mongo.port", ["from 1 to 65535"]),
    "a database with a dot": (
        changed('database = "mnist"', 'database = "a.b"'),
        "mongo.database",
        ['may not hold "."'],
    ),
    "a long database": (changed('database = "mnist"', f'database = "{"x" * 64}"'), "mongo.database", ["1 to 63 bytes"]),
    "MongoDB's own database": (
        changed('database = "mnist"', 'database = "admin"'),
        "mongo.database",
        ["MongoDB's own"],
    ),
    "a listen without a port": (GOOD + '[http]\nlisten = "localhost"', "http.listen", ["host:port", "127.0.0.1:9477"]),
    "a listen with a wild port": (GOOD + '[http]\nlisten = "localhost:99999"', "http.listen", ["65535"]),
    "an unknown log level": (GOOD + '[log]\nlevel = "loud"', "log.level", ['"loud"', '"debug"']),
    "a list of numbers to import": (
        changed('["examples"]', "[1]"),
        "security.allow_imports[0]",
        ["a list of packages"],
    ),
    "a path to import": (
        changed('["examples"]', '["./examples"]'),
        "security.allow_imports[0]",
        ['"./examples"', "a list of packages"],
    ),
    "an import outside": (
        changed('"examples.mnist:LeNet5"', '"os:system"'),
        "models.lenet.object",
        ["outside security.allow_imports", '["examples", "os"]'],
    ),
    "an import of a near name": (
        changed('"examples.mnist:LeNet5"', '"examples2:x"'),
        "models.lenet.object",
        ["outside security.allow_imports"],
    ),
    "an import without a colon": (
        changed('"examples.mnist:LeNet5"', '"examples.mnist.LeNet5"'),
        "models.lenet.object",
        ['for example "examples.mnist:LeNet5"'],
    ),
    "an import of a dunder": (
        changed('"examples.mnist:LeNet5"', '"examples.mnist:__builtins__"'),
        "models.lenet.object",
        ["special attribute"],
    ),
    "a list of no devices": (
        changed("[listeners.digit]", "device = []\n[listeners.digit]"),
        "models.lenet.device",
        ["[] is not right", '"cuda"'],
    ),
    "any device in a list": (
        changed("[listeners.digit]", 'device = ["auto"]\n[listeners.digit]'),
        "models.lenet.device",
        ['a list of these but "auto"'],
    ),
    "an unknown order": (
        changed(KEY, KEY + '\nscan_order = "random"'),
        "listeners.digit.scan_order",
        ['"newest"', '"oldest"'],
    ),
    "a negative rate": (
        changed(KEY, KEY + "\nscan_rate = -1"),
        "listeners.digit.scan_rate",
        ["-1 is not right", "rows a second"],
    ),
    "no jobs": (GOOD + "[limits]\njobs = 0", "limits.jobs", ["0 is not right", "from 1 to 64"]),
    "an empty key file": (
        changed("[tables.mnist]", 'signing_key_file = ""\n[tables.mnist]'),
        "security.signing_key_file",
        ["the name of a file"],
    ),
    "a device that is none": (
        changed("[listeners.digit]", 'device = "gpu"\n[listeners.digit]'),
        "models.lenet.device",
        ['"gpu"', '"cuda"'],
    ),
    "a key of the other type": (
        changed("[listeners.digit]", "batched = true\n[listeners.digit]"),
        "models.lenet.batched",
        ['type = "object"', "remove it"],
    ),
    "a date for a model": (
        changed("num_classes = 10", "since = 2026-01-01"),
        "models.lenet.arguments.since",
        ["write a string"],
    ),
    "nan for a model": (
        changed("num_classes = 10", "x = [nan]"),
        "models.lenet.arguments.x[0]",
        ["not a finite number"],
    ),
    "an argument with a space": (
        changed("num_classes = 10", '"a b" = 1'),
        'models.lenet.arguments."a b"',
        ["passes an argument by"],
    ),
    "a number of 65 bits": (changed("num_classes = 10", f"n = {2**64}"), "models.lenet.arguments.n", ["64 bits"]),
    "a bad datatype": (changed('"pil_image"', '"pil_imag"'), "tables.mnist.fields.img", ["did you mean 'pil_image'"]),
    "a table without fields": (GOOD + "[tables.t]\n", "tables.t.fields", ["is missing", "datatypes"]),
    "a field of outputs": (
        changed("class =", "_outputs ="),
        "tables.mnist.fields._outputs",
        ["where predictd writes", "remove it"],
    ),
    "a field with a dollar": (changed("class =", '"$class" ='), 'tables.mnist.fields."$class"', ["begins with '$'"]),
    "a table of the system's": (
        GOOD + '[tables."system.users"]\nfields = { a = "int" }',
        'tables."system.users"',
        ["are reserved"],
    ),
    "a table of ours": (
        GOOD + '[tables."_predictd.jobs"]\nfields = { a = "int" }',
        'tables."_predictd.jobs"',
        ["are reserved"],
    ),
    "a model with a dot": (
        GOOD + '[models."a.b"]\nobject = "examples:x"',
        'models."a.b"',
        ["not a name", "[models.a_b]"],
    ),
    "a listener with a dollar": (
        GOOD + '[listeners."$x"]\ntable = "mnist"\nkey = "img"\nmodel = "lenet"',
        'listeners."$x"',
        ["not a name", "[listeners.x]"],
    ),
    "a worker with a space": (
        changed(KEY, KEY + '\nworker = "a b"'),
        "listeners.digit.worker",
        ["a name of letters", 'worker = "gpu0"'],
    ),
    "an unknown table": (
        changed('table = "mnist"', 'table = "mnits"'),
        "listeners.digit.table",
        ["no table", "did you mean `mnist`?"],
    ),
    "an unknown model": (
        changed('model = "lenet"', 'model = "Lenet5"'),
        "listeners.digit.model",
        ["no model", "did you mean `lenet`?"],
    ),
    "an unknown field": (
        changed(KEY, 'key = ["class", "image"]'),
        "listeners.digit.key[1]",
        ["declares no field `image`", "did you mean `img`?"],
    ),
    "an empty key": (changed(KEY, "key = []"), "listeners.digit.key", ["[]: names no field", "a list of fields"]),
    "a number for a key": (changed(KEY, "key = 3"), "listeners.digit.key", ["3 is not right", 'key = "img"']),
    "a key twice": (changed(KEY, 'key = ["img", "img"]'), "listeners.digit.key", ["occurs twice"]),
    "an argument twice": (
        changed(KEY, 'key = { img = "x", class = "x" }'),
        "listeners.digit.key",
        ["two fields go to one argument"],
    ),
    "an argument that is none": (
        changed(KEY, 'key = { img = "a-b" }'),
        "listeners.digit.key",
        ["'a-b' is no argument name"],
    ),
    "a chain to nobody": (
        changed(KEY, 'key = "_outputs.digi.value"'),
        "listeners.digit.key",
        ["no listener `digi`", "did you mean `digit`?"],
    ),
    "a chain to a version": (
        changed(KEY, 'key = "_outputs.digit.version"'),
        "listeners.digit.key",
        ["'_outputs.LISTENER.value'"],
    ),
    "a chain to itself": (changed(KEY, 'key = "_outputs.digit.value"'), "listeners.digit.key", ["digit -> digit"]),
    "a cycle": (GOOD + CHAIN, "listeners.a.key", ["a -> c -> b -> a", "one of them must"]),
    "a chain across tables": (
        GOOD
        + '[tables.t]\nfields = { a = "int" }\n'
        + '[listeners.x]\ntable = "t"\nkey = "_outputs.digit.value"\nmodel = "lenet"',
        "listeners.x.key",
        ["both must be on the same table"],
    ),
    "a filter that runs code": (
        GOOD + 'where = { "$where" = "1" }',
        'listeners.digit.where."$where"',
        ["run code", "query operators"],
    ),
    "code in Extended JSON": (
        GOOD + 'where = { class = { "$in" = [{ "$code" = "1" }] } }',
        'listeners.digit.where.class."$in"[0]."$code"',
        ["run code", "query operators"],
    ),
    "an expression": (
        GOOD + 'where = { "$expr" = { "$lt" = ["$at", "$$NOW"] } }',
        'listeners.digit.where."$expr"',
        ["the clock", "query operators"],
    ),
    "an expression deep down": (
        GOOD + 'where = { "$and" = [ { "$expr" = { "$function" = {} } } ] }',
        'listeners.digit.where."$and"[0]."$expr"',
        ["fail on one row"],
    ),
    "an operator inside an element": (
        GOOD + 'where = { class = { "$elemMatch" = { "$gtt" = 3 } } }',
        'listeners.digit.where.class."$elemMatch"."$gtt"',
        ["did you mean `$gt`?"],
    ),
    "an operator of an element's field": (
        GOOD + 'where = { class = { "$elemMatch" = { a = { "$gtt" = 3 } } } }',
        'listeners.digit.where.class."$elemMatch".a."$gtt"',
        ["did you mean `$gt`?"],
    ),
    "an unknown key of retry": (
        GOOD + "retry = { attemps = 3 }",
        "listeners.digit.retry.attemps",
        ["unknown key", "did you mean `attempts`?"],
    ),
    "too few attempts": (
        GOOD + "retry = { attempts = 0 }",
        "listeners.digit.retry.attempts",
        ["0 is not right", "a whole number of attempts, from 1 to 1,000"],
    ),
    "a filter on outputs": (
        GOOD + 'where = { "_outputs.digit.value" = 1 }',
        'listeners.digit.where."_outputs.digit.value"',
        ["cannot use outputs", "chain"],
    ),
    "a schema of outputs": (
        GOOD + 'where = { "$jsonSchema" = { "allOf" = [{ "required" = ["class", "_outputs"] }] } }',
        'listeners.digit.where."$jsonSchema".allOf[0].required',
        ["cannot use outputs", "chain"],
    ),
    "a schema whose dependencies need outputs": (
        GOOD + 'where = { "$jsonSchema" = { "dependencies" = { "class" = ["_outputs"] } } }',
        'listeners.digit.where."$jsonSchema".dependencies.class.required',
        ["cannot use outputs"],
    ),
    "a schema whose dependencies close the row": (
        GOOD + 'where = { "$jsonSchema" = { "dependencies" = { "class" = { "additionalProperties" = false } } } }',
        'listeners.digit.where."$jsonSchema".dependencies.class.additionalProperties',
        ["the daemon adds the field `_outputs`"],
    ),
    "a schema that names whole rows": (
        GOOD + 'where = { "$jsonSchema" = { "enum" = [{ "class" = 1 }] } }',
        'listeners.digit.where."$jsonSchema".enum',
        ["the daemon adds the field `_outputs`"],
    ),
    "a schema that no row with an output has": (
        GOOD + 'where = { "$or" = [{ "$jsonSchema" = { "additionalProperties" = false } }] }',
        'listeners.digit.where."$or"[0]."$jsonSchema".additionalProperties',
        ["the daemon adds the field `_outputs`", "name the fields"],
    ),
    "a filter on no field": (
        GOOD + 'where = { "$or" = [{ "a..b" = 1 }] }',
        'listeners.digit.where."$or"[0]."a..b"',
        ["no field has this path", "a part of it is empty"],
    ),
    "an unknown operator": (
        GOOD + 'where = { class = { "$gtt" = 3 } }',
        'listeners.digit.where.class."$gtt"',
        ["did you mean `$gt`?"],
    ),
    "an operator at the top": (
        GOOD + 'where = { "$gt" = 3 }',
        'listeners.digit.where."$gt"',
        ["belongs below a field"],
    ),
    "an or of nothing": (
        GOOD + 'where = { "$or" = [] }',
        'listeners.digit.where."$or"',
        ["takes a list of conditions"],
    ),
    "an in of one": (GOOD + 'where = { class = { "$in" = 3 } }', 'listeners.digit.where.class."$in"', ["takes a list"]),
    "operators among fields": (
        GOOD + 'where = { class = { "$gt" = 3, a = 1 } }',
        "listeners.digit.where.class.a",
        ['"class.a"'],
    ),
    "a date without a zone": (
        GOOD + "where = { at = 2026-01-01T00:00:00 }",
        "listeners.digit.where.at",
        ["no time zone", "2026-01-01T00:00:00Z"],
    ),
    "a day": (GOOD + "where = { at = 2026-01-01 }", "listeners.digit.where.at", ["2026-01-01T00:00:00Z"]),
    "a broken object id": (
        GOOD + 'where = { _id = { "$oid" = "xyz" } }',
        "listeners.digit.where._id",
        ["Extended JSON"],
    ),
    "a filter that is a string": (GOOD + 'where = "class = 3"', "listeners.digit.where", ["a MongoDB filter document"]),
    "an unset variable": (changed('"embedded"', '"${MONGO_URI}"'), "mongo.uri", ["MONGO_URI is not set", "set it"]),
    "a broken variable": (changed('"embedded"', '"${MONGO-URI}"'), "mongo.uri", ["`${NAME}`", "`$${`"]),
    "an open variable": (changed('"embedded"', '"${MONGO"'), "mongo.uri", ["`${NAME}`"]),
}


@pytest.mark.parametrize(("text", "path", "words"), BAD.values(), ids=BAD)
def test_each_mistake_names_its_key_and_the_remedy(tmp_path: Path, text: str, path: str, words: list[str]) -> None:
    """A file with one mistake gets a message at that key, with what would be right."""
    found = problems(tmp_path, text)
    messages = [message for where, message in found if where == path]
    assert messages, f"no problem at {path}: {found}"
    assert any(all(word in message for word in words) for message in messages), messages
    if path not in {"service.name", "listeners.a.key"}:
        assert {where for where, _ in found} == {path}


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Mistakes in different sections, of shape and of sense, are all told by one reading, each once."""
    text = (
        GOOD.replace('"mnist"\n[mongo]', "3\n[mongo]")
        .replace('"int"', '"itn"')
        .replace(KEY, 'key = "imgg"\nmax_batch = 0')
    )
    paths = [path for path, _ in problems(tmp_path, text + "[http]\nlisten = 1\n[trainer.x]\n")]
    expected = {
        "service.name",
        "tables.mnist.fields.class",
        "listeners.digit.key",
        "listeners.digit.max_batch",
        "http.listen",
        "trainer",
    }
    assert set(paths) == expected
    assert len(paths) == len(expected)


def test_the_repository_s_own_file_loads() -> None:
    """The demo's service.toml is valid, without a warning, and says what the demo needs."""
    config = load(ROOT / "service.toml", {})
    assert config.warnings == ()
    assert config.declarations() == {
        "tables": {"mnist": {"fields": {"img": "pil_image", "class": "int", "_fold": "str"}}},
        "models": {
            "lenet": {
                "type": "torch",
                "object": "examples.mnist:LeNet5",
                "arguments": {"num_classes": 10},
                "preprocess": "examples.mnist:preprocess",
                "preprocess_batch": None,
                "postprocess": "examples.mnist:postprocess",
                "device": "auto",
                "dtype": None,
                "forward_method": "__call__",
                "batched": False,
            }
        },
        "listeners": {
            "digit": {
                "table": "mnist",
                "key": "img",
                "model": "lenet",
                "where": {},
                "latency_budget": 0.1,
                "max_batch": 256,
                "worker": "lenet",
                "scan_order": "newest",
                "scan_rate": 0.0,
            }
        },
        "trainers": config.declarations()["trainers"],
        "validations": config.declarations()["validations"],
        "indexes": {},
    }
    assert config.service.import_root == ROOT


def test_defaults(tmp_path: Path) -> None:
    """What a small file leaves out has the documented defaults."""
    config = read(tmp_path, '[service]\nname = "s"\n[mongo]\ndatabase = "d"')
    assert config.mongo.embedded
    assert config.mongo.port is None
    assert (config.http.host, config.http.port) == ("127.0.0.1", 9477)
    assert config.service.stop_timeout == 30
    assert config.service.state_dir == tmp_path / ".predictd"
    assert config.service.import_root == tmp_path
    assert (config.log.format, config.log.level) == ("auto", "info")
    assert config.limits.queue_rows == 100_000
    assert config.limits.jobs == 1
    assert config.security.signing_key_file is None
    assert [problem.path for problem in config.warnings] == ["listeners"]


def test_the_state_directory(tmp_path: Path) -> None:
    """The key comes before systemd's $STATE_DIRECTORY (the first, of several), and that before .predictd beside the
    file.
    """
    systemd = {"STATE_DIRECTORY": "/var/lib/predictd:/var/lib/more"}
    assert read(tmp_path, GOOD, systemd).service.state_dir == Path("/var/lib/predictd")
    keyed = changed("[mongo]", 'state_dir = "state"\n[mongo]')
    assert read(tmp_path, keyed, systemd).service.state_dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("0.25", 0.25), ("2", 2.0), ('"100ms"', 0.1), ('"5s"', 5.0), ('"2m"', 120.0), ('"1h"', 3600.0), ('"1.5 s"', 1.5)],
)
def test_durations(tmp_path: Path, written: str, seconds: float) -> None:
    """A duration is a number of seconds or a string with its unit."""
    config = read(tmp_path, changed(KEY, f"{KEY}\nlatency_budget = {written}"))
    assert config.listeners["digit"].latency_budget == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "host", "port", "missing"),
    [
        ("localhost:0", "localhost", 0, []),
        ("[::1]:80", "::1", 80, []),
        ("0.0.0.0:9477", "0.0.0.0", 9477, ["http.hosts", "http.token_file"]),
        ("[::]:1", "::", 1, ["http.hosts", "http.token_file"]),
    ],
)
def test_listen(tmp_path: Path, written: str, host: str, port: int, missing: list[str]) -> None:
    """An address that other machines reach needs the names by which they do, and a token."""
    listen = GOOD + f'[http]\nlisten = "{written}"\n'
    if missing:
        assert [path for path, _ in problems(tmp_path, listen)] == missing
    config = read(tmp_path, listen + 'hosts = ["Predictd.example.org", "[::2]"]\ntoken_file = "token"')
    assert (config.http.host, config.http.port) == (host, port)
    assert config.http.hosts == ["predictd.example.org", "::2"]
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("short", 0o600, "16 to 512"),
        ("has a space in the middle", 0o600, "16 to 512"),
        ("ümlaut-ümlaut-ümlaut", 0o600, "16 to 512"),
        ("0123456789abcdef", 0o644, "chmod 600"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_token_that_others_know_is_refused(tmp_path: Path, text: str | None, mode: int, reason: str) -> None:
    """By its length, or by the mode of its file, with the remedy."""
    config = read(tmp_path, GOOD + '[http]\ntoken_file = "token"')
    if text is not None:
        (tmp_path / "token").write_text(text)
        (tmp_path / "token").chmod(mode)
    with pytest.raises(ConfigurationError, match=reason):
        config.http.token()


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://h",
        "mongodb://a:1,b:2/?replicaSet=rs0",
        "mongodb://u:p%40ss@h:27017/db",
        "mongodb+srv://u:p@c.example.net/",
        "mongodb://[::1]:27017",
    ],
)
def test_addresses(tmp_path: Path, uri: str) -> None:
    """The usual forms of a MongoDB address pass."""
    assert read(tmp_path, changed('"embedded"', f'"{uri}"')).mongo.uri == uri


def test_chained_listeners_that_end(tmp_path: Path) -> None:
    """A key may be another listener's output, or a part of it."""
    config = read(tmp_path, GOOD + CHAIN.replace("_outputs.a.value.deep", "_outputs.digit.value.deep"))
    assert config.listeners["b"].key == ["img", "_outputs.c.value"]


def test_a_model_without_a_listener_is_worth_a_warning(tmp_path: Path) -> None:
    """A model that nothing uses is allowed."""
    [warning] = read(tmp_path, GOOD + '[models.spare]\nobject = "torch.nn:ReLU"').warnings
    assert warning.path == "models.spare"


def test_filters_travel_as_json_and_come_back(tmp_path: Path) -> None:
    """Dates, object ids and numbers that are not finite survive the way through JSON."""
    where = 'where = { at = { "$gte" = 2026-01-31T01:00:00+01:00 }, '
    where += '_id = { "$ne" = { "$oid" = "0123456789abcdef01234567" } }, x = { "$lt" = inf } }'
    declared = read(tmp_path, GOOD + where).declarations()
    travelled = json.loads(json.dumps(declared, allow_nan=False))["listeners"]["digit"]["where"]
    assert decoded_filter(travelled) == {
        "at": {"$gte": datetime(2026, 1, 31, tzinfo=UTC)},
        "_id": {"$ne": ObjectId("0123456789abcdef01234567")},
        "x": {"$lt": float("inf")},
    }


def test_what_python_holds_and_toml_does_not_travels_too() -> None:
    """A filter of the API: ids, bytes, UUIDs, decimals, long integers and dates without a zone, which are in UTC."""
    uuid = UUID("12345678-1234-5678-1234-567812345678")
    where = {
        "_id": {"$in": (ObjectId("0123456789abcdef01234567"), b"\x00\xff", Binary(b"md5", 5))},
        "uuid": uuid,
        "price": {"$gte": Decimal128("1.50")},
        "big": Int64(2**40),
        "at": datetime(2026, 1, 31),  # noqa: DTZ001
        "nothing": None,
        "x": {"$lt": -inf},
    }
    back = decoded_filter(json.loads(json.dumps(encoded_filter(where), allow_nan=False)))
    assert back == {
        "_id": {"$in": [ObjectId("0123456789abcdef01234567"), b"\x00\xff", Binary(b"md5", 5)]},
        "uuid": Binary.from_uuid(uuid),
        "price": {"$gte": Decimal128("1.50")},
        "big": 2**40,
        "at": datetime(2026, 1, 31, tzinfo=UTC),
        "nothing": None,
        "x": {"$lt": -inf},
    }
    assert encoded_filter(back) == encoded_filter(where) | {"uuid": encoded_filter(Binary.from_uuid(uuid))}


def test_a_filter_cannot_hold_any_object() -> None:
    """What MongoDB does not know is refused where it is written down, and not when a job reads it."""
    with pytest.raises(DeclarationError, match="a filter cannot hold a PosixPath"):
        encoded_filter({"a": [Path("x")]})


def test_regular_expressions_keep_their_neighbours(tmp_path: Path) -> None:
    """`$regex` is an operator like any other, beside others."""
    declared = read(
        tmp_path, GOOD + 'where = { class = { "$regex" = "^a", "$options" = "i", "$ne" = "ab" } }'
    ).declarations()
    where = declared["listeners"]["digit"]["where"]
    assert decoded_filter(where) == {"class": {"$regex": "^a", "$options": "i", "$ne": "ab"}}


def test_fingerprints_tell_what_changed(tmp_path: Path) -> None:
    """A change touches the fingerprint of its declaration and of the workers that use it, an order or a comment
    none.
    """
    two = (
        GOOD
        + '[models.other]\nobject = "torch.nn:ReLU"\n'
        + '[listeners.second]\ntable = "mnist"\nkey = "class"\nmodel = "other"\n'
    )
    before = read(tmp_path, two)
    assert before.workers() == {"lenet": ("digit",), "other": ("second",)}
    same = read(tmp_path, two.replace("[models.lenet]", "# a comment\n[models.lenet]"))
    assert same.fingerprints == before.fingerprints
    assert same.worker_fingerprints == before.worker_fingerprints
    after = read(tmp_path, two.replace('key = "class"', 'key = "class"\nwhere = { class = 3 }'))
    assert after.fingerprints != before.fingerprints
    assert {name for name, digest in after.fingerprints.items() if before.fingerprints[name] != digest} == {
        "listeners/second"
    }
    assert after.worker_fingerprints["lenet"] == before.worker_fingerprints["lenet"]
    assert after.worker_fingerprints["other"] != before.worker_fingerprints["other"]
