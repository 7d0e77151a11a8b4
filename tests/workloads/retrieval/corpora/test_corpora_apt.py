import json
import os
import re
import shutil
import subprocess

import pytest

from farreach.errors import DataError
from farreach_workloads.retrieval.corpora.apt import (
    Apt,
    NoPackageError,
    Package,
    read_index,
    stanzas,
)

PREFIX = "deb.debian.org_debian_dists_sid"
LISTS = (
    f"{PREFIX}_InRelease",
    f"{PREFIX}_main_binary-amd64_Packages",
    f"{PREFIX}_main_i18n_Translation-en",
    f"{PREFIX}_main_i18n_Translation-pt%5fBR",
    f"{PREFIX}_non-free_binary-amd64_Packages",
    f"{PREFIX}_non-free_i18n_Translation-en",
    f"{PREFIX}-security_main_binary-amd64_Packages",
    f"{PREFIX}-security_main_i18n_Translation-en",
    f"{PREFIX}_main_dep11_Components-amd64.yml",
    "lock",
)
# Stands for apt-get: keeps a log, makes lists, and knows the package `hello` alone.
APT_GET = """#!/bin/sh
echo "$@" >> {log}
for word in "$@"; do case "$word" in
  -oDir::State::lists=*) lists="${{word#*lists=}}";;
  -c=*) cp "${{word#-c=}}" {conf};;
esac; done
case "$*" in
  *update*) {update};;
  *"download hello"*) echo deb > hello_2_all.deb;;
  *) echo "E: Unable to locate package $word" >&2; exit 100;;
esac
"""
APT_CONFIG = """#!/bin/sh
echo 'Acquire::IndexTargets::deb::Packages "";'
echo 'Acquire::IndexTargets::deb::DEP-11 "";'
echo 'Acquire::IndexTargets::deb::DEP-11::MetaKey "x";'
"""
APT_CACHE = """#!/bin/sh
printf 'python3-doc\\n  Depends: python3.99-doc\\n |PreDepends: <virtual>\\n    other\\n'
"""
DPKG_DEB = """#!/bin/sh
case "$1" in
  -x) mkdir -p "$3/usr/share"; echo hi > "$3/usr/share/hello";;
  *) echo 1:2-3;;
esac
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with stand-ins for apt; the function changes what its `update` does."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "cp", "mkdir", "touch"):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    log, conf = tmp_path / "log", tmp_path / "conf"

    def update(command):
        text = APT_GET.format(log=log, conf=conf, update=command)
        stand_ins = {"apt-get": text, "apt-config": APT_CONFIG, "apt-cache": APT_CACHE}
        for name, script in {**stand_ins, "dpkg-deb": DPKG_DEB}.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)

    update("; ".join(f'touch "$lists/{name}"' for name in LISTS))
    update.log, update.conf, update.programs = log, conf, programs
    return update


def updates(machine):
    return sum(" update" in line for line in machine.log.read_text().splitlines())


def test_the_index_is_of_free_components_without_archives_of_updates(machine, tmp_path):
    index = Apt(tmp_path / "cache").index(["pt_BR"])
    assert [path.name for path in index.packages] == [LISTS[1]]
    named = {language: [path.name for path in of] for language, of in index.translations.items()}
    assert named == {"en": [LISTS[2]], "pt_BR": [LISTS[3]]}
    assert [path.name for path in index.releases] == [LISTS[0]]


def test_settings_name_the_languages_and_nothing_of_the_machine_is_written(machine, tmp_path):
    Apt(tmp_path / "my cache").index(["pt_BR", "de"])
    settings = machine.conf.read_text()
    assert 'Acquire::Languages { "de"; "en"; "pt_BR"; };' in settings
    assert "#clear Acquire::Languages;" in settings
    assert 'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";' in settings
    assert "deb::Packages" not in settings
    own = tmp_path / "my cache" / "apt"
    for key, name in (("State::lists", "lists"), ("State::status", "status"), ("Cache", "cache")):
        assert f"-oDir::{key}={own / name}" in machine.log.read_text()


def test_an_index_is_fetched_once_and_again_for_a_new_language(machine, tmp_path):
    for languages in ((), (), ["pt_BR"], (), ["pt_BR"]):
        Apt(tmp_path / "cache").index(languages)
    assert updates(machine) == 2
    assert json.loads((tmp_path / "cache/apt/languages.json").read_text()) == ["en", "pt_BR"]


def test_a_package_is_unpacked_once(machine, tmp_path):
    apt = Apt(tmp_path / "cache")
    package = apt.package("hello")
    assert (package.name, package.version) == ("hello", "1:2-3")
    assert [path.read_text() for path in package.files("usr/*/hello")] == ["hi\n"]
    before = machine.log.read_text()
    assert apt.package("hello") == package
    assert machine.log.read_text() == before
    names = sorted(path.name for path in (tmp_path / "cache/packages/hello").iterdir())
    assert names == ["root", "version"]


def test_a_package_that_is_missing_is_looked_for_in_a_new_index(machine, tmp_path):
    with pytest.raises(NoPackageError, match=r"have no package goodbye\. Add the main archive"):
        Apt(tmp_path / "cache").package("goodbye")
    assert updates(machine) == 2
    assert list((tmp_path / "cache/packages").iterdir()) == []


def test_dependencies_are_read(machine, tmp_path):
    assert Apt(tmp_path / "cache").depends("python3-doc") == ["python3.99-doc", "virtual"]


def test_a_machine_without_apt_is_told_what_works_instead(machine, tmp_path):
    for name in ("apt-get", "apt-config"):
        (machine.programs / name).unlink()
    with pytest.raises(DataError, match=r"no apt-get .*Debian, Ubuntu .*in the BEIR layout"):
        Apt(tmp_path / "cache").index()


def test_a_network_that_is_away_is_told(machine, tmp_path):
    machine('echo "W: Failed to fetch http://x Could not resolve" >&2')
    with pytest.raises(DataError, match=r"brought no package index .* Check the network"):
        Apt(tmp_path / "cache").index()
    machine('echo "E: Could not resolve x" >&2; exit 100')
    with pytest.raises(DataError, match="the network does not reach the archive: E: Could not"):
        Apt(tmp_path / "cache").index()


def test_old_lists_do_not_stand_for_a_language_that_could_not_be_fetched(machine, tmp_path):
    Apt(tmp_path / "cache").index()
    machine('echo "W: Failed to fetch http://x" >&2')
    with pytest.raises(DataError, match="the network does not reach"):
        Apt(tmp_path / "cache").index(["ko"])
    assert json.loads((tmp_path / "cache/apt/languages.json").read_text()) == ["en"]


def test_other_failures_say_what_apt_said(machine, tmp_path):
    machine('echo "E: Malformed entry 1 in list file" >&2; exit 100')
    with pytest.raises(DataError, match="`apt-get` failed: E: Malformed entry 1 in list file"):
        Apt(tmp_path / "cache").index()


def test_stanzas_keep_lines_and_spaces(tmp_path):
    file = tmp_path / "Packages"
    file.write_text("A: 1\nB: x\n y\n  z\n .\n\n\nA: http://b:c\n")
    assert list(stanzas(file)) == [{"A": "1", "B": "x\ny\n z\n."}, {"A": "http://b:c"}]
    file.write_bytes(b"A: \xff\n")
    with pytest.raises(DataError, match="Packages: cannot be read"):
        list(stanzas(file))


def test_files_outside_of_a_package_do_not_count(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.html").write_text("x")
    (root / "a.html").symlink_to(tmp_path / "secret.html")
    (root / "b.html").write_text("y")
    assert [path.name for path in Package("p", "1", root).files("*.html")] == ["b.html"]


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_the_real_client_takes_the_settings(tmp_path):
    apt = Apt(tmp_path)
    folder = tmp_path / "apt"
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "apt.conf").write_text(apt._settings({"en", "ko"}))
    dump = ["apt-config", f"-c={folder / 'apt.conf'}", "dump"]
    environment = {**os.environ, "LC_ALL": "C"}
    said = subprocess.run(dump, capture_output=True, text=True, check=True, env=environment)
    languages = re.findall(r'^Acquire::Languages:: "(.*)";$', said.stdout, re.MULTILINE)
    assert [name for name in languages if name != "none"] == ["en", "ko"]
    with pytest.raises(DataError, match="brought no package index"):
        read_index(folder / "lists")
