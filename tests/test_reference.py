"""The tables of docs/reference.md are the code's: keys of a job file, sources, stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
import reference
from pydantic import Field

from raytrain import data
from raytrain.config.data import SOURCES
from raytrain.config.section import ObjectPath, PositiveInt, Section, Share
from raytrain.data.stages.registry import STAGES

PAGE = reference.PAGE.read_text()


def rows(block):
    """By first cell, without marks and those below a function by its name too: the other cells."""
    found, above = {}, ""
    for line in reference.blocks()[block].splitlines()[2:]:
        name, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        above = name.strip("*`") if name.startswith("**") else above
        found[name.strip("*`") if name.startswith("**") else f"{above}.{name.strip('`')}".lstrip(".")] = cells
    return found


def test_the_page_is_what_the_code_says():
    assert reference.written() == PAGE, "python tests/reference.py --write"
    assert [match[2] for match in reference.BLOCK.finditer(PAGE)] == list(reference.blocks())


def test_every_key_option_source_and_stage_has_a_text():
    assert reference.lacking() == []


def test_a_text_can_be_shown():
    """On GitHub `<name>` outside of code is a tag, and is not shown."""
    outside = re.sub(r"```.*?```|`[^`\n]*`|<!--.*?-->", "", PAGE, flags=re.S)
    assert re.findall(r"<\w+", outside) == []


def test_every_public_name_is_there():
    named = {name for block in ("sources", "stages", "own", "collations") for name in rows(block) if "." not in name}
    assert named == set(data.__all__)
    assert set(rows("stages")) & named == set(STAGES)
    assert {*SOURCES} <= set(rows("sources"))


def test_a_key_has_its_type_default_and_text():
    """As they stand in raytrain/config."""
    keys = rows("keys")
    assert keys["name"][:2] == ["text", "required"]
    assert keys["training.epochs"][:2] == ["whole number from 1", "`null`"]
    assert keys["training.epochs"][2] == "passes over the training data; this or `steps`"
    assert keys["data.tail"][:2] == ["`share`, `drop_last`, `pad` or `carry`", "`share`"]
    assert keys["data.train"][:2] == ["[source](#sources)", "required"]
    assert keys["data.stages"][:2] == ["list of [stages](#stages)", "`[]`"]
    assert keys["data.collate.NAME.padded.value"][:2] == ["number", "`0`"]
    assert keys["cluster.groups.N.gpus"][:2] == ["whole number from 0", "`null`"]
    assert keys["sagemaker.max_pending_s"][0] == "whole number from 1,800 to 2,419,200"


def test_a_section_that_stands_twice_is_told_once():
    keys = rows("keys")
    assert "data.normalize.mean" in keys and "data.fields.NAME.normalize" in keys
    assert "data.fields.NAME.normalize.mean" not in keys


def test_a_stage_has_its_fields_options_and_texts():
    stages = rows("stages")
    assert stages["random_crop"][:2] == ["image, mask, boxes; random", ""]
    assert stages["random_crop.padding_mode"][:2] == ["`constant`, `edge`, `reflect` or `symmetric`", "`constant`"]
    assert stages["random_resized_crop.ratio"][:2] == ["list of 2 numbers", "`[0.75, 1.3333]`"]
    assert stages["resize.size"][:2] == ["whole number or list of 2 whole numbers", "required"]
    assert stages["decode"][0] == "encoded image, mask"
    assert stages["color_jitter.saturation"] == stages["color_jitter.contrast"] != stages["color_jitter.hue"]
    assert not any(name.endswith(".on") for name in stages)


def test_a_source_has_the_keys_of_its_section_and_of_its_function():
    sources = rows("sources")
    for name, kind in SOURCES.items():
        assert {f"{name}.{key}" for key in kind.model_fields} - {f"{name}.kind"} <= set(sources)
    assert sources["synthetic.fields.NAME.shape"] == [
        "list of whole numbers from 1",
        "`[]`",
        "null for an axis whose length varies",
    ]
    assert sources["parquet.limit"][2] == "the first so many samples alone", "not: see BuiltIn"


class Inner(Section):
    """What it is."""

    deep: float = Field(0.5, gt=0, description="a number")


class Outer(Section):
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field({}, description="by name")
    bare: bool


def test_keys_below_keys_have_the_path_to_them():
    assert [(each.name, each.kind, each.text) for each in reference.keys_of(Outer)] == [
        ("several", "list of sections", "What it is."),
        ("several.N.deep", "number above 0", "a number"),
        ("named", "sections by name", "by name"),
        ("bare", "true or false", ""),
    ]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (int, "whole number"),
        (PositiveInt | None, "whole number from 1"),
        (Share, "number from 0 to 1"),
        (Annotated[float, Field(gt=0, lt=1)], "number above 0 below 1"),
        (tuple[int, int] | int, "list of 2 whole numbers or whole number"),
        (str | tuple[str, ...], "text or list of text"),
        (dict[str, tuple[PositiveInt, ...]], "lists of whole numbers from 1 by name"),
        (Mapping[str, Any] | None, "mapping"),
        (Literal["", "a", "b", "c"], "`a`, `b` or `c`"),
        (ObjectPath | None, "`package.module:name`"),
        (Inner | str, "section or text"),
    ],
)
def test_a_type_in_words(kind, said):
    assert reference.words(kind) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "`null`"),
        (True, "`true`"),
        (4 / 3, "`1.3333`"),
        (86_400, "`86400`"),
        ("", '`""`'),
        ((0.1, 2), "`[0.1, 2]`"),
        ({"image": "path"}, "`{image: path}`"),
        (Inner(), ""),
        (reference.REQUIRED, "required"),
    ],
)
def test_a_default_as_a_job_file_has_it(value, said):
    assert reference.told(value) == said


def test_a_docstring_is_taken_apart():
    def function():
        """First line
        goes on.

        More of it.

        Args:
            one, two: of both,
                on two lines.
            three: x: y.

        Raises:
            ValueError: no: never.
        """

    said, arguments = reference.documented(function)
    assert said == "First line goes on. More of it."
    assert arguments == {"one": "of both, on two lines.", "two": "of both, on two lines.", "three": "x: y."}

    def without():
        """Nothing more.

        Raises:
            ValueError: never.
        """

    assert reference.documented(without) == ("Nothing more.", {})
