"""The commands: what each does, examples, its arguments, and what it calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from farreach import cli_bench, cli_cluster, cli_data, cli_index, cli_jobs, cli_runs, cli_status
from farreach.cli_arguments import add_config

# Imports of torch and of everything that needs it wait until a command does.


class Command(NamedTuple):
    """One command.

    Attributes:
        name: of one word, or of two the first of which is in `GROUPS`.
        run: does it.
        about: a phrase for help.
        examples: lines for help.
        arguments: declares its arguments.
    """

    name: str
    run: Callable[[argparse.Namespace], None]
    about: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]


# First words of commands of two.
GROUPS = {
    "cluster": "check files for clusters, and what belongs to machines that come and go",
    "data": "record, import, prepare, check and show data sets",
    "index": "build, change and show indexes of embedded documents",
}

COMMANDS: tuple[Command, ...] = (
    Command(
        "train",
        cli_runs.train,
        "train a configuration in a new run directory",
        "  farreach train goals/walk_maze\n"
        "  farreach train goals/walk_maze seed=3 --run-dir runs/third\n"
        "  farreach train my_config.yaml name=trial",
        cli_runs.train_arguments,
    ),
    Command(
        "resume",
        cli_runs.resume,
        "continue a run from its newest checkpoint",
        "  farreach resume latest\n"
        "  farreach resume runs/walk_maze-20250101-120000-1a2b evaluation.episodes=50",
        cli_runs.resume_arguments,
    ),
    Command(
        "submit",
        cli_jobs.submit,
        "train a configuration as a job of a Ray cluster",
        cli_jobs.EXAMPLES,
        cli_jobs.submit_arguments,
    ),
    Command(
        "status",
        cli_status.status,
        "say what a run or a cluster is doing, and what is wrong with it",
        "  farreach status\n"
        "  farreach status runs/walk_maze-20250101-120000-1a2b --once\n"
        "  farreach status http://127.0.0.1:8265",
        cli_status.status_arguments,
    ),
    Command(
        "doctor",
        cli_status.doctor,
        "look at this machine for what would make runs fail or slow",
        "  farreach doctor\n  farreach doctor --root /shared/runs --json",
        cli_status.doctor_arguments,
    ),
    Command(
        "cluster check",
        cli_cluster.check,
        "name all mistakes in files for Ray's launcher or KubeRay, or say what they would launch",
        "  farreach cluster check cluster/aws.yaml\n"
        "  farreach cluster check cluster/kuberay/*.yaml",
        cli_cluster.check_arguments,
    ),
    Command(
        "cluster simulate",
        cli_cluster.simulate,
        "show which machines of a file a run would be given, and when they come and go",
        "  farreach cluster simulate cluster/aws.yaml --config goals/walk_maze "
        "runtime.rollout_actors=40\n"
        "  farreach cluster simulate cluster/kuberay/raycluster.yaml --config my_config.yaml "
        "--json\n"
        "  farreach cluster simulate cluster/gcp.yaml --config goals/walk_maze_debug "
        "runtime.placement=actor --run",
        cli_cluster.simulate_arguments,
    ),
    Command(
        "cluster notice",
        cli_cluster.notice,
        "wait for the cloud's notice that this machine will be taken away, and tell Ray",
        "  farreach cluster notice aws",
        cli_cluster.notice_arguments,
    ),
    Command(
        "evaluate",
        cli_runs.evaluate,
        "evaluate a checkpoint of a run",
        "  farreach evaluate latest\n"
        "  farreach evaluate latest lowshot per_class=[1,2,5]\n"
        "  farreach evaluate latest --checkpoint newest --episodes 200 --json > metrics.json",
        cli_runs.evaluate_arguments,
    ),
    Command(
        "check",
        cli_runs.check,
        "check a configuration without training it",
        "  farreach check goals/walk_maze\n"
        "  farreach check my_config.yaml environment.num_envs=64\n"
        "  farreach check resume my_config.yaml   does a killed run end as an undisturbed one?",
        add_config,
    ),
    Command(
        "check resume",
        cli_runs.check_resume,
        "train twice, kill and resume one of the two, and compare how they end",
        "  farreach check resume goals/walk_maze_debug runtime.mode=sync\n"
        "  farreach check resume my_config.yaml training.epochs=2 --kills 3 --out checked",
        cli_runs.check_resume_arguments,
    ),
    Command(
        "list",
        cli_runs.list_,
        "list what there is to choose from",
        "  farreach list\n  farreach list environments\n  farreach list settings goals/walk_maze",
        cli_runs.list_arguments,
    ),
    Command(
        "plot",
        cli_runs.plot,
        "draw the figures of a run",
        "  farreach plot latest\n"
        "  farreach plot latest attention\n"
        "  farreach plot latest --images my_photos --out looked_at",
        cli_runs.plot_arguments,
    ),
    Command(
        "curves",
        cli_runs.curves,
        "draw the learning curves of several runs, with bands over seeds",
        "  farreach curves runs/walk_maze-* --out walk.png\n"
        "  farreach curves runs/* --metric evaluation/success_any --x minutes --out all.pdf",
        cli_runs.curves_arguments,
    ),
    Command(
        "export",
        cli_runs.export,
        "write the model of a run for other software",
        "  farreach export latest --format rllib --out policy\n"
        "  farreach export latest --format timm --out encoder\n"
        "  farreach export latest --format onnx --out encoder_onnx",
        cli_runs.export_arguments,
    ),
    Command(
        "bench",
        cli_bench.bench,
        "time backbones on this machine, beside timm's of the same weights",
        "  farreach bench backbone=xcit_tiny_12_p8\n"
        "  farreach bench backbone='resmlp_*' size=224 batch=16 train=false\n"
        "  farreach bench backbone=ours gpu=true precision=bfloat16 --out speed_accuracy.png\n"
        "settings: backbone, size, batch, rounds, train, precision, compiled, gpu, threads",
        cli_bench.arguments,
    ),
    Command(
        "data generate",
        cli_data.generate,
        "record a data set, or the rest of one",
        "  farreach data generate data/maze_random\n"
        "  farreach data generate data/maze_random episodes=200 --out data/small",
        cli_data.generate_arguments,
    ),
    Command(
        "data import",
        cli_data.import_,
        "copy episodes of another layout into a data set",
        "  farreach data import exorl/walker/proto/buffer data/walker_proto --environment walker",
        cli_data.import_arguments,
    ),
    Command(
        "data images",
        cli_data.images,
        "write a Ray Dataset of labelled images where trainings find it",
        "  farreach data images my_module:my_dataset data/mine\n"
        "  farreach train vision/classify_clipart data.path=data/mine",
        cli_data.images_arguments,
    ),
    Command(
        "data check",
        cli_data.check,
        "look at every recorded episode, or image, and name what is wrong",
        "  farreach data check data/maze_random\n"
        "  farreach data check pointmaze-medium-navigate-v0.npz\n"
        "  farreach data check my_photos",
        cli_data.check_arguments,
    ),
    Command(
        "data show",
        cli_data.show,
        "say what a data set holds",
        "  farreach data show data/maze_random",
        cli_data.show_arguments,
    ),
    Command(
        "embed",
        cli_index.embed,
        "embed all documents of a source, or the rest of them",
        "  farreach embed latest data/debian vectors/debian\n"
        "  farreach embed my_encoder corpus.jsonl vectors/corpus workers=4 longest=256\n"
        "  farreach embed latest passages.tsv.gz vectors/passages workers=2 gpus=0.5 "
        "bfloat16=true",
        cli_index.embed_arguments,
    ),
    Command(
        "search",
        cli_index.search,
        "search an index, for one query or for one after the other",
        '  farreach search index/debian "how do I mount a disk"\n'
        '  farreach search index/debian "editor" --k 20 --mode lexical\n'
        "  farreach search index/debian\n"
        "  farreach search index/debian --page",
        cli_index.search_arguments,
    ),
    Command(
        "index build",
        cli_index.build,
        "make an index of embedded documents, and one of their words",
        "  farreach index build vectors/debian index/debian\n"
        "  farreach index build vectors/passages index/passages kind=ivf_pq shards=8",
        cli_index.build_arguments,
    ),
    Command(
        "index add",
        cli_index.add,
        "embed more documents into an index; known ids are replaced",
        "  farreach index add index/debian new.jsonl",
        cli_index.add_arguments,
    ),
    Command(
        "index delete",
        cli_index.delete,
        "take documents out of an index",
        "  farreach index delete index/debian vim nano",
        cli_index.delete_arguments,
    ),
    Command(
        "index merge",
        cli_index.merge,
        "make one index of several",
        "  farreach index merge index/debian index/faq index/both",
        cli_index.merge_arguments,
    ),
    Command(
        "index compact",
        cli_index.compact,
        "build an index anew from what was added to it and left in it",
        "  farreach index compact index/debian",
        cli_index.index_argument,
    ),
    Command(
        "index show",
        cli_index.show,
        "say what an index holds",
        "  farreach index show index/debian",
        cli_index.index_argument,
    ),
    Command(
        "index compare",
        cli_index.compare,
        "measure and draw what each kind of index finds, and how fast",
        "  farreach index compare vectors/debian data/debian --out recall_speed.png",
        cli_index.compare_arguments,
    ),
    Command(
        "index tune",
        cli_index.tune,
        "choose how much words count beside vectors, by judged queries",
        "  farreach index tune index/debian data/debian\n"
        "  farreach index tune index/debian data/debian split=dev",
        cli_index.tune_arguments,
    ),
    Command(
        "data prepare",
        cli_index.prepare,
        "make a corpus with queries from what this machine can fetch",
        "  farreach data prepare debian data/debian\n"
        "  farreach data prepare faq data/faq --cache /var/tmp/faq",
        cli_index.prepare_arguments,
    ),
)
