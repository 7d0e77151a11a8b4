"""Make a Parquet file of cut-outs, objects on a clear ground, from a folder of classes.

`python benchmarks/long/cutouts.py /usr/share/openclipart/png OUT.parquet food/fruit animals/birds`
and further folders made the shipped ones, from Debian's package `openclipart-png` (public domain).
With `--photos` it keeps what has the colours of a photo: those of `/usr/share/tuxpaint/stamps`,
Debian's `tuxpaint-stamps-default`, which are under the GPL and therefore not shipped. A quarter of
each class, chosen by the name without its digits, is for evaluation, as in `openclipart.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 64
EVALUATION_QUARTER = 4
COVERED = (0.15, 0.98)
PHOTO_COLORS = 400
SKIPPED = ("_mirror.png", "_flip.png", "_mirror_flip.png")


def cut_out(path: Path) -> Image.Image | None:
    """The object without the clear ground around it; None if it fills too little or all of it."""
    image = Image.open(path).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 if alpha > 128 else 0).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    covered = float((np.asarray(image)[..., 3] > 128).mean())
    return image if COVERED[0] < covered < COVERED[1] and min(image.size) >= SIDE // 8 else None


def is_photo(path: Path) -> bool:
    """Whether it has more colours than drawings have."""
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    solid = (pixels[pixels[..., 3] > 128][:, :3] >> 3).astype(int) @ [1024, 32, 1]
    return "cartoon" not in path.as_posix() and len(np.unique(solid)) > PHOTO_COLORS


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("root", type=Path, help="the classes' folders are below it")
    parser.add_argument("out", type=Path)
    parser.add_argument("classes", nargs="+")
    parser.add_argument("--photos", action="store_true")
    parser.add_argument("--most", type=int, default=250, help="of a class; default: %(default)s")
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    rows: dict[str, list[object]] = {key: [] for key in ("image", "label", "name", "split")}
    seen: set[bytes] = set()
    count: Counter[str] = Counter()
    for folder in arguments.classes:
        label = Path(folder).name
        for path in sorted((arguments.root / folder).rglob("*.png")):
            if path.is_symlink() or path.name.endswith(SKIPPED) or count[label] >= arguments.most:
                continue
            if arguments.photos and not is_photo(path):
                continue
            image = cut_out(path)
            if image is None:
                continue
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            count[label] += 1
            stem = re.sub(r"[\d_-]+", "", path.stem.lower())
            part = hashlib.sha256(stem.encode()).digest()[0] % EVALUATION_QUARTER
            data = io.BytesIO()
            image.save(data, "WEBP", quality=80, method=6)
            values = (data.getvalue(), label, path.stem, "train" if part else "eval")
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
    pq.write_table(pa.table(rows), arguments.out, compression="zstd", row_group_size=1024)
    print(f"{dict(count)}, {arguments.out.stat().st_size / 1e6:.1f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
