import math
import re

import pytest

from farreach.errors import ConfigError
from farreach.yaml_source import parse, read, read_documents, source_of, to_text


def value(text):
    return parse(text, "here")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-4", 0.0005),
        ("1e6", 1_000_000.0),
        ("-2.5E+3", -2500.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("010", 10),
        ("08", 8),
        ("3_000_000", 3_000_000),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("2020-01-01", "2020-01-01"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("1_", "1_"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("'5e-4'", "5e-4"),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
        ("{a: 1, b: {c: [true]}}", {"a": 1, "b": {"c": [True]}}),
    ],
)
def test_scalars_are_read_by_plain_rules(text, expected):
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_a_float():
    assert math.isnan(value(".nan"))


@pytest.mark.parametrize(
    "tree",
    [
        {"a": 5e-4, "b": 1e16, "c": 1e-300, "d": -0.1, "e": 1.0, "f": math.inf},
        {"a": 1, "b": -(10**30), "c": True, "d": None, "e": ""},
        {"a": ["on", "no", "true", "null", "~", "5e-4", "1_000", "010", "2020-01-01", "1:2"]},
        {"a": ["#", "a: b", "- x", "'", '"', " edge ", "two\nlines\n", "näme", "*x", "&x", "<<"]},
        {"a": "long " * 100, "b": {"c": {"d": []}, "e": {}}},
    ],
)
def test_what_is_written_is_read_back_equal(tree):
    found = value(to_text(tree))
    assert found == tree
    assert repr(found) == repr(tree)


def test_tuples_are_written_as_lists_and_equal_values_without_aliases():
    shared = (1, (2, 3))
    assert value(to_text({"a": shared, "b": shared})) == {"a": [1, [2, 3]], "b": [1, [2, 3]]}
    assert "&" not in to_text({"a": shared, "b": shared})


def test_every_key_has_the_line_where_it_is_written(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# comment\na:\n  b: 1\n\n  c:\n    - 1\n    - d: 2\ne: {f: 3}\n")
    tree, sources = read(path, "x.yaml")
    assert tree == {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {"f": 3}}
    assert sources == {
        (): "x.yaml",
        ("a",): "x.yaml:2",
        ("a", "b"): "x.yaml:3",
        ("a", "c"): "x.yaml:5",
        ("a", "c", 0): "x.yaml:6",
        ("a", "c", 1): "x.yaml:7",
        ("a", "c", 1, "d"): "x.yaml:7",
        ("e",): "x.yaml:8",
        ("e", "f"): "x.yaml:8",
    }


def test_an_alias_stands_for_the_value_it_names():
    assert value("{a: &x {b: 1}, c: *x}") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\n", "x.yaml:3:1: malformed YAML: while parsing a flow sequence, expected"),
        ("a: b: c\n", "x.yaml:1:5: malformed YAML: mapping values are not allowed here."),
        ("a:\n\tb: 1\n", "x.yaml:2:1: malformed YAML: while scanning for the next token, found"),
        ("a: 1\n---\nb: 1\n", "x.yaml:2:1: malformed YAML: expected a single document"),
        ("a: *b\n", "x.yaml:1:4: malformed YAML: found undefined alias 'b'."),
        ("a:\n  b: &x\n    c: *x\n", "x.yaml:2: a.b.c: the alias points at itself."),
        ("a:\n  lr: 1\n  x: 2\n  lr: 3\n", "x.yaml:4: a.lr: is written twice, first on line 2."),
        ("a: 1\n'a': 2\n", "x.yaml:2: a: is written twice, first on line 1."),
        ("a: 1\n2: 3\n", "x.yaml:2: key 2 should be text. Write it in quotes."),
        ("a:\n  true: 3\n", "x.yaml:2: a: key True should be text."),
        ("? [1]\n: 3\n", "x.yaml:1: key [1] should be text."),
        ("a: !!python/name:os.system\n", "x.yaml:1: a: could not determine a constructor"),
        ("a: !!int x\n", "x.yaml:1: a: invalid literal for int()"),
        ("", "x.yaml: should hold a mapping of keys to values, but holds nothing."),
        (
            "# only a comment\n",
            "x.yaml: should hold a mapping of keys to values, but holds nothing.",
        ),
        ("- a\n", "x.yaml: should hold a mapping of keys to values, but holds a list."),
        ("a\n", "x.yaml: should hold a mapping of keys to values, but holds a single value."),
    ],
)
def test_a_malformed_file_gives_one_message_with_its_place(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(path, "x.yaml")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_give_a_message(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^x\.yaml: is not text in UTF-8: ") as caught:
        read(path, "x.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_file_gives_a_message(tmp_path):
    with pytest.raises(ConfigError, match=r"^x\.yaml: cannot be read: Is a directory\.$"):
        read(tmp_path, "x.yaml")


@pytest.mark.parametrize("text", ["", "  ", "# comment"])
def test_an_empty_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"here: has no value\. Write null if that is meant\."):
        value(text)


def documents(tmp_path, text):
    (tmp_path / "f.yaml").write_text(text)
    return read_documents(tmp_path / "f.yaml", "f.yaml")


def test_documents_follow_yaml_1_1_as_ray_and_kubernetes_do(tmp_path):
    ((tree, sources),) = documents(tmp_path, "a: yes\nb: 5e-4\nc: 010\n")
    assert tree == {"a": True, "b": "5e-4", "c": 8}
    assert sources["c",] == "f.yaml:3"


def test_several_documents_have_lines_of_one_file_and_empty_ones_are_left_out(tmp_path):
    first, second = documents(tmp_path, "---\na: 1\n---\n---\n# nothing\n---\nb:\n  c: 2\n")
    assert (first[0], second[0]) == ({"a": 1}, {"b": {"c": 2}})
    assert second[1]["b", "c"] == "f.yaml:8"
    assert documents(tmp_path, "# nothing\n") == []


def test_a_merged_key_has_the_line_where_it_is_written_and_own_keys_go_before(tmp_path):
    text = "base: &base\n  a: 1\n  b: 2\nown:\n  <<: *base\n  b: 3\n"
    text += "again: {<<: [*base, {a: 5, d: 6}]}\n"
    ((tree, sources),) = documents(tmp_path, text)
    assert tree["own"] == {"a": 1, "b": 3}
    assert tree["again"] == {"a": 1, "b": 2, "d": 6}
    assert (sources["own", "a"], sources["own", "b"]) == ("f.yaml:2", "f.yaml:6")


def test_a_document_s_key_is_written_once(tmp_path):
    with pytest.raises(ConfigError, match=r"^f.yaml:4: b.a: is written twice, first on line 3"):
        documents(tmp_path, "x: 1\nb:\n  a: 1\n  a: 2\n")


@pytest.mark.parametrize(
    ("path", "source"),
    [(("a", "b"), "f.yaml:2"), (("a", "x", "y"), "f.yaml:1"), (("z",), "f.yaml")],
)
def test_a_key_that_is_not_there_has_the_source_of_the_section_around_it(path, source, tmp_path):
    ((_, sources),) = documents(tmp_path, "a:\n  b: 1\n")
    assert source_of(path, sources) == source
