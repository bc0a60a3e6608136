"""Code that travels by value: from a script in one process to another, and never before it was checked."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import cloudpickle
import pytest
import torch
from cloudpickle import cloudpickle as internals

from components import ArtifactRefused, DeclarationError, artifacts, hash_item, reduced_code
from components.artifacts import Artifact, code_slot, dumps, loads, together
from components.cron import zone
from components.stable_pickle import canonical

ROOT = Path(__file__).parents[2]

WRITES = """
import json, sys
from pathlib import Path
from components.artifacts import dumps

def send(folder, **objects):
    slots = {}
    for name, obj in objects.items():
        artifact = dumps(obj, served=objects.get("model"))
        slots[name] = artifact.slot
        for sha, data in artifact.blobs.items():
            (Path(folder) / sha).write_bytes(data)
    (Path(folder) / "slots.json").write_text(json.dumps(slots))
"""


def run_script(folder: Path, text: str, *, hash_seed: str = "random") -> str:
    """Run a script as `__main__` of a fresh process, from its own folder; returns what it prints."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def received(folder: Path, name: str) -> object:
    """What a script sent under that name, loaded here."""
    slots = json.loads((folder / "slots.json").read_text())
    return loads(slots[name], lambda sha: (folder / sha).read_bytes())


def again(obj: object) -> object:
    artifact = dumps(obj)
    return loads(artifact.slot, artifact.blobs.__getitem__)


NOTEBOOK = """
import torch
from send import send

class Encoder(torch.nn.Module):
    def __init__(self, words):
        super().__init__()
        self.words = torch.nn.Embedding(words, 4)

class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder(7)
        self.decoder = torch.nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.encoder.words.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.half = self.decoder.weight[:3].detach()
        self.decoder.weight.requires_grad_(False)
    def forward(self, x):
        return self.decoder(self.encoder.words(x)) * self.scale

torch.manual_seed(0)
tied = Tied()
send(".", model=tied, outputs=tied(torch.arange(7)).tolist())
"""


def test_a_notebook_class_goes_to_another_process_with_equal_outputs_and_tied_weights(tmp_path):
    """What is a Parameter, whether it learns, and which tensors share memory."""
    (tmp_path / "send.py").write_text(WRITES)
    run_script(tmp_path, NOTEBOOK)
    model = received(tmp_path, "model")
    assert type(model).__module__ == "__main__"
    assert model(torch.arange(7)).tolist() == received(tmp_path, "outputs")
    assert model.decoder.weight is model.encoder.words.weight
    assert isinstance(model.decoder.weight, torch.nn.Parameter)
    assert not model.decoder.weight.requires_grad
    assert [name for name, _ in model.named_buffers()] == ["scale"]
    with torch.no_grad():
        model.encoder.words.weight.fill_(5.0)
    assert model.half.tolist() == [[5.0] * 4] * 3
    model.load_state_dict(model.state_dict())


def test_a_module_beside_the_script_travels_by_value_and_a_lambda_with_what_it_closes_over(tmp_path):
    """Neither the helper nor `__main__` is importable here."""
    (tmp_path / "send.py").write_text(WRITES)
    (tmp_path / "helper_beside.py").write_text(
        "import math\nFACTOR = 3\nclass Scaler:\n    def __call__(self, x): return twice(x) * FACTOR + "
        "math.floor(0.5)\n"
        "def twice(x): return 2 * x\n"
    )
    run_script(
        tmp_path,
        """
        import helper_beside
        from helper_beside import Scaler, twice
        from send import send

        def preprocess(x):
            return twice(x) + 1

        send(".", whole=lambda x: helper_beside.twice(x), scaler=Scaler(), transform=lambda x, y: (preprocess(x), y))
        """,
    )
    assert "helper_beside" not in sys.modules
    assert received(tmp_path, "whole")(4) == 8
    assert received(tmp_path, "scaler")(4) == 24
    assert received(tmp_path, "transform")(4, "y") == (9, "y")
    assert not [name for name in cloudpickle.list_registry_pickle_by_value() if name != "pytest"]


LENET = """
import torch
from components import hash_item
from send import send

class LeNet5(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer1 = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 5), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
        self.fc = torch.nn.Linear(6 * 28 * 28, num_classes)

    def __hash__(self):
        k = next(iter(lenet_model.state_dict().keys()))
        weight = self.state_dict()[k].tolist()
        return int(hash_item(weight), 16)

    def forward(self, x):
        out = self.layer1(x)
        return self.fc(out.reshape(out.size(0), -1))

torch.manual_seed(0)
lenet_model = LeNet5(10)
"""


def test_the_lenet_of_the_tutorial_survives_with_its_hash_that_names_a_global(tmp_path):
    """The global is the model itself, and still is afterwards; the hash of the hash is an int of 256 bits."""
    (tmp_path / "send.py").write_text(WRITES)
    script = (
        LENET
        + "\nx = torch.ones(2, 1, 32, 32)\n"
        + "send('.', model=lenet_model, y=lenet_model.eval()(x).tolist(), h=hash(lenet_model))\n"
    )
    run_script(tmp_path, script)
    model = received(tmp_path, "model")
    assert type(model).__hash__.__globals__["lenet_model"] is model
    assert hash(model) == received(tmp_path, "h")
    assert model(torch.ones(2, 1, 32, 32)).tolist() == received(tmp_path, "y")


def test_training_changes_the_tensors_of_a_served_model_and_not_its_pickle(tmp_path):
    """So that the same declaration is known again after its model was trained here, predicted with, or both."""
    (tmp_path / "send.py").write_text(WRITES)
    script = (
        LENET
        + """
from components.artifacts import dumps
first = dumps(lenet_model, served=lenet_model)
lenet_model.train()(torch.ones(2, 1, 32, 32)).sum().backward()
torch.optim.Adam(lenet_model.parameters()).step()
lenet_model.eval()
second = dumps(lenet_model, served=lenet_model)
same = first.slot["$artifact"] == second.slot["$artifact"]
print(same, first.slot["tensors"] != second.slot["tensors"], lenet_model.training)
"""
    )
    assert run_script(tmp_path, script).split() == ["True", "True", "False"]


def test_a_module_that_pickles_itself_is_in_evaluation_mode_too():
    """A traced graph writes its mode within its own code; each part is then in the mode that it was in."""
    module = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout()))
    first = dumps(module, served=module)
    assert all(part.training for part in module.modules())
    assert dumps(module.eval(), served=module).slot["$artifact"] == first.slot["$artifact"]


STABLE = """
import enum
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from helper_stable import Helper, LIMITS
from components.artifacts import dumps

class Color(enum.Enum):
    RED = 1

class Base:
    kinds = {"x": Color.RED}
    def __call__(self, x):
        return self if x in {"ab", "cd", "ef", "gh"} else Base

class Mine(Base):
    def __call__(self, x):
        return super().__call__(x), Color.RED, Helper(), LIMITS

count = OrderedDict()
def counted(x):
    def inner():
        return np.zeros(3), torch.ones(1), Path("x"), x in ("a", frozenset({"q", "w", "e"}))
    return inner(), Mine, len

objects = [Mine(), Mine, counted, lambda x: counted(x), Color.RED, Helper, torch.nn.Linear(2, 2), np.mean, len]
torch.nn.init.ones_(objects[6].weight), torch.nn.init.ones_(objects[6].bias)
def shas():
    return [(dumps(o).slot["$artifact"], dumps(o).slot["tensors"]) for o in objects]
before = shas()
counted("a"), Mine()("ab"), Helper().go(), isinstance(3, Base)
assert shas() == before
print(before)
"""


def test_the_same_object_gives_the_same_bytes_again_also_in_another_process(tmp_path):
    """Whatever the order of sets there, whether classes were compiled or read from a cache, and after what was used has
    been used.
    """
    (tmp_path / "helper_stable.py").write_text(
        "LIMITS = {'some_long_name', 'other', 'third'} and (1, 2)\n"
        "class Helper:\n    'words words'\n    field = 'field'\n    def go(self): return [x for x in {'words words', "
        "'b', 'c'}], self.field\n"
    )
    printed = {run_script(tmp_path, STABLE, hash_seed=str(seed)) for seed in (0, 1, 2)}
    assert len(printed) == 1


def test_code_that_has_moved_is_told_from_code_that_has_changed(tmp_path):
    """Other lines, another folder, also of a module beside the script; but code that asks for its file has changed."""
    script = """
    import helper_moved
    import torch
    from send import send

    class Net(torch.nn.Module):
        def forward(self, x):
            return [helper_moved.twice(each) for each in x]

    send(".", net=Net(), lambda_=lambda x: Net()(x), there=lambda: __file__)
    """
    found = []
    script = textwrap.dedent(script)
    for number, text in enumerate((script, "# a comment\n" + script, script.replace("each) for", "each + 0) for"))):
        folder = tmp_path / f"checkout{number}"
        folder.mkdir()
        (folder / "send.py").write_text(WRITES)
        (folder / "helper_moved.py").write_text("\n" * number + "def twice(n):\n    return 2 * n\n")
        run_script(folder, text)
        found.append(json.loads((folder / "slots.json").read_text()))
    first, moved, changed = ({name: slot["unplaced"] for name, slot in slots.items()} for slots in found)
    assert (first["net"], first["lambda_"]) == (moved["net"], moved["lambda_"])
    assert first["there"] != moved["there"]
    assert first["net"] != changed["net"]
    assert found[0]["net"]["$artifact"] != found[1]["net"]["$artifact"]


CACHING = """
from functools import cache, cached_property, lru_cache, singledispatch, wraps
from typing import Callable, NewType, ParamSpec
import helper_caching
from send import send

P = ParamSpec("P")
Label = NewType("Label", str)

def logged(function: Callable[P, str]) -> Callable[P, str]:
    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> str:
        return function(*args, **kwargs)
    return inner

@cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

class Tokenizer:
    @cached_property
    def words(self):
        return {"a": 1}
    @lru_cache(maxsize=7)
    def look_up(self, word):
        return self.words[word]
    def __call__(self, word):
        return self.look_up(word), self.look_up.cache_info().maxsize, "words" in vars(self)

def label(word) -> Label:
    return logged(Label)(word)

@singledispatch
def size(value):
    return "?"

@size.register
def _(value: str):
    return len(value)

tokenizer = Tokenizer()
fibonacci(9), tokenizer("a"), size("abc")
send(
    ".",
    direct=fibonacci,
    beside=lambda n: helper_caching.twice(n),
    tokenizer=tokenizer,
    label=label,
    size=size,
    shared=(fibonacci, lambda: fibonacci),
)
"""


def test_what_keeps_its_results_travels_with_an_empty_cache_and_kinds_of_annotations_too(tmp_path):
    """Pickle knows such functions and kinds only by their name in a module that the daemon does not have."""
    (tmp_path / "send.py").write_text(WRITES)
    (tmp_path / "helper_caching.py").write_text(
        "from functools import lru_cache\n@lru_cache\ndef twice(n):\n    return 2 * n\n"
    )
    run_script(tmp_path, CACHING)
    fibonacci = received(tmp_path, "direct")
    assert (fibonacci(9), fibonacci.cache_info().misses) == (34, 10)
    assert received(tmp_path, "beside")(4) == 8
    assert received(tmp_path, "tokenizer")("a") == (1, 7, True)
    assert received(tmp_path, "label")("x") == "x"
    assert [received(tmp_path, "size")(each) for each in ("abc", 1.0)] == [3, "?"]
    function, user = received(tmp_path, "shared")
    assert user() is function
    assert again(lambda: zone)() is zone


def test_slots_that_hold_one_class_meet_in_one_class_again():
    """An Enum from `preprocess` is the one that `postprocess` compares with; but versions of a model share nothing that
    refers to its weights.
    """
    Net, Kind = _notebook()  # noqa: N806
    first, second = dumps(lambda: Kind.A), dumps(lambda x: x is Kind.A)
    make, compare = (loads(each.slot, each.blobs.__getitem__) for each in (first, second))
    assert compare(make())
    assert make() is not Kind.A

    net = Net(1.0)
    Net.scale = lambda self: net.weight
    one = dumps(net, served=net)
    with torch.no_grad():
        net.weight.fill_(2.0)
    two = dumps(net, served=net)
    assert one.slot["$artifact"] == two.slot["$artifact"]
    with together():
        a, b = (loads(one.slot, one.blobs.__getitem__) for _ in range(2))
    c = loads(two.slot, two.blobs.__getitem__)
    assert type(a) is type(b)
    assert type(a) is not type(c)
    assert (a.weight.item(), c.weight.item(), c.scale().item()) == (1.0, 2.0, 2.0)


def _notebook():
    import enum

    class Net(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(value))

    class Kind(enum.Enum):
        A = 1

    return Net, Kind


def test_classes_that_differ_only_in_a_tensor_that_they_close_over_stay_two():
    """The content of tensors is part of what a class is called."""

    def factory(mean):
        class Shift:
            def __call__(self):
                return float(mean)

        return Shift

    shifts = [again(factory(torch.tensor(value)))() for value in (1.0, 2.0)]
    assert [shift() for shift in shifts] == [1.0, 2.0]


def test_tensors_of_all_kinds_are_kept():
    """Dtypes, empty ones, views, strides, gradients, attributes."""
    base = torch.arange(6.0)
    attributed = torch.nn.Parameter(torch.ones(2))
    attributed.note = "mine"
    given = {
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "view": base[1:5:2],
        "transposed": base.reshape(2, 3).t(),
        "complex": torch.tensor([1 + 2j]).conj(),
        "learns": torch.ones(1, requires_grad=True),
        "attributed": attributed,
    }
    got = again(given)
    for name, tensor in given.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].requires_grad == tensor.requires_grad
        assert torch.equal(got[name], tensor)
    assert got["transposed"].stride() == given["transposed"].stride()
    got["view"].zero_()
    assert got["transposed"].t().reshape(-1).tolist() == [0, 0, 2, 0, 4, 5]
    assert got["attributed"].note == "mine"


class Canary:
    """Its unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "sang"))


def _altered(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def test_altered_missing_and_exchanged_blobs_are_refused_before_anything_is_unpickled(tmp_path):
    """The canary in the pickle proves that it never ran."""
    song = tmp_path / "song"
    artifact = dumps([Canary(song), torch.ones(3)])
    other = dumps([Canary(song), torch.zeros(3), 1])
    pickle_sha, tensors_sha = artifact.slot["$artifact"], artifact.slot["tensors"]
    good = {**artifact.blobs, **other.blobs}
    cases = {
        "its SHA-256 is": good | {pickle_sha: _altered(artifact.pickle)},
        "its tensors: blob": good | {tensors_sha: _altered(artifact.tensors)},
        "was altered": good | {pickle_sha: other.pickle, other.slot["$artifact"]: artifact.pickle},
        f"{tensors_sha[:12]} was altered": good | {tensors_sha: other.tensors, other.slot["tensors"]: artifact.tensors},
        "is missing": {tensors_sha: artifact.tensors},
        f"{tensors_sha[:12]} is missing": {pickle_sha: artifact.pickle},
    }
    for message, blobs in cases.items():
        with pytest.raises(ArtifactRefused, match=message):
            loads(artifact.slot, blobs.__getitem__)
    with pytest.raises(ArtifactRefused, match="names no blob"):
        loads({**artifact.slot, "$artifact": None}, good.__getitem__)
    assert not song.exists()
    loads(artifact.slot, good.__getitem__)
    assert song.exists()


@pytest.mark.parametrize(
    ("what", "made", "message"),
    [
        ("python", "3.9", "was made with Python 3.9, and here is 3.11"),
        ("python", None, "was made with Python None"),
        ("torch", "1.13.1", "was made with Torch 1.13.1, and here is"),
        ("cloudpickle", "2.2.0", "was made with Cloudpickle 2.2.0"),
    ],
)
def test_an_artifact_of_other_versions_is_refused_with_a_clear_message(tmp_path, what, made, message):
    """Before anything is unpickled."""
    song = tmp_path / "song"
    artifact = dumps([Canary(song), torch.ones(3)])
    message = message.replace("3.11", f"{sys.version_info[0]}.{sys.version_info[1]}")
    with pytest.raises(ArtifactRefused, match=message):
        loads({**artifact.slot, what: made}, artifact.blobs.__getitem__)
    assert not song.exists()


def test_what_was_loaded_travels_on_as_the_same_bytes(tmp_path):
    """A model that was loaded and is applied again is no other one."""
    (tmp_path / "send.py").write_text(WRITES)
    run_script(
        tmp_path, LENET + "send('.', model=lenet_model, transform=lambda x, y: (LeNet5, hash_item(x), [y for y in y]))"
    )
    slots = json.loads((tmp_path / "slots.json").read_text())
    model = received(tmp_path, "model")
    assert dumps(model, served=model).slot == slots["model"]
    assert dumps(received(tmp_path, "model"), served=model).slot["tensors"] == slots["model"]["tensors"]
    transform = received(tmp_path, "transform")
    own = transform.__globals__["LeNet5"].__hash__.__globals__["lenet_model"]
    assert dumps(transform, served=own).slot == slots["transform"]


def test_a_pickle_in_canonical_form_loads_as_before():
    """References to lists stay references, and equal strings are equal whatever their identity."""
    shared = ["x", "y" * 10_000]
    many = [[number] for number in range(300)]
    thing = {
        "a": [shared, shared],
        "b": ("x", b"x", b"x" * 300, 1.5, None),
        "c": many,
        "d": many[::-1],
        "e": "y" * 10_000,
    }
    for data in (pickle.dumps(thing, 5), pickle.dumps(thing, 4)):
        back = pickle.loads(canonical(data))
        assert back == thing
        assert back["a"][0] is back["a"][1]
        assert back["d"][-1] is back["c"][0]
    one, other = "word", "drow"[::-1]
    assert one is not other
    assert pickle.dumps([one, one], 5) != pickle.dumps([one, other], 5)
    assert canonical(pickle.dumps([one, one], 5)) == canonical(pickle.dumps([one, other], 5))


LOCK = threading.Lock()


class Client:
    """It holds a lock, as a connection does."""

    def __init__(self) -> None:
        self.pool = {"lock": threading.Lock(), "size": 1}


class Uses:
    """What it uses is not in the object itself, but in its class."""

    client = Client()

    def __call__(self, x: int) -> int:
        return x


def uses_lock(x):
    with LOCK:
        return x


def uses_indirectly(x):
    return uses_lock(x)


def test_what_cannot_travel_is_refused_by_name_where_it_is_sent():
    """A global, what a closure, an attribute or a class holds, also of another function; a generator, an open file."""
    with Path(__file__).open() as file:
        each, client = (each for each in "abc"), Client()
        for thing, names in {
            uses_lock: "LOCK",
            uses_indirectly: "uses_lock.LOCK",
            Uses(): "client.pool.lock",
            (lambda: client): "client.pool.lock",
            (lambda: each): "each",
            (lambda: file): "file",
        }.items():
            with pytest.raises(DeclarationError, match=rf"cannot travel to the daemon: .*; its {names} is, or holds"):
                dumps(thing)
    with pytest.raises(DeclarationError, match=r"lock' object; it is, or holds"):
        dumps(LOCK)
    with pytest.raises(DeclarationError, match="not dense"):
        dumps(torch.ones(2).to_sparse())


class Shelf(dict):
    """As a closed shelf, it cannot be pickled or looked into."""

    def items(self):
        raise ValueError("closed")

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle a shelf")


def test_what_cannot_be_looked_into_is_refused_without_a_name():
    """Whatever it raises."""
    shelf = Shelf()
    with pytest.raises(DeclarationError, match="cannot travel to the daemon: TypeError: cannot pickle a shelf"):
        dumps(lambda x: shelf[x])


def test_a_package_in_another_folder_is_the_same_code():
    """Also one that knows the line of its classes, as from Python 3.13 on."""

    def made(folder, line):
        names = {"__name__": "__main__", "__path__": [folder], "__file__": f"{folder}/m.py"}
        exec(f"class Moved:\n    __firstlineno__ = {line}\n\ndef use():\n    return Moved()", names)
        return dumps(names["use"]).slot["unplaced"]

    assert made("/here", 1) == made("/there", 2)


def test_a_lock_of_a_module_beside_the_script_is_named_with_its_module(tmp_path):
    """The whole module travels, so a function that does not use the lock cannot travel either."""
    (tmp_path / "helper_locked.py").write_text("import threading\nLOCK = threading.Lock()\nSIZE = 3\n")
    script = """
    import sys
    import helper_locked
    from components.artifacts import dumps
    try:
        dumps(lambda: print(helper_locked.SIZE, file=sys.stderr))
    except Exception as error:
        print(error)
    """
    assert "its helper_locked.LOCK is, or holds" in run_script(tmp_path, script)


def test_an_artifact_that_needs_a_package_names_it():
    """The daemon lacks it."""
    data = b"\x80\x04cno_such_package_anywhere\nthing\n."
    sha = hashlib.sha256(data).hexdigest()
    slot = {**dumps(len).slot, "$artifact": sha}
    with pytest.raises(ArtifactRefused, match="needs the module 'no_such_package_anywhere'"):
        loads(slot, {sha: data}.__getitem__)


def test_what_the_daemon_can_import_goes_by_import_path():
    """Installed packages, predictd's own examples and what is allowed; all else by value."""
    from harness.models import Prefixed, echo

    assert code_slot(torch.nn.functional.cross_entropy) == "torch.nn.functional:cross_entropy"
    assert code_slot(torch.optim.Adam) == "torch.optim.adam:Adam"
    from examples import mnist

    assert code_slot(mnist.preprocess) == "examples.mnist:preprocess"
    assert code_slot(echo, allow=["harness"]) == "harness.models:echo"
    assert code_slot(Prefixed, allow=["harness.models"]) == "harness.models:Prefixed"
    for thing in (echo, lambda: 1, Prefixed("a"), Prefixed("a").__call__, _notebook()[0]):
        made = code_slot(thing)
        assert isinstance(made, Artifact)
        assert made.slot["$artifact"] == hashlib.sha256(made.pickle).hexdigest()
    sent = code_slot(echo)
    assert loads(sent.slot, sent.blobs.__getitem__)(1) == "f(1)"
    assert b"harness.models" not in sent.pickle or loads(sent.slot, sent.blobs.__getitem__) is not echo


def test_a_hash_of_an_item_tells_values_apart_and_is_the_same_everywhere():
    """As the tutorial uses it: hexadecimal, of nested lists of numbers."""
    assert int(hash_item([[0.1, 0.2], [0.3]]), 16) == int(hash_item([[0.1, 0.2], [0.3]]), 16)
    values = [
        None,
        0,
        False,
        0.0,
        "0",
        b"0",
        [],
        {},
        [0],
        [[0]],
        [0, 0],
        {"a": 0},
        {"a": [0]},
        {0},
        "",
        [1, 2],
        [12],
        {0: "a"},
    ]
    assert len({hash_item(value) for value in values}) == len(values)
    assert hash_item({"a": 1, "b": 2}) == hash_item({"b": 2, "a": 1})
    assert hash_item((1, 2)) == hash_item([1, 2]) == hash_item(torch.tensor([1, 2]))
    assert hash_item(Path("x")) != hash_item(Path("y"))


def test_cloudpickle_has_the_private_parts_that_are_used():
    """A release without them fails here, by name, before it breaks an artifact."""
    parts = ("_DYNAMIC_CLASS_TRACKER_BY_CLASS", "_make_skeleton_class", "_make_skeleton_enum", "_code_reduce")
    parts += ("_module_reduce", "dynamic_subimport", "list_registry_pickle_by_value")
    parts += ("_lookup_module_and_qualname", "_is_registered_pickle_by_value", "_file_reduce", "_make_function")
    assert [name for name in parts if not hasattr(internals, name)] == []
    sources = [Path(module.__file__).read_text() for module in (artifacts, reduced_code)]
    assert set(re.findall(r"\binternals\.(\w+)", "".join(sources))) == set(parts)


def test_a_dictionary_with_weak_references_is_refused() -> None:
    """It would arrive empty; only the cache of `functools.singledispatch` may."""
    import weakref

    handlers = weakref.WeakKeyDictionary({dict: "a document"})
    with pytest.raises(DeclarationError, match="weak references"):
        dumps(lambda value: handlers.get(type(value)))
