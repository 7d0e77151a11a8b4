"""Make a Parquet file of pictures with one object each, on a drawn ground, to learn its class from.

`python benchmarks/long/objects.py CUT_OUTS OUT` takes cut-outs as `cutouts.py` makes them. What
learns from such pictures has seen objects of the sizes, and before the grounds, that the scenes of
`vision/segment_scenes` have; cut-outs for evaluation are in no picture to train on there either, as
`cutouts.py` tells them by their names.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from farreach.data.images import ImageSet, open_images
from farreach_workloads.vision.dense.scenes import drawn_ground

Numbers = NDArray[np.float64]
# Of the side: how long the longer side of an object is.
SHORTEST, LONGEST = 0.42, 0.96


def picture(
    cut_outs: Sequence[Image.Image], chances: Numbers, side: int, rng: np.random.Generator
) -> tuple[Image.Image, int]:
    """One of the cut-outs, of any size, somewhere on a ground; and which it is."""
    ground = drawn_ground(rng, side)
    row = int(rng.choice(len(cut_outs), p=chances))
    cut_out = cut_outs[row]
    if rng.random() < 0.5:
        cut_out = ImageOps.mirror(cut_out)
    longer = int(rng.integers(round(SHORTEST * side), round(LONGEST * side) + 1))
    scale = longer / max(cut_out.size)
    width, height = (max(1, round(scale * length)) for length in cut_out.size)
    cut_out = cut_out.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (int(rng.integers(0, side - length + 1)) for length in cut_out.size)
    ground.paste(cut_out, (left, top), cut_out)
    return ground, row


def pictures(cut_outs: ImageSet, count: int, side: int, seed: int) -> list[tuple[bytes, str]]:
    """So many as PNG with their classes; rare ones are drawn more often than their share."""
    kept = [cut_outs.load_cut_out(row) for row in range(len(cut_outs))]
    sizes = np.bincount(cut_outs.labels, minlength=len(cut_outs.classes))
    chances = sizes[cut_outs.labels] ** -0.5
    chances /= chances.sum()
    made = []
    for index in range(count):
        image, row = picture(kept, chances, side, np.random.default_rng([seed, index]))
        data = io.BytesIO()
        image.save(data, "PNG")
        made.append((data.getvalue(), cut_outs.classes[cut_outs.labels[row]]))
    return made


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cut_outs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=48, help="in pixels; default: %(default)s")
    parser.add_argument("--train", type=int, default=16_000, help="default: %(default)s")
    parser.add_argument("--held-out", type=int, default=1_200, help="default: %(default)s")
    arguments = parser.parse_args()
    rows: dict[str, list[object]] = {key: [] for key in ("image", "label", "split")}
    counts = {"train": arguments.train, "eval": arguments.held_out}
    sets = open_images(arguments.cut_outs)
    for seed, (images, (split, number)) in enumerate(zip(sets, counts.items(), strict=True)):
        for data, label in pictures(images, number, arguments.side, seed):
            for key, value in zip(rows, (data, label, split), strict=True):
                rows[key].append(value)
    pq.write_table(pa.table(rows), arguments.out, row_group_size=1024)
    count = len(rows["image"])
    print(f"{count:,} pictures of {len(set(rows['label']))} classes in {arguments.out}")


if __name__ == "__main__":
    main()
