import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDARD_LIBRARY = Path(os.__file__).parent
PACKAGES = ("platform/farreach", "workloads/farreach_workloads")
TREE_BLOCK = re.compile(r"^```\w*\n(farreach/\n.*?)^```", re.MULTILINE | re.DOTALL)


def is_standard(file):
    return Path(file).resolve() == (STANDARD_LIBRARY / "platform.py").resolve()


def test_source_roots_and_tests_are_no_packages():
    inits = [ROOT / "platform/__init__.py", ROOT / "workloads/__init__.py"]
    inits += (ROOT / "tests").rglob("__init__.py")
    assert [path for path in inits if path.exists()] == []
    assert not (ROOT / "platform.py").exists()


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_legends_say_where_they_go():
    # Of its default place Matplotlib warns wherever a busy machine takes a second to draw.
    silent = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in (*PACKAGES, "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr == "legend" and "loc" not in {word.arg for word in node.keywords}
    ]
    assert silent == []


def test_benchmarks_answer_to_help_before_they_measure():
    unasked = [
        file.name
        for file in sorted((ROOT / "benchmarks").rglob("*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main" and not node.args.args
        if not any(
            isinstance(part, ast.Attribute) and part.attr.startswith(("rows_asked", "parse_"))
            for part in ast.walk(node)
        )
    ]
    assert unasked == []


def test_the_platform_folder_does_not_shadow_the_standard_library():
    assert is_standard(platform.__file__)
    assert platform.system()


@pytest.mark.parametrize(
    "how", [["-c", "import platform; print(platform.__file__)"], ["-m", "probe"]]
)
def test_nor_does_it_from_the_root_folder(how, tmp_path):
    (tmp_path / "probe.py").write_text("import platform; print(platform.__file__)")
    done = subprocess.run(
        [sys.executable, *how],
        cwd=ROOT,  # comes first on the path with -c and -m
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert is_standard(done.stdout.strip())


DRIVER = """
import json, os, ray
ray.init(
    address=os.environ["RAY_ADDRESS"],
    log_to_driver=False,
    logging_level="ERROR",
    runtime_env={
        "working_dir": ".",
        "env_vars": {"PYTHONPATH": "platform:workloads"},
        "excludes": ["__pycache__"],
    },
)

def where():
    import platform, farreach, farreach_workloads
    return [os.getcwd(), platform.__file__, farreach.__file__, farreach_workloads.__file__]

class Actor:
    def where(self):
        return where()

task = ray.remote(num_cpus=0.5)(where).remote()
actor = ray.remote(num_cpus=0.5)(Actor).remote()
print(json.dumps(ray.get([task, actor.where.remote()])))
"""


@pytest.mark.ray
def test_nor_does_it_on_a_cluster_that_was_sent_the_tree(ray_local, tmp_path):
    for folder in ("platform", "workloads"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    address = ray_local.get_runtime_context().gcs_address
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=tmp_path,
        env={**environment, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for folder, platform_file, farreach_file, workloads_file in json.loads(done.stdout):
        assert is_standard(platform_file)
        unpacked = Path(folder).resolve()
        assert unpacked != tmp_path
        assert Path(farreach_file).is_relative_to(unpacked)
        assert Path(workloads_file).is_relative_to(unpacked)


def paths_in_tree(tree):
    """Paths of a drawn tree: a level is an indentation, several names may share a line.

    ```
    farreach/
      platform/farreach/   the platform
        cli.py, launch.py  two files
    ```
    """
    open_folders = [(-1, Path())]
    for line in tree.splitlines()[1:]:
        plain = re.sub("[│├└─]", " ", line)
        entry = plain.strip()
        if not entry or entry.startswith("#"):
            continue
        depth = len(plain) - len(plain.lstrip())
        while open_folders[-1][0] >= depth:
            open_folders.pop()
        names = re.split(r",\s*", re.split(r"(?<!,)\s+", entry)[0])
        for name in names:
            yield open_folders[-1][1] / name
        open_folders.append((depth, open_folders[-1][1] / names[-1]))


@pytest.mark.parametrize(
    "tree",
    [
        "farreach/\n  a/b/       what is in b\n    c.py, d.py  two\n  e.md\n",
        "farreach/\n├── a/b/  what is in b\n│   ├── c.py,d.py two\n\n└── e.md\n",
    ],
)
def test_a_drawn_tree_is_understood(tree):
    assert list(map(str, paths_in_tree(tree))) == ["a/b", "a/b/c.py", "a/b/d.py", "e.md"]


def test_the_tree_in_the_readme_is_the_tree_of_the_repository():
    readme = ROOT / "README.md"
    block = TREE_BLOCK.search(readme.read_text()) if readme.exists() else None
    if block is None:
        pytest.skip("README.md draws no tree")
    drawn = set(paths_in_tree(block[1]))
    missing = [str(path) for path in sorted(drawn) if not (ROOT / path).exists()]
    assert missing == [], "the README draws what does not exist"
    code = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    folders = {file.parent.relative_to(ROOT) for file in code}
    named = drawn | {parent for path in drawn for parent in path.parents}
    assert sorted(map(str, folders - named)) == [], "the README leaves out folders"


def test_text_encoders_start_without_what_others_need():
    needless = {"timm", "torchvision", "mujoco", "gymnasium"}
    later = {
        "matplotlib",
        "torch.utils.tensorboard",
        "scipy",
        "bm25s",
        "sympy",
        "torch.distributed.fsdp",
    }
    code = (
        "import sys, farreach_workloads.retrieval.pretrain\n"
        f"print({needless | later} & set(sys.modules))"
    )
    paths = os.pathsep.join([str(ROOT / "platform"), str(ROOT / "workloads")])
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "set()"
