"""What of the Python API needs no database: what it imports, what components are called, what is drawn."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.declarations import declaration
from PIL import Image

from components import ObjectModel, Table
from components.artifacts import dumps
from components.errors import DeclarationError, NotApplied, PredictdError
from daemon.api import VersionList
from daemon.api.applier import _same_code
from daemon.api.kinds import kind_of, named, type_name
from daemon.store.registry.components import Component
from daemon.store.registry.model_loader import object_signature
from daemon.store.registry.version import Version


def test_a_star_import_brings_the_whole_front_door() -> None:
    """And a notebook completes its names."""
    names: dict[str, Any] = {}
    exec("from predictd import *", names)
    import predictd

    wanted = {"connect", "Datalayer", "NotServed", "PlanHeld", "Table", "LoopTrainer"}
    assert wanted <= names.keys() & set(dir(predictd)) & set(predictd.__all__)


@pytest.mark.parametrize("program", ["import daemon", "from daemon import connect, Datalayer; import daemon.api"])
def test_importing_the_api_is_light(program: str) -> None:
    """No torch, no plots; and `import daemon` alone brings not even a driver."""
    heavy = "{'torch', 'torchvision', 'matplotlib', 'torchmetrics', 'starlette', 'apscheduler', 'typer'}"
    if program == "import daemon":
        heavy = f"{heavy} | {{'pymongo', 'bson', 'structlog', 'rich'}}"
    code = f"import sys; {program}; found = ({heavy}) & set(sys.modules); sys.exit(str(found) if found else 0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


def test_what_the_package_does_not_have_is_said_as_by_any_module() -> None:
    import daemon

    with pytest.raises(AttributeError, match="module 'daemon' has no attribute 'conect'"):
        _ = daemon.conect  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("Table", ("table", None)),
        (Table, ("table", None)),
        ("TorchModel", ("model", "torch")),
        (ObjectModel, ("model", "object")),
        ("model", ("model", None)),
        ("trainer", ("trainer", None)),
        ("validation", ("validation", None)),
        ("Listener", ("listener", None)),
    ],
)
def test_types_are_named_by_class_or_by_name(given: Any, kind: tuple[str, str | None]) -> None:
    assert kind_of(given) == kind


@pytest.mark.parametrize(
    ("given", "said"),
    [("TorchMode", "did you mean 'TorchModel'"), (dict, "'dict' is not a type"), (3, "'3' is not a type")],
)
def test_what_is_no_type_is_refused_with_what_would_be_one(given: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        kind_of(given)


@pytest.mark.parametrize(
    ("kind", "body", "called"),
    [
        ("table", {"fields": {}}, ("Table", "a")),
        ("model", {"type": "torch"}, ("TorchModel", "a")),
        ("model", {"type": "object"}, ("ObjectModel", "a")),
        ("trainer", {"type": "torch", "identifier": "my-trainer"}, ("TorchTrainer", "my-trainer")),
        ("validation", {}, ("Validation", "a")),
        ("listener", {}, ("Listener", "a")),
    ],
)
def test_a_component_of_the_registry_has_the_name_of_its_class(
    kind: str, body: dict[str, Any], called: tuple[str, str]
) -> None:
    component = Component(kind, "a", "api", declaration(kind, **body), 1, "")
    assert (type_name(component), named(component)) == called


def version(number: int, state: str = "retired", *, trained: bool = True) -> Version:
    traces = {
        "metric_steps": [3, 6, 9, 10],
        "metric_values": {"mine/acc": [0.1, 0.4, 0.6, 0.7], "train/loss": [2.0, 1.0, 0.5, 0.4]},
    }
    told = {"at": datetime(2026, 1, number, tzinfo=UTC), "validation": "v", "metrics": {"mine/acc": 0.5}}
    return Version(
        number,
        state,
        "",
        "",
        None,
        None,
        None,
        **({**traces, "metrics": {"mine/acc": 0.7}, "validations": [told]} if trained else {}),
    )


def test_versions_are_drawn_into_a_file(tmp_path: Path) -> None:
    """Traces, losses, the versions beside each other, and the scheduled validations."""
    versions = VersionList(
        "mine", [version(1, trained=False), *(version(n, "live" if n == 9 else "retired") for n in range(2, 14))]
    )
    figure = versions.plot(tmp_path / "versions.png")
    said = {text.get_text() for axes in figure.axes for text in [axes.title, axes.xaxis.label, *axes.texts]}
    assert {"version", "step"} & {text.split()[-1] for text in said if text}
    assert any("live" in text for text in said)
    assert versions.live is versions[8]
    drawn = np.asarray(Image.open(tmp_path / "versions.png").convert("L"))
    assert drawn.min() < 100
    assert drawn.max() == 255


def test_the_live_version_is_drawn_however_old_it_is() -> None:
    versions = VersionList("mine", [version(n, "live" if n == 1 else "rejected") for n in range(1, 13)])
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = versions.plot()
    assert "1 live" in {text.get_text() for axes in figure.axes for text in axes.texts}
    plt.close("all")


def test_versions_that_were_never_trained_leave_nothing_to_draw() -> None:
    with pytest.raises(NotApplied, match="nothing to draw yet"):
        VersionList("mine", [version(1, trained=False)]).plot()


def test_a_plot_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(PredictdError, match="cannot be written to"):
        VersionList("mine", [version(1)]).plot(tmp_path / "absent" / "versions.png")
    with pytest.raises(PredictdError, match="cannot be written to"):
        VersionList("mine", [version(1)]).plot(tmp_path / "versions.nothing")


def test_code_made_with_versions_that_are_gone_is_sent_again_with_the_weights_that_it_had() -> None:
    """After an upgrade "apply it again" has to help; the same versions are no change."""
    slot = dumps(len, served=None).slot | {"torch": metadata.version("torch"), "tensors": "as built"}
    before = {**slot, "tensors": "as declared"}
    assert _same_code(slot, before) == before
    assert _same_code(slot, {**before, "torch": "1.13.1"}) == before
    assert _same_code(slot, {**before, "$artifact": "other code"}) == slot
    assert object_signature(declaration("model", object=before)) == object_signature(
        declaration("model", object={**before, "torch": "1.13.1"})
    )
