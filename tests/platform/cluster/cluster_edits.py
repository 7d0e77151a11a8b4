"""Shipped files for clusters with small edits, and what `cluster check` says of them."""

from pathlib import Path

from farreach.cluster.check import check_file

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
SHIPPED = [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml")]
FILES = sorted(path for path in SHIPPED if path.name != "runtime_env.yaml")


def edited(folder, monkeypatch, name, *changes):
    """The report of a shipped file in which texts are replaced, and its own text.

    It is called f.yaml there.
    """
    text = (CLUSTER / name).read_text()
    for old, new in changes:
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new, 1)
    (folder / "f.yaml").write_text(text)
    monkeypatch.chdir(folder)
    return check_file(Path("f.yaml")), text


def line_of(text, part):
    """The number of the line in which a part begins that is there once."""
    assert text.count(part) == 1, f"{part!r} is there {text.count(part)} times"
    return text[: text.index(part)].count("\n") + 1


def report_of(folder, monkeypatch, text):
    """The report of a file f.yaml of its own."""
    (folder / "f.yaml").write_text(text)
    monkeypatch.chdir(folder)
    return check_file(Path("f.yaml"))
