import json

import pytest

from l0plane.files import (
    UserError,
    read_json,
    read_sealed,
    rebuilt_by_the_run,
    replacing,
    sealed,
    sha256,
    write_json,
)


def names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_replacing_writes_a_file_whole_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as part:
        part.write_text("a,b\n")
        assert part.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "a,b\n"
    assert names(path.parent) == ["table.csv"]


def test_replacing_leaves_nothing_behind_when_the_block_raises(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        1 / 0  # noqa: B018
    assert names(tmp_path) == []


def test_replacing_keeps_the_old_file_when_the_block_raises(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("name", ["table.csv", "model"])
def test_what_a_killed_process_left_half_written_goes(tmp_path, name):
    (tmp_path / ".77.part.model").mkdir()
    (tmp_path / ".77.part.model/weights").touch()
    (tmp_path / ".77.part.table.csv").touch()
    (tmp_path / ".77.part.other.csv").touch()
    with replacing(tmp_path / name) as part:
        part.write_text("")
    assert ".77.part.other.csv" in names(tmp_path)
    assert f".77.part.{name}" not in names(tmp_path)


def test_sealed_json_tells_when_it_is_not_what_was_written(tmp_path):
    path = tmp_path / "a" / "manifest.json"
    value = {"rate": 1e-3, "shares": (0.05, float("nan")), "seed": 0}
    write_json(path, sealed(value))
    assert read_sealed(path)["rate"] == 1e-3
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    command = f"to rebuild it: rm -r {path.parent}, then the same snakemake command again"
    said = pytest.raises(UserError, match=f"not what was written; {command}")
    with said, rebuilt_by_the_run(path.parent):
        read_sealed(path)
    write_json(path, value)  # of somebody else, who seals nothing
    assert read_sealed(path)["seed"] == 0


def test_replacing_swaps_a_whole_directory(tmp_path):
    path = tmp_path / "model"
    for content in ("old.json", "new.json"):
        with replacing(path) as part:
            part.mkdir()
            (part / content).write_text("{}")
    assert names(path) == ["new.json"]
    assert names(tmp_path) == ["model"]


def test_replacing_keeps_the_old_directory_when_the_block_wrote_nothing(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert names(path) == ["weights"]


def test_json_survives_writing_and_reading(tmp_path):
    value = {"l0": 16, "label": "TopK", "shares": [0.05, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert list(json.loads((tmp_path / "a.json").read_text())) == list(value)


@pytest.mark.parametrize("content", [b'{"l0": ', b"\xff\xfe", None])
def test_unreadable_json_names_the_file(tmp_path, content):
    path = tmp_path / "cfg.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cfg\.json"):
        read_json(path)


def test_sha256_tells_names_and_contents_apart(tmp_path):
    def directory(name, files):
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return sha256(tmp_path / name)

    reference = directory("a", {"x": b"1", "sub/y": b"2"})
    assert directory("b", {"sub/y": b"2", "x": b"1"}) == reference
    assert directory("c", {"x": b"2", "sub/y": b"2"}) != reference
    assert directory("d", {"z": b"1", "sub/y": b"2"}) != reference


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea")
