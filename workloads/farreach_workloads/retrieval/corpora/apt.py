"""The ordinary Debian client on a folder of its own: package indexes and unpacked packages.

`apt-get update` and `apt-get download` run with the machine's own sources, keys and proxies, but
with lists, state and cache below one folder. Nothing is installed and nothing needs root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from farreach.errors import DataError

ENGLISH = "en"
# Archives of updates repeat what is in the main one, some of it many times.
UPDATES = ("-security", "-updates", "-backports", "-proposed", "-proposed-updates", "_updates")
FREE_COMPONENTS = ("main", "universe")
LIST_NAME = re.compile(
    r".*_dists_(?P<suite>.+)_(?P<component>[^_]+)_"
    r"(?:binary-[^_]+_Packages|i18n_Translation-(?P<language>.+))"
)
OTHER_TARGET = re.compile(
    r"^(Acquire::IndexTargets::deb(?:-src)?::(?!Packages|Translations)[^: ]+) ", re.MULTILINE
)
SETTINGS = """\
#clear Acquire::Languages;
#clear APT::Update;
Acquire::Languages {{ {languages} }};
Acquire::GzipIndexes "false";
Acquire::Retries "2";
APT::Sandbox::User "root";
"""
NO_NETWORK = re.compile(
    "Failed to fetch|Could not resolve|Temporary failure|Could not connect|Unable to connect"
)
NO_PACKAGE = re.compile("Unable to locate package|No packages found|no installation candidate")
OTHERWISE = "Any folder in the BEIR layout can be used instead"


class NoPackageError(DataError):
    """The archives have no package of a name."""


@dataclass(frozen=True)
class Index:
    """The files of a package index; of free components, and not of archives of updates.

    Attributes:
        packages: `Packages` files.
        translations: `Translation` files by language.
        releases: release files, first the fields of what is described, such as `Version`.
    """

    packages: tuple[Path, ...]
    translations: Mapping[str, tuple[Path, ...]]
    releases: tuple[Path, ...]


@dataclass(frozen=True)
class Package:
    """A package that was unpacked.

    Attributes:
        root: the folder that stands for `/` of a machine where the package is installed.
    """

    name: str
    version: str
    root: Path

    def files(self, pattern: str) -> list[Path]:
        """Files by a pattern below the root, sorted; a file with several names comes once.

        Raises:
            DataError: there is none.
        """
        root = self.root.resolve()
        targets = {path.resolve() for path in self.root.glob(pattern)}
        found = sorted(path for path in targets if path.is_relative_to(root) and path.is_file())
        if not found:
            raise DataError(
                f"{self.root}: the package {self.name} {self.version} has no files {pattern}. This "
                f"release of the system ships them elsewhere. {OTHERWISE}."
            )
        return found


class Apt:
    """The client; all it fetches stays in its folder and is not fetched again."""

    def __init__(self, cache: Path) -> None:
        """A client whose files are below `cache`, which is made when first needed."""
        self.cache = cache.absolute()
        self._lists = self.cache / "apt" / "lists"
        self._fetched_file = self.cache / "apt" / "languages.json"

    def index(self, languages: Sequence[str] = ()) -> Index:
        """The package index with its English and other descriptions.

        Args:
            languages: codes such as `de` or `pt_BR`; those that the archive lacks are left out.

        Raises:
            DataError: there is no apt-get, no network, or no index with descriptions.
        """
        wanted, fetched = {ENGLISH, *languages}, self._fetched()
        if not wanted <= fetched:
            self._update(wanted | fetched)
        return read_index(self._lists)

    def package(self, name: str) -> Package:
        """The newest version of a package, unpacked.

        Raises:
            NoPackageError: there is no package of that name.
            DataError: there is no apt-get, or no network.
        """
        folder = self.cache / "packages" / name
        if not (folder / "version").exists():
            self.index()
            try:
                self._fetch(name, folder)
            except DataError:  # the list may be older than the archive
                self._update(self._fetched())
                self._fetch(name, folder)
        return Package(name, (folder / "version").read_text(), folder / "root")

    def depends(self, name: str) -> list[str]:
        """Names of the packages that a package depends on.

        Raises:
            NoPackageError: there is no package of that name.
            DataError: there is no apt-get, or no network.
        """
        self.index()
        kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        options = [f"--no-{kind}" for kind in kinds]
        answer = self._apt("apt-cache", "depends", *options, name).stdout
        return re.findall(r"^ *\|?(?:Pre)?Depends: <?([^\s>]+)>?$", answer, re.MULTILINE)

    def _fetched(self) -> set[str]:
        try:
            return set(json.loads(self._fetched_file.read_text()))
        except FileNotFoundError:
            return set()

    def _update(self, languages: set[str]) -> None:
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.cache / "apt" / folder).mkdir(parents=True, exist_ok=True)
        (self.cache / "apt" / "status").touch()
        self._configuration.write_text(self._settings(languages))
        said = self._apt("apt-get", "update").stderr
        found = read_index(self._lists)
        if NO_NETWORK.search(said) and not languages <= found.translations.keys():
            raise _failure("apt-get", said)
        self._fetched_file.write_text(json.dumps(sorted(languages)))

    def _settings(self, languages: set[str]) -> str:
        """Settings for descriptions in these languages and for no other files of an archive."""
        others = OTHER_TARGET.findall(_run(["apt-config", "dump"], self.cache).stdout)
        names = " ".join(f'"{language}";' for language in sorted(languages))
        off = [f'{other}::DefaultEnabled "false";\n' for other in others]
        return SETTINGS.format(languages=names) + "".join(off)

    @property
    def _configuration(self) -> Path:
        return self.cache / "apt" / "apt.conf"

    def _apt(
        self, program: str, *words: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        own = {"State": "", "State::lists": "lists", "State::status": "status", "Cache": "cache"}
        places = [f"-oDir::{key}={self.cache / 'apt' / name}" for key, name in own.items()]
        return _run(
            [program, "-q", f"-c={self._configuration}", *places, *words], folder or self.cache
        )

    def _fetch(self, name: str, folder: Path) -> None:
        """Download and unpack into `folder`, which appears when it is whole."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as place:
            working = Path(place)
            self._apt("apt-get", "download", name, folder=working)
            file = next(working.glob("*.deb"))
            whole = working / "whole"
            whole.mkdir()
            _run(["dpkg-deb", "-x", str(file), str(whole / "root")], working)
            version = _run(["dpkg-deb", "--field", str(file), "Version"], working).stdout
            (whole / "version").write_text(version.strip())
            shutil.rmtree(folder, ignore_errors=True)
            whole.rename(folder)


def read_index(lists: Path) -> Index:
    """The index in a folder of apt's lists.

    Raises:
        DataError: there is none with English descriptions, as when nothing could be fetched.
    """
    packages, releases = [], []
    translations: dict[str, list[Path]] = {}
    for file in sorted(lists.iterdir()):
        found = LIST_NAME.fullmatch(file.name)
        if found is None or not _counts(found["suite"], found["component"]):
            continue
        if found["language"] is None:
            packages.append(file)
            prefix = file.name[: found.start("component")]
            names = (f"{prefix}InRelease", f"{prefix}Release")
            releases += [lists / name for name in names if (lists / name).exists()]
        else:
            translations.setdefault(unquote(found["language"]), []).append(file)
    if not packages or ENGLISH not in translations:
        raise DataError(
            f"{lists}: `apt-get update` brought no package index with English descriptions. Check "
            "the network, and that /etc/apt names an archive of Debian or Ubuntu. "
            f"{OTHERWISE}."
        )
    by_language = {language: tuple(files) for language, files in translations.items()}
    return Index(tuple(packages), by_language, tuple(dict.fromkeys(releases)))


def stanzas(file: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of fields in a file of Debian's control format.

    A field that goes on over lines keeps them, each without the one space it begins with.

    Raises:
        DataError: the file cannot be read.
    """
    fields: dict[str, str] = {}
    key = ""
    try:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                if line.isspace():
                    if fields:
                        yield fields
                    fields, key = {}, ""
                elif line[0] in " \t":
                    fields[key] = fields.get(key, "") + "\n" + line[1:].rstrip("\n")
                else:
                    key, _, value = line.partition(":")
                    fields[key] = value.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Remove it and try again.") from error
    if fields:
        yield fields


def _counts(suite: str, component: str) -> bool:
    return component in FREE_COMPONENTS and not suite.endswith(UPDATES)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise DataError(
            f"this machine has no apt-get ({command[0]} is missing): these corpora are made of "
            "packages of Debian, Ubuntu and systems derived from them. Make the corpus on such a "
            f"machine, or in a container of one, and copy the folder. {OTHERWISE}."
        ) from None
    if done.returncode == 0:
        return done
    if NO_PACKAGE.search(done.stderr):
        raise NoPackageError(
            f"the archives in /etc/apt have no package {command[-1]}. Add the main archive of "
            f"Debian or Ubuntu there. {OTHERWISE}."
        )
    raise _failure(command[0], done.stderr)


def _failure(program: str, stderr: str) -> DataError:
    said = " ".join(stderr.split()[-60:]) or "it says nothing"
    if NO_NETWORK.search(stderr):
        return DataError(
            f"the network does not reach the archive: {said} Check the network and the proxy "
            f"(http_proxy), and try again; what is there already is kept. {OTHERWISE}."
        )
    return DataError(f"`{program}` failed: {said} Mend it and try again.")
