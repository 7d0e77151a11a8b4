from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from farreach_workloads.goals import pictures
from farreach_workloads.goals.evaluate import Outcome

SIZE = (660, 594)  # 6 × 5.4 inches at 110 dots
NAMES = ["memory", "reachability", "distances", "success", "visits", "paths"]


def outcome(final, least, shift=0.0):
    """Goals at the corners of an octagon, walked to on straight lines."""
    n = len(final)
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    goals = np.stack([4 * np.cos(angle), 4 * np.sin(angle) + shift, 0 * angle], axis=1)
    walked = goals[:, None] * np.linspace(0, 1, 7)[None, :, None]
    return Outcome(goals, np.array(final, float), np.array(least, float), walked)


REACHED, PASSED, MISSED = (0.1, 0.1), (2.0, 0.1), (2.0, 2.0)


def outcomes(*kinds, shift=0.0):
    return outcome(*zip(*kinds, strict=True), shift=shift)


@pytest.fixture(scope="module")
def draw(toy, tmp_path_factory):
    def drawn(*names, bundle=None, seen=None, visits=(3, 0), env=None):
        """Pixels of each picture; of those named only, if any are."""
        folder = tmp_path_factory.mktemp("figures") / "new"
        with pytest.MonkeyPatch.context() as patch:
            if names:
                chosen = {name: pictures.PICTURES[name] for name in names}
                patch.setattr(pictures, "PICTURES", chosen)
            files = pictures.draw_all(
                toy.config(),
                env or toy.env(),
                bundle or toy.line(5, apart=1.5),
                seen or outcomes(*[REACHED] * 8),
                np.array(visits, int),
                folder,
                "000000007",
            )
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            f"{name}-000000007.png" for name in files
        )
        return {name: np.array(Image.open(path).convert("RGB")) for name, path in files.items()}

    return drawn


@pytest.fixture(scope="module")
def plain(draw):
    return draw()


def pixels_near(picture, colour):
    return int((np.abs(picture.astype(int) - colour).max(axis=2) < 12).sum())


@pytest.mark.parametrize("name", NAMES)
def test_each_picture_is_written_in_its_size_and_is_not_blank(plain, name):
    assert list(plain) == NAMES
    picture = plain[name]
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    inner = picture[150:450, 150:400]  # without title and axes
    assert len(np.unique(inner.reshape(-1, 3), axis=0)) > 3


def test_edges_through_walls_are_drawn_in_red(draw, plain, toy):
    red = (214, 39, 40)
    assert pixels_near(plain["memory"], red) == 0
    # Nodes 1.5 apart in a line, and an edge from the first to the last, 6 long: over 8 × 0.5.
    edges = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
    shortcut = draw("memory", bundle=toy.bundle(np.arange(5) * 1.5, edges))
    assert pixels_near(shortcut["memory"], red) > 20


def test_pictures_of_the_memory_change_with_the_memory(draw, plain, toy):
    other = draw(bundle=toy.line(4, apart=1.0))
    for name in ("memory", "reachability", "distances", "paths"):
        assert (other[name] != plain[name]).any(), name
    for name in ("success", "visits"):
        np.testing.assert_array_equal(other[name], plain[name])


def test_success_shows_reached_passed_and_missed_goals_in_their_colours(draw):
    green, orange, red = (44, 160, 44), (255, 127, 14), (214, 39, 40)
    for kind, shown in ((REACHED, green), (PASSED, orange), (MISSED, red)):
        picture = draw("success", seen=outcomes(*[kind] * 8))["success"]
        counts = {colour: pixels_near(picture, colour) for colour in (green, orange, red)}
        assert max(counts, key=counts.get) == shown
        # Eight goals and one in the legend against one in the legend.
        assert counts[shown] > 5 * sorted(counts.values())[1]


def test_visits_show_which_side_was_visited(draw):
    bright = [
        draw("visits", visits=visits)["visits"][150:450, 100:480].mean(axis=2)
        for visits in ((10_000, 0), (0, 10_000))
    ]
    left, right = slice(0, 150), slice(-150, None)
    assert bright[0][:, left].mean() > bright[0][:, right].mean() + 50
    assert bright[1][:, right].mean() > bright[1][:, left].mean() + 50


def test_paths_show_what_was_walked(draw, plain):
    other = draw("paths", seen=outcomes(*[REACHED] * 8, shift=2.0))
    assert (other["paths"] != plain["paths"]).any()


def test_planned_pictures_show_the_planned_outcome_and_are_left_out_without_one(draw):
    green, red = (44, 160, 44), (214, 39, 40)
    flat = outcomes(*[MISSED] * 8)
    names = ("success", "paths", "success_planned", "paths_planned")
    assert list(draw(*names, seen=flat)) == ["success", "paths"]
    found = draw(*names, seen=replace(flat, planned=outcomes(*[REACHED] * 8, shift=2.0)))
    assert list(found) == list(names)
    assert pixels_near(found["success"], red) > pixels_near(found["success"], green)
    planned = found["success_planned"]
    assert pixels_near(planned, green) > pixels_near(planned, red)
    assert (found["paths"] != found["paths_planned"]).any()


def test_without_a_notion_of_cells_there_is_no_picture_of_visits(draw):
    assert list(draw("visits", "success", visits=())) == ["success"]


@pytest.fixture
def rendered(toy):
    class Rendered(toy.Plane):
        spec = replace(toy.Plane.spec, plane_dims=None)

        def render(self, observations):
            """Red is x, green is 200."""
            frames = np.zeros((len(observations), 8, 10, 3), np.uint8)
            frames[..., 0] = (observations[:, 0] * 10 + 100).astype(np.uint8)[:, None, None]
            frames[..., 1] = 200
            return frames

    return Rendered(1, np.random.default_rng(0))


def test_an_environment_that_renders_gives_goals_above_final_states(draw, rendered):
    # Three of these lie on the right and one on the left; the first of either side is shown.
    seen = outcomes(REACHED, MISSED, MISSED, REACHED)
    seen.goals[:, 0] = [3, 4, -2, 5]
    seen.positions[:, -1, 0] = [7, 0, -6, 0]
    files = draw(seen=seen, env=rendered)
    assert list(files) == ["frames"]
    picture = files["frames"]
    height, width, _ = picture.shape
    for column, goal, end, reached in ((0, -2, -6, False), (1, 3, 7, True)):
        half = picture[:, width * column // 2 : width * (column + 1) // 2]
        for rows, x in ((slice(0, height // 2), goal), (slice(height // 2, height), end)):
            assert pixels_near(half[rows], (100 + 10 * x, 200, 0)) > 2000, (column, x)
        green, red = pixels_near(half, (44, 160, 44)), pixels_near(half, (214, 39, 40))
        assert (green > 100 + red) if reached else (red > 100 + green)


# ---------------------------------------------------------------------------------- animation


def write_frames(folder, count):
    for index in range(count):
        colour = (5 * index, 200 - 5 * index, 100)
        Image.new("RGB", (20, 10), colour).save(folder / f"visits-{index:09d}.png")


def frames_of(path):
    with Image.open(path) as animation:
        colours = []
        for index in range(animation.n_frames):
            animation.seek(index)
            colours.append(animation.convert("RGB").getpixel((3, 3)))
        return colours


def test_an_animation_has_a_frame_for_each_picture_in_their_order(tmp_path):
    write_frames(tmp_path, 5)
    Image.new("RGB", (20, 10)).save(tmp_path / "memory-000000009.png")
    target = pictures.animate(tmp_path, "visits")
    assert target == tmp_path / "visits.gif"
    reds = [colour[0] for colour in frames_of(target)]
    assert reds == pytest.approx([0, 5, 10, 15, 20], abs=2)


def test_a_long_animation_is_thinned_out_but_keeps_both_ends(tmp_path):
    write_frames(tmp_path, 40)
    target = pictures.animate(tmp_path, "visits")
    reds = [colour[0] for colour in frames_of(target)]
    assert len(reds) == 24
    assert (reds[0], reds[-1]) == pytest.approx((0, 195), abs=2)
    assert reds == sorted(reds)


def test_there_is_no_animation_of_nothing(tmp_path):
    assert pictures.animate(tmp_path, "visits") is None
    assert list(tmp_path.iterdir()) == []
