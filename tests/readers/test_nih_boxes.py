"""NIH's list of boxes, packed or not."""

import gzip

import pytest

from pcrl_cli.core.errors import DataError
from pcrl_cli.readers.nih_boxes import boxes

TEXT = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    "00000001_000.png,Atelectasis,256,512,128,64.0,,,\n"
    "00000001_000.png,Atelectasis,0,0,1024,1024,,,\n"
    "00000002_000.png,Infiltrate,10.24,20.48,30.72,40.96,,,\n"
)


@pytest.mark.parametrize("packed", [False, True])
def test_boxes_are_shares_of_the_sides_by_image_and_finding(tmp_path, packed):
    if packed:
        (tmp_path / "BBox_List_2017.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    else:
        (tmp_path / "BBox_List_2017.csv").write_text(TEXT, encoding="utf-8")
    assert boxes(tmp_path) == {
        ("00000001_000.png", "Atelectasis"): [(0.25, 0.5, 0.125, 0.0625), (0.0, 0.0, 1.0, 1.0)],
        ("00000002_000.png", "Infiltration"): [(pytest.approx(0.01), *map(pytest.approx, (0.02, 0.03, 0.04)))],
    }


def test_a_folder_without_a_list_has_no_boxes(tmp_path):
    assert boxes(tmp_path) == {}


@pytest.mark.parametrize("text", ["h\na.png,Mass,1,2,x,4\n", "h\na.png,Mass,1,2\n"])
def test_a_line_that_is_no_box_is_named(tmp_path, text):
    (tmp_path / "BBox_List_2017.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        boxes(tmp_path)


def test_a_torn_list_is_told(tmp_path):
    (tmp_path / "BBox_List_2017.csv.gz").write_bytes(gzip.compress(TEXT.encode())[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        boxes(tmp_path)


def test_a_list_with_a_flipped_byte_is_told(tmp_path):
    packed = bytearray(gzip.compress(TEXT.encode()))
    packed[10] ^= 0xFF  # the first byte that is deflated
    (tmp_path / "BBox_List_2017.csv.gz").write_bytes(packed)
    with pytest.raises(DataError, match="cannot be read"):
        boxes(tmp_path)


def test_a_list_that_is_no_table_is_told(tmp_path):
    (tmp_path / "BBox_List_2017.csv").write_text("h\n" + 200_000 * "a", encoding="utf-8")  # longer than a field may be
    with pytest.raises(DataError, match="cannot be read"):
        boxes(tmp_path)


@pytest.mark.real
def test_the_official_list_is_read_whole(real_data):
    found = boxes(real_data / "ChestXray14")
    assert sum(map(len, found.values())) == 984
    names = {finding for _, finding in found}
    assert "Infiltration" in names
    assert len(names) == 8
    assert all(0 <= v <= 1.001 for each in found.values() for box in each for v in box)
