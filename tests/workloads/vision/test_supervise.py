import io
import json
import signal

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from farreach import afterwards, launch
from farreach import config as configs
from farreach.errors import ConfigError, DataError, FarreachError
from farreach.learn.place import Place
from farreach.learn.report import Report
from farreach.learn.restored import restored
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped
from farreach_workloads.vision import export, supervise
from farreach_workloads.vision.config import BackboneConfig, SuperviseConfig
from farreach_workloads.vision.image_sets import images_of
from farreach_workloads.vision.models import make_model, rest_note
from farreach_workloads.vision.supervise import SuperviseTask

DEBUG = "vision/classify_clipart_debug"


def config_of(*overrides):
    return configs.load(configs.find(DEBUG), list(overrides)).config


def train(path, *overrides):
    return launch.train(DEBUG, list(overrides), run_dir=path)


def result(run):
    return json.loads(run.result_path.read_text())


@pytest.mark.slow
def test_a_network_learns_to_tell_the_clip_arts_apart(tmp_path):
    settings = ["training.epochs=2", "training.evaluate_every_epochs=1", "augment.kind=three"]
    run = train(tmp_path / "run", *settings)
    found = result(run)
    counts = torch.bincount(torch.from_numpy(images_of(config_of().data)[1].labels))
    most_frequent = float(counts.max() / counts.sum())
    assert found["evaluation/top1"] > most_frequent + 0.05
    assert found["evaluation/top5"] > found["evaluation/top1"]
    assert found["evaluation/images"] == 1393
    again = afterwards.evaluate(run.path, "newest")
    assert again["evaluation/top1"] == pytest.approx(found["evaluation/top1"])
    files = afterwards.plot(run.path)
    assert [file.name for file in files] == ["predictions.png", "attention.png"]
    assert all(file.stat().st_size > 10_000 for file in files)
    assert afterwards.plot(run.path, "attention") == files[1:]
    with pytest.raises(ConfigError, match=r"no figure 'atention'\. Did you mean 'attention'"):
        afterwards.plot(run.path, "atention")
    for number in range(2):
        Image.new("RGBA", (50, 40), (200, 40 * number, 0, 128)).save(tmp_path / f"{number}.png")
    seen = afterwards.plot_images(run.path, tmp_path, tmp_path / "seen" / "now")
    names = {file.name for file in seen}
    assert {"0000-0.png", "0001-1.png"} <= names
    maps = np.load(tmp_path / "seen" / "now" / "0000-0-class_attention_0.npy")
    assert maps.shape == (4, 4, 4)
    assert maps.dtype == np.float32
    with pytest.raises(ConfigError, match=r"nowhere: there is nothing"):
        afterwards.plot_images(run.path, tmp_path / "nowhere", tmp_path / "seen")
    shown = EventAccumulator(str(run.tensorboard), {"images": 0}).Reload().Images
    assert len(shown("evaluation/predictions")) == 2
    names = {name for line in read_metrics(run.metrics_path) for name in line}
    assert {"learner/loss", "throughput/samples_per_s", "evaluation/top1"} <= names


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["objective.kind=cosub", "backbone.drop_path=0.4", "objective.loss=bce", "mix.smoothing=0"],
        ["objective.kind=self_distillation", "backbone.drop_path=0.4"],
        ["backbone.drop_path=0.2", "mix.mixup=0.8", "mix.cutmix=1", "optimizer.kind=lamb"],
        ["average.decay=0.8", "average.evaluate=true", "optimizer.layer_decay=0.7"],
    ],
)
def test_a_run_in_two_parts_equals_one_in_one(tmp_path, settings, monkeypatch):
    """Views, mixing, dropped branches and the two halves of each: all follow from the update."""
    settings = [*settings, "training.epochs=0.1", "training.part=16"]
    whole = result(train(tmp_path / "whole", *settings))

    def stops_at_the_sixth(report):
        report.asked = getattr(report, "asked", 0) + 1
        if report.asked == 6:
            report._stop.signum = signal.SIGTERM
        return report.asked >= 6

    monkeypatch.setattr(Report, "stop_asked", stops_at_the_sixth)
    with pytest.raises(Stopped):
        train(tmp_path / "parts", *settings)
    monkeypatch.undo()
    assert afterwards.find_checkpoint(RunDirectory.open(tmp_path / "parts"), "newest").step == 5
    run = launch.resume(tmp_path / "parts")
    assert result(run)["evaluation/loss"] == whole["evaluation/loss"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.name=xcit_nano_12_p9", r"no 'xcit_nano_12_p9'\. Did you mean 'xcit_nano_12_p8'"),
        ("backbone.options={heads: 3}", r"does not take images of 32 pixels with options"),
        ("backbone.weights=/nothing.pth", r"there is no file /nothing\.pth"),
        ("objective.kind=cosub", r"backbone\.drop_path is 0: each would be the whole network"),
        ("objective.loss=bce", r"mix\.smoothing: 0\.1 gives all of them one\. Set it to 0"),
        ("training.batch=33 mix.mixup=1", r"mixing pairs images, and 33 of them are odd"),
        ("augment.kind=three augment.erasing=0.2", r"3-Augment, which erases nothing"),
        ("average.decay=0.9 runtime.sharded=true", r"does not fit where they are split"),
        ("average.evaluate=true", r"there is no average\. Set average\.decay"),
        ("data.path=/nothing", r"/nothing: there is nothing"),
        ("training.batch=5000", r"5000 images at a time, of 4235 in all"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(override, message):
    overrides = override.split(" ") if "options={heads" not in override else [override]
    with pytest.raises((ConfigError, DataError), match=message):
        launch.check(DEBUG, overrides)


def a_damaged_set(tmp_path, bad):
    """A Parquet file of 60 pictures in two colours, of which some rows are none."""
    rows = []
    for number in range(60):
        content = io.BytesIO()
        Image.new("RGB", (12, 12), (200, 20, 20) if number % 2 else (20, 20, 200)).save(
            content, "PNG"
        )
        rows.append(b"no picture" if number in bad else content.getvalue())
    split = ["train" if number < 40 else "test" for number in range(60)]
    table = {"image": rows, "label": [number % 2 for number in range(60)], "split": split}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    return f"data.path={tmp_path / 'set.parquet'}"


def test_the_next_image_and_its_label_come_in_place_of_one_that_cannot_be_read(tmp_path):
    data = SuperviseTask(config_of(a_damaged_set(tmp_path, {3, 4}), "training.batch=8")).data
    batch = data.batch(np.array([2, 3, 4, 5]), np.arange(4))
    assert batch["replaced"].tolist() == [False, True, True, False]
    assert batch["label"].tolist() == [0, 1, 1, 1]
    reds = batch["image"].mean((2, 3))[:, 0] > batch["image"].mean((2, 3))[:, 2]
    assert reds.tolist() == [False, True, True, True]


def test_a_run_counts_images_that_cannot_be_read_and_goes_on(tmp_path):
    words = [a_damaged_set(tmp_path, {3, 41, 42}), "training.batch=8", "training.epochs=2"]
    run = train(tmp_path / "run", *words)
    assert result(run)["evaluation/images"] == 18
    notes = [event["text"] for event in run.events() if event["event"] == "remark"]
    assert any("2 held-out images cannot be read and are left out" in note for note in notes)
    shares = [line.get("data/replaced_share", 0) for line in read_metrics(run.metrics_path)]
    assert max(shares) > 0


def test_a_held_out_set_of_which_nothing_can_be_read_is_no_result(tmp_path):
    task = SuperviseTask(config_of(a_damaged_set(tmp_path, set(range(40, 60))), "training.batch=8"))
    with pytest.raises(DataError, match=r"set\.parquet, row 40: is no image that can be read"):
        task.evaluate(Place())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("xcit_nano_12_p8", {"depth": 1}, "padded to 56, a multiple of the patch's 8"),
        ("patchconvnet_s60", {"depth": 1}, "padded to 64, a multiple of the patch's 16"),
        ("vit_tiny_patch16_224", {"depth": 1}, "the last 2 rows and columns of images of 50"),
        ("resmlp_s12", {"num_blocks": 1}, "the last 2 rows and columns of images of 50"),
        ("convnext_atto", {}, None),
    ],
)
def test_what_becomes_of_images_that_are_no_multiple_of_the_patch_is_said(name, options, said):
    model = make_model(BackboneConfig(name=name, options=options), 50, 3)
    note = rest_note(model, 50)
    assert note == said or said in note
    assert rest_note(model, 48) is None


def test_blocks_that_stochastic_depth_does_not_know_are_refused():
    with pytest.raises(ConfigError, match="EfficientNet has no block that stochastic depth knows"):
        launch.check(
            "vision/classify_clipart", ["backbone.name=mixnet_s", "backbone.drop_path=0.1"]
        )


def test_more_workers_than_samples_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.batch: 2 samples leave some of 3 workers"):
        train(tmp_path / "run", "runtime.workers=3", "training.batch=2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"runtime\.gpus: 1, but PyTorch sees no GPU"):
        train(tmp_path / "run", "runtime.gpus=1")


def test_an_image_to_look_at_that_is_too_large_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own is 89 million
    with pytest.raises(DataError, match=r"large\.png: is no image that can be read: Image size"):
        supervise._read(tmp_path / "large.png")


def test_weights_of_another_model_are_named(tmp_path):
    file = tmp_path / "other.safetensors"
    state = timm.create_model("xcit_nano_12_p16", depth=2, num_classes=3).state_dict()
    save_file(state, file)
    with pytest.raises(ConfigError, match=r"another model: 6 unknown.* of another shape.*Correct"):
        launch.check(DEBUG, [f"backbone.weights={file}"])


def test_files_that_hold_no_weights_are_named(tmp_path):
    files = {name: tmp_path / name for name in ("readme.md", "list.pth", "half.pth", "a.pt")}
    files["readme.md"].write_text("# Weights")
    torch.save([torch.zeros(3)], files["list.pth"])
    torch.save({"a": torch.zeros(1000)}, files["half.pth"])
    files["half.pth"].write_bytes(files["half.pth"].read_bytes()[:2000])
    files["a.pt"].touch()
    files["broken"] = tmp_path / "broken.safetensors"
    files["broken"].write_bytes(b"no header of safetensors")
    for file in files.values():
        with pytest.raises(ConfigError, match=rf"^backbone\.weights: {file} is no file of weights"):
            launch.check(DEBUG, [f"backbone.weights={file}"])


def test_weights_load_without_a_head_of_another_size(tmp_path):
    file = tmp_path / "own.safetensors"
    model = timm.create_model("xcit_nano_12_p8", depth=2, num_classes=3)
    save_file(model.state_dict(), file)
    config = config_of(f"backbone.weights={file}")
    found = make_model(config.backbone, 32, 22).state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(found[name], value)
    assert found["head.weight"].shape == (22, 128)


def test_the_average_follows_the_weights():
    task = supervise.SuperviseTask(config_of("average.decay=0.75", "average.evaluate=true"))
    task.optimizer()
    start = task.model.head.bias.detach().clone()
    for step, value in enumerate((4.0, 8.0)):
        with torch.no_grad():
            task.model.head.bias.fill_(value)
        task.after_update(step)
    # 0.75 (0.75 b + 0.25 × 4) + 0.25 × 8.
    expected = 0.5625 * start + 0.75 + 2.0
    torch.testing.assert_close(task.evaluated_model().head.bias.detach(), expected)
    state = {name: value.numpy() for name, value in task.state()["average"].items()}
    other = supervise.SuperviseTask(config_of("average.decay=0.75", "average.evaluate=true"))
    other.optimizer()
    other.restore({"average": state})
    torch.testing.assert_close(other.evaluated_model().head.bias.detach(), expected)


def test_layers_learn_slower_the_deeper_they_lie():
    task = supervise.SuperviseTask(config_of("optimizer.layer_decay=0.5"))
    names = {id(p): name for name, p in task.model.named_parameters()}
    rates = {
        names[id(p)]: group["lr_scale"]
        for group in task.optimizer().param_groups
        for p in group["params"]
    }
    assert rates["head.weight"] == 1.0
    assert rates["blocks.1.mlp.fc1.weight"] == 2 * rates["blocks.0.mlp.fc1.weight"]
    assert rates["patch_embed.proj.0.0.weight"] < rates["blocks.0.mlp.fc1.weight"]


def save_weights(folder, classes):
    file = folder / f"{classes}.safetensors"
    save_file(timm.create_model("xcit_nano_12_p8", num_classes=classes).state_dict(), file)
    return file


def test_a_written_model_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_gap", lambda *_: 2e-4)
    model = make_model(config_of().backbone, 32, 3).eval()
    with pytest.raises(FarreachError, match=r"differ from the model's by 2\.0e-04 .* Nothing was"):
        export.write(model, ["a", "b", "c"], 32, 1.0, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_resmlp_is_written_for_onnx_without_its_affine_layers(tmp_path):
    model = make_model(BackboneConfig(name="resmlp_s12", options={"num_blocks": 2}), 32, 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    out = export.write(model, ["a", "b", "c"], 32, 1.0, tmp_path / "out", "onnx")
    names = [one.name for one in onnx.load(out / "model.onnx").graph.initializer]
    assert not [name for name in names if "blocks" in name and "alpha" in name]
    assert [name for name in names if "blocks" in name]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    x = torch.randn(2, 3, 32, 32)
    [found] = session.run(None, {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), atol=1e-4, rtol=1e-4)


def test_the_number_of_classes_is_that_of_the_images():
    with pytest.raises(ConfigError, match=r"num_classes: the images have 22 classes"):
        launch.check(DEBUG, ["backbone.options.num_classes=10"])


@pytest.mark.slow
def test_an_exported_model_is_timms_and_can_teach(tmp_path):
    run = train(tmp_path / "run", "training.epochs=0.05", "average.decay=0.9")
    out = afterwards.export(run.path, tmp_path / "model", "timm")
    config = config_of()
    task = restored(SuperviseTask(config), afterwards.find_checkpoint(run, "best"))
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), task.model(x))
    written = json.loads((out / "config.json").read_text())
    assert written["architecture"] == "xcit_nano_12_p8"
    assert written["label_names"][0] == "animals"
    assert written["pretrained_cfg"]["input_size"] == [3, 32, 32]
    with pytest.raises(ConfigError, match="is there already"):
        afterwards.export(run.path, out, "timm")
    with pytest.raises(ConfigError, match="exported as timm, safetensors or onnx"):
        afterwards.export(run.path, tmp_path / "other", "rllib")

    onnx = afterwards.export(run.path, tmp_path / "onnx", "onnx")
    session = onnxruntime.InferenceSession(str(onnx / "model.onnx"))
    for shape in ((1, 3, 32, 32), (5, 3, 32, 32), (2, 3, 40, 72)):
        x = torch.randn(*shape)
        logits = session.run(None, {"image": x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), model(x), atol=1e-5, rtol=1e-4)
    assert json.loads((onnx / "config.json").read_text())["label_names"][0] == "animals"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".tmp")] == []

    foreign = f"{{name: xcit_nano_12_p8, weights: {save_weights(tmp_path, 1000)}}}"
    with pytest.raises(ConfigError, match=r"^objective\.teacher\.weights.*no head of 22 classes"):
        launch.check(DEBUG, [f"objective.teacher={foreign}"])
    teacher = (
        "objective.teacher={name: xcit_nano_12_p8, options: {depth: 2}, "
        f"weights: {out / 'model.safetensors'}}}"
    )
    for more in (["objective.teacher_temperature=3"], ["objective.teacher_weight=1"]):
        taught = train(tmp_path / more[0], teacher, "training.epochs=0.05", *more)
        lines = read_metrics(taught.metrics_path)
        assert any("learner/agrees_with_teacher" in line for line in lines)


def test_a_teacher_must_have_learned_something():
    teacher = "objective.teacher={name: xcit_nano_12_p8}"
    with pytest.raises(ConfigError, match=r"objective\.teacher\.weights: a teacher must have"):
        launch.check(DEBUG, [teacher])


def test_a_teacher_that_agrees_with_the_labels_changes_nothing():
    """With the label itself as what the teacher names, hard distillation is the plain loss."""
    config = config_of("mix.smoothing=0")
    task = supervise.SuperviseTask(config)
    labels = torch.arange(4)
    seen = {"image": torch.randn(4, 3, 32, 32), "label": labels}
    batch = seen | {"replaced": torch.zeros(4, dtype=torch.bool)}
    plain, _ = task.loss(task.model, batch, 0, 0)
    logits = torch.nn.functional.one_hot(labels, task.classes).float()
    task._teacher = torch.nn.Identity()
    task._teacher.forward = lambda images: logits
    taught, metrics = task.loss(task.model, batch, 0, 0)
    torch.testing.assert_close(taught, plain)
    assert 0.0 <= metrics["learner/agrees_with_teacher"].item() <= 1.0


def test_paths_hold_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of("data.path=images", "backbone.weights=w.pth")
    assert config.data.path == str(tmp_path / "images")
    assert config.backbone.weights == str(tmp_path / "w.pth")
    assert config_of().data.path == "openclipart"


def test_notes_tell_what_drops_paths():
    notes = launch.check(DEBUG, ["backbone.options={depth: 2, drop_path_rate: 0.1}"])
    assert "22 classes" in notes[0]
    assert "drops paths by itself" in notes[1]
    assert isinstance(config_of(), SuperviseConfig)


@pytest.mark.parametrize("name", ["xcit_nano_12_p8", "vit_tiny_patch16_224", "convnext_atto"])
def test_activations_that_are_computed_again_give_the_same_gradients(name):
    options = {} if name == "convnext_atto" else {"depth": 2}
    gradients, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = config_of("training.batch=4").model_copy(
            update={
                "backbone": BackboneConfig(
                    name=name, options=options, drop_path=0.3, checkpointing=checkpointing
                )
            }
        )
        task = SuperviseTask(config)
        task.model.train()
        batch = task.data.batch(np.arange(4), np.arange(4))
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.manual_seed(1)
            loss, _ = task.loss(task.model, batch, 0, 0)
        loss.backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([p.grad.flatten() for p in task.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert kept[1] < 0.6 * kept[0]


def test_a_backbone_can_be_named_by_a_word():
    config = config_of("backbone=resmlp_s12")
    assert config.backbone == BackboneConfig(name="resmlp_s12")


def test_weights_of_another_image_size_are_fitted(tmp_path):
    small = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    trained_at = timm.create_model("vit_tiny_patch16_224", num_classes=22, **small)
    with torch.no_grad():  # positions that say where they are, in a line along each axis
        rows = torch.arange(6.0).repeat_interleave(6)
        trained_at.pos_embed[0, 1:, 0] = rows
    save_file(trained_at.state_dict(), tmp_path / "small.safetensors")
    options = small | {"img_size": 96}
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", options=options, weights=str(tmp_path / "small.safetensors")
    )
    model = make_model(backbone, 96, 22)
    found = model.pos_embed[0, 1:, 0].reshape(12, 12)
    # Twice as many patches a side: positions rise by half a step, with the same middle.
    torch.testing.assert_close(found[4:8].diff(dim=0).mean(), torch.tensor(0.5), atol=0.03, rtol=0)
    torch.testing.assert_close(found.mean(), torch.tensor(2.5), atol=0.01, rtol=0)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, trained_at.blocks[0].mlp.fc1.weight)
