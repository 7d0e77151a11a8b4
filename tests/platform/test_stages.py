import os
import signal
import subprocess
import sys
import time

import pytest

from farreach.config import flat
from farreach.stages import MANIFEST, StageCache


class Pipeline:
    """Two stages: a number doubled, and a text of it; counts what was built."""

    def __init__(self, root):
        self.said, self.built = [], []
        self.cache = StageCache(root, self.said.append)

    def run(self, number, sign="+"):
        def double(folder):
            self.built.append("double")
            (folder / "result").write_text(str(2 * number))

        def write(folder):
            self.built.append("text")
            (folder / "result").write_text(sign + (doubled / "result").read_text())

        doubled = self.cache.get("double", {"settings": {"number": number}}, double)
        text = self.cache.get("text", {"double": doubled.name, "sign": sign}, write)
        return (text / "result").read_text()


@pytest.fixture
def pipeline(tmp_path):
    return Pipeline(tmp_path)


def test_an_unchanged_stage_is_not_built_again(pipeline, tmp_path):
    assert pipeline.run(3) == pipeline.run(3) == Pipeline(tmp_path).run(3) == "+6"
    assert pipeline.built == ["double", "text"]
    assert pipeline.said[0] == "double        not built yet"
    assert pipeline.said[2].startswith(f"double        unchanged, from {tmp_path}/double-")


def test_a_change_rebuilds_what_depends_on_it_and_says_why(pipeline):
    pipeline.run(3)
    assert pipeline.run(3, sign="-") == "-6"
    assert pipeline.built == ["double", "text", "text"]
    assert pipeline.said[-1] == "text          to be built: sign '+' → '-'"
    assert pipeline.run(5) == "+10"
    assert pipeline.built == ["double", "text", "text", "double", "text"]
    assert pipeline.said[-2] == "double        to be built: settings.number 3 → 5"
    # What was there before still is.
    assert pipeline.run(3) == "+6"
    assert len(pipeline.built) == 5


@pytest.mark.parametrize("harm", ["change", "cut", "remove", "manifest"])
def test_a_damaged_artefact_is_built_again(harm, pipeline, tmp_path):
    pipeline.run(3)
    [folder] = tmp_path.glob("double-*")
    if harm == "change":
        (folder / "result").write_text("7")
    elif harm == "cut":
        (folder / "result").write_text("")
    elif harm == "remove":
        (folder / "result").unlink()
    else:
        (folder / MANIFEST).write_text("{")
    assert pipeline.run(3) == "+6"
    assert pipeline.built == ["double", "text", "double"]
    assert pipeline.said[-2].startswith("double        to be built again: ")


def test_a_stage_that_fails_leaves_nothing(pipeline, tmp_path):
    def fail(folder):
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pipeline.cache.get("fails", {}, fail)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from farreach.stages import StageCache

def slow(folder):
    (folder / "half").write_text("half")
    print("half", flush=True)
    time.sleep(60)

StageCache(Path(sys.argv[1]), lambda line: None).get("double", {"settings": {"number": 3}}, slow)
"""


def test_a_stage_that_is_killed_in_the_middle_counts_as_not_built(pipeline, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(list(tmp_path.glob(".tmp*"))) == 1
    assert pipeline.run(3) == "+6"
    assert pipeline.built == ["double", "text"]
    assert not list(tmp_path.glob(".tmp*"))


def test_one_that_another_process_has_built_meanwhile_stays(pipeline, tmp_path):
    def overtaken(folder):
        Pipeline(tmp_path).run(3)
        time.sleep(0.01)
        (folder / "result").write_text("late")

    folder = pipeline.cache.get("double", {"settings": {"number": 3}}, overtaken)
    assert (folder / "result").read_text() == "6"
    assert not list(tmp_path.glob(".tmp*"))


def test_flat_joins_keys_by_dots():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
