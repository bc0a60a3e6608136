"""What `predictd check` finds beyond the file itself: code that cannot be imported or built, a MongoDB that will not
do.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.commands import free_port, predictd
from pymongo import MongoClient
from pymongo.database import Database

from components.errors import Problem
from daemon.check import build, meet
from daemon.config import Config, load

ROOT = Path(__file__).parents[2]

CODE = """
import ctypes, os, sys, time

class Fine:
    def __init__(self, size=1): self.size = size
    def __call__(self, x): return x

class Raises:
    def __init__(self): raise RuntimeError("weights.bin is not there\\nsecond line")

class Segfaults:
    def __init__(self): ctypes.string_at(0)

class Leaves:
    def __init__(self): os._exit(3)

class Exits:
    def __init__(self): sys.exit("enough")

class Hangs:
    def __init__(self): time.sleep(600)

class Talks:
    def __init__(self):
        print('["problem", "models.x", "forged"]', flush=True)
        os.write(1, b"raw")
    def __call__(self, x): return x

class LeavesAChild:
    def __init__(self):
        if os.fork() == 0: time.sleep(600); os._exit(0)
    def __call__(self, x): return x

def one(x): return x

class Incomparable:
    def __call__(self, x): return x
    def __eq__(self, other): raise RuntimeError("compare its parts")
    def __bool__(self): raise RuntimeError("neither true nor false")
    __hash__ = None

incomparable = Incomparable()
def factory(n): return lambda x: x * n

class Looks:
    def __init__(self, file):
        with open(file, "w") as found: found.write(repr(sorted(os.environ.items())))
    def __call__(self, x): return x

number = 3
"""


def written(folder: Path, models: dict[str, str], more: str = "") -> Config:
    """Return the configuration with these models of type object, in a folder with the code above."""
    (folder / "mycode.py").write_text(CODE)
    (folder / "broken_import.py").write_text("import a_module_that_is_not_there")
    text = """
        [service]
        name = "t"
        [mongo]
        database = "t"
        [security]
        allow_imports = ["mycode", "broken_import", "examples"]
        [tables.rows]
        fields = { a = "int", b = "int" }
    """
    for name, lines in models.items():
        text += f"\n[models.{name}]\ntype = 'object'\n{lines}\n"
    file = folder / "service.toml"
    file.write_text(textwrap.dedent(text) + more)
    return load(file, {})


def told(problems: list[Problem]) -> dict[str, str]:
    """Return the messages by path."""
    return {problem.path: problem.message for problem in problems}


def test_user_code_does_not_find_the_address_in_its_environment(tmp_path: Path) -> None:
    """Neither where the command builds it nor where the daemon does; what an object is built with stays."""
    written(tmp_path, {"m": 'object = "mycode:Fine"'})
    file = tmp_path / "service.toml"
    model = f'object = "mycode:Looks"\narguments = {{ file = "{tmp_path}/${{SEEN}}" }}'
    text = file.read_text().replace('database = "t"', 'database = "t"\nuri = "${ADDRESS}${SEEN}"')
    file.write_text(text.replace('object = "mycode:Fine"', model))
    environ = {"ADDRESS": "mongodb://u:s3cret@127.0.0.1/?x=", "SEEN": "seen"}
    ran = predictd("check", "-c", str(file), cwd=tmp_path, environ=environ)
    assert ran.returncode == 0, ran.stderr
    assert "s3cret" not in (tmp_path / "seen").read_text()
    assert "('SEEN', 'seen')" in (tmp_path / "seen").read_text()


def test_the_demo_has_no_problem() -> None:
    """The root service.toml imports and builds, and torch stays out of the asking process."""
    asked = (
        "import sys, pathlib; from daemon.config import load; from daemon.check import build; "
        "print(build(load(pathlib.Path('service.toml'), {})), 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[] False"


@pytest.mark.parametrize(
    ("lines", "path", "words"),
    [
        ('object = "mycode:Fin"', "models.m.object", ["no 'Fin'", "did you mean 'Fine'"]),
        ('object = "mycode:number"', "models.m.object", ["expected a callable", "int"]),
        ('object = "broken_import:x"', "models.m.object", ["a_module_that_is_not_there", "not installed"]),
        ('object = "mycode.nothing:x"', "models.m.object", ["no module", "service.toml"]),
        ('object = "mycode:Fine"\npreprocess = "mycode:number"', "models.m.preprocess", ["int", "name a function"]),
        ('object = "mycode:Fine"\narguments = { sise = 3 }', "models.m.arguments", ["sise", "it takes (size=1)"]),
        (
            'object = "mycode:Raises"',
            "models.m.object",
            ["RuntimeError: weights.bin is not there (", "mycode.py line 9"],
        ),
        ('object = "mycode:Exits"', "models.m.object", ["SystemExit: enough"]),
        ('object = "mycode:Segfaults"', "models.m", ["SIGSEGV", "ctypes"]),
        ('object = "mycode:Leaves"', "models.m", ["exit code 3", "remove what calls exit()"]),
    ],
)
def test_code_that_cannot_be_built(tmp_path: Path, lines: str, path: str, words: list[str]) -> None:
    """The problem names the key of the code that failed; a model beside it is checked too."""
    config = written(tmp_path, {"before": 'object = "mycode:Fine"', "m": lines, "after": 'object = "mycode:gone"'})
    found = told(build(config))
    assert set(found) == {path, "models.after.object"}
    for word in words:
        assert word in found[path]


def test_a_model_that_hangs_is_named(tmp_path: Path) -> None:
    """A constructor without an end is stopped at its limit, with the line where it stood."""
    config = written(tmp_path, {"slow": 'object = "mycode:Hangs"', "fine": 'object = "mycode:Fine"'})
    began = time.monotonic()
    found = told(build(config, seconds=4))
    assert time.monotonic() - began < 60
    assert set(found) == {"models.slow"}
    assert "more than 4 s" in found["models.slow"]
    assert "mycode.py line" in found["models.slow"]


def test_what_the_code_prints_or_leaves_behind_does_no_harm(tmp_path: Path) -> None:
    """Prints are not taken for reports, and a process that the code started does not hold the check up."""
    config = written(
        tmp_path,
        {"talks": 'object = "mycode:Talks"', "forks": 'object = "mycode:LeavesAChild"', "x": 'object = "mycode:one"'},
    )
    began = time.monotonic()
    assert build(config, seconds=30) == []
    assert time.monotonic() - began < 30


def test_an_object_that_can_neither_be_compared_nor_be_true_has_no_problem(tmp_path: Path) -> None:
    """As arrays and frames are."""
    listener = '[listeners.l]\ntable = "rows"\nkey = "a"\nmodel = "m"\n'
    assert build(written(tmp_path, {"m": 'object = "mycode:incomparable"'}, listener)) == []


def test_a_factory_with_arguments(tmp_path: Path) -> None:
    """A function with arguments makes the callable."""
    assert build(written(tmp_path, {"m": 'object = "mycode:factory"\narguments = { n = 2 }'})) == []


def test_a_key_that_does_not_fit_the_code(tmp_path: Path) -> None:
    """A key of two fields for a function of one argument is told at the listener's key."""
    listener = '[listeners.l]\ntable = "rows"\nkey = ["a", "b"]\nmodel = "m"\n'
    listener += '[listeners.n]\ntable = "rows"\nkey = { a = "y" }\nmodel = "m"'
    found = told(build(written(tmp_path, {"m": 'object = "mycode:one"'}, listener)))
    assert set(found) == {"listeners.l.key", "listeners.n.key"}
    assert "too many positional arguments" in found["listeners.l.key"]
    assert "it takes (x)" in found["listeners.n.key"]


TORCH_MODELS = [
    ('object = "torch.nn:ReLU"\nforward_method = "encode"', "forward_method", ["no method 'encode'"]),
    ('object = "torch.nn:Linear"\narguments = { in_features = 3 }', "arguments", ["out_features"]),
    ('object = "examples.mnist:preprocess"', "arguments", ["missing a required argument"]),
    ('object = "torch.nn:ReLU"\ndevice = "cuda:99"', "device", ["none of the devices cuda:99", "'cpu'"]),
]


@pytest.fixture(scope="module")
def problems_of_torch_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with them, by path: one process imports torch and builds all."""
    file = written(tmp_path_factory.mktemp("torch"), {}).service.import_root / "service.toml"
    models = [f"\n[models.m{number}]\n{lines}\n" for number, (lines, _, _) in enumerate(TORCH_MODELS)]
    file.write_text(file.read_text() + "".join(models))
    return told(build(load(file, {})))


@pytest.mark.parametrize("number", range(len(TORCH_MODELS)))
def test_torch_models(problems_of_torch_models: dict[str, str], number: int) -> None:
    """A torch model is built with its arguments, its method looked for and its device chosen."""
    _, key, words = TORCH_MODELS[number]
    [path] = [path for path in problems_of_torch_models if path.startswith(f"models.m{number}")]
    assert path == f"models.m{number}.{key}"
    for word in words:
        assert word in problems_of_torch_models[path]


TRAINING = """
import torch, torchmetrics
from torch.nn.functional import mse_loss

class Net(torch.nn.Linear):
    def __init__(self): super().__init__(1, 1)

class Own(torchmetrics.MeanSquaredError): pass

def one(x): return torch.tensor([float(x)])
def both(x, y): return one(x), one(y)
def agree(predictions, targets, least=0): return 1.0
def collate(rows): return torch.utils.data.default_collate(rows)
def crashes(output, target): return 0
number = 3
"""

HEAD = """
[service]
name = "t"
[mongo]
database = "t"
[security]
allow_imports = ["learns", "crashing"]
[tables.rows]
fields = { a = "int", b = "int", c = "int" }
"""

TRAINED = """
[models.NAME]
object = "learns:Net"
preprocess = "learns:one"
[trainers.NAME]
table = "rows"
key = ["a", "b"]
objective = "learns:mse_loss"
transform = "learns:both"
loader = { batch_size = 4, collate_fn = { "$import" = "learns:collate" } }
optimizer = "torch.optim:SGD"
optimizer_arguments = { lr = 0.1 }
scheduler = "torch.optim.lr_scheduler:StepLR"
scheduler_arguments = { step_size = 5 }
freeze = ["bias"]
[validations.NAME]
model = "NAME"
key = ["a", "b"]
datasets = { d = { table = "rows" } }
metrics = { m = { object = "learns:agree", arguments = { least = 1 } }, mse = "MeanSquaredError", own = "learns:Own" }
"""

WRONG = [
    ("learns:mse_loss", "learns:mse_los", "trainers.NAME.objective", ["did you mean 'mse_loss'"]),
    ("learns:mse_loss", "learns:number", "trainers.NAME.objective", ["int", "name a function"]),
    ("learns:mse_loss", "learns:one", "trainers.NAME.objective", ["(output, target)", "it takes (x)"]),
    ("learns:both", "learns:one", "trainers.NAME.transform", ["called with (a, b)", "it takes (x)"]),
    (
        'key = ["a", "b"]\nobjective = "learns:mse_loss"\ntransform = "learns:both"',
        'key = ["a", "b", "c"]\nobjective = "learns:mse_loss"',
        "trainers.NAME.key",
        ['"learns:one" cannot be called with (a, b)'],
    ),
    ("learns:collate", "learns:colate", "trainers.NAME.loader.collate_fn", ["did you mean 'collate'"]),
    ("batch_size = 4", "batchsize = 4", "trainers.NAME.loader", ["'batchsize' is no argument"]),
    ("torch.optim:SGD", "torch.optim:SGDD", "trainers.NAME.optimizer", ["did you mean 'SGD'"]),
    ("torch.optim:SGD", "torch.optim:LBFGS", "trainers.NAME.optimizer", ["closure"]),
    ("{ lr = 0.1 }", "{ rate = 0.1 }", "trainers.NAME.optimizer_arguments", ["'rate'"]),
    ("{ lr = 0.1 }", "{ lr = -1.0 }", "trainers.NAME.optimizer_arguments", ["Invalid learning rate: -1.0"]),
    ('["bias"]', '["bais"]', "trainers.NAME.freeze", ["'bais' matches no parameter", "nearest is 'bias'"]),
    (":StepLR", ":StepLr", "trainers.NAME.scheduler", ["did you mean 'StepLR'"]),
    (":StepLR", ":ReduceLROnPlateau", "trainers.NAME.scheduler", ["follows a metric"]),
    ("step_size = 5", "step = 5", "trainers.NAME.scheduler_arguments", ["'step'"]),
    ('scheduler = "torch.optim.lr_scheduler:StepLR"', "", "trainers.NAME.scheduler_arguments", ["no scheduler"]),
    ("learns:agree", "learns:agre", "validations.NAME.metrics.m", ["did you mean 'agree'"]),
    ("learns:agree", "learns:number", "validations.NAME.metrics.m", ["int", "name a function"]),
    ("least = 1", "most = 1", "validations.NAME.metrics.m", ["unexpected keyword argument 'most'", "it takes"]),
    ('"MeanSquaredError"', '"MeanSquarredError"', "validations.NAME.metrics.mse", ["mean 'MeanSquaredError'"]),
    ('"MeanSquaredError"', '"Accuracy"', "validations.NAME.metrics.mse.arguments", ["cannot be built", "task"]),
    # A model that cannot be built is blamed alone: its trainer and validation are looked at without it.
    ("learns:Net", "learns:Nett", "models.NAME.object", ["did you mean 'Net'"]),
    ("preprocess =", 'device = ["cuda:98", "cuda:99"]\npreprocess =', "models.NAME.device", ["cuda:98, cuda:99"]),
]


def trained(folder: Path, *changes: tuple[str, str]) -> Config:
    """A configuration with a model `m0`, `m1`... for each change, with its trainer and validation."""
    (folder / "learns.py").write_text(TRAINING)
    (folder / "crashing.py").write_text("import ctypes; ctypes.string_at(0)")
    assert all(old in TRAINED for old, _ in changes)
    parts = [TRAINED.replace(old, new).replace("NAME", f"m{place}") for place, (old, new) in enumerate(changes)]
    file = folder / "service.toml"
    file.write_text(HEAD + "".join(parts))
    return load(file, {})


@pytest.mark.slow
def test_trainers_and_validations_that_will_not_do(tmp_path: Path) -> None:
    """The problem names the key that is at fault and no other; what is good is not
    blamed at all.
    """
    good = [
        ("learns:mse_loss", "learns:mse_loss"),
        ('transform = "learns:both"\n', ""),
        ("learns:mse_loss", "torch.nn:MSELoss"),
        ("preprocess =", 'device = ["cuda:99", "cpu"]\npreprocess ='),
    ]
    found = told(build(trained(tmp_path, *good, *((old, new) for old, new, *_ in WRONG))))
    expected = {path.replace("NAME", f"m{place}"): words for place, (_, _, path, words) in enumerate(WRONG, len(good))}
    assert found.keys() == expected.keys()
    for path, words in expected.items():
        for word in words:
            assert word in found[path], path


@pytest.mark.slow
def test_training_code_that_crashes_is_named(tmp_path: Path) -> None:
    """The section whose code kills the process is told, and those after it are judged all the same."""
    found = told(build(trained(tmp_path, ("learns:mse_loss", "crashing:x"), ("learns:agree", "learns:agre"))))
    assert found.keys() == {"trainers.m0", "validations.m1.metrics.m"}
    assert "SIGSEGV" in found["trainers.m0"]


def on(tmp_path: Path, uri: str, database: str = "t") -> Config:
    """Return a configuration without models on this MongoDB."""
    file = tmp_path / "service.toml"
    file.write_text(f'[service]\nname = "t"\n[mongo]\nuri = "{uri}"\ndatabase = "{database}"\n')
    return load(file, {})


def test_a_replica_set_will_do(tmp_path: Path, mongo_uri: str) -> None:
    """The tests' own replica set has no problem."""
    config = on(tmp_path, mongo_uri)
    assert [*build(config), *meet(config)] == []


def test_embedded_finds_its_mongod(tmp_path: Path, mongod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`embedded` needs a mongod of 6.0 or later on PATH or in the wheel, and starts none."""
    assert meet(on(tmp_path, "embedded")) == []
    old = tmp_path / "bin" / "mongod"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho db version v4.4.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=":")
    [problem] = meet(on(tmp_path, "embedded"))
    assert problem.path == "mongo.uri"
    assert "MongoDB 4.4" in problem.message
    assert "6.0 or later" in problem.message
    old.write_text("#!/bin/sh\nexit 1\n")
    assert "does not start" in meet(on(tmp_path, "embedded"))[0].message


def test_a_filter_that_no_row_matches_is_told_without_a_daemon(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """A misspelled field is no error to MongoDB. Not said of an empty table, whose rows may still come."""
    more = '[tables.full]\nfields = { x = "str" }\n[tables.empty]\nfields = { x = "str" }\n'
    for name, table, where in (("typo", "full", "m"), ("fine", "full", "n"), ("early", "empty", "m")):
        more += f'[listeners.{name}]\ntable = "{table}"\nkey = "x"\nmodel = "m"\nwhere = {{ {where} = 1 }}\n'
    written(tmp_path, {"m": 'object = "mycode:one"'}, more)
    file = tmp_path / "service.toml"
    file.write_text(file.read_text().replace('database = "t"', f'database = "{database.name}"\nuri = "{mongo_uri}"'))
    database.full.insert_one({"x": "x", "n": 1})
    ran = predictd("check", "--mongo", "-c", str(file), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stdout.splitlines() if "no row" in line] == [
        "note: no row of full matches listener typo"
    ]


def test_nobody_answers(tmp_path: Path) -> None:
    """An address where nothing listens is told within seconds, without the password."""
    began = time.monotonic()
    [problem] = meet(on(tmp_path, "mongodb://me:hush@127.0.0.1:1/"))
    assert time.monotonic() - began < 15
    assert problem.path == "mongo.uri"
    assert "is it running" in problem.message
    assert "hush" not in problem.message


def test_an_option_that_the_driver_would_ignore(tmp_path: Path, mongo_uri: str) -> None:
    """What only the driver can tell about an address is a problem too."""
    [problem] = meet(on(tmp_path, f"{mongo_uri}&readPreference=nearby"))
    assert problem.path == "mongo.uri"
    assert "nearby is not a valid read preference" in problem.message
    assert "correct or remove it" in problem.message


def test_an_address_that_the_driver_refuses(tmp_path: Path) -> None:
    """An address that the driver cannot use is a problem, not a traceback."""
    [problem] = meet(on(tmp_path, "mongodb://127.0.0.1:1/?directConnection=true&replicaSet=a&loadBalanced=true"))
    assert problem.path == "mongo.uri"
    assert "not a usable MongoDB URI" in problem.message


@pytest.fixture(scope="module")
def guarded(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a replica set with access control, with user root (all) and user guest (reads t)."""
    folder = tmp_path_factory.mktemp("guarded")
    key = folder / "key"
    key.write_text("c2VjcmV0c2VjcmV0")
    key.chmod(0o600)
    port = free_port()
    command = [mongod, "--replSet", "rs0", "--keyFile", key, "--bind_ip", "127.0.0.1", "--port", str(port)]
    command += ["--dbpath", folder, "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--logpath", folder / "log"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with MongoClient("127.0.0.1", port, directConnection=True) as client:
            client.admin.command(
                "replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": f"127.0.0.1:{port}"}]}
            )
            while not client.admin.command("hello")["isWritablePrimary"]:
                time.sleep(0.05)
            client.admin.command("createUser", "root", pwd="r", roles=["root"])
        with MongoClient(f"mongodb://root:r@127.0.0.1:{port}/?replicaSet=rs0") as client:
            client.admin.command("createUser", "guest", pwd="g", roles=[{"role": "read", "db": "t"}])
            client.admin.command("createUser", "owner", pwd="o", roles=[{"role": "readWrite", "db": "t"}])
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("root:r@", None),
        ("owner:o@", None),
        ("", ["grant readWrite", "credentials"]),
        ("root:wrong@", ["user name or password is wrong"]),
        ("guest:g@", ["user `guest` lacks rights", "insert", "db.grantRolesToUser"]),
    ],
)
def test_rights(tmp_path: Path, guarded: int, who: str, words: list[str] | None) -> None:
    """No credentials, wrong ones and a user who may not write each get their own remedy."""
    found = meet(on(tmp_path, f"mongodb://{who}127.0.0.1:{guarded}/?replicaSet=rs0"))
    if words is None:
        assert found == []
        return
    [problem] = found
    assert problem.path == "mongo.uri"
    for word in words:
        assert word in problem.message
    assert "wrong@" not in problem.message


def test_a_server_that_is_no_replica_set(tmp_path: Path, mongod: Path) -> None:
    """A standalone mongod is told with the way to make a replica set of it."""
    port = free_port()
    command = [mongod, "--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", tmp_path, "--nounixsocket"]
    command += ["--wiredTigerCacheSizeGB", "0.25", "--logpath", tmp_path / "log"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with MongoClient("127.0.0.1", port) as client:
            client.admin.command("ping")
        [problem] = meet(on(tmp_path, f"mongodb://127.0.0.1:{port}"))
    finally:
        process.kill()
        process.wait()
    assert problem.path == "mongo.uri"
    assert "--replSet" in problem.message


def test_a_module_with_the_name_of_another_is_told_once_with_both_files(tmp_path: Path) -> None:
    """A `queue.py` beside the file: some code would get the other one; the worker says the same at its start."""
    written(tmp_path, {"n": 'object = "mycode:Fine"'})
    (tmp_path / "queue.py").write_text("def f(x): return x\n")
    file = tmp_path / "service.toml"
    text = file.read_text().replace('"mycode", "broken', '"queue", "mycode", "broken')
    file.write_text(text + "\n[models.m]\ntype = 'object'\nobject = 'queue:f'\n")
    config = load(file, {})
    assert list(told(build(config))) == ["security.allow_imports"]
    message = told(build(config))["security.allow_imports"]
    assert str(tmp_path / "queue.py") in message
    assert message.count("queue.py") == 2


def test_what_lies_beside_the_file_unnamed_does_not_run(tmp_path: Path) -> None:
    """A `torch.py` in the folder is nobody's torch."""
    (tmp_path / "torch.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    (tmp_path / "site.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    config = written(tmp_path, {"m": 'object = "mycode:Fine"'})
    file = tmp_path / "service.toml"
    file.write_text(file.read_text() + "\n[models.t]\nobject = 'torch.nn:Identity'\n")
    assert build(load(file, {})) == []
    assert build(config) == []
    assert not (tmp_path / "ran").exists()
