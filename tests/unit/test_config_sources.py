"""Where a configuration comes from: the file that counts, what the environment puts in, and that no message shows a
secret.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import ClassVar

import pytest
from harness.commands import predictd
from harness.configurations import GOOD, changed, problems, read

from components.errors import ConfigurationError
from daemon.config import find, load


class TestEnvironment:
    """What the environment puts in."""

    def test_variables(self, tmp_path: Path) -> None:
        """${VAR} anywhere in a string is replaced, $${ stands for itself."""
        text = changed('"embedded"', '"mongodb://${WHO}:${PW}@h/"') + 'where = { class = "$${x}" }'
        config = read(tmp_path, text, {"WHO": "me", "PW": "pw"})
        assert config.mongo.uri == "mongodb://me:pw@h/"
        assert config.listeners["digit"].where == {"class": "${x}"}

    def test_a_credential_of_systemd(self, tmp_path: Path) -> None:
        """`LoadCredential=MONGO_URI:...`: a file, so that no environment holds the secret; a variable comes first."""
        (tmp_path / "credentials").mkdir()
        (tmp_path / "credentials" / "MONGO_URI").write_text("mongodb://h/\n")
        given = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
        text = GOOD.replace('"embedded"', '"${MONGO_URI}"')
        assert read(tmp_path, text, given).mongo.uri == "mongodb://h/"
        assert read(tmp_path, text, {**given, "MONGO_URI": "mongodb://first/"}).mongo.uri == "mongodb://first/"
        (tmp_path / "credentials" / "MONGO_URI").unlink()
        assert "MONGO_URI is not set" in str(problems(tmp_path, text, given))

    def test_an_empty_variable(self, tmp_path: Path) -> None:
        """A variable that is set but empty is no value."""
        [(path, message)] = problems(tmp_path, changed('"embedded"', '"${MONGO_URI}"'), {"MONGO_URI": ""})
        assert path == "mongo.uri"
        assert "MONGO_URI is set but empty" in message

    def test_overrides(self, tmp_path: Path) -> None:
        """PREDICTD_SECTION__KEY sets a key over the file, as the type that the key has."""
        config = read(
            tmp_path,
            GOOD.replace("[listeners.digit]", "[listeners.di-git]"),
            {
                "PREDICTD_SERVICE__NAME": "other",
                "PREDICTD_MONGO__DATABASE": "12",
                "PREDICTD_HTTP__LISTEN": "127.0.0.1:0",
                "PREDICTD_LIMITS__QUEUE_ROWS": "5_000",
                "PREDICTD_LOG__LEVEL": "debug",
                "PREDICTD_SECURITY__ALLOW_IMPORTS": '["examples", "torch"]',
                "PREDICTD_LISTENERS__DI_GIT__LATENCY_BUDGET": "50ms",
                "PREDICTD_LISTENERS__DI_GIT__WHERE": "{ class = 3 }",
                "PREDICTD_MODELS__LENET__ARGUMENTS__NUM_CLASSES": "7",
                "PREDICTD_TABLES__MNIST__FIELDS__CLASS": "float",
                "PREDICTD_CONFIG": "elsewhere.toml",
                "PREDICTD_TEST_MONGO_URI": "mongodb://h/",
            },
        )  # fmt: skip
        assert (config.service.name, config.mongo.database) == ("other", "12")
        assert (config.http.port, config.limits.queue_rows, config.log.level) == (0, 5000, "debug")
        assert config.security.allow_imports == ["examples", "torch"]
        assert config.listeners["di-git"].latency_budget == 0.05
        assert config.listeners["di-git"].where == {"class": 3}
        assert config.models["lenet"].arguments == {"num_classes": 7}
        assert config.tables["mnist"].fields["class"] == "float"

    def test_an_override_mends_the_file(self, tmp_path: Path) -> None:
        """A key that the environment sets need not be right, or set, in the file."""
        config = read(tmp_path, changed('"embedded"', '"${NOT_SET}"'), {"PREDICTD_MONGO__URI": "embedded"})
        assert config.mongo.embedded

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("PREDICTD_FOO", "1", ["no section `foo`", "PREDICTD_SECTION__KEY"]),
            ("PREDICTD_HTPP__LISTEN", "1", ["did you mean `http`?"]),
            ("PREDICTD_HTTP__LISTENS", "1", ["no key `listens` in http", "did you mean `listen`?"]),
            ("PREDICTD_HTTP", "1", ["is a section, not a key"]),
            ("PREDICTD_LISTENERS__DIGIT", "1", ["listeners.digit is a section"]),
            ("PREDICTD_LISTENERS__DIGITS__KEY", "x", ["no listener `digits`", "did you mean `digit`?"]),
            ("PREDICTD_HTTP__LISTEN__X", "1", ["is a value, not a section"]),
            ("PREDICTD_HTTP__LISTEN", "", ["is set but empty", "http.listen"]),
            ("PREDICTD_", "1", ["sets nothing"]),
        ],
    )
    def test_overrides_that_set_nothing(self, tmp_path: Path, variable: str, value: str, words: list[str]) -> None:
        """A variable that sets no key is an error that names the variable."""
        [(path, message)] = problems(tmp_path, GOOD + '[http]\nlisten = "127.0.0.1:1"', {variable: value})
        assert path == variable
        for word in words:
            assert word in message

    def test_a_wrong_override_is_told_with_its_variable(self, tmp_path: Path) -> None:
        """The message names the key and the variable that set it."""
        [(path, message)] = problems(tmp_path, GOOD, {"PREDICTD_LOG__LEVEL": "loud"})
        assert path == "log.level"
        assert "(set by PREDICTD_LOG__LEVEL)" in message

    def test_an_override_cannot_bring_a_second_key(self, tmp_path: Path) -> None:
        """A value with a line break is a string, not more TOML."""
        [(path, _)] = problems(tmp_path, GOOD, {"PREDICTD_LIMITS__QUEUE_ROWS": "5000\nother = 1"})
        assert path == "limits.queue_rows"


class TestSecrets:
    """No message shows a secret."""

    @pytest.mark.parametrize(
        "uri",
        [
            "mongo://u:hush@h/",
            "mongodb://u:hush/x@h/",
            "mongodb://u:hu@sh:hush@h/",
            "u:hush@h",
            "mongodb://h x/?tlsCertificateKeyFilePassword=hush",
        ],
    )
    def test_credentials_in_a_bad_address(self, tmp_path: Path, uri: str) -> None:
        """A bad address is shown without user, password and options."""
        found = problems(tmp_path, changed('"embedded"', f'"{uri}"'))
        assert [path for path, _ in found] == ["mongo.uri"]
        assert "hush" not in str(found)
        found = problems(tmp_path, GOOD, {"PREDICTD_MONGO__URI": uri})
        assert "hush" not in str(found)

    def test_the_value_of_a_variable(self, tmp_path: Path) -> None:
        """Where a value comes from ${VAR} the message shows what the file says, whichever check found it wrong."""
        text = (
            GOOD.replace('"embedded"', '"${S}"')
            .replace('"lenet"\n', '"x${S}"\n')
            .replace('"int"', '"${S}"')
            .replace('"examples.mnist:LeNet5"', '"${S}"')
        )
        found = problems(tmp_path, text + '[log]\nlevel = "${S}"', {"S": "hush-hush"})
        assert len(found) == 5
        assert "hush" not in str(found)
        assert all("${S}" in message for _, message in found)

    def test_the_value_of_an_unknown_key(self, tmp_path: Path) -> None:
        """An unknown key is named, its value is not shown."""
        found = problems(tmp_path, changed('uri = "embedded"', 'password = "hush"'))
        assert "hush" not in str(found)


class TestForeignFile:
    """A file of another user, read by a command that only looks."""

    TEXT = GOOD.replace('"embedded"', '"mongodb://${AWS_SECRET_ACCESS_KEY}@their.host/"')
    ENVIRON: ClassVar = {"AWS_SECRET_ACCESS_KEY": "do-not-send"}

    def file(self, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file that belongs to somebody else, as far as its reader sees."""
        file = folder / "service.toml"
        file.write_text(text)
        monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 4242)
        if os.getuid() == 0:  # root's files are everybody's to trust
            os.chown(file, 4343, -1)
        return file

    def test_no_variable_is_put_into_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sentence names the owner, the variable and what to do; the value stands nowhere."""
        file = self.file(tmp_path, self.TEXT, monkeypatch)
        with pytest.raises(ConfigurationError) as refused:
            load(file, self.ENVIRON, trusted=False)
        message = str(refused.value)
        assert "do-not-send" not in message
        assert [problem.path for problem in refused.value.problems] == ["mongo.uri"]
        for words in ("belongs to", "AWS_SECRET_ACCESS_KEY", "run it as that user, or set PREDICTD_MONGO__URI"):
            assert words in message

    def test_what_it_says_overrides_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The remedy works: the user's own address comes in place of the file's."""
        file = self.file(tmp_path, self.TEXT, monkeypatch)
        given = {"PREDICTD_MONGO__URI": "mongodb://mine/"}
        assert load(file, {**self.ENVIRON, **given}, trusted=False).mongo.uri == "mongodb://mine/"

    def test_without_variables_it_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing of the user's goes into it."""
        assert load(self.file(tmp_path, GOOD, monkeypatch), {}, trusted=False).mongo.embedded

    def test_the_daemon_reads_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever starts the daemon on a file means it: a container's user often owns no file."""
        file = self.file(tmp_path, self.TEXT, monkeypatch)
        assert "do-not-send" in load(file, self.ENVIRON).mongo.uri

    def test_ones_own_and_roots_are_read(self, tmp_path: Path) -> None:
        """As before."""
        file = tmp_path / "service.toml"
        file.write_text(self.TEXT)
        assert "do-not-send" in load(file, self.ENVIRON, trusted=False).mongo.uri

    def test_a_link_of_somebody_elses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The link's owner could exchange what it names."""
        link = self.file(tmp_path, "", monkeypatch)
        monkeypatch.undo()
        link.unlink()
        (tmp_path / "real.toml").write_text(self.TEXT)
        link.symlink_to(tmp_path / "real.toml")
        if os.getuid() != 0:
            pytest.skip("only root can give a link to another user")
        os.lchown(link, 4343, -1)
        with pytest.raises(ConfigurationError, match="belongs to"):
            load(link, self.ENVIRON, trusted=False)

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
    def test_commands_only_look(self, tmp_path: Path) -> None:
        """`predictd status` in a stranger's folder ends with 78 and connects to nobody."""
        file = tmp_path / "service.toml"
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.1)
            host = f"${{AWS_SECRET_ACCESS_KEY}}@127.0.0.1:{server.getsockname()[1]}"
            file.write_text(GOOD.replace('"embedded"', f'"mongodb://{host}/?serverSelectionTimeoutMS=500"'))
            os.chown(file, 4343, -1)
            for command in ("status", "models", "versions lenet", "dead-letters list", "jobs", "check"):
                done = predictd(*command.split(), cwd=tmp_path, environ={"AWS_SECRET_ACCESS_KEY": "do-not-send"})
                assert done.returncode == 78, done.stderr
                assert "do-not-send" not in done.stdout + done.stderr
            with pytest.raises(TimeoutError):
                server.accept()


class TestFile:
    """Files that cannot be read."""

    def test_a_missing_file(self, tmp_path: Path) -> None:
        """The message says how to get one."""
        with pytest.raises(ConfigurationError, match=r"no such file; write one with `predictd init`"):
            load(tmp_path / "no.toml", {})

    def test_a_directory(self, tmp_path: Path) -> None:
        """A directory in place of the file gets a proposal."""
        with pytest.raises(ConfigurationError, match=r"is a directory; name the file in it.*service\.toml"):
            load(tmp_path, {})

    def test_an_unreadable_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file without permission says what to change."""

        def refused(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.open", refused)
        with pytest.raises(ConfigurationError, match="may not read it; change its owner or mode"):
            load(tmp_path / "service.toml", {})

    def test_a_file_that_is_not_utf8(self, tmp_path: Path) -> None:
        """Another encoding is told with the byte."""
        [(path, message)] = problems(tmp_path, 'name = "é"'.encode("latin-1"))
        assert path.endswith("service.toml")
        assert "byte 9 is not UTF-8" in message

    def test_a_byte_order_mark(self, tmp_path: Path) -> None:
        """An editor's byte order mark does no harm."""
        assert read(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()).service.name == "mnist"

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("[service]\nname = mnist", "line 2, column 8"),
            ("[a]\n[b]\n[a]\n", "line 3"),
            ("a = 1\na = 2", "line 2"),
            ('a = 1\nb = "', "line 2"),
        ],
    )
    def test_text_that_is_not_toml(self, tmp_path: Path, text: str, place: str) -> None:
        """A syntax error has its line and column."""
        [(path, message)] = problems(tmp_path, text)
        assert path.endswith("service.toml")
        assert place in message
        assert "not TOML" in message


class TestFind:
    """Which file counts."""

    def test_the_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """-c FILE, else $PREDICTD_CONFIG, else ./service.toml, else the system's."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("daemon.config.source.SYSTEM_FILE", tmp_path / "etc.toml")
        with pytest.raises(ConfigurationError, match="predictd init"):
            find(None, {})
        (tmp_path / "etc.toml").touch()
        assert find(None, {}) == tmp_path / "etc.toml"
        (tmp_path / "service.toml").touch()
        assert find(None, {"PREDICTD_CONFIG": ""}) == Path("service.toml")
        assert find(None, {"PREDICTD_CONFIG": "b.toml"}) == Path("b.toml")
        assert find(Path("a.toml"), {"PREDICTD_CONFIG": "b.toml"}) == Path("a.toml")
