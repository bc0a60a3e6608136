"""service.toml on training: what is read from [trainers.*] and [validations.*], and how each way of getting it wrong is
told.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.configurations import problems, read

from daemon.config import load

ROOT = Path(__file__).parents[2]

GOOD = """
[service]
name = "mnist"
[mongo]
database = "mnist"
[security]
allow_imports = ["examples"]
[tables.mnist]
fields = { img = "pil_image", class = "int", _fold = "str" }
[models.lenet]
object = "examples.mnist:LeNet5"
arguments = { num_classes = 10 }
[models.words]
type = "object"
object = "examples.words:count"
[listeners.digit]
table = "mnist"
key = "img"
model = "lenet"
[listeners.count]
table = "mnist"
key = "class"
model = "words"
[validations.v]
model = "lenet"
key = ["img", "class"]
datasets = { valid = { table = "mnist", where = { _fold = "valid" } } }
metrics = { acc = "examples.mnist:accuracy" }
[trainers.lenet]
table = "mnist"
key = ["img", "class"]
objective = "torch.nn.functional:cross_entropy"
"""

METRICS = 'metrics = { acc = "examples.mnist:accuracy" }'
KEY = 'key = ["img", "class"]\nobjective'
VALIDATION = GOOD[GOOD.index("[validations.v]") : GOOD.index("[trainers.lenet]")]


def changed(old: str, new: str) -> str:
    """The good file with one thing changed."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def when(*lines: str, validation: bool = False) -> str:
    """The good file with these occasions for the trainer, or for the validation."""
    said = f"when = [{', '.join(lines)}]"
    return changed(METRICS, f"{METRICS}\n{said}") if validation else f"{GOOD}{said}\n"


BAD = {
    "a trainer of no model": (
        GOOD.replace("[trainers.lenet]", "[trainers.lennet]"),
        "trainers.lennet",
        ["no model `lennet`", "did you mean `lenet`?"],
    ),
    "a trainer of an object": (
        GOOD
        + '[trainers.words]\ntable = "mnist"\n'
        + 'key = ["img", "class"]\nobjective = "torch.nn:MSELoss"\npromote = "always"',
        "trainers.words.type",
        ['type = "object"', 'type = "loop"'],
    ),
    "an unknown key": (GOOD + "max_iteration = 3", "trainers.lenet.max_iteration", ["did you mean `max_iterations`?"]),
    "no objective": (
        changed('objective = "torch.nn.functional:cross_entropy"', ""),
        "trainers.lenet.objective",
        ["is missing", "package.module"],
    ),
    "an unknown table": (
        changed(
            'table = "mnist"\nkey = ["img", "class"]\nobjective', 'table = "mnits"\nkey = ["img", "class"]\nobjective'
        ),
        "trainers.lenet.table",
        ["no table `mnits`", "did you mean `mnist`?"],
    ),
    "an unknown field": (
        changed(KEY, 'key = ["img", "label"]\nobjective'),
        "trainers.lenet.key[1]",
        ["declares no field `label`"],
    ),
    "a key of lists": (
        changed(KEY, 'key = [["img"], ["class"]]\nobjective'),
        "trainers.lenet.key",
        ["a list of fields"],
    ),
    "a key with an input twice": (
        changed(KEY, 'key = ["img", "img", "class"]\nobjective'),
        "trainers.lenet.key",
        ["a field occurs twice"],
    ),
    "a key of one unknown field": (
        changed(KEY, 'key = "image"\nobjective'),
        "trainers.lenet.key",
        ["declares no field `image`", "did you mean `img`?"],
    ),
    "an objective for a loop": (
        GOOD + 'type = "loop"',
        "trainers.lenet",
        ["objective", 'type = "loop" has no use for it'],
    ),
    "a loop for torch": (
        GOOD + 'loop = "examples.mine:Loop"',
        "trainers.lenet",
        ["loop", 'type = "torch" has no use for it'],
    ),
    "a loop outside": (
        GOOD.replace('objective = "torch.nn.functional:cross_entropy"', 'type = "loop"\nloop = "os:system"'),
        "trainers.lenet.loop",
        ["outside security.allow_imports"],
    ),
    "weights of an unknown field": (
        GOOD + 'weighted_by = "wieght"',
        "trainers.lenet.weighted_by",
        ["declares no field `wieght`"],
    ),
    "a filter that runs code": (GOOD + 'where = { "$where" = "1" }', 'trainers.lenet.where."$where"', ["run code"]),
    "an objective outside": (
        changed("torch.nn.functional:cross_entropy", "os:system"),
        "trainers.lenet.objective",
        ["outside security.allow_imports"],
    ),
    "a transform that is no path": (
        GOOD + 'transform = "examples.mnist.transform"',
        "trainers.lenet.transform",
        ['"examples.mnist:transform"'],
    ),
    "an optimizer outside": (GOOD + 'optimizer = "mine:Sgd"', "trainers.lenet.optimizer", ['["examples", "mine"]']),
    "a date for the optimizer": (
        GOOD + "optimizer_arguments = { lr = 2026-01-01 }",
        "trainers.lenet.optimizer_arguments.lr",
        ["write a string"],
    ),
    "a sampler": (GOOD + "loader = { sampler = 3 }", "trainers.lenet.loader.sampler", ["the trainer's own", "`seed`"]),
    "a batch of none": (
        GOOD + "loader = { batch_size = 0 }",
        "trainers.lenet.loader.batch_size",
        ["0 is not right", "`batch_size = 64`"],
    ),
    "half a worker": (
        GOOD + "loader = { num_workers = 0.5 }",
        "trainers.lenet.loader.num_workers",
        ["whole number, at least 0"],
    ),
    "an import among arguments": (
        GOOD + 'loader = { collate_fn = { "$import" = "os:system" } }',
        'trainers.lenet.loader.collate_fn."$import"',
        ["outside security"],
    ),
    "an import with company": (
        GOOD + 'loader = { collate_fn = { "$import" = "examples.mnist:x", a = 1 } }',
        "trainers.lenet.loader.collate_fn",
        ["has no other key"],
    ),
    "no iterations": (
        GOOD + "max_iterations = 0",
        "trainers.lenet.max_iterations",
        ["whole number of steps, at least 1"],
    ),
    "a whole fold": (GOOD + "folds = 1.0", "trainers.lenet.folds", ["a fraction between 0 and 1"]),
    "an unknown fold": (GOOD + 'folds = "some"', "trainers.lenet.folds", ['"auto", "none"']),
    "a negative seed": (GOOD + "seed = -1", "trainers.lenet.seed", ["63 bits"]),
    "an unknown metric to listen to": (
        GOOD + 'listen = "valid/los"',
        "trainers.lenet.listen",
        ["did you mean `valid/loss`?"],
    ),
    "an unknown metric to promote by": (
        GOOD + 'promote_metric = "valid/accuracy"',
        "trainers.lenet.promote_metric",
        ["did you mean `valid/acc`?"],
    ),
    "better without a validation": (
        GOOD.replace(VALIDATION, "") + 'folds = "none"',
        "trainers.lenet.promote",
        ["needs a validation", 'promote = "always"'],
    ),
    "a margin without better": (
        GOOD + 'promote = "always"\npromote_margin = 0.1',
        "trainers.lenet.promote_margin",
        ['only promote = "better"'],
    ),
    "an unknown way to promote": (
        GOOD + 'promote = "best"',
        "trainers.lenet.promote",
        ['"better", "always" or "manual"'],
    ),
    "to keep nothing": (GOOD + "keep = 0", "trainers.lenet.keep", ["at least 1"]),
    "an empty occasion": (when("{}"), "trainers.lenet.when[0]", ["none of every, cron, rows and below"]),
    "two occasions in one": (
        when('{ every = "6h", rows = 3 }'),
        "trainers.lenet.when[0]",
        ["has every and rows", "one of them"],
    ),
    "an unknown occasion": (
        when('{ every = "6h", evry = 1 }'),
        "trainers.lenet.when[0].evry",
        ["did you mean `every`?"],
    ),
    "an occasion that is none": (when('"6h"'), "trainers.lenet.when[0]", ['"6h"', "it must be a list of"]),
    "always": (when("{ every = 0.1 }"), "trainers.lenet.when[0].every", ['from "1s" to a year']),
    "an interval in weeks": (when('{ every = "1w" }'), "trainers.lenet.when[0].every", ["ms, s, m, h or d"]),
    "two intervals": (when('{ every = "6h" }', '{ every = "8h" }'), "trainers.lenet.when[1]", ["`every` occurs twice"]),
    "a bad cron": (when('{ cron = "0 25 * * *" }'), "trainers.lenet.when[0].cron", ["`25` is no hour", "0 3 * * *"]),
    "a cron of six": (when('{ cron = "0 0 3 * * *" }'), "trainers.lenet.when[0].cron", ["five fields"]),
    "an unknown zone": (
        when('{ cron = "0 3 * * *", timezone = "Europe/Berln" }'),
        "trainers.lenet.when[0].timezone",
        ["did you mean `Europe/Berlin`?"],
    ),
    "a path for a zone": (
        when('{ cron = "0 3 * * *", timezone = "../etc" }'),
        "trainers.lenet.when[0].timezone",
        ["no time zone"],
    ),
    "a zone without a cron": (
        when('{ every = "6h", timezone = "UTC" }'),
        "trainers.lenet.when[0].timezone",
        ["only a cron"],
    ),
    "no rows": (when("{ rows = 0 }"), "trainers.lenet.when[0].rows", ["new rows, from 1"]),
    "below an unknown metric": (
        when('{ below = { "v/valid/ac" = 0.9 } }'),
        'trainers.lenet.when[0].below."v/valid/ac"',
        ["did you mean `v/valid/acc`?"],
    ),
    "below half a name": (
        when('{ below = { "valid/acc" = 0.9 } }'),
        'trainers.lenet.when[0].below."valid/acc"',
        ['"validation/dataset/metric"'],
    ),
    "below nothing": (when("{ below = {} }"), "trainers.lenet.when[0].below", ["a section of"]),
    "below a word": (
        when('{ below = { "v/valid/acc" = "low" } }'),
        'trainers.lenet.when[0].below."v/valid/acc"',
        ['"low"'],
    ),
    "a validation that starts itself": (
        when('{ below = { "v/valid/acc" = 0.9 } }', validation=True),
        'validations.v.when[0].below."v/valid/acc"',
        ["must not start itself"],
    ),
    "a validation of no model": (
        changed('[validations.v]\nmodel = "lenet"', '[validations.v]\nmodel = "lenett"') + 'promote = "always"',
        "validations.v.model",
        ["did you mean `lenet`?"],
    ),
    "a validation with a dot": (
        GOOD + VALIDATION.replace("[validations.v]", '[validations."v.1"]').replace("valid =", "other ="),
        'validations."v.1"',
        ["not a name for a validation", "[validations.v_1]"],
    ),
    "no datasets": (
        changed('datasets = { valid = { table = "mnist", where = { _fold = "valid" } } }', "datasets = {}"),
        "validations.v.datasets",
        ["{} is not right", "a table and a filter each"],
    ),
    "a dataset of no table": (
        changed('table = "mnist", where', 'table = "mnits", where'),
        "validations.v.datasets.valid.table",
        ["did you mean `mnist`?"],
    ),
    "a dataset with a bad filter": (
        changed('_fold = "valid"', '_fold = { "$gtt" = 3 }'),
        'validations.v.datasets.valid.where._fold."$gtt"',
        ["did you mean `$gt`?"],
    ),
    "a dataset with an unknown key": (
        changed('where = { _fold = "valid" }', "pinned = true"),
        "validations.v.datasets.valid.pinned",
        ["unknown key"],
    ),
    "a dataset with a sample of the first rows": (
        changed('where = { _fold = "valid" }', "limit = 5, sample = 5"),
        "validations.v.datasets.valid",
        ["limit takes the first rows", "name one of the two"],
    ),
    "a dataset with a seed for nothing": (
        changed('where = { _fold = "valid" }', "seed = 5"),
        "validations.v.datasets.valid",
        ["there is no sample that it chooses"],
    ),
    "a dataset with an empty sample": (
        changed('where = { _fold = "valid" }', "sample = 0"),
        "validations.v.datasets.valid.sample",
        ["a whole number of rows, at least 1"],
    ),
    "a dataset with a slash": (
        changed("datasets = { valid", 'datasets = { "a/b"'),
        'validations.v.datasets."a/b"',
        ["not a name for a dataset"],
    ),
    "a metric outside": (
        changed(METRICS, 'metrics = { acc = "os:system" }'),
        "validations.v.metrics.acc",
        ["outside security.allow_imports"],
    ),
    "a metric that is no path": (
        changed(METRICS, 'metrics = { acc = "accuracy" }'),
        "validations.v.metrics.acc",
        ["no import path"],
    ),
    "a metric with an unknown key": (
        changed(METRICS, 'metrics = { acc = { object = "MeanSquaredError", kind = 1 } }'),
        "validations.v.metrics.acc.kind",
        ["unknown key"],
    ),
    "a metric of a number": (changed(METRICS, "metrics = { acc = 3 }"), "validations.v.metrics.acc", ["3 is not"]),
    "a metric with a dot": (
        changed("metrics = { acc", 'metrics = { "a.b"'),
        'validations.v.metrics."a.b"',
        ["not a name for a metric"],
    ),
    "a validation's unknown field": (
        changed(
            '[validations.v]\nmodel = "lenet"\nkey = ["img", "class"]',
            '[validations.v]\nmodel = "lenet"\nkey = ["image", "class"]',
        ),
        "validations.v.key[0]",
        ["did you mean `img`?"],
    ),
    "two validations of one name": (
        GOOD + VALIDATION.replace("[validations.v]", "[validations.w]"),
        "validations.w",
        ["`v` gives `valid/acc`", "another name"],
    ),
    "a metric called like a loss": (
        changed(METRICS, 'metrics = { acc = "examples.mnist:accuracy", loss = "MeanSquaredError" }'),
        "validations.v",
        ["its own loss"],
    ),
}


@pytest.mark.parametrize(("text", "path", "words"), BAD.values(), ids=BAD)
def test_each_mistake_names_its_key_and_the_remedy(tmp_path: Path, text: str, path: str, words: list[str]) -> None:
    """A file with one mistake gets a message at that key, with what would be right, and no other message."""
    found = problems(tmp_path, text)
    messages = [message for where, message in found if where == path]
    assert messages, f"no problem at {path}: {found}"
    assert any(all(word in message for word in words) for message in messages), messages
    assert {where for where, _ in found} == {path}


def test_the_demo_s_trainer_and_validation() -> None:
    """What the repository's own file declares is stored whole, defaults and all."""
    declared = load(ROOT / "service.toml", {}).declarations()
    assert declared["trainers"] == {
        "lenet": {
            "model": "lenet",
            "identifier": "lenet",
            "type": "torch",
            "table": "mnist",
            "where": {"_fold": "train"},
            "limit": None,
            "key": ["img", "class"],
            "objective": "torch.nn.functional:cross_entropy",
            "transform": "examples.mnist:transform",
            "loader": {"batch_size": 64},
            "optimizer": None,
            "optimizer_arguments": {},
            "max_iterations": 300,
            "validation_interval": 25,
            "seed": 0,
            "folds": "auto",
            "no_improve_then_stop": None,
            "listen": None,
            "promote": "better",
            "promote_metric": None,
            "promote_margin": 0.0,
            "keep": 5,
            "when": [{"every": 21600.0}, {"rows": 1000}, {"below": {"mnist_performance/valid/acc": 0.9}}],
            "time_limit": None,
            "retries": 2,
            "threads": None,
            "checkpoint_seconds": 30.0,
        }
    }
    assert declared["validations"] == {
        "mnist_performance": {
            "model": "lenet",
            "key": ["img", "class"],
            "datasets": {"valid": {"table": "mnist", "where": {"_fold": "valid"}, "limit": None, "pin": False}},
            "metrics": {"acc": {"object": "examples.mnist:accuracy", "arguments": {}, "greater_is_better": None}},
            "when": [{"every": 600.0}],
        }
    }


def test_everything_said_is_stored(tmp_path: Path) -> None:
    """Dates of filters as Extended JSON, durations in seconds, a cron with its zone, a name of torchmetrics with its
    module.
    """
    text = GOOD.replace(
        METRICS,
        'metrics = { mse = "MeanSquaredError", f1 = { object = "torchmetrics:F1Score", '
        'arguments = { task = "multiclass", num_classes = 10 }, greater_is_better = true } }',
    ).replace('where = { _fold = "valid" }', 'where = { at = { "$lt" = 2026-01-31T00:00:00Z } }, limit = 5, pin = true')
    text += """
where = { at = { "$gte" = 2026-01-31T00:00:00Z } }
limit = 5000
loader = { batch_size = 10, collate_fn = { "$import" = "examples.mnist:transform" } }
optimizer = "torch.optim:SGD"
optimizer_arguments = { lr = 0.01 }
folds = "none"
listen = "valid/mse"
promote_metric = "valid/f1"
promote_margin = 0.01
time_limit = "2h"
threads = 1
checkpoint_seconds = "1m"
when = [
    { every = "90s" }, { cron = "0 3 * * mon" }, { cron = "@daily", timezone = "Asia/Tokyo" },
    { below = { "v/valid/f1" = 1 } }
]
"""
    declared = read(tmp_path, text).declarations()
    trainer, validation = declared["trainers"]["lenet"], declared["validations"]["v"]
    assert trainer["where"] == {"at": {"$gte": {"$date": "2026-01-31T00:00:00.000Z"}}}
    assert trainer["loader"] == {"batch_size": 10, "collate_fn": {"$import": "examples.mnist:transform"}}
    assert (trainer["folds"], trainer["time_limit"], trainer["checkpoint_seconds"]) == (None, 7200.0, 60.0)
    assert trainer["when"] == [
        {"every": 90.0},
        {"timezone": "UTC", "cron": "0 3 * * mon"},
        {"timezone": "Asia/Tokyo", "cron": "@daily"},
        {"below": {"v/valid/f1": 1.0}},
    ]
    assert validation["metrics"] == {
        "mse": {"object": "torchmetrics:MeanSquaredError", "arguments": {}, "greater_is_better": None},
        "f1": {
            "object": "torchmetrics:F1Score",
            "arguments": {"task": "multiclass", "num_classes": 10},
            "greater_is_better": True,
        },
    }
    assert validation["datasets"]["valid"] == {
        "table": "mnist",
        "where": {"at": {"$lt": {"$date": "2026-01-31T00:00:00.000Z"}}},
        "limit": 5,
        "pin": True,
    }


@pytest.mark.parametrize(("written", "stored"), [('"auto"', "auto"), ('"none"', None), ("0.1", 0.1)])
def test_folds(tmp_path: Path, written: str, stored: object) -> None:
    assert read(tmp_path, f"{GOOD}folds = {written}").declarations()["trainers"]["lenet"]["folds"] == stored


def test_a_trainer_without_a_validation_is_judged_by_its_loss(tmp_path: Path) -> None:
    """Where rows are kept apart, by a fold or a fraction; else it promotes always, or by hand."""
    alone = GOOD.replace(VALIDATION, "")
    assert read(tmp_path, f'{alone}promote_metric = "valid/loss"').trainers["lenet"].promote == "better"
    assert read(tmp_path, f"{alone}folds = 0.2").trainers["lenet"].promote == "better"
    for way in ("always", "manual"):
        config = read(tmp_path, f'{alone}folds = "none"\npromote = "{way}"\nlisten = "valid/loss"')
        assert config.trainers["lenet"].promote == way
    refused = problems(tmp_path, f'{alone}where = {{ _fold = "train" }}')
    assert [path for path, _ in refused] == ["trainers.lenet.promote"]


def test_a_model_s_devices_in_order_of_preference(tmp_path: Path) -> None:
    config = read(tmp_path, changed("[models.words]", 'device = ["cuda:1", "cpu"]\n[models.words]'))
    assert config.declarations()["models"]["lenet"]["device"] == ["cuda:1", "cpu"]


def test_the_key_file_lies_beside_the_configuration(tmp_path: Path) -> None:
    text = changed("[tables.mnist]", 'signing_key_file = "keys/signing"\n[tables.mnist]')
    assert read(tmp_path, text).security.signing_key_file == tmp_path / "keys" / "signing"
    text = text.replace('"keys/signing"', '"${CREDENTIALS_DIRECTORY}/signing"')
    config = read(tmp_path, text, {"CREDENTIALS_DIRECTORY": "/run/credentials/predictd"})
    assert config.security.signing_key_file == Path("/run/credentials/predictd/signing")


def test_the_environment_overrides_a_trainer(tmp_path: Path) -> None:
    """Keys of trainers and of datasets can be set from outside, occasions as a whole."""
    environ = {
        "PREDICTD_TRAINERS__LENET__MAX_ITERATIONS": "7",
        "PREDICTD_TRAINERS__LENET__WHEN": "[{ rows = 5 }]",
        "PREDICTD_VALIDATIONS__V__DATASETS__VALID__LIMIT": "9",
        "PREDICTD_TRAINERS__LENET__LOADER__BATCH_SIZE": "3",
    }
    declared = read(tmp_path, GOOD, environ).declarations()
    assert declared["trainers"]["lenet"]["max_iterations"] == 7
    assert declared["trainers"]["lenet"]["when"] == [{"rows": 5}]
    assert declared["trainers"]["lenet"]["loader"] == {"batch_size": 3}
    assert declared["validations"]["v"]["datasets"]["valid"]["limit"] == 9


def test_training_is_no_worker_s_business(tmp_path: Path) -> None:
    """A change of a trainer, a validation or the number of jobs is a change, and restarts no worker."""
    before = read(tmp_path, GOOD)
    for text in (
        GOOD + "max_iterations = 5",
        GOOD.replace("limit", "limit").replace('_fold = "valid"', '_fold = "test"'),
        GOOD[: GOOD.index("[validations.v]")],
        GOOD + "[limits]\njobs = 3",
    ):
        after = read(tmp_path, text)
        assert after.worker_fingerprints == before.worker_fingerprints
        assert after.workers() == before.workers()
    assert read(tmp_path, GOOD + "max_iterations = 5").fingerprints != before.fingerprints
    assert read(tmp_path, GOOD + "[limits]\nqueue_rows = 1000").worker_fingerprints == before.worker_fingerprints


def test_reading_imports_neither_torch_nor_the_clock() -> None:
    """`daemon.config` stays light: no torch, no APScheduler, no code of the user's."""
    import subprocess
    import sys

    asked = (
        "import sys, pathlib; from daemon.config import load; load(pathlib.Path('service.toml'), {}).declarations(); "
        "print(sorted({'torch', 'apscheduler', 'examples', 'torchmetrics'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
