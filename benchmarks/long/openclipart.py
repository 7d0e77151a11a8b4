"""Make the shipped extract of openclipart from Debian's package `openclipart-png`.

`python benchmarks/long/openclipart.py /usr/share/openclipart/png OUT.parquet`. Pictures of 64
pixels on white; duplicates and blanks are left out, and of the generated stars all but 200. A
quarter of each class, chosen by the name without its digits so that variants stay together, is for
evaluation. The pictures are dedicated to the public domain.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 64
LEAST_CONTRAST = 3.0
MOST = {"shapes/stars": 200}
EVALUATION_QUARTER = 4


def square(path: Path) -> Image.Image:
    """The picture in the middle of a white square."""
    image = Image.open(path).convert("RGBA")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (SIDE, SIDE), "white")
    ground.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2), image)
    return ground.convert("RGB")


def main(root: Path, out: Path) -> None:
    """Write the file."""
    Image.MAX_IMAGE_PIXELS = None
    rows: dict[str, list[object]] = {key: [] for key in ("image", "label", "leaf", "name", "split")}
    seen: set[bytes] = set()
    count: Counter[str] = Counter()
    for folder, _, files in sorted(os.walk(root)):
        leaf = Path(folder).relative_to(root).as_posix()
        for file in sorted(files):
            path = Path(folder, file)
            if path.is_symlink() or path.suffix != ".png":
                continue
            image = square(path)
            digest = hashlib.sha256(image.tobytes()).digest()
            too_many = count[leaf] >= MOST.get(leaf, sys.maxsize)
            if too_many or digest in seen or np.asarray(image).std() < LEAST_CONTRAST:
                continue
            seen.add(digest)
            count[leaf] += 1
            stem = re.sub(r"[\d_-]+", "", path.stem.lower())
            part = hashlib.sha256(stem.encode()).digest()[0] % EVALUATION_QUARTER
            data = io.BytesIO()
            image.save(data, "WEBP", quality=80, method=6)
            values = (
                data.getvalue(),
                leaf.split("/")[0],
                leaf,
                path.stem,
                "train" if part else "eval",
            )
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
    pq.write_table(pa.table(rows), out, compression="zstd", row_group_size=1024)
    print(f"{sum(count.values()):,} pictures, {out.stat().st_size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
