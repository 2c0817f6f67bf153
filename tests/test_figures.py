"""Figures in the documents that are marked as coming from a result file are those of the file."""

import json
import pathlib
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE / "bench"))
import marked  # noqa: E402


@pytest.mark.parametrize("path", marked.documents(), ids=lambda path: str(pathlib.Path(path).resolve().name))
def test_the_documents_agree_with_the_results(path):
    problems, _ = marked.problems_of(pathlib.Path(path).read_text())
    assert not problems, problems


def test_the_readme_has_marked_figures():
    _, count = marked.problems_of((SOURCE / "README.md").read_text())
    assert count >= 10


@pytest.fixture
def results(tmp_path):
    rows = [{"mode": "auto", "killed": 0}, {"mode": "auto", "killed": 3}, {"mode": "stock", "killed": 9}]
    (tmp_path / "a.json").write_text(json.dumps({"ratio": 60.573, "us": 155088, "rows": rows, "runs": 1234}))
    return str(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "61<!-- a.json ratio --> times",
        "(60.57<!-- a.json ratio -->)",
        "155<!-- a.json us x0.001 --> ms, 0.155<!-- a.json us x1e-6 --> s",
        "1,234<!-- a.json runs -->",
        "3<!-- a.json rows[mode=auto].killed sum --> of 2<!-- a.json rows[mode=auto] count -->",
        "0<!-- a.json rows.*.killed min --> to 9<!-- a.json rows.2.killed -->",
        "<!-- a remark --> 7",
    ],
)
def test_what_agrees(text, results):
    assert marked.problems_of(text, results)[0] == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("60<!-- a.json ratio -->", "the text says 60, the file 60.573"),
        ("60.58<!-- a.json ratio -->", "60.58"),
        ("61<!-- b.json ratio -->", "no file"),
        ("61<!-- a.json ration -->", "no ration"),
        ("9<!-- a.json rows.3.killed -->", "no 3"),
        ("3<!-- a.json rows.*.killed -->", "not one number"),
        ("3<!-- a.json rows.*.killed most -->", "none of"),
        ("many<!-- a.json ratio -->", "no figure"),
        ("61 <!-- a.json ratio -->", "cannot be read"),
        ("61<!-- a.json ratio y3 -->", "cannot be read"),
    ],
)
def test_what_does_not(text, why, results):
    problems, _ = marked.problems_of("\n" + text, results)
    assert [line for line, _ in problems] == [2]
    assert why in problems[0][1]
