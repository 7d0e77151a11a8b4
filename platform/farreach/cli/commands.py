"""The commands: what each does, examples, its arguments, and what it calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from farreach.cli import bench, cluster, data, index, jobs, runs, status
from farreach.cli.arguments import add_config

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
        runs.train,
        "train a configuration in a new run directory",
        "  farreach train goals/walk_maze\n"
        "  farreach train goals/walk_maze seed=3 --run-dir runs/third\n"
        "  farreach train my_config.yaml name=trial",
        runs.train_arguments,
    ),
    Command(
        "resume",
        runs.resume,
        "continue a run from its newest checkpoint",
        "  farreach resume latest\n"
        "  farreach resume runs/walk_maze-20250101-120000-1a2b evaluation.episodes=50",
        runs.resume_arguments,
    ),
    Command(
        "submit",
        jobs.submit,
        "train a configuration as a job of a Ray cluster",
        jobs.EXAMPLES,
        jobs.submit_arguments,
    ),
    Command(
        "status",
        status.status,
        "say what a run or a cluster is doing, and what is wrong with it",
        "  farreach status\n"
        "  farreach status runs/walk_maze-20250101-120000-1a2b --once\n"
        "  farreach status http://127.0.0.1:8265",
        status.status_arguments,
    ),
    Command(
        "doctor",
        status.doctor,
        "look at this machine for what would make runs fail or slow",
        "  farreach doctor\n  farreach doctor --root /shared/runs --json",
        status.doctor_arguments,
    ),
    Command(
        "cluster check",
        cluster.check,
        "name all mistakes in files for Ray's launcher or KubeRay, or say what they would launch",
        "  farreach cluster check cluster/aws.yaml\n"
        "  farreach cluster check cluster/kuberay/*.yaml",
        cluster.check_arguments,
    ),
    Command(
        "cluster simulate",
        cluster.simulate,
        "show which machines of a file a run would be given, and when they come and go",
        "  farreach cluster simulate cluster/aws.yaml --config goals/walk_maze "
        "runtime.rollout_actors=40\n"
        "  farreach cluster simulate cluster/kuberay/raycluster.yaml --config my_config.yaml "
        "--json\n"
        "  farreach cluster simulate cluster/gcp.yaml --config goals/walk_maze_debug "
        "runtime.placement=actor --run",
        cluster.simulate_arguments,
    ),
    Command(
        "cluster notice",
        cluster.notice,
        "wait for the cloud's notice that this machine will be taken away, and tell Ray",
        "  farreach cluster notice aws",
        cluster.notice_arguments,
    ),
    Command(
        "evaluate",
        runs.evaluate,
        "evaluate a checkpoint of a run",
        "  farreach evaluate latest\n"
        "  farreach evaluate latest lowshot per_class=[1,2,5]\n"
        "  farreach evaluate models/contriever search path=beir/scifact\n"
        "  farreach evaluate latest --checkpoint newest --episodes 200 --json > metrics.json",
        runs.evaluate_arguments,
    ),
    Command(
        "check",
        runs.check,
        "check a configuration without training it",
        "  farreach check goals/walk_maze\n"
        "  farreach check my_config.yaml environment.num_envs=64\n"
        "  farreach check resume my_config.yaml   does a killed run end as an undisturbed one?",
        add_config,
    ),
    Command(
        "check resume",
        runs.check_resume,
        "train twice, kill and resume one of the two, and compare how they end",
        "  farreach check resume goals/walk_maze_debug runtime.mode=sync\n"
        "  farreach check resume my_config.yaml training.epochs=2 --kills 3 --out checked",
        runs.check_resume_arguments,
    ),
    Command(
        "list",
        runs.list_,
        "list what there is to choose from",
        "  farreach list\n  farreach list environments\n  farreach list settings goals/walk_maze",
        runs.list_arguments,
    ),
    Command(
        "plot",
        runs.plot,
        "draw the figures of a run",
        "  farreach plot latest\n"
        "  farreach plot latest attention\n"
        "  farreach plot latest --images my_photos --out looked_at",
        runs.plot_arguments,
    ),
    Command(
        "curves",
        runs.curves,
        "draw the learning curves of several runs, with bands over seeds",
        "  farreach curves runs/walk_maze-* --out walk.png\n"
        "  farreach curves runs/* --metric evaluation/success_any --x minutes --out all.pdf\n"
        "  farreach curves runs/walk_maze-* runs/sac_her-* --bars 10 --out rooms.png",
        runs.curves_arguments,
    ),
    Command(
        "export",
        runs.export,
        "write the model of a run for other software",
        "  farreach export latest --format rllib --out policy\n"
        "  farreach export latest --format timm --out encoder\n"
        "  farreach export latest --format onnx --out encoder_onnx",
        runs.export_arguments,
    ),
    Command(
        "bench",
        bench.bench,
        "time backbones on this machine, beside timm's of the same weights",
        "  farreach bench backbone=xcit_tiny_12_p8\n"
        "  farreach bench backbone='resmlp_*' size=224 batch=16 train=false\n"
        "  farreach bench backbone=ours gpu=true precision=bfloat16 --out speed_accuracy.png\n"
        "settings: backbone, size, batch, rounds, train, precision, compiled, gpu, threads",
        bench.arguments,
    ),
    Command(
        "data generate",
        data.generate,
        "record a data set, or the rest of one",
        "  farreach data generate data/maze_random\n"
        "  farreach data generate data/maze_random episodes=200 --out data/small",
        data.generate_arguments,
    ),
    Command(
        "data import",
        data.import_,
        "copy episodes of another layout into a data set",
        "  farreach data import exorl/walker/proto/buffer data/walker_proto --environment walker",
        data.import_arguments,
    ),
    Command(
        "data images",
        data.images,
        "write a Ray Dataset of labelled images where trainings find it",
        "  farreach data images my_module:my_dataset data/mine\n"
        "  farreach train vision/classify_clipart data.path=data/mine",
        data.images_arguments,
    ),
    Command(
        "data check",
        data.check,
        "look at every recorded episode, or image, and name what is wrong",
        "  farreach data check data/maze_random\n"
        "  farreach data check pointmaze-medium-navigate-v0.npz\n"
        "  farreach data check my_photos",
        data.check_arguments,
    ),
    Command(
        "data show",
        data.show,
        "say what a data set holds",
        "  farreach data show data/maze_random",
        data.show_arguments,
    ),
    Command(
        "embed",
        index.embed,
        "embed all documents of a source, or the rest of them",
        "  farreach embed latest data/debian vectors/debian\n"
        "  farreach embed my_encoder corpus.jsonl vectors/corpus workers=4 longest=256\n"
        "  farreach embed latest passages.tsv.gz vectors/passages workers=2 gpus=0.5 "
        "bfloat16=true",
        index.embed_arguments,
    ),
    Command(
        "search",
        index.search,
        "search an index, for one query or for one after the other",
        '  farreach search index/debian "how do I mount a disk"\n'
        '  farreach search index/debian "editor" --k 20 --mode lexical\n'
        "  farreach search index/debian\n"
        "  farreach search index/debian --page\n"
        '  farreach search index/debian "editor" --rerank models/ms-marco-MiniLM-L-6-v2\n'
        "  farreach search /shared/index --spread",
        index.search_arguments,
    ),
    Command(
        "index build",
        index.build,
        "make an index of embedded documents, and one of their words",
        "  farreach index build vectors/debian index/debian\n"
        "  farreach index build vectors/passages index/passages kind=ivf_pq shards=8",
        index.build_arguments,
    ),
    Command(
        "index add",
        index.add,
        "embed more documents into an index; replace=true for ids that are there",
        "  farreach index add index/debian new.jsonl",
        index.add_arguments,
    ),
    Command(
        "index delete",
        index.delete,
        "take documents out of an index",
        "  farreach index delete index/debian vim nano",
        index.delete_arguments,
    ),
    Command(
        "index merge",
        index.merge,
        "make one index of several",
        "  farreach index merge index/debian index/faq index/both",
        index.merge_arguments,
    ),
    Command(
        "index compact",
        index.compact,
        "build an index anew from what was added to it and left in it",
        "  farreach index compact index/debian",
        index.compact_arguments,
    ),
    Command(
        "index show",
        index.show,
        "say what an index holds",
        "  farreach index show index/debian",
        index.index_argument,
    ),
    Command(
        "index compare",
        index.compare,
        "measure and draw what each kind of index finds, and how fast",
        "  farreach index compare vectors/debian data/debian --out recall_speed.png",
        index.compare_arguments,
    ),
    Command(
        "index tune",
        index.tune,
        "choose how much words count beside vectors, by judged queries",
        "  farreach index tune index/debian data/debian\n"
        "  farreach index tune index/debian data/debian split=dev",
        index.tune_arguments,
    ),
    Command(
        "data prepare",
        index.prepare,
        "make a corpus with queries from what this machine can fetch, or from what you downloaded",
        "  farreach data prepare debian data/debian\n"
        "  farreach data prepare faq data/faq --cache /var/tmp/faq\n"
        "  farreach data prepare mr_tydi data/mr_tydi --from downloads/mrtydi\n"
        "  farreach data prepare mkqa data/mkqa --from downloads/mkqa.jsonl.gz",
        index.prepare_arguments,
    ),
)
