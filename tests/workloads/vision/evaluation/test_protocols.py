import json

import numpy as np
import pytest
from PIL import Image

from farreach import afterwards, launch, rundir
from farreach import config as configs
from farreach.data.images import ParquetImages, open_images
from farreach.errors import ConfigError, DataError
from farreach.rundir import RunDirectory
from farreach_workloads.vision.evaluation import features
from farreach_workloads.vision.evaluation.finetune import FinetuneConfig
from farreach_workloads.vision.image_sets import SHIPPED_FILE

DEBUG = "vision/msn_clipart_debug"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return launch.train(DEBUG, ["probe.references=4235"], run_dir=path)


def test_neighbours_are_those_of_training(run):
    own = json.loads(run.result_path.read_text())
    found = afterwards.evaluate(run.path, what="knn", words=["neighbours=[20]"])
    assert found["knn/top1_20"] == pytest.approx(own["evaluation/knn_top1"], abs=1e-6)
    [file] = (run.path / "evaluations").glob("knn-*.json")
    kept = json.loads(file.read_text())
    assert kept["knn/top1_20"] == found["knn/top1_20"]
    assert kept["settings"]["neighbours"] == [20]


def test_features_are_computed_once(run, monkeypatch):
    words = ["neighbours=[5]", "references=300"]
    first = afterwards.evaluate(run.path, what="knn", words=words)
    monkeypatch.setattr(features, "features_of", None)
    again = afterwards.evaluate(run.path, what="knn", words=words)
    assert again["knn/top1_5"] == first["knn/top1_5"]


def test_controls_are_the_network_as_it_began_and_the_pixels(run):
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    first = next(line for line in lines if "evaluation/knn_top1" in line)
    assert first["training/updates"] == 0
    words = ["neighbours=[20]", "features=untrained"]
    found = afterwards.evaluate(run.path, what="knn", words=words)
    assert found["knn/top1_20"] == pytest.approx(first["evaluation/knn_top1"], abs=1e-6)
    trained = afterwards.evaluate(run.path, what="knn", words=["neighbours=[20]"])
    assert trained != found
    words = ["neighbours=[1]", "features=pixels", "references=500", "size=64"]
    found = afterwards.evaluate(run.path, what="knn", words=words)
    assert found["knn/top1_1"] == pytest.approx(nearest_pixels(500), abs=2e-3)  # ties of float32
    with pytest.raises(ConfigError, match="pixels have no layers"):
        afterwards.evaluate(run.path, what="linear", words=["features=pixels", "layers=true"])


def nearest_pixels(references):
    """Accuracy of the nearest shipped clip art by the cosine of standardised pixels."""
    train, held_out = open_images(SHIPPED_FILE)
    train = train.subset(np.linspace(0, len(train) - 1, references).astype(np.int64))
    rows = []
    for images in (train, held_out):
        pixels = np.stack([np.asarray(images.load(row)) for row in range(len(images))]) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        rows.append(pixels.reshape(len(images), -1))
    known, asked = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows)
    return (train.labels[(asked @ known.T).argmax(1)] == held_out.labels).mean()


@pytest.mark.ray
@pytest.mark.slow
def test_workers_compute_the_same(run):
    words = ["neighbours=[5]", "references=1500"]
    here = afterwards.evaluate(run.path, what="knn", words=words)
    for file in (run.path / "features").iterdir():
        file.unlink()
    there = afterwards.evaluate(run.path, what="knn", words=[*words, "workers=2"])
    assert there["knn/top1_5"] == here["knn/top1_5"]


def test_layers_and_a_few_labels(run):
    found = afterwards.evaluate(run.path, what="linear", words=["layers=true", "epochs=2"])
    assert {"linear/layer_1/top1", "linear/layer_2/top1", "linear/head"} <= set(found)
    words = ["classes=3", "per_class=[1,4]", "splits=2"]
    found = afterwards.evaluate(run.path, what="lowshot", words=words)
    assert {"lowshot/1/mean", "lowshot/4/sd"} <= set(found)
    assert 0 < found["lowshot/4/mean"] <= 1
    with pytest.raises(DataError, match="class 2: has 3 images, 5 are to be chosen"):
        afterwards.evaluate(run.path, what="lowshot")


@pytest.fixture(scope="module")
def files_of(tmp_path_factory):
    """The shipped clip arts as files, three training images of each of 22 classes, one held out."""
    folder = tmp_path_factory.mktemp("images")
    train, held_out = open_images(SHIPPED_FILE)
    for part, images, count in (("train", train, 3), ("val", held_out, 1)):
        for label, name in enumerate(images.classes):
            for row in np.flatnonzero(images.labels == label)[:count].tolist():
                file = folder / part / name / f"{name}_{row}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                images.load(row).save(file)
    return folder


def test_published_lists_are_choices_of_images(run, files_of, tmp_path):
    files = sorted((files_of / "train").rglob("*.png"))
    lists = {
        "one": [file.name for file in files[::3]],
        "two": [f"{file.parent.name}/{file.name}" for file in [*files[::3], *files[1::3]]],
    }
    for name, lines in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    named = [str(tmp_path / f"{name}.txt") for name in lists]
    words = [f"data={files_of}", f"lists=[{','.join(named)}]"]
    found = afterwards.evaluate(run.path, what="lowshot", words=words)
    assert found["lowshot/lists/images_0"] == len(lists["one"])
    assert found["lowshot/lists/images_1"] == len(lists["two"])
    splits = [found[f"lowshot/lists/split_{number}"] for number in range(2)]
    assert found["lowshot/lists/mean"] == pytest.approx(sum(splits) / 2)
    alone = afterwards.evaluate(run.path, what="lowshot", words=[words[0], f"lists=[{named[0]}]"])
    assert alone["lowshot/lists/split_0"] == splits[0]
    (tmp_path / "one.txt").write_text("n01440764_10026.JPEG\n")
    with pytest.raises(DataError, match=r"1 of 1 names are of no training image, such as n0144"):
        afterwards.evaluate(run.path, what="lowshot", words=words)


def test_patches_of_the_images_that_are_fitted_can_be_dropped(run, files_of):
    words = [f"data={files_of}", "per_class=[1]", "splits=2"]
    whole = afterwards.evaluate(run.path, what="lowshot", words=words)
    masked = afterwards.evaluate(run.path, what="lowshot", words=[*words, "mask=0.7"])
    assert masked["lowshot/1/mean"] != whole["lowshot/1/mean"]
    again = afterwards.evaluate(run.path, what="lowshot", words=[*words, "mask=0.7"])
    assert again["lowshot/1/mean"] == masked["lowshot/1/mean"]
    with pytest.raises(ConfigError, match="mask: only a vision transformer"):
        afterwards.evaluate(run.path, what="lowshot", words=[*words, "mask=0.5", "features=pixels"])


@pytest.mark.slow
def test_fine_tuning_is_a_run_of_its_own(run):
    found = afterwards.evaluate(run.path, what="finetune", words=["epochs=0.1"])
    assert found["finetune/updates"] >= 3
    inner = RunDirectory.open(
        next((run.path / "evaluations").glob("finetune-*/config.yaml")).parent
    )
    assert inner.read_result()["evaluation/top1"] == found["finetune/top1"]


@pytest.mark.slow
def test_fine_tuning_with_other_settings_is_another_run(run, files_of, monkeypatch):
    words = [f"data={files_of}", "batch=32", "epochs=2"]
    first = afterwards.evaluate(run.path, what="finetune", words=words)
    longer = afterwards.evaluate(run.path, what="finetune", words=[*words[:2], "epochs=3"])
    assert (first["finetune/updates"], longer["finetune/updates"]) == (4, 6)
    monkeypatch.setattr(launch, "train", None)
    again = afterwards.evaluate(run.path, what="finetune", words=words)
    assert again["finetune/loss"] == first["finetune/loss"]


def test_recipes_give_what_is_not_set():
    mae = FinetuneConfig.model_validate({"recipe": "mae", "lr": 0.5})
    assert (mae.lr, mae.epochs, mae.augment, mae.layer_decay) == (0.5, 100, "rand", 0.65)
    assert FinetuneConfig() == FinetuneConfig(recipe="short")


@pytest.mark.slow
def test_fine_tuning_by_a_recipe_at_another_size(run, files_of):
    words = [f"data={files_of}", "recipe=vissl", "size=48", "batch=32", "epochs=2", "drops=[1]"]
    found = afterwards.evaluate(run.path, what="finetune", words=words)
    assert found["finetune/updates"] == 4
    folders = (run.path / "evaluations").glob("finetune-*/config.yaml")
    [config] = [
        config
        for config in (configs.load(folder).config for folder in folders)
        if config.optimizer.kind == "sgd"
    ]
    assert (config.data.size, config.training.schedule, config.training.drops) == (
        48,
        "steps",
        (1,),
    )
    assert (config.optimizer.weight_decay, config.optimizer.layer_decay) == (1e-4, None)


@pytest.mark.slow
def test_fine_tuning_that_was_killed_before_it_began_begins_again(run, files_of, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    words = [f"data={files_of}", "batch=32", "epochs=1", "lr=1e-4"]
    monkeypatch.setattr(rundir.provenance, "manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        afterwards.evaluate(run.path, what="finetune", words=words)
    monkeypatch.undo()
    assert afterwards.evaluate(run.path, what="finetune", words=words)["finetune/updates"] == 2


def test_unknown_evaluations_and_settings_have_a_near_match(run):
    with pytest.raises(ConfigError, match="no evaluation"):
        afterwards.evaluate(run.path, what="lowshots")
    with pytest.raises(ConfigError, match="Did you mean 'neighbours'"):
        afterwards.evaluate(run.path, what="knn", words=["neighbors=[1]"])


def images_in(folder, count, colour):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.integers(0, 60, (12, 12, 3)) + np.array(colour)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")


@pytest.mark.slow
def test_images_without_labels_are_enough_and_damaged_ones_are_replaced(tmp_path):
    images_in(tmp_path / "photos" / "2024", 60, (150, 20, 20))
    images_in(tmp_path / "photos" / "more", 60, (20, 150, 20))
    images_in(tmp_path / "photos" / "2025", 20, (20, 20, 150))
    (tmp_path / "photos" / "loose.jpg").write_bytes(b"no image")
    words = [f"data.path={tmp_path / 'photos'}", "training.epochs=1", "training.batch=16"]
    run = launch.train(DEBUG, words, run_dir=tmp_path / "run")
    result = json.loads(run.result_path.read_text())
    assert "evaluation/knn_top1" not in result
    assert result["evaluation/effective_rank"] > 1
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    shares = [line["data/replaced_share"] for line in lines if "data/replaced_share" in line]
    assert 0 < max(shares) < 0.05
    with pytest.raises(DataError, match=r"there are no labels. Set data=PATH"):
        afterwards.evaluate(run.path, what="knn")


def test_other_processes_map_parquet_files_again():
    import pickle

    whole = ParquetImages([SHIPPED_FILE])
    content = pickle.dumps(whole)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.load(7).tobytes() == whole.load(7).tobytes()
