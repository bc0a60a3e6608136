"""Declarations: every component becomes JSON and comes back the same, twice alike."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from functools import partial

import pytest
import torch
from bson import Code
from harness import models

from components import (
    Arguments,
    Dataset,
    DeclarationError,
    ImportPolicy,
    ImportRefused,
    Listener,
    Metric,
    ObjectModel,
    Query,
    Table,
    Validation,
)
from components.artifacts import loads
from components.builders import build_listener, build_model, build_table, build_trainer, build_validation
from components.code_source import source_hash
from components.declarations import (
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    ValidationDeclaration,
    parsed,
)
from components.serialization import declare
from components.torch import TorchModel, TorchTrainer
from daemon.config.sections import TrainerConfig

POLICY = ImportPolicy(("harness", "examples"))


def resolver(declared):
    """What resolves the code of a declaration, as the daemon does."""
    blobs = {sha: data for artifact in declared.artifacts for sha, data in artifact.blobs.items()}

    def resolve(slot):
        return POLICY.resolve(slot) if isinstance(slot, str) else loads(slot, blobs.__getitem__)

    return resolve


def travelled(body):
    """The body as the database gives it back."""
    return json.loads(json.dumps(body))


def test_a_listener_takes_the_table_and_the_model_themselves():
    """As names that it shares with what was applied."""
    table, model = Table("mnist", {"class": "int"}), ObjectModel("double", abs)
    assert Listener("digit", table, "class", model) == Listener("digit", "mnist", "class", "double")


def test_a_table_and_a_listener_come_back_the_same():
    """With the keys that the configuration declares them with."""
    table = Table("mnist", {"img": "superduper_pillow.pil_image", "class": "int"})
    declared = declare(table)
    assert (declared.kind, declared.name, declared.artifacts) == ("table", "mnist", [])
    assert set(declared.declaration.dump()) == set(TableDeclaration.model_fields)
    assert build_table("mnist", parsed("table", "mnist", travelled(declared.declaration.dump()))) == table
    assert table.datatypes.get("img").spec == "pil_image"

    listener = Listener("digit", "mnist", ("img",), "lenet", where={"n": {"$gt": float("inf")}}, scan_rate=50)
    declared = declare(listener)
    assert set(declared.declaration.dump()) == set(ListenerDeclaration.model_fields) - {"output", "partitions", "retry"}
    assert declared.declaration.dump()["worker"] == "lenet"
    back = build_listener("digit", parsed("listener", "digit", travelled(declared.declaration.dump())))
    assert (back.where, back.parsed_key, back.scan_order, back.scan_rate) == (
        listener.where,
        listener.parsed_key,
        "newest",
        50,
    )


def test_a_torch_model_made_here_comes_back_with_its_weights():
    """Module, lambdas and closures by value; what the package has by path; device and the rest as they are."""
    offset = 3
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    model = TorchModel(
        "m",
        module,
        lambda x: torch.tensor(x) + offset,
        postprocess=torch.Tensor.tolist,
        preferred_devices=("cpu",),
        threads=2,
    )
    declared = declare(model)
    assert (declared.kind, declared.name) == ("model", "m")
    assert set(declared.declaration.dump()) == set(ModelDeclaration.model_fields) - {
        "weights",
        "preprocess_processes",
        "pretrained",
        "compile",
    }
    assert declared.declaration.dump()["device"] == "cpu"
    assert declared.declaration.dump()["threads"] == 2
    assert len(declared.artifacts) == len({artifact.slot["$artifact"] for artifact in declared.artifacts})
    back = build_model("m", parsed("model", "m", travelled(declared.declaration.dump())), resolver(declared))
    xs = [[1.0, 2.0], [-1.0, 0.5]]
    assert back.predict_batches(xs) == model.predict_batches(xs)
    assert back.object is not module


def test_declaring_the_same_thing_twice_gives_the_same_declaration():
    """Also when it was used in between, and whatever was trained: that only changes the tensors."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model = TorchModel("m", module, lambda x: torch.tensor(x) * 1, lambda y: [float(v) for v in y], dtype="float32")
    metric = Metric("acc", lambda p, t: sum(a == b for a, b in zip(p, t, strict=True)))
    validation = Validation("v", ["x", "y"], [Dataset("d", Query("t"))], [metric])
    first = declare(model), declare(validation, model=model)
    model.predict([1.0, 2.0])
    metric([1], [1])
    again = declare(model), declare(validation, model=model)
    assert [each.declaration.dump() for each in again] == [each.declaration.dump() for each in first]
    with torch.no_grad():
        module[0].bias.add_(1)
    third = declare(model).declaration.dump()
    assert third["object"]["$artifact"] == first[0].declaration.dump()["object"]["$artifact"]
    assert third["object"]["tensors"] != first[0].declaration.dump()["object"]["tensors"]
    assert {**third, "object": None} == {**first[0].declaration.dump(), "object": None}


@pytest.mark.parametrize(
    ("obj", "path", "args", "output"),
    [
        (models.digest, "harness.models:digest", ("a",), models.digest("a")),
        (models.Prefixed("x"), None, ("a",), "xa"),
        (models.Prefixed, None, ("a",), None),
        (partial(models.both, 1), None, (2,), models.both(1, 2)),
        (lambda a, b=2: a + b, None, (1,), 3),
    ],
)
def test_an_object_model_is_the_callable_itself(obj, path, args, output):
    """A function goes by path; an instance, a class, a partial and a lambda by value, and nothing is built of them
    again.
    """
    declared = declare(ObjectModel("m", obj, postprocess=None, batched=False), allow=["harness"])
    assert (
        (declared.declaration.dump()["object"] == path)
        if path
        else (declared.declaration.dump()["object"]["$artifact"])
    )
    back = build_model("m", parsed("model", "m", travelled(declared.declaration.dump())), resolver(declared))
    got = back.predict(*args)
    assert got == output if output is not None else isinstance(got, models.Prefixed)
    assert back.predict_batches([Arguments(args)]) is not None


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({"object": "harness.models:Prefixed", "arguments": {"prefix": "p"}}, "pa"),
        ({"object": "harness.models:digest", "arguments": {}}, models.digest("a")),
    ],
)
def test_what_the_configuration_names_is_built_as_before(body, output):
    """A class is built with its arguments; a function without arguments is the model itself."""
    config = ModelDeclaration.model_validate({"type": "object", **body}).dump()
    assert build_model("m", parsed("model", "m", config), POLICY.resolve).predict("a") == output


def test_a_torch_model_of_the_configuration_is_built_from_its_class():
    """And gets the devices that are named there, one, several, or any."""
    for device, devices in (
        ("auto", ("cuda", "mps", "cpu")),
        ("cpu", ("cpu",)),
        (["cuda:1", "cpu"], ("cuda:1", "cpu")),
    ):
        config = ModelDeclaration.model_validate(
            {"object": "torch.nn:Linear", "arguments": {"in_features": 2, "out_features": 1}}
        )
        body = {**config.dump(), "device": device}
        model = build_model("m", parsed("model", "m", body), POLICY.resolve)
        assert model.preferred_devices == devices
        assert declare(model).declaration.dump()["device"] == device


ADDED = {
    "balanced_by",
    "gradient_clip",
    "loop",
    "loop_arguments",
    "mixed_precision",
    "weighted_by",
    "max_epochs",
    "promote_fall",
    "skip_bad_rows",
    "ema",
    "freeze",
    "accumulate",
    "scheduler",
    "scheduler_arguments",
}
"""The fields of a trainer that the first release did not have."""


def test_an_argument_that_was_added_later_is_stored_only_if_it_is_given():
    """So that what was stored before keeps its text and its hashes; the file and the API store the same."""
    from components.torch.trainer import TorchTrainer

    usual = {"select": Query("t"), "key": ["x", "y"]}
    plain = declare(TorchTrainer("t", torch.nn.functional.cross_entropy, **usual), model="t").declaration
    assert not ADDED & set(plain.dump())
    given = {
        **usual,
        "gradient_clip": 2,
        "accumulate": 3,
        "max_epochs": 4,
        "ema": 0.9,
        "skip_bad_rows": 0.25,
        "freeze": ["a.*"],
        "scheduler_cls": "StepLR",
        "scheduler_kwargs": {"step_size": 3},
    }
    declared = declare(TorchTrainer("t", torch.nn.functional.cross_entropy, **given), model="t").declaration
    assert declared.dump()["scheduler"] == "torch.optim.lr_scheduler:StepLR"
    assert declared.dump()["scheduler_arguments"] == {"step_size": 3}
    assert declared.dump()["gradient_clip"] == 2.0
    back = parsed("trainer", "t", travelled(declared.dump()))
    built = build_trainer("t", back, POLICY.resolve)
    assert built.max_epochs == 4
    assert (built.gradient_clip, built.accumulate, built.freeze, built.skip_bad_rows, built.ema) == (
        2.0,
        3,
        ["a.*"],
        0.25,
        0.9,
    )
    assert built.scheduler_cls is torch.optim.lr_scheduler.StepLR
    assert built.scheduler_kwargs == {"step_size": 3}
    objective = "torch.nn.functional:cross_entropy"
    section = TrainerConfig(table="t", key=["x", "y"], objective=objective, gradient_clip=2)
    assert section.gradient_clip == declared.gradient_clip


def test_what_is_wrong_with_a_declaration_is_named_by_its_key():
    """The import path, the building, the class of its own."""
    config = ModelDeclaration.model_validate({"object": "torch.nn:Linear", "preprocess": "os:system"})
    with pytest.raises(ImportRefused, match=r"models\.lenet\.preprocess: 'os:system' is outside"):
        build_model("lenet", config, POLICY.resolve)
    with pytest.raises(DeclarationError, match=r"models\.lenet\.object: building it raised TypeError"):
        build_model("lenet", config.model_copy(update={"preprocess": None}), POLICY.resolve)

    class Own(ObjectModel):
        pass

    with pytest.raises(DeclarationError, match=r"models\.m: the daemon does not know the class Own"):
        declare(Own("m", len))
    with pytest.raises(DeclarationError, match="expected a Table"):
        declare("mnist")


def test_an_attribute_that_a_component_does_not_have_is_refused():
    """It would have no effect: `fit` of a trainer, the number of rows of a batch; a listener does not change at all."""
    module = torch.nn.Linear(1, 1)
    model = TorchModel("m", module, preprocess=torch.tensor)
    model.predict([1.0])
    model.fit([[1.0]], [torch.tensor([1.0])], objective=torch.nn.functional.mse_loss, max_iterations=1)
    trainer = TorchTrainer("t", objective=torch.nn.functional.mse_loss, select=Query("t"), key=("x", "y"))
    datasets = [Dataset("d", Query("t"))]
    validation = Validation("v", model="m", key=("x", "y"), datasets=datasets, metrics=[Metric("mse", len)])
    model.threads = trainer.threads = trainer.max_iterations = 3
    for component in (model, ObjectModel("o", len), trainer, validation):
        declare(component, model="m")
        component.max_bach = 3
        with pytest.raises(DeclarationError, match=r"max_bach was assigned to this .*no such attribute"):
            declare(component, model="m")
    with pytest.raises(AttributeError, match="a listener does not change"):
        Listener("l", "t", "x", "m").where = {"y": 1}


def test_components_are_copied_and_pickled():
    """Also with a trainer and a validation, whose queries lead to a database."""

    class Handle(Query):
        """As `db[table]` is."""

        def __reduce__(self):
            raise TypeError("is connected")

    rows = Handle("t", {"x": 1}, limit=3)
    model = TorchModel("m", torch.nn.Linear(1, 1))
    model.trainer = TorchTrainer("t", objective=torch.nn.functional.mse_loss, select=rows, key=("x", "y"))
    model.validation = Validation("v", key=("x", "y"), datasets=[Dataset("d", rows)], metrics=[Metric("mse", len)])
    for back in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert back.trainer.select == back.validation.datasets[0].select == rows
        assert torch.equal(back.object.weight, model.object.weight)
    table, listener = Table("t", {"x": "int"}), Listener("l", "t", "x", "m")
    assert pickle.loads(pickle.dumps((table, listener))) == copy.deepcopy((table, listener)) == (table, listener)


def test_methods_of_ones_own_are_refused_by_name():
    """In a subclass or assigned: of a trainer, a validation, a metric, a dataset, a table, a listener, a model."""

    class Looped(TorchTrainer):
        def fit(self, *args: object, **kwargs: object) -> None:
            raise AssertionError

    class Stepped(TorchTrainer):
        def training_step(self, batch: object) -> None:
            raise AssertionError

    class Measured(Validation):
        def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
            return {"d/mse": 0.0}

    class Counted(Metric):
        def __call__(self, predictions: object, targets: object) -> float:
            return 1.0

    class Chosen(Dataset):
        pass

    class Bound(Listener):
        pass

    class Columns(Table):
        pass

    arguments = {"select": Query("t"), "key": ["x", "y"]}
    for own, method in ((Looped, "fit"), (Stepped, "training_step")):
        with pytest.raises(
            DeclarationError, match=rf"trainers\.m: .* the class {own.__name__}; its own {method} would"
        ):
            declare(own("t", torch.nn.functional.cross_entropy, **arguments), model="m")
    trainer = TorchTrainer("t", torch.nn.functional.cross_entropy, **arguments)
    assert declare(trainer, model="m")
    trainer.replaced = print
    with pytest.raises(DeclarationError, match=r"trainers\.m: .* the replaced that was assigned"):
        declare(trainer, model="m")

    mse, rows = Metric("mse", "MeanSquaredError"), Dataset("d", Query("t"))
    with pytest.raises(DeclarationError, match=r"validations\.v: .* Measured; its own evaluate would not run"):
        declare(Measured("v", ["x", "y"], rows, mse, model="m"))
    validation = Validation("v", ["x", "y"], rows, mse, model="m")
    validation.evaluate = print
    with pytest.raises(DeclarationError, match=r"validations\.v: .* the evaluate that was assigned"):
        declare(validation)
    with pytest.raises(DeclarationError, match=r"validations\.v\.metrics\.mse: .* the class Counted"):
        declare(Validation("v", ["x", "y"], rows, Counted("mse", "MeanSquaredError"), model="m"))
    with pytest.raises(DeclarationError, match=r"validations\.v\.datasets\.d: .* the class Chosen"):
        declare(Validation("v", ["x", "y"], Chosen("d", Query("t")), mse, model="m"))
    with pytest.raises(DeclarationError, match=r"listeners\.l: .* the class Bound"):
        declare(Bound("l", "t", "x", "m"))
    with pytest.raises(DeclarationError, match=r"tables\.t: .* the class Columns"):
        declare(Columns("t", {"x": "int"}))
    model = ObjectModel("m", len)
    model.predict = print
    with pytest.raises(DeclarationError, match=r"models\.m: .* the predict that was assigned"):
        declare(model)


def test_code_in_a_filter_is_refused():
    """A bson.Code is a str, and would be stored as a text to compare with: at the top, in a list, below an operator."""
    code = Code("function() { return true }")
    for where in ({"x": code}, {"x": {"$in": [1, code]}}, {"$and": [{"x": {"$not": {"$eq": code}}}]}):
        with pytest.raises(DeclarationError, match="cannot hold a Code"):
            declare(Listener("l", "t", "x", "m", where=where))
        trainer = TorchTrainer("t", torch.nn.functional.cross_entropy, select=Query("t", where), key=["x", "y"])
        with pytest.raises(DeclarationError, match="cannot hold a Code"):
            declare(trainer, model="m")
        dataset, metric = Dataset("d", Query("t", where)), Metric("mse", "MeanSquaredError")
        with pytest.raises(DeclarationError, match="cannot hold a Code"):
            declare(Validation("v", ["x", "y"], dataset, metric, model="m"))


def test_a_key_of_a_filter_is_a_text():
    """A number as a key is refused in a sentence, at any depth."""
    for where in ({1: 2}, {"x": {"$elemMatch": {2: 3}}}):
        with pytest.raises(DeclarationError, match=r"a filter's key is a field's name or an operator, got [12];"):
            Listener("l", "t", "x", "m", where=where)


def test_a_validation_comes_back_with_its_metrics_and_datasets():
    """Callables by value or path, names of torchmetrics with their arguments."""
    validation = Validation(
        "v",
        ["img", "class"],
        [
            Dataset("d", Query("t").filter(Query("t")["_fold"] == "valid").limit(5), pin=True),
            Dataset("e", Query("t"), sample=500, seed=7),
        ],
        [
            Metric("acc", lambda p, t: sum(a == b for a, b in zip(p, t, strict=True)), greater_is_better=True),
            Metric("mse", "MeanSquaredError", arguments={"squared": False}),
        ],
        when=[{"every": 600}],
    )
    declared = declare(validation, model="lenet")
    assert set(declared.declaration.dump()) == set(ValidationDeclaration.model_fields)
    assert declared.declaration.dump()["metrics"]["mse"]["object"] == "torchmetrics:MeanSquaredError"
    back = build_validation("v", parsed("validation", "v", travelled(declared.declaration.dump())), resolver(declared))
    assert declare(back).declaration.dump() == declared.declaration.dump() | {
        "metrics": declare(back).declaration.dump()["metrics"]
    }
    assert back.datasets == validation.datasets
    assert back.model == "lenet"
    assert [metric([1, 2], [1, 4]) for metric in back.metrics] == [1.0, pytest.approx(2**0.5)]
    assert back.metric("d/mse").greater_is_better is False
    with pytest.raises(DeclarationError, match=r"validations\.v\.model: belongs to no model"):
        declare(validation)


def test_a_trainer_comes_back_with_everything_it_was_given():
    """Its model's name is its own; classes by path, lambdas by value, also among the arguments."""
    from components.torch.trainer import TorchTrainer

    trainer = TorchTrainer(
        "my-trainer",
        objective=torch.nn.functional.cross_entropy,
        select=Query("mnist", {"_fold": "train"}),
        key=("img", "class"),
        transform=lambda x, y: (x, y + 1),
        loader_kwargs={"batch_size": 10, "collate_fn": lambda pairs: pairs[0]},
        optimizer_cls=torch.optim.AdamW,
        optimizer_kwargs={"lr": 0.1, "betas": (0.5, 0.9)},
        max_iterations=10,
        validation_interval=3,
        when={"rows": 1000},
    )
    declared = declare(trainer, model=TorchModel("m", torch.nn.Linear(1, 1)))
    assert (declared.kind, declared.name) == ("trainer", "m")
    assert set(declared.declaration.dump()) == set(TrainerConfig.model_fields) - ADDED | {"model", "identifier"}
    assert declared.declaration.dump()["objective"] == "torch.nn.functional:cross_entropy"
    assert declared.declaration.dump()["optimizer"] == "torch.optim.adamw:AdamW"
    assert declared.declaration.dump()["when"] == [{"rows": 1000}]
    assert declare(trainer, model="m").declaration.dump() == declared.declaration.dump()
    back = build_trainer("m", parsed("trainer", "m", travelled(declared.declaration.dump())), resolver(declared))
    assert (back.select, back.key.fields) == (trainer.select, ("img", "class"))
    assert back.transform(1, 1) == (1, 2)
    assert back.loader_kwargs["collate_fn"]([3]) == 3
    assert back.optimizer_cls is torch.optim.AdamW
    assert back.optimizer_kwargs == {"lr": 0.1, "betas": [0.5, 0.9]}
    assert (back.max_iterations, back.validation_interval, back.promote) == (10, 3, "always")
    with pytest.raises(DeclarationError, match="belongs to no model"):
        declare(trainer)
    with pytest.raises(DeclarationError, match=r"trainers\.m\.select: is missing"):
        declare(TorchTrainer("t", objective=len, key=("a", "b")), model="m")
    with pytest.raises(DeclarationError, match=r"^trainer 'm': seed"):
        build_trainer(
            "m", parsed("trainer", "m", {**travelled(declared.declaration.dump()), "seed": -1}), resolver(declared)
        )


def test_import_paths_among_arguments_are_resolved():
    """As the configuration and the API write them."""
    from components.torch.trainer import TorchTrainer

    trainer = TorchTrainer(
        "t", torch.nn.functional.mse_loss, Query("t"), ("x", "y"), loader_kwargs={"collate_fn": models.both}
    )
    declared = declare(trainer, allow=["harness"], model="m")
    assert declared.declaration.dump()["loader"] == {"collate_fn": {"$import": "harness.models:both"}}
    assert build_trainer(
        "m", parsed("trainer", "m", travelled(declared.declaration.dump())), resolver(declared)
    ).loader_kwargs == {"collate_fn": models.both}


def test_the_source_hash_follows_the_users_code_and_what_it_uses(tmp_path, monkeypatch):
    """A change of the module, or of one that it uses, is another source; installed packages count by their version."""
    import importlib

    (tmp_path / "used_source.py").write_text("A = 1\ndef helper(): pass\n")
    (tmp_path / "own_source.py").write_text("import torch\nfrom used_source import helper\ndef f(): return helper()\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("own_source")
    seen = [source_hash([module.f])]
    assert seen[0] == source_hash([module.f, module.f])
    (tmp_path / "used_source.py").write_text("A = 2\ndef helper(): pass\n")
    seen.append(source_hash([module.f]))
    (tmp_path / "own_source.py").write_text("def f(): return 5\n")
    seen.append(source_hash([module.f]))
    assert len({*seen, source_hash([torch.nn.functional.relu]), source_hash([])}) == 5
    assert source_hash([]) == source_hash([len]) == ""
    assert source_hash([torch.nn.Linear]) == hashlib.sha256(
        f"torch {torch.__version__.partition('+')[0]}".encode()
    ).hexdigest() or ("+" in torch.__version__)


def test_the_source_hash_does_not_depend_on_what_else_is_imported(tmp_path, monkeypatch):
    """A package knows every module of it that anybody has imported; what a model uses is in its own text."""
    import importlib

    package = tmp_path / "sourcepkg"
    (package / "sub").mkdir(parents=True)
    for file, text in {
        "__init__.py": "from sourcepkg import base\n",
        "base.py": "B = 1\n",
        "util.py": "U = 1\n",
        "other.py": "O = 1\n",
        "sub/__init__.py": "",
        "sub/deep.py": "def late():\n    from ..util import U\n    return U\n",
        "model.py": "import sourcepkg.util\nfrom .sub import deep\ndef f(): return deep.late()\nf2 = deep.late\n",
    }.items():
        (package / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("sourcepkg.model")
    before = source_hash([model.f])
    importlib.import_module("sourcepkg.other")
    assert source_hash([model.f]) == before
    (package / "other.py").write_text("O = 2\n")
    assert source_hash([model.f]) == before
    for used in ("base.py", "util.py", "sub/__init__.py", "sub/deep.py", "__init__.py", "model.py"):
        (package / used).write_text((package / used).read_text() + "# another\n")
        after = source_hash([model.f])
        assert after != before, used
        before = after
    assert source_hash([model.f2]) != source_hash([model.f2], ["sourcepkg.model:f2"])


def test_compile_is_declared_and_read_back():
    """A declaration without it is as an older release wrote it."""
    declared = declare(TorchModel("m", torch.nn.Linear(3, 2), compile=True)).declaration.dump()
    assert declared["compile"] is True
    assert parsed("model", "m", declared).compile is True
    plain = declare(TorchModel("m", torch.nn.Linear(3, 2))).declaration.dump()
    assert "compile" not in plain
    assert parsed("model", "m", plain).compile is False
