import ast
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l0plane import corpus
from l0plane.corpus import build, docstring_documents, file_documents, split_of, split_texts
from l0plane.files import UserError, read_json

SHARES = {"validation": 0.2, "test": 0.2}


def texts(patterns, **options):
    return [document.text for document in file_documents(map(str, patterns), **options)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_lines(directory, lines, **spec):
    """Build the corpus of a `.jsonl` file of `lines`; return the table's rows and the manifest."""
    directory.mkdir(exist_ok=True)
    source = write_lines(directory / "lines.jsonl", [{"text": line} for line in lines])
    spec = {"source": "files", "paths": [str(source)], **SHARES, **spec}
    build(spec, directory / "documents.parquet", directory / "manifest.json")
    rows = pq.read_table(directory / "documents.parquet").to_pylist()
    return rows, read_json(directory / "manifest.json")


# --- docstrings


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a package of the given modules where Python looks for them."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def install(package, modules):
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{package}/{name},,\n" for name in modules))
        (site / package).mkdir()
        for name, code in modules.items():
            (site / package / name).write_text(code)

    return install


def sentence(word):
    return f"Return the {word} of the array, computed along the given axis, as an array of floats."


def function(name, docstring):
    return f'def {name}():\n    """{docstring}"""\n'


def test_a_module_is_one_document_of_its_long_docstrings(install):
    code = f'"""{sentence("mean")}"""\n' + function("f", sentence("sum")) + function("g", "Short.")
    install("zebra", {"b.py": code, "a.py": "x = 1\n", "data.txt": code})
    (document,) = docstring_documents(["zebra"])
    assert document.source == "zebra/zebra/b.py"
    assert document.text == sentence("mean") + "\n\n" + sentence("sum")


BLOCKS = """
try:
    {0}
except A:
    {1}
except B:
    {2}
else:
    {3}
finally:
    {4}
for i in lambda: 1:
    {5}
else:
    while 0:
        {6}
    else:
        with a if b else c:
            {7}
match x:
    case 1:
        {8}
    case _:
        {9}
class C:
    {10}
    async def f():
        {11}
"""


def test_definitions_are_found_wherever_they_stand(install):
    said = [sentence(f"mean of definition {i}") for i in range(12)]
    code = BLOCKS.format(*(f'def f(): """{text}"""' for text in said))
    install("zebra", {"a.py": code})
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    walked = [ast.get_docstring(n) for n in ast.walk(ast.parse(code)) if isinstance(n, kinds)]
    expected = [text for text in walked if text]
    assert sorted(expected) == sorted(said)
    (document,) = docstring_documents(["zebra"])
    assert document.text == "\n\n".join(expected)


def test_a_docstring_stands_in_the_first_module_only(install):
    repeated = function("f", sentence("sum"))
    install("zebra", {"a.py": repeated, "b.py": repeated})
    install("Yak", {"c.py": repeated + function("h", sentence("mean"))})
    documents = list(docstring_documents(["zebra", "Yak"]))
    assert [d.text for d in documents] == [sentence("sum") + "\n\n" + sentence("mean")]


def test_a_module_that_does_not_parse_is_passed_over(install):
    install("zebra", {"a.py": f'"""{sentence("sum")}"""\n{{% template %}}\n'})
    assert list(docstring_documents(["zebra"])) == []


def test_modules_are_parsed_and_never_run(install, tmp_path):
    mark = tmp_path / "ran"
    code = function("f", sentence("sum")) + f"open({str(mark)!r}, 'w').close()\n"
    install("zebra", {"__init__.py": code})
    assert len(list(docstring_documents(["zebra"]))) == 1
    assert not mark.exists()


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(UserError, match=r"corpus\.packages: 'no-such-package'.*requirements\.lock"):
        list(docstring_documents(["no-such-package"]))


# --- the user's own files


def test_every_kind_of_file_gives_its_documents_in_order(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ndocument", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "zwei — 二"}\n\n{"body": "trois", "id": 3}\n')
    pq.write_table(pa.table({"body": ["four", "five"], "id": [4, 5]}), tmp_path / "c.parquet")
    found = list(file_documents([str(tmp_path / "*")], column="body"))
    assert [d.text for d in found] == ["one\n\ndocument", "zwei — 二", "trois", "four", "five"]
    assert [Path(d.source).name for d in found] == [
        "a.txt",
        "b.jsonl:1",
        "b.jsonl:3",
        "c.parquet:0",
        "c.parquet:1",
    ]


def test_paths_may_be_relative_and_globs_may_descend(tmp_path, monkeypatch):
    for name in ("x/one.txt", "x/y/two.txt", "z/three.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "z")
    assert texts(["../x/**/*.txt", "three.txt"]) == ["x/one.txt", "x/y/two.txt", "z/three.txt"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.paths: no file matches '.*none\*\.txt'"):
        texts([tmp_path / "none*.txt"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 text \(byte 3\)"),
        ("a.txt", b"\x7fELF\0\0\1", r"a\.txt: holds zero bytes"),
        ("a.docx", b"text", r"a\.docx: expected a file ending in \.txt, \.jsonl or \.parquet"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', r"a\.jsonl:2: .* string field 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: .* string field 'text'"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl:1: expected an object"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: .* surrogate"),
        ("a.parquet", b"PAR1 but not really", r"a\.parquet: not a readable Parquet file"),
        ("a.parquet", b"", r"a\.parquet: not a readable Parquet file"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        texts([tmp_path / name])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array(["x", None]), "row 1 of column 'text' is not a string"),
        (pa.array([b"x"]), "row 0 of column 'text' is not a string"),
        (pa.array([b"\xff"]).view(pa.string()), "not a readable Parquet file"),
    ],
)
def test_a_bad_parquet_value_is_named(tmp_path, values, message):
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: {message}"):
        texts([tmp_path / "a.parquet"])


def test_a_missing_parquet_column_is_named_beside_those_there(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'text'; it has \['body'\]"):
        texts([tmp_path / "a.parquet"])


# --- a data set in the hub's layout


@pytest.fixture
def offline(monkeypatch):
    """The hub as it is without a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def hub(dataset, **spec):
    return [d.text for d in corpus.read_documents({"source": "hub", "dataset": dataset, **spec})]


@pytest.fixture
def hub_directory(tmp_path):
    directory = tmp_path / "pile"
    (directory / "data").mkdir(parents=True)
    table = pa.table({"text": [f"document {i}" for i in range(5)], "id": range(5)})
    pq.write_table(table, directory / "data" / "train-00000-of-00001.parquet")
    return str(directory)


def test_a_directory_in_the_hubs_layout_is_read_up_to_the_asked_number(
    offline, hub_directory, capsys
):
    assert hub(hub_directory, documents=3) == ["document 0", "document 1", "document 2"]
    assert "documents;" not in capsys.readouterr().out
    assert len(hub(hub_directory, documents=100)) == 5
    assert "has 5 documents; corpus.documents: 100" in capsys.readouterr().out


def test_files_are_streamed_one_by_one_no_further_than_needed(offline, tmp_path):
    # As the hub lays out what it converts to Parquet itself, of a large data set.
    folder = tmp_path / "openwebtext/plain_text/partial-train"
    folder.mkdir(parents=True)
    for number in range(3):
        table = pa.table({"text": [f"document {number}-{row}" for row in range(4)]})
        pq.write_table(table, folder / f"{number:04d}.parquet")
    (folder / "0003.parquet").write_bytes(b"not Parquet")
    dataset = str(tmp_path / "openwebtext")
    found = hub(dataset, documents=10, revision="refs/convert/parquet")
    assert found == [f"document {place // 4}-{place % 4}" for place in range(10)]
    with pytest.raises(UserError, match=r"corpus\.dataset: cannot read"):
        hub(dataset, documents=13)


def test_the_revision_is_the_one_that_is_asked_for(monkeypatch):
    import datasets

    def load_dataset(name, subset, *, split, revision, streaming):
        assert streaming
        return [{"text": f"{name} {split} {revision}"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert hub("a/b", documents=1) == ["a/b train None"]
    assert hub("a/b", documents=1, revision="v1") == ["a/b train v1"]


# --- splitting and storing


def test_duplicates_are_removed_and_counted(tmp_path):
    lines = [f"document {i % 60}" for i in range(100)] + ["  \n"]
    rows, manifest = build_lines(tmp_path, lines)
    assert [row["text"] for row in rows] == [f"document {i}" for i in range(60)]
    assert manifest["duplicates_removed"] == 40
    assert manifest["documents"] == Counter(row["split"] for row in rows)


def test_no_document_stands_in_two_splits(tmp_path):
    build_lines(tmp_path, [f"document {i % 60}" for i in range(100)])
    splits = [set(split_texts(tmp_path / "documents.parquet", s)) for s in corpus.SPLITS]
    assert all(splits)
    assert len(set.union(*splits)) == sum(map(len, splits)) == 60


def long_paragraph(number):
    return f"Paragraph {number} says what many modules say, at enough length to be known again."


def sharing_documents(seed=0):
    """Documents of a few paragraphs each, long and short, of which many stand in several."""
    draw = random.Random(seed)
    paragraphs = [long_paragraph(i) for i in range(150)] + [f"Short {i}." for i in range(20)]
    # Some wrapped at another place, some unwrapped and far longer than a line, without blank lines.
    paragraphs += [paragraph.replace(" says ", "\n  says ") for paragraph in paragraphs[:40]]
    paragraphs += [" ".join([long_paragraph(i)] * 4) for i in range(200, 240)]
    return [
        draw.choice(["\n\n", "\n", "\n \t\n\n"]).join(draw.sample(paragraphs, draw.randint(1, 5)))
        for _ in range(400)
    ]


def paragraphs_by_split(rows):
    found = {split: set() for split in corpus.SPLITS}
    for row in rows:
        for paragraph in corpus.PARAGRAPH_BREAK.split(row["text"]):
            words = " ".join(paragraph.split())
            if len(words) >= corpus.MIN_PARAGRAPH_CHARS:
                found[row["split"]].add(words)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_paragraph_stands_in_an_earlier_split(tmp_path, seed):
    documents = sharing_documents(seed)
    rows, manifest = build_lines(tmp_path, documents)
    found = paragraphs_by_split(rows)
    assert not found["train"] & (found["validation"] | found["test"])
    assert not found["validation"] & found["test"]
    assert all(found.values())
    before = Counter()
    for text in dict.fromkeys(documents):
        before[split_of(text, **SHARES)] += len(text)
    after = Counter(manifest["characters"])
    dropped = Counter(manifest["shared_characters_removed"])
    # What is left of a document may be a duplicate, which is counted as one.
    assert before["train"] == after["train"]
    for split in ("validation", "test"):
        assert 0 < dropped[split] <= before[split] - after[split]


@pytest.mark.parametrize("seed", range(5))
def test_train_keeps_every_document_as_it_is(tmp_path, seed):
    documents = sharing_documents(seed)
    rows, _ = build_lines(tmp_path, documents)
    train = [text for text in dict.fromkeys(documents) if split_of(text, **SHARES) == "train"]
    assert [row["text"] for row in rows if row["split"] == "train"] == train


@pytest.fixture
def splits_by_name(monkeypatch):
    """Let the first word of a document say its split."""
    monkeypatch.setattr(corpus, "split_of", lambda text, validation, test: text.split()[0])


def test_a_shared_paragraph_leaves_the_rest_of_a_document(tmp_path, splits_by_name):
    shared, own = long_paragraph("one"), long_paragraph("two")
    documents = [
        f"test first\n\n{shared}\n\nShort.\n\n{own}",  # before the train document that has it
        f"train first\n\nShort.\n\n{shared.replace(' ', '  ')}",
        "validation first",
    ]
    rows, manifest = build_lines(tmp_path, documents)
    assert [row["text"] for row in rows] == [f"test first\n\nShort.\n\n{own}", *documents[1:]]
    removed = {"validation": 0, "test": len(shared) + len("\n\n")}
    assert manifest["shared_characters_removed"] == removed


def test_a_line_too_long_to_be_wrapped_is_a_paragraph(tmp_path, splits_by_name):
    shared = " ".join([long_paragraph("one")] * 3)
    documents = [
        f"train first\n{shared}\nits own",
        f"validation first\nup here\n{shared}\ndown there",
        "test first",
    ]
    rows, _ = build_lines(tmp_path, documents)
    assert rows[1]["text"] == "validation first\nup here\n\ndown there"


def test_what_one_document_repeats_stays(tmp_path, splits_by_name):
    test = f"test first\n\n{long_paragraph('one')}\n\n{long_paragraph('one')}"
    rows, _ = build_lines(tmp_path, ["train first", "validation first", test])
    assert rows[2]["text"] == test


def test_a_document_left_without_text_is_dropped(tmp_path, splits_by_name):
    shared = f"test {long_paragraph('one')}"
    documents = [shared, f"train\n\n{shared}", "validation first", "test first"]
    rows, manifest = build_lines(tmp_path, documents)
    assert [row["text"] for row in rows] == documents[1:]
    assert manifest["documents"] == {"train": 1, "validation": 1, "test": 1}


def test_what_is_left_of_a_document_is_no_duplicate(tmp_path, splits_by_name):
    shared = long_paragraph("one")
    documents = [f"train\n\n{shared}", "validation first", f"test first\n\n{shared}", "test first"]
    rows, manifest = build_lines(tmp_path, documents)
    assert [row["text"] for row in rows] == [*documents[:2], "test first"]
    assert manifest["duplicates_removed"] == 1


def test_a_split_of_shared_paragraphs_only_is_refused(tmp_path, splits_by_name):
    shared = f"test {long_paragraph('one')}"
    with pytest.raises(UserError, match=r"no document fell into test: 3 distinct .* they share"):
        build_lines(tmp_path, [f"train\n\n{shared}", "validation first", shared])


def test_splits_have_the_asked_shares():
    counts = Counter(split_of(f"document {i}", validation=0.1, test=0.05) for i in range(10_000))
    # Three standard errors of a share of 10,000 draws are below 0.01.
    assert counts["validation"] / 10_000 == pytest.approx(0.1, abs=0.01)
    assert counts["test"] / 10_000 == pytest.approx(0.05, abs=0.01)


def test_a_documents_split_is_the_same_in_every_process_and_version():
    splits = [split_of(f"document {i}", **SHARES) for i in range(6)]
    assert splits == ["test", "train", "train", "validation", "train", "test"]


def test_more_documents_do_not_move_the_others(tmp_path):
    few, _ = build_lines(tmp_path / "few", [f"document {i}" for i in range(60)])
    many, _ = build_lines(tmp_path / "many", [f"document {i}" for i in range(30, 200)])
    split = {row["text"]: row["split"] for row in many}
    assert all(split[row["text"]] == row["split"] for row in few if row["text"] in split)


def test_the_manifests_hash_names_the_text(tmp_path):
    lines = [f"document {i}" for i in range(60)]
    first, again, other, shares = (
        build_lines(tmp_path / name, text, **spec)[1]["sha256"]
        for name, text, spec in [
            ("first", lines, {}),
            ("again", lines, {}),
            ("other", [*lines[:-1], "another"], {}),
            ("shares", lines, {"test": 0.4}),
        ]
    )
    assert first == again
    assert len({first, other, shares}) == 3


def test_a_huge_document_is_cut_and_stays_in_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_CHARS", 10)
    texts = ["".join(f"{i:4}" for i in range(start, start + 10)) for start in range(0, 400, 10)]
    rows, _ = build_lines(tmp_path, texts)
    assert all(len(row["text"]) <= 10 for row in rows)
    assert "".join(row["text"] for row in rows) == "".join(texts)
    splits = {}
    for row in rows:
        splits.setdefault(row["source"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_too_few_documents_to_split_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match=r"no document fell into .*: 1 distinct documents"):
        build_lines(tmp_path, ["only one"])
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]


def test_the_manifest_holds_the_versions_of_the_packages(tmp_path, install):
    functions = {f"m{i}.py": function("f", sentence(f"number {i}")) for i in range(40)}
    install("zebra", functions)
    build(
        {"source": "docstrings", "packages": ["zebra"], **SHARES},
        tmp_path / "documents.parquet",
        tmp_path / "manifest.json",
    )
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["packages"] == {"zebra": "1.0"}
    assert sum(manifest["documents"].values()) == 40
