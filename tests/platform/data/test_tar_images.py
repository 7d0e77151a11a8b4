import io
import tarfile

import pytest
import webdataset
from PIL import Image

from farreach.data.images import TarImages
from farreach.errors import DataError

BLOCK = 512
MEMBER = 4 * BLOCK
THIRD = 4 * MEMBER  # where the third sample begins
END = 6 * MEMBER


def encoded(value):
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Three samples of two members; four blocks each, the first and third of which are headers."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number}", "png": encoded(number), "cls": "0"})
    file = tmp_path / "a.tar"
    with tarfile.open(file) as content:
        assert [member.offset for member in content] == [n * MEMBER for n in range(6)]
    return file


def read(file):
    images = TarImages([file])
    return [images.load(row).getpixel((0, 0))[0] for row in range(len(images))]


def test_a_whole_archive_is_read(archive):
    assert read(archive) == [0, 1, 2]


@pytest.mark.parametrize(("end", "samples"), [(THIRD, 2), (END, 3), (END + BLOCK, 3)])
def test_zeros_at_the_end_may_be_left_out(archive, end, samples):
    # As some writers do; one that is cut off between two members cannot be told from it.
    archive.write_bytes(archive.read_bytes()[:end])
    assert read(archive) == [0, 1, 2][:samples]


def cut_header(content):
    return content[: THIRD + 100]


def cut_second_header(content):
    return content[: THIRD + 2 * BLOCK + 100]


def cut_content(content):
    return content[: THIRD + 3 * BLOCK + 1]


def bad_header(content):
    return content[:THIRD] + b"x" * BLOCK + content[THIRD + BLOCK :]


def lost_header(content):
    return content[:THIRD] + bytes(BLOCK) + content[THIRD + BLOCK :]


def joined(content):
    return content + content


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_header, rf"a\.tar: is damaged at byte {THIRD}, where a header should be"),
        (cut_second_header, rf"a\.tar: is no tar file .* begins at byte {THIRD - MEMBER}\."),
        (cut_content, rf"a\.tar: is no tar file .*end of data, .* begins at byte {THIRD}\."),
        (bad_header, rf"a\.tar: is damaged at byte {THIRD}, where a header should be"),
        (lost_header, rf"a\.tar: goes on after its end at byte {THIRD}"),
        (joined, rf"a\.tar: goes on after its end at byte {END}"),
    ],
)
def test_a_damaged_archive_is_refused(archive, spoil, message):
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(DataError, match=message):
        TarImages([archive])
