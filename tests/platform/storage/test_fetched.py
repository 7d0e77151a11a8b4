"""Data at a URI: copied to a machine once, whole or not at all, again when they change."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from farreach.data import fetched
from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach.data.fetched import absolute, here
from farreach.data.images import open_images
from farreach.data.text import documents
from farreach.errors import DataError, StorageError
from farreach.storage.remote import Remote, cache
from farreach_workloads.goals.fresh.config import DataConfig
from farreach_workloads.retrieval.config import TextConfig
from farreach_workloads.vision.config import ImagesConfig
from farreach_workloads.vision.dense.config import DenseImagesConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """What this process knows already, it does not ask for again."""
    monkeypatch.setattr(fetched, "_found", {})


@pytest.fixture
def folder(tmp_path):
    """Twenty images of two classes."""
    for label in ("ants", "bees"):
        (tmp_path / "insects" / label).mkdir(parents=True)
        for number in range(10):
            picture = Image.fromarray(np.full((4, 4, 3), number, np.uint8))
            picture.save(tmp_path / "insects" / label / f"{number}.png")
    return tmp_path / "insects"


def put(folder, uri):
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    Remote(uri).push(files)


def test_a_path_stays_as_it_is_and_costs_nothing(tmp_path):
    assert here("data/x") == Path("data/x")
    assert here(tmp_path) == tmp_path
    assert absolute("data/x") == str(Path("data/x").absolute())
    assert absolute("s3://bucket/x") == "s3://bucket/x"


def test_settings_that_are_made_absolute_leave_uris_alone():
    uri = "s3://bucket/x"
    assert ImagesConfig(path=uri).path == uri
    assert DataConfig(path=uri).path == uri
    assert DenseImagesConfig(path=uri).path == uri
    assert TextConfig(path={"a": uri, "b": "x"}).path == {"a": uri, "b": absolute("x")}
    assert TextConfig(path=uri, words=uri).words == uri


def test_a_folder_of_images_is_copied_once(s3, folder, server, capsys):
    put(folder, f"{s3}/insects")
    train, held_out = open_images(here(f"{s3}/insects"))
    assert (len(train), len(held_out), train.classes) == (18, 2, ["ants", "bees"])
    assert "20 files" in capsys.readouterr().out
    gets = server.requests("GET", ".png")
    assert gets == 20
    fetched._found.clear()
    assert here(f"{s3}/insects") == train.path
    assert server.requests("GET", ".png") == gets


def test_single_files_keep_their_names(s3, folder, tmp_path):
    table = {"image": [(folder / "ants" / f"{n}.png").read_bytes() for n in range(10)]}
    pq.write_table(pa.table({**table, "label": [0, 1] * 5}), tmp_path / "some.parquet")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "one"}\n')
    names = ("some.parquet", "corpus.jsonl")
    Remote(f"{s3}/deep").push({name: tmp_path / name for name in names})
    path = here(f"{s3}/deep/some.parquet")
    assert path.name == "some.parquet"
    with pytest.raises(DataError, match="held out"):  # five of each class are too few
        open_images(path)
    assert [document.id for document in documents(here(f"{s3}/deep/corpus.jsonl"))] == ["a"]


def test_episodes_are_opened_from_their_copy(s3, tmp_path):
    columns = {name: np.zeros((6, 2), np.float32) for name in ("observation", "action")}
    (tmp_path / "maze").mkdir()
    shard = write_shard(tmp_path / "maze" / "shard-00000.arrow", columns, [3, 3], 0, {})
    write_index(tmp_path / "maze", "maze", [shard])
    put(tmp_path / "maze", f"{s3}/data/maze")
    assert len(EpisodeStore.open(here(f"{s3}/data/maze"))) == 2


def test_what_has_changed_is_copied_again(s3, folder):
    put(folder, f"{s3}/insects")
    before = here(f"{s3}/insects")
    Remote(f"{s3}/insects").write("bees/more.png", (folder / "bees" / "0.png").read_bytes())
    fetched._found.clear()
    after = here(f"{s3}/insects")
    assert before != after
    assert (after / "bees" / "more.png").is_file()
    assert not (before / "bees" / "more.png").exists()


def test_nothing_at_a_uri_is_told(s3):
    with pytest.raises(DataError, match=f"{s3}/none: there is nothing"):
        here(f"{s3}/none")
    with pytest.raises(StorageError, match="no bucket 'other'"):
        here("s3://other/x")


def test_half_a_copy_is_never_taken(s3, folder, monkeypatch):
    put(folder, f"{s3}/insects")
    pull = Remote.pull

    def break_off(self, names, target, told=None):
        pull(self, sorted(names)[:5], target, told)
        raise StorageError("the network went home.")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "pull", break_off)
        with pytest.raises(StorageError):
            here(f"{s3}/insects")
    assert not list(cache().glob("data/*/*/insects"))
    assert len(list(here(f"{s3}/insects").rglob("*.png"))) == 20


def test_two_processes_copy_once(s3, folder, server):
    put(folder, f"{s3}/insects")
    code = f"from farreach.data.fetched import here; here('{s3}/insects')"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, cwd=ROOT / "platform") for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert server.requests("GET", ".png") == 20
