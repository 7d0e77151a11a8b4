import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from farreach import afterwards, launch
from farreach.errors import ConfigError, DataError
from farreach_workloads.vision.config import ImagesConfig
from farreach_workloads.vision.evaluation import judgement, transfer
from farreach_workloads.vision.evaluation.edits import KINDS, EditedImages, edited
from farreach_workloads.vision.evaluation.judgement import FairnessConfig, ShiftConfig
from farreach_workloads.vision.evaluation.transfer import CopiesConfig, RetrievalConfig
from farreach_workloads.vision.image_sets import images_of


@dataclass
class Fake:
    """A source whose features are a function of the picture."""

    function: object
    size: int = 16

    def of(self, images, kinds):
        pixels = [np.asarray(images.load(i).resize((16, 16))) for i in range(len(images))]
        x = torch.from_numpy(np.stack(pixels)).float().permute(0, 3, 1, 2) / 255
        return {kind: self.function(x) for kind in kinds}


def solid(path, colour, size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_every_edit_changes_the_image_and_is_the_same_again():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    image, other = Image.fromarray(pixels), Image.new("RGB", (24, 24), "red")
    for kind in KINDS:
        one, again = (edited(image.copy(), kind, other, np.random.default_rng(3)) for _ in range(2))
        assert one.tobytes() == again.tobytes(), kind
        assert one.size != image.size or one.tobytes() != image.tobytes(), kind
    _, held_out = images_of(ImagesConfig())
    copies = EditedImages(held_out.subset(np.arange(5)), 0)
    assert copies.load(2).tobytes() == copies.load(2).tobytes()
    assert (
        copies.load(2).tobytes() != EditedImages(held_out.subset(np.arange(5)), 1).load(2).tobytes()
    )


def test_pixels_find_copies_better_than_chance_and_a_constant_does_not():
    settings = CopiesConfig(images=40, pooling="features")
    by_pixels = transfer.find_copies(
        Fake(lambda x: x.flatten(1) - 0.5), ImagesConfig(), settings, 0
    )
    blind = transfer.find_copies(Fake(lambda x: torch.ones(len(x), 4)), ImagesConfig(), settings, 0)
    assert by_pixels["copies/recall_at_1"] >= 0.2
    assert blind["copies/recall_at_1"] <= 1 / 40
    assert by_pixels["copies/map"] > 4 * blind["copies/map"]
    maps = transfer.find_copies(Fake(lambda x: x), ImagesConfig(), CopiesConfig(images=20), 0)
    assert 0 < maps["copies/micro_ap"] <= 1


def test_faces_with_the_same_attribute(tmp_path):
    """Colour tells the gender: neighbours by colour always share it."""
    rows = []
    for number, (gender, colour) in enumerate([("male", "red"), ("female", "blue")] * 3):
        solid(tmp_path / f"q{number}.png", colour)
        rows.append(f"q{number}.png,{20 + number},{gender},{1 + number}")
    (tmp_path / "queries.csv").write_text("\n".join(["path,age,gender,skin_tone", *rows]))
    for age, number, colour in ((20, 0, "red"), (30, 1, "blue"), (40, 0, "red")):
        solid(tmp_path / "utk" / f"{age}_{number}_0_2017.png", colour)
    settings = RetrievalConfig(
        queries=str(tmp_path / "queries.csv"),
        references=str(tmp_path / "utk"),
        groups=("gender", "skin_tone"),
        neighbours=(1,),
    )
    found = transfer.same_attribute(Fake(lambda x: x.mean((2, 3))), settings)
    assert found["retrieval/at_1/male_lighter/share"] == 1
    assert found["retrieval/at_1/female_darker/count"] == 2
    # Without the order of the channels all look alike, and the first reference is a man's.
    alike = transfer.same_attribute(Fake(lambda x: x.mean((2, 3)).sort(1).values), settings)
    assert alike["retrieval/at_1/male_lighter/share"] == 1
    assert alike["retrieval/at_1/female_darker/share"] == 0
    with pytest.raises(ConfigError, match="has no column 'income'"):
        transfer.same_attribute(
            Fake(lambda x: x.mean((2, 3))), settings.model_copy(update={"attribute": "income"})
        )
    with pytest.raises(ConfigError, match=r"queries: where is it\?"):
        transfer.same_attribute(Fake(None), RetrievalConfig())


def two_classes(tmp_path):
    for part in ("train", "val"):
        for number in range(3):
            solid(tmp_path / "base" / part / "blue" / f"{number}.png", (0, 0, 200 + number))
            solid(tmp_path / "base" / part / "red" / f"{number}.png", (200 + number, 0, 0))
    return ImagesConfig(path=str(tmp_path / "base"))


def by_colour(x):
    """Logits of blue and red."""
    return torch.stack([x[:, 2].mean((1, 2)), x[:, 0].mean((1, 2))], 1)


def test_shift_is_measured_against_the_held_out_images(tmp_path):
    images = two_classes(tmp_path)
    for number in range(4):
        solid(tmp_path / "odd" / "red" / f"{number}.png", (0, 0, 250) if number else (250, 0, 0))
    settings = ShiftConfig(sets={"odd": str(tmp_path / "odd")})
    found = judgement.shifted(Fake(by_colour), images, settings)
    assert found["shift/base/top1"] == 1
    # Only red is there, and so it is all that can be said.
    assert found["shift/odd/top1"] == 1
    solid(tmp_path / "odd" / "blue" / "0.png", (0, 0, 250))
    found = judgement.shifted(Fake(by_colour), images, settings)
    assert found["shift/odd/top1"] == pytest.approx(2 / 5)
    assert found["shift/odd/drop"] == pytest.approx(3 / 5)
    with pytest.raises(ConfigError, match="name some"):
        judgement.shifted(Fake(by_colour), images, ShiftConfig())


def test_labels_of_a_category_by_group(tmp_path):
    images = two_classes(tmp_path)
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "blue")):
        solid(tmp_path / f"{name}.png", colour)
    (tmp_path / "faces.csv").write_text("path,gender\na.png,f\nb.png,f\nc.png,m\n")
    (tmp_path / "labels.json").write_text(json.dumps({"red": "crime"}))
    settings = FairnessConfig(
        layout="table",
        path=str(tmp_path / "faces.csv"),
        groups=("gender",),
        categories=str(tmp_path / "labels.json"),
        top=1,
    )
    found = judgement.fairness(Fake(by_colour), images, settings, 0)
    assert found["fairness/association/crime/f/share"] == 0.5
    assert found["fairness/association/crime/m/share"] == 0
    assert found["fairness/association/crime/f/count"] == 2
    (tmp_path / "labels.json").write_text(json.dumps({"green": "crime"}))
    with pytest.raises(DataError, match="'green' and 0 others are no classes"):
        judgement.fairness(Fake(by_colour), images, settings, 0)


@pytest.mark.slow
def test_a_classifier_has_all_evaluations(tmp_path):
    run = launch.train("vision/classify_clipart_debug", run_dir=tmp_path / "run")
    own = json.loads(run.result_path.read_text())
    images = two_classes(tmp_path)
    for what, words, expected in (
        ("knn", ["neighbours=[5]", "references=200"], "knn/top1_5"),
        ("linear", ["layers=true", "epochs=1", "references=200"], "linear/layer_1/top1"),
        ("copies", ["images=20"], "copies/map"),
        ("structured", ["scenes=240", "epochs=1"], "count/top1"),
    ):
        found = afterwards.evaluate(run.path, what=what, words=words)
        assert 0 <= found[expected] <= 1, what
    with pytest.raises(DataError, match="no such class"):
        afterwards.evaluate(run.path, what="shift", words=[f"sets={{x: {images.path}/val}}"])
    (tmp_path / "some").mkdir()
    solid(tmp_path / "some" / "food" / "0.png", "red")
    words = [f"sets={{some: {tmp_path / 'some'}}}"]
    found = afterwards.evaluate(run.path, what="shift", words=words)
    assert found["shift/base/top1"] == pytest.approx(own["evaluation/top1"], abs=1e-6)
    assert found["shift/some/top1"] == 1
