import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import farreach
from farreach import config
from farreach.cli.commands import COMMANDS
from farreach.cli.main import main, parsed
from farreach.rundir import RunDirectory

WORKLOAD = Path(__file__).parents[1] / "counting_workload.py"


@pytest.fixture
def config_path(tmp_path, monkeypatch):
    """A config of the counting workload, in a working directory of its own."""
    spec = importlib.util.spec_from_file_location("counting_workload", WORKLOAD)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "counting_workload", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "count.yaml").write_text("# Counts.\nworkload: counting_workload\nseed: 7\n")
    return "count.yaml"


def the_run():
    return RunDirectory.open("latest")


def kinds(run):
    return [event["event"] for event in run.events()]


def test_help_has_examples_for_each_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "resume", "evaluate", "check", "list", "plot", "export"):
        assert re.search(rf"^    {command} ", shown, re.MULTILINE)
        assert main([command, "--help"]) == 0
        assert f"examples:\n  farreach {command}" in capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_examples_of_help_can_be_typed(command):
    lines = [line.strip() for line in command.examples.splitlines()]
    typed = [shlex.split(line.partition(" > ")[0]) for line in lines if "farreach " in line]
    assert command.run in [parsed(words[1:]).handler for words in typed]


def test_help_is_quick_because_it_imports_nothing_large():
    code = (
        "import sys; from farreach.cli.main import main; main(['--help'])\n"
        "large = {'torch', 'ray', 'pydantic', 'numpy', 'mujoco', 'rich'} & set(sys.modules)\n"
        "assert not large, large"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


def test_a_python_without_the_dependencies_is_named():
    code = (
        "import sys; sys.modules['msgpack'] = None\n"
        "from farreach.cli.main import main; sys.exit(main(['train', 'x.yaml']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"'msgpack' is not installed in {sys.executable}" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"farreach {farreach.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["list", "enviroments"], "cannot list 'enviroments'. Did you mean 'environments'?"),
        (["list", "settings"], "name a CONFIG, such as"),
        (["list", "configs", "x"], "`farreach list configs` takes no CONFIG."),
        (["evaluate", "latest", "--episodes", "0"], "should be a whole number above 0 (got '0')"),
        (["evaluate", "latest", "knn", "--episodes", "3"], "--episodes is for the evaluation that"),
        (["train"], "required: CONFIG"),
        (["export", "latest", "--out", "x"], "required: --format"),
        (["export", "latest", "--out", "x", "--format", "pickle"], "invalid choice: 'pickle'"),
        (["train", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_training_leaves_a_complete_run_directory(config_path, capsys):
    assert main(["train", config_path, "lr=0.25"]) == 0
    run = the_run()
    assert run.path.name.startswith("counting-")
    assert kinds(run) == ["started", "finished"]
    result = run.read_result()
    assert result["count/steps"] == 3.0
    assert result["count/bad"] is None
    assert result["seed"] == 7
    assert result["wall_time_s"] >= 0
    assert result["versions"]["farreach"] == farreach.__version__
    stored = config.load(run.config_path)
    assert stored.workload == "counting_workload"
    assert (stored.config.lr, stored.config.seed) == (0.25, 7)
    shown = capsys.readouterr().out
    assert "note      lr is not the paper's" in shown
    assert f"tensorboard --logdir {run.tensorboard}" in shown
    assert "count/steps  3\n" in shown
    assert f"result in {run.result_path}" in shown


def test_options_may_stand_between_overrides(config_path):
    assert main(["train", config_path, "lr=0.1", "--run-dir", "mine", "steps=1"]) == 0
    assert RunDirectory.open("mine").read_result()["count/steps"] == 1.0
    assert main(["train", config_path, "--root", "deep/runs"]) == 0
    assert RunDirectory.open("latest", Path("deep/runs")).is_run()


def test_an_occupied_run_directory_is_not_overwritten(config_path, capsys):
    assert main(["train", config_path, "--run-dir", "mine"]) == 0
    assert main(["train", config_path, "--run-dir", "mine"]) == 1
    assert "farreach resume mine" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["steps=-1", "stepz=1", "lr=fast"])
def test_a_wrong_config_stops_before_anything_is_made(config_path, override, capsys):
    assert main(["train", config_path, override]) == 2
    assert main(["check", config_path, override]) == 2
    assert capsys.readouterr().err.count("error:") == 2
    assert not Path("runs").exists()


def test_check_prints_the_notes(config_path, capsys):
    assert main(["check", config_path, "lr=0.25"]) == 0
    assert capsys.readouterr().out == "note: lr is not the paper's\ncount.yaml is fine\n"


def test_a_user_error_during_the_run_is_one_message(config_path, capsys):
    assert main(["train", config_path, "mishap=cluster"]) == 1
    shown = capsys.readouterr().err
    assert shown.endswith("error: the cluster went home. Call it back.\n")
    assert f"farreach resume {the_run().path}" in shown
    assert "Traceback" not in shown
    assert the_run().events()[-1]["error"] == "the cluster went home. Call it back."
    assert not the_run().result_path.exists()


def test_a_bug_leaves_its_trace_in_the_run_directory(config_path, capsys):
    assert main(["train", config_path, "mishap=bug"]) == 1
    run = the_run()
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: one by nothing. The trace is in" in shown
    assert "Traceback" not in shown
    trace = run.error_path.read_text()
    assert 'counting_workload.py", line' in trace
    assert "ZeroDivisionError: one by nothing\nand more" in trace
    assert kinds(run) == ["started", "failed"]


def test_a_full_disk_is_told_apart_from_a_bug(config_path, capsys):
    assert main(["train", config_path, "mishap=disk"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not the_run().error_path.exists()


@pytest.mark.parametrize(
    ("mishap", "code", "last_event"),
    [("SIGTERM", 75, "stopped"), ("SIGINT", 130, "stopped"), ("SIGINT twice", 130, "aborted")],
)
def test_a_stopped_run_says_so_and_can_be_resumed(config_path, mishap, code, last_event, capsys):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert main(["train", config_path, f"mishap={mishap}"]) == code
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    run = the_run()
    assert kinds(run) == ["started", last_event]
    assert f"continue with farreach resume {run.path}" in capsys.readouterr().err
    assert main(["resume", "latest"]) == 0
    assert "resume    step 2" in capsys.readouterr().out
    assert kinds(run) == ["started", last_event, "resumed", "finished"]
    assert run.events()[2]["step"] == 2
    assert run.read_result()["count/steps"] == 3.0


def test_a_finished_run_is_resumed_only_to_go_further(config_path, capsys):
    assert main(["train", config_path]) == 0
    assert main(["resume", "latest"]) == 0
    assert "is done already" in capsys.readouterr().out
    assert kinds(the_run()) == ["started", "finished"]
    assert main(["resume", "latest", "steps=5"]) == 0
    run = the_run()
    assert run.read_result()["count/steps"] == 5.0
    assert run.events()[2]["changes"] == ["steps: 3 -> 5"]
    assert config.load(run.config_path).config.steps == 5
    assert config.load(run.path / "config.previous.yaml").config.steps == 3


def test_resuming_with_other_values_names_each_key_and_both_values(config_path, capsys):
    assert main(["train", config_path]) == 0
    assert main(["resume", "latest", "steps=5", "lr=0.1", "seed=8"]) == 2
    shown = capsys.readouterr().err
    assert "lr: 0.5 -> 0.1" in shown
    assert "seed: 7 -> 8" in shown
    assert "steps: 3" not in shown
    assert "What may change: mishap, steps" in shown
    assert main(["resume", "latest", "workload=json"]) == 2
    assert kinds(the_run()) == ["started", "finished"]


def test_continue_begins_a_run_goes_on_with_it_and_leaves_it_alone(config_path, capsys):
    again = ["train", config_path, "--run-dir", "mine", "--continue"]
    run = RunDirectory(Path("mine"))
    assert main([*again, "mishap=SIGTERM"]) == 75
    assert kinds(run) == ["started", "stopped"]
    assert main([*again, "lr=0.1"]) == 2
    assert "lr: 0.5 -> 0.1" in capsys.readouterr().err
    assert main(again) == 0
    assert "resume    step 2" in capsys.readouterr().out
    assert main(again) == 0
    assert "mine is done already" in capsys.readouterr().out
    assert kinds(run) == ["started", "stopped", "resumed", "finished"]
    assert main([*again, "steps=4"]) == 0
    assert run.read_result()["count/steps"] == 4.0


def test_continue_takes_no_folder_of_somebody_else(config_path, capsys):
    assert main(["train", config_path, "--continue"]) == 2
    assert "--continue needs --run-dir: which run is it?" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert main(["train", config_path, "--run-dir", "mine", "--continue"]) == 1
    assert "mine exists and is not empty." in capsys.readouterr().err


def test_a_run_without_checkpoint_begins_again(config_path, capsys):
    assert main(["train", config_path, "mishap=cluster"]) == 1
    for folder in the_run().checkpoints.iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert main(["resume", "latest", "mishap=none"]) == 0
    assert "no checkpoint yet, beginning again" in capsys.readouterr().out


def test_damaged_checkpoints_are_skipped_aloud(config_path, capsys):
    assert main(["train", config_path, "mishap=cluster"]) == 1
    second = max(the_run().checkpoints.iterdir())
    (second / "state.msgpack").write_bytes(b"")
    assert main(["resume", "latest"]) == 1  # the mishap comes again
    shown = capsys.readouterr()
    assert "skipped   " in shown.err
    assert "resume    step 1" in shown.out
    for folder in the_run().checkpoints.iterdir():
        (folder / "state.msgpack").write_bytes(b"")
    assert main(["resume", "latest", "mishap=none"]) == 1
    assert "is intact, see above" in capsys.readouterr().err


def test_evaluation_takes_the_best_or_the_newest_checkpoint(config_path, capsys):
    assert main(["train", config_path]) == 0
    capsys.readouterr()
    # The score is minus the step, so the first checkpoint is the best one.
    assert main(["evaluate", "latest"]) == 0
    assert capsys.readouterr().out == "eval/episodes  10\neval/step      1\n"
    assert main(["evaluate", "latest", "--checkpoint", "newest", "--episodes", "4", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["eval/step"], result["eval/episodes"], result["seed"]) == (3.0, 4.0, 7)
    assert set(result) == {"eval/step", "eval/episodes", "seed", "wall_time_s", "versions"}
    assert shown.err == "evaluating\n"
    assert kinds(the_run()) == ["started", "finished"]


def test_a_failed_evaluation_is_one_message(config_path, capsys):
    assert main(["train", config_path, "mishap=evaluation"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "latest", "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "unforeseen failure: ValueError: no. The trace is in" in shown.err


def test_a_run_without_checkpoint_cannot_be_evaluated_plotted_or_exported(config_path, capsys):
    assert main(["train", config_path, "steps=0"]) == 0
    export = ["export", "--format", "rllib", "--out", "policy"]
    for command in (["evaluate"], ["plot"], export):
        assert main([*command, "latest"]) == 1
        assert "has no checkpoint yet" in capsys.readouterr().err


def test_plot_prints_its_files(config_path, capsys):
    assert main(["train", config_path]) == 0
    capsys.readouterr()
    assert main(["plot", "latest"]) == 0
    assert capsys.readouterr().out == f"{the_run().figures / '1.png'}\n"


def test_export_makes_the_folder_and_prints_it(config_path, monkeypatch, capsys):
    def export(config, run, checkpoint, out, fmt):
        sys.stdout.write("exporting\n")
        out.mkdir()
        (out / f"{fmt}-{checkpoint.step}-{config.seed}").touch()
        return out.absolute()

    monkeypatch.setattr(sys.modules["counting_workload"], "export", export, raising=False)
    assert main(["train", config_path]) == 0
    capsys.readouterr()
    assert main(["export", "latest", "--format", "rllib", "--out", "policy"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{Path('policy').absolute()}\n", "exporting\n")
    # The first checkpoint is the best one.
    assert [path.name for path in Path("policy").iterdir()] == ["rllib-1-7"]
    assert kinds(the_run()) == ["started", "finished"]


def test_a_workload_without_export_says_so(config_path, capsys):
    assert main(["train", config_path]) == 0
    assert main(["export", "latest", "--format", "rllib", "--out", "policy"]) == 2
    shown = capsys.readouterr().err
    assert f"{the_run().path}: its workload counting_workload has no export." in shown
    assert not Path("policy").exists()


def test_settings_are_listed_with_type_default_and_help(config_path, capsys):
    assert main(["list", "settings", config_path]) == 0
    assert "steps: int = 3\n    How far to count.\n" in capsys.readouterr().out


def test_shipped_configs_and_workloads_are_listed(config_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "shipped", lambda: [tmp_path / config_path])
    assert main(["list"]) == 0
    assert capsys.readouterr().out == f"{tmp_path.name}/count  Counts.\n"
    assert main(["list", "workloads"]) == 0
    about = "A workload that counts to `steps`; its `mishap` says what goes wrong at step 2."
    assert capsys.readouterr().out == f"counting_workload  {about}\n"


def test_environments_are_listed_with_what_they_are(capsys):
    assert main(["list", "environments"]) == 0
    assert re.search(r"^maze\b +\S", capsys.readouterr().out, re.MULTILINE)


def test_all_behaviours_are_listed_wherever_they_are_registered():
    # In a process of its own: here, another test may have imported them.
    listing = [sys.executable, "-m", "farreach", "list", "behaviours"]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["navigate", "random", "rnd", "stitch"]


@pytest.fixture
def command(config_path):
    """`farreach` in a process of its own."""
    path = os.pathsep.join([str(WORKLOAD.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}

    def start(*arguments, **options):
        line = [sys.executable, "-m", "farreach", *arguments]
        return subprocess.Popen(line, env=environment, text=True, **options)

    return start


def wait_for(path, seconds=30.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_from_outside_stops_with_a_checkpoint(command, number, code):
    process = command("train", "count.yaml", "mishap=wait", "--run-dir", "mine", stderr=-1)
    wait_for(Path("mine/waiting"))
    process.send_signal(number)
    assert "stopping after a last checkpoint" in process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert kinds(RunDirectory.open("mine")) == ["started", "stopped"]
    assert main(["resume", "mine"]) == 0
    assert RunDirectory.open("mine").read_result()["count/steps"] == 3.0


def test_a_run_in_use_is_left_alone_and_a_killed_one_can_be_resumed(command):
    process = command("train", "count.yaml", "mishap=wait", "--run-dir", "mine")
    wait_for(Path("mine/waiting"))
    second = command("resume", "mine", stderr=-1)
    assert "is in use" in second.communicate()[1]
    assert second.returncode == 1
    process.kill()
    process.wait()
    assert main(["resume", "mine"]) == 0
    assert RunDirectory.open("mine").read_result()["count/steps"] == 3.0
    assert kinds(RunDirectory.open("mine")) == ["started", "resumed", "finished"]


def test_a_reader_that_goes_away_does_not_break_a_run(command):
    reading, writing = os.pipe()
    os.close(reading)
    process = command("train", "count.yaml", "--run-dir", "mine", stdout=writing, stderr=-1)
    os.close(writing)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert RunDirectory.open("mine").read_result()["count/steps"] == 3.0


def test_backbones_are_listed_with_their_size(capsys):
    assert main(["list", "backbones"]) == 0
    listed = capsys.readouterr().out
    assert "resmlp_s12              15.4M parameters" in listed
    assert "of timm's" in listed
