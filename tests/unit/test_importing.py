"""Import paths: what may be named, what is refused, and that declarations cost no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components import ImportPolicy, ImportRefused

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `cellar` to import from, beside a module that fails."""
    folder = tmp_path / "cellar"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "wine.py").write_text("import os\nclass Bottle:\n    @staticmethod\n    def open(): return 'pop'\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needy.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "cellar"]:
        del sys.modules[name]


def test_what_an_allowed_package_holds_is_resolved(package):
    """Classes, functions, and what stands inside a class."""
    policy = ImportPolicy(("cellar",))
    assert policy.resolve("cellar.wine:Bottle").__name__ == "Bottle"
    assert policy.resolve("cellar.wine:Bottle.open")() == "pop"


@pytest.mark.parametrize("path", ["torch.nn:Linear", "torch.nn.functional:cross_entropy", "torch.optim:Adam"])
def test_torch_losses_and_optimizers_are_always_allowed(path):
    """They are what a trainer names, and run nothing of a stranger's."""
    assert callable(ImportPolicy().resolve(path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os:system", 'add "os" to security.allow_imports'),
        ("cellars.wine:Bottle", "outside the packages that may be imported"),
        ("torch:load", "outside the packages that may be imported"),
        ("torch.nnx:load", "outside the packages that may be imported"),
        ("cellar.wine", "is no import path"),
        ("cellar.wine:", "is no import path"),
        (":Bottle", "is no import path"),
        ("cellar..wine:Bottle", "is no import path"),
        ("cellar.wine:Bottle()", "is no import path"),
        ("cellar.wine:Botle", "has no 'Botle'; did you mean 'Bottle'?"),
        ("cellar.wine:os", "'os' is a module"),
        ("cellar.wine:os.system", "'os' is a module"),
        ("cellar.wine:Bottle.__init__", "special attribute"),
        ("cellar.vine:Bottle", "there is no module 'cellar.vine'"),
        ("cellar.broken:x", "importing cellar.broken failed: ZeroDivisionError"),
        ("cellar.wine:_label", "'_label' is private"),
        ("cellar._hidden:x", "'_hidden' is private"),
        ("torch.nn.attention._fa3:_fa3_import_module", "'_fa3' is private"),
        ("torch.nn.functional:torch.hub.load", "'torch' is a module"),
        ("torchmetrics.utilities.imports:RequirementCache", "belongs to lightning_utilities.core.imports"),
        ("torch.optim.lr_scheduler:partial", 'write "functools:partial" and add "functools"'),
        ("torch.nn.functional:Tensor.apply_", "belongs to torch, which torch.nn.functional only imports"),
        ("cellar.needy:x", "needs the module 'no_such_module_at_all', which is not installed"),
    ],
)
def test_other_paths_are_refused_with_the_reason(package, path, message):
    """A path outside the list, malformed, leading through a module, or naming nothing."""
    with pytest.raises(ImportRefused) as caught:
        ImportPolicy(("cellar",)).resolve(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "torch.nn.functional:conv2d",
        "torch.nn.functional:max_pool2d",
        "torch.nn.functional:gelu",
        "torch.nn.quantized:Linear",
        "torch.nn.init:xavier_uniform_",
        "torchmetrics:Accuracy",
        "torchmetrics.functional:accuracy",
    ],
)
def test_what_these_packages_offer_themselves_stays_allowed(path):
    """Operators of torch, functions that a factory made, and classes whose file is in another part of torch."""
    assert callable(ImportPolicy().resolve(path))


def test_no_public_path_of_them_leads_to_an_importer():
    """Each module of the packages that are always allowed is walked: no class or function of importlib, torch.hub or
    pickle, nor of any package that is not listed.
    """
    script = """
import importlib, inspect, pkgutil, warnings
from components.import_paths import ALWAYS_ALLOWED, ImportPolicy, ImportRefused
warnings.simplefilter("ignore")
tried = 0
for root in ALWAYS_ALLOWED:
    for found in pkgutil.walk_packages(importlib.import_module(root).__path__, root + ".", onerror=lambda name: None):
        try:
            module = importlib.import_module(found.name)
        except Exception:
            continue
        for name, thing in list(vars(module).items()):
            if not callable(thing):
                continue
            tried += 1
            try:
                ImportPolicy().resolve(f"{found.name}:{name}")
            except ImportRefused:
                continue
            home = getattr(thing, "__module__", None) or "torch"
            if home.split(".")[0] not in ("torch", "torchmetrics") and inspect.isclass(thing):
                print(found.name, name, home)
            if "hub" in home or "._fa" in home:
                print(found.name, name, home)
print(tried > 1000)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_ones_own_module_may_offer_what_it_imports(package):
    """Whoever lists it trusts what it offers."""
    (package / "offers.py").write_text("from collections import OrderedDict\n")
    assert ImportPolicy(("cellar",)).resolve("cellar.offers:OrderedDict").__name__ == "OrderedDict"


def test_a_private_package_that_is_named_itself_is_allowed(package):
    """The list counts, not the underscore."""
    (package / "_inner.py").write_text("def f(): pass\n")
    assert callable(ImportPolicy(("cellar._inner",)).resolve("cellar._inner:f"))


def test_a_refused_module_is_not_imported(package):
    """The list is asked before anything runs."""
    with pytest.raises(ImportRefused):
        ImportPolicy(("cellar.wine",)).resolve("cellar.broken:x")
    assert "cellar.broken" not in sys.modules


def test_checking_a_path_imports_nothing(package):
    """The supervisor checks paths and stays without the user's code."""
    assert ImportPolicy(("cellar",)).check("cellar.wine:Bottle") == ("cellar.wine", "Bottle")
    assert "cellar.wine" not in sys.modules


def test_importing_components_does_not_import_torch():
    """Neither do declarations, not even of a tensor: the supervisor and the command line live on them."""
    script = (
        "import sys, components\n"
        "components.Table('t', {'x': 'tensor[float32,2]', 'img': 'pil_image'}).datatypes.get('img')\n"
        "components.Listener('l', 't', 'x', 'm')\n"
        "components.ObjectModel('m', len).finish([1.0])\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'torchvision', 'pymongo', 'asyncio')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
