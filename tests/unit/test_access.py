"""Who is answered over HTTP: requests as a foreign page, another machine or a rebound name sends them."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from daemon.web.access import Access

TOKEN = "t" * 40
HERE = Access(loopback=True)
GUARDED = Access(loopback=True, token=TOKEN)
AWAY = Access(loopback=False, hosts=frozenset({"predictd.example.org"}), token=TOKEN)
BEARER = {"authorization": f"Bearer {TOKEN}"}


def status(access: Access, method: str, headers: dict[str, str]) -> int:
    found = access.refusal(method, Headers(headers))
    return 200 if found is None else found[0]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9477", "127.0.0.1:9477", "127.9.9.9", "[::1]:9477", "LOCALHOST"]
)
def test_names_of_the_loopback_are_answered(host: str) -> None:
    for method in ("GET", "POST"):
        assert status(HERE, method, {"host": host}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:9477", "localhost.evil.example", "127.0.0.1.evil.example", "evil@localhost",
        "0.0.0.0", "192.0.2.7", "[::]", "[::ffff:192.0.2.7]", "localhost evil", "2130706433x", "localhost\x00",
        "[::1].evil.example", "local\thost", "localhost:", "localhost:x", "localhost:999999", "[localhost]", "[::1]x:1",
        "localhost#evil", "localhost/evil", "localhost,evil", "\\localhost", "[::1", "127.1", "localhost\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("access", [HERE, GUARDED, AWAY])
def test_a_name_that_leads_here_by_trickery_is_refused(access: Access, host: str) -> None:
    """As a page does whose name resolves to 127.0.0.1; the token does not help it."""
    for method in ("GET", "POST"):
        assert status(access, method, {"host": host, **BEARER}) == 403


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://localhost.evil", "http://localhost:1", "file://", "", "http://"]
)
def test_another_origin_is_refused(origin: str) -> None:
    for method in ("GET", "POST"):
        assert status(HERE, method, {"host": "localhost:9477", "origin": origin}) == 403


def test_its_own_origin_is_answered() -> None:
    for origin in ("http://localhost:9477", "https://localhost:9477", "HTTP://LocalHost:9477"):
        assert status(HERE, "POST", {"host": "localhost:9477", "origin": origin}) == 200


@pytest.mark.parametrize(
    "given",
    [
        None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}",
        f"Bearer {TOKEN.upper()}", "Bearer \udcff", "Bearer ü",
    ],
)  # fmt: skip
def test_off_the_loopback_nothing_is_answered_without_the_token(given: str | None) -> None:
    """No page; on the loopback only what changes something needs it."""
    headers = {"host": "predictd.example.org"} | (
        {} if given is None else {"authorization": given.encode("utf-8", "replace").decode("latin-1")}
    )
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        assert status(AWAY, method, headers) == 401
    local = {**headers, "host": "localhost"}
    assert status(GUARDED, "GET", local) == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
        assert status(GUARDED, method, local) == 401


def test_with_the_token_it_is_answered() -> None:
    for method in ("GET", "POST"):
        assert status(AWAY, method, {"host": "Predictd.Example.org:9477", **BEARER}) == 200


@pytest.mark.parametrize("name", ["host", "origin", "authorization"])
def test_what_says_two_things_is_refused(name: str) -> None:
    """The first of two values may be good, and the second another program's choice."""
    good = {"host": "localhost:9477", "origin": "http://localhost:9477", **BEARER}
    raw = [(each.encode(), value.encode()) for each, value in good.items()]
    assert HERE.refusal("POST", Headers(raw=raw)) is None
    for both in ([*raw, (name.encode(), b"evil")], [(name.encode(), b"evil"), *raw], [*raw, *raw]):
        found = HERE.refusal("POST", Headers(raw=both))
        assert found is not None
        assert found[0] == 400


def test_two_lengths_are_refused_before_all_else() -> None:
    old = AWAY.refusal("GET", Headers({"host": "evil", "transfer-encoding": "chunked"}), "1.0")
    assert old is not None
    assert old[0] == 400
    assert status(AWAY, "GET", {"host": "evil", "content-length": "5", "transfer-encoding": "chunked"}) == 400
