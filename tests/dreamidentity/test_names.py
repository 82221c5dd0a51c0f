"""Lists of famous people: who is one person, what is reported, and lists that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limner.cli.main import main
from limner.data.names import Entry, merge_names, name_key, read_names
from limner.errors import ConfigError


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def entries(*names: str) -> list[Entry]:
    return [Entry(n) for n in names]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Beyoncé", "beyonce"),
        ("Søren Łukasz", "Soren Lukasz"),
        ("J.K. Rowling", "J. K. Rowling"),
        ("J.K. Rowling", "JK Rowling"),
        ("Shaquille O'Neal", "Shaquille O’Neal"),
        ("Shaquille O'Neal", "Shaquille ONeal"),
        ("Jean-Luc Picard", "Jean Luc  Picard"),
        ("Robert Downey Jr.", "Robert Downey Jr"),
        ("STRAßE", "strasse"),
        ("Beyonce\u0301", "Beyonc\u00e9"),
    ],
)
def test_ways_to_write_one_name(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Ann Lee", "Anna Lee"), ("Mary Ann Lee", "Mary Lee"), ("A. Lee", "B. Lee"), ("Анна", "Инна"), ("王菲", "王力宏")],
)
def test_different_people_stay_different(one: str, other: str) -> None:
    assert name_key(one) != name_key(other)


def test_duplicates_go_with_their_reason() -> None:
    merged = merge_names(
        {
            "singers": [*entries("Beyoncé", "Lady Gaga"), Entry("Prince", ("Prince Rogers Nelson",))],
            "actors": entries("LADY GAGA", "Beyonce", "Lady Gaga", "Prince Rogers Nelson", "Zoe Kravitz"),
        }
    )
    assert [p.name for p in merged.people] == ["Beyoncé", "Lady Gaga", "Prince", "Zoe Kravitz"]
    assert [(d.name, d.kept, d.why) for d in merged.duplicates] == [
        ("LADY GAGA", "Lady Gaga", "case"),
        ("Beyonce", "Beyoncé", "accents"),
        ("Lady Gaga", "Lady Gaga", "same"),
        ("Prince Rogers Nelson", "Prince", "same"),
    ]
    assert merged.people[1].fields == ["singers", "actors"]
    assert merged.people[0].aliases == ["Beyonce"]
    assert merged.counts() == {
        "read": 8,
        "lists": {"singers": 3, "actors": 5},
        "dropped": 4,
        "reasons": {"same": 2, "case": 1, "accents": 1, "alias": 0},
        "kept": 4,
    }


def test_an_alias_joins_people_whoever_comes_first() -> None:
    aliases = [Entry("Dwayne Johnson", ("The Rock",)), Entry("Nobody", ("No One",))]
    for first, second in (("The Rock", "Dwayne Johnson"), ("Dwayne Johnson", "the rock")):
        merged = merge_names({"actors": entries(first, "Ann Lee"), "sports": entries(second, "Bo Li")}, aliases)
        assert [p.name for p in merged.people] == [first, "Ann Lee", "Bo Li"]
        assert [(d.name, d.why) for d in merged.duplicates] == [(second, "alias")]


def test_a_late_alias_joins_two_who_seemed_different() -> None:
    merged = merge_names({"a": entries("Anna B", "Bella C"), "b": [Entry("Anna B", ("Bella C",)), Entry("Dora D")]})
    assert [p.name for p in merged.people] == ["Anna B", "Dora D"]
    assert len(merged.duplicates) == 2


def test_only_the_most_famous() -> None:
    lists = {"a": entries("A One", "B Two", "C Three"), "b": entries("B Two", "D Four")}
    merged = merge_names(lists, top=1)
    assert [p.name for p in merged.people] == ["A One", "B Two"]
    assert merged.duplicates == []
    with pytest.raises(ConfigError, match="top is 0"):
        merge_names(lists, top=0)
    with pytest.raises(ConfigError, match="At least one list"):
        merge_names({})


def test_a_list_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "actors.txt"
    path.write_bytes("\ufeff# by fame\r\nZoë  Kravitz | Zoe K. # the younger\r\n\r\n王菲|Faye Wong|\r\n".encode())
    assert read_names(path) == [Entry("Zoë Kravitz", ("Zoe K.",)), Entry("王菲", ("Faye Wong",))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds 0 names; at least 2"),
        (b"Ann Lee\n", "holds 1 name; at least 2"),
        ("Ann Lee\nBeyoncé\n".encode("latin1"), r"line 2, is not UTF-8 \(byte 0xe9\)"),
        ("Ann Lee\nBeyonc\ufffd\n".encode(), "line 2: .* is no name"),
        (b"Ann Lee\n12\n", "line 2: '12' is no name"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_names(tmp_path / "list.txt")
    with pytest.raises(ConfigError, match="Cannot read names"):
        read_names(tmp_path / "absent.txt")


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "singers.txt").write_text("Beyoncé\nLady Gaga\nThe Weeknd\n", encoding="utf-8")
    (tmp_path / "actors.txt").write_text("lady gaga\nZoe Kravitz\nAbel Tesfaye\n", encoding="utf-8")
    (tmp_path / "aliases.txt").write_text("The Weeknd | Abel Tesfaye\nA One | B Two\n", encoding="utf-8")
    order = ("data", "names", tmp_path / "singers.txt", tmp_path / "actors.txt", "--out", tmp_path / "names.jsonl")
    assert run(*order, "--aliases", tmp_path / "aliases.txt", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["read"], told["kept"], told["reasons"]["alias"], told["reasons"]["case"]) == (6, 4, 1, 1)
    people = [json.loads(line) for line in (tmp_path / "names.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [p["name"] for p in people] == ["Beyoncé", "Lady Gaga", "The Weeknd", "Zoe Kravitz"]
    assert people[2] == {"name": "The Weeknd", "fields": ["singers", "actors"], "aliases": ["Abel Tesfaye"]}
    assert run(*order) == 2
    assert "is there already" in capsys.readouterr().err
    assert run(*order, "--force") == 0
    assert "5 people of 6 names" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "actors.txt").write_text("A\nB\n")
    assert run("data", "names", tmp_path / "actors.txt", tmp_path / "b" / "actors.txt", "--out", tmp_path / "x") == 2
    assert "Two lists are called 'actors'" in capsys.readouterr().err
    assert run("data", "names", "--out", tmp_path / "y", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "config"


def test_the_sitters_of_mini(tmp_path: Path, capsys: Any) -> None:
    assert run("data", "names", "--world", "--out", tmp_path / "new" / "names.jsonl", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] == told["lists"]["sitters"] == 400
