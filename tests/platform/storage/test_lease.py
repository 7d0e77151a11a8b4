"""Drivers that begin at the same moment: one has the run, however they interleave."""

import threading

import pytest

from farreach.errors import RunDirectoryError
from farreach.rundir import RunDirectory
from farreach.storage import lease
from farreach.storage.lease import Lease
from farreach.storage.remote import Remote


@pytest.fixture
def remote(s3, monkeypatch):
    """A place for a run, whose drivers are on different machines for all that a lease tells."""
    monkeypatch.setattr(lease, "_has_died_here", lambda _: False)
    return Remote(f"{s3}/runs/one")


def begin(claims):
    """Take all of them at once; those that have the run."""
    winners = []

    def take(claim):
        try:
            claim.take()
            winners.append(claim)
        except RunDirectoryError:
            pass

    threads = [threading.Thread(target=take, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_of_drivers_that_begin_together_one_has_the_run(remote):
    for _ in range(3):
        [winner] = begin([Lease(remote) for _ in range(4)])
        assert lease.read(remote)["token"] == winner.token
        winner.release()


def test_one_that_was_held_up_takes_over_only_when_the_other_has_noticed(remote, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 0.2)
    monkeypatch.setattr(lease, "REFRESH_S", 1.0)
    first, late = Lease(remote), Lease(remote)
    write, others = late._write, iter([first])

    def write_after_the_other(**options):
        for other in others:
            other.take()
        write(**options)

    monkeypatch.setattr(late, "_write", write_after_the_other)
    late.take()
    assert first.lost_to is not None
    late.release()
    assert lease.read(remote)["token"] == late.token


def test_a_lease_that_another_has_written_meanwhile_is_not_written_over(remote, monkeypatch):
    first, second = Lease(remote), Lease(remote)
    looks = iter([None])  # as if the other had begun just after the first look
    look = lease.read
    monkeypatch.setattr(lease, "read", lambda where: next(looks, look(where)))
    first._write()
    with pytest.raises(RunDirectoryError, match="is in use"):
        second.take()
    assert look(remote)["token"] == first.token


def new_run(uri, seed):
    return RunDirectory.create("runs", "one", f"seed: {seed}\n", [], seed, path=uri)


def test_of_new_runs_at_one_uri_the_second_leaves_the_first_as_it_is(s3, monkeypatch, tmp_path):
    uri = f"{s3}/runs/one"
    first = new_run(uri, 1)
    with pytest.raises(RunDirectoryError, match="another farreach process of this machine"):
        new_run(uri, 2)
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "elsewhere"))
    second = new_run(uri, 3)
    with (
        first.lock(),
        pytest.raises(RunDirectoryError, match="exists and is not empty"),
        second.lock(),
    ):
        pytest.fail("both have it")
    assert Remote(uri).read("config.yaml") == b"seed: 1\n"


def test_a_new_run_that_was_refused_leaves_its_place_to_others(s3, monkeypatch):
    def refuse(self):
        raise RunDirectoryError("it is in use")

    run = new_run(f"{s3}/runs/one", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "take", refuse)
        with pytest.raises(RunDirectoryError, match="it is in use") as caught, run.lock():
            pytest.fail("it has the run")
    with new_run(f"{s3}/runs/one", 2).lock():
        assert Remote(f"{s3}/runs/one").read("config.yaml") == b"seed: 2\n"
    assert caught.value is not None  # whose traceback holds the first run until here
