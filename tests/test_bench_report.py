"""The page of results and its parts, the classes of step times, and what make bench still has to do."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib")
SOURCE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE / "bench"))
import latency  # noqa: E402
import oom_draw  # noqa: E402
import oom_summary  # noqa: E402
import report  # noqa: E402
import report_sections  # noqa: E402
import suite  # noqa: E402


def test_the_page_shows_each_committed_result_and_needs_no_other_file(tmp_path):
    assert report.build([str(SOURCE / "bench" / "results")], str(tmp_path)) == []
    page = (tmp_path / "index.html").read_text()
    for path in (SOURCE / "bench" / "results").iterdir():
        assert '<h2 id="%s">' % path.stem in page
        if path.suffix != ".txt":
            assert (tmp_path / (path.stem + ".png")).read_bytes().startswith(b"\x89PNG")
    assert 'src="http' not in page and 'href="http' not in page


def test_a_file_that_cannot_be_shown_is_named_and_spoils_no_other(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "demo-1.json").write_text("{")
    (results / "unheard-of.json").write_text("{}")
    (results / "scale.json").write_text("{}")
    (results / "note.txt").write_text("5 < 6")
    problems = dict(report.build([str(results)], str(tmp_path / "page")))
    assert sorted(problems) == ["demo-1.json", "scale.json", "unheard-of.json"]
    assert "no kind of result" in problems["unheard-of.json"]
    assert "5 &lt; 6" in (tmp_path / "page" / "index.html").read_text()
    with pytest.raises(SystemExit, match="no directory"):
        report.build([str(tmp_path / "none")], str(tmp_path / "page"))


def oom_result(kills):
    """A result of the shape that oom_table.py writes, one side with one run."""
    run = {"side": "stock-static", "build": "stock", "killed": bool(kills),
           "kills": {"count": kills, "engine": True, "spike": False},
           "failed": False, "refused": 0, "trims": None, "context_tokens": 32768, "fill_tokens": 8192, "spike": {},
           "spike_s": [1.0, None, None], "steps_ms": [[0.9, 10]], "tokens": 1, "peak_bytes": 2**30,
           "mean_bytes": 2**29, "group_peak_bytes": 2**30,
           "quality": {"unpressed": {"same": 1, "of": 1}, "stock": {"same": 1, "of": 1}}}
    return {**oom_summary.summary([run], oom_draw.SIDES), "plan": {"limit_bytes": 2**30, "most_bytes": 2**29},
            "missing_runs": 7, "command": "make this", "machine": None}


@pytest.mark.parametrize("kills", [0, 1])
def test_a_side_without_a_step_in_the_spike_is_shown_too(kills):
    _, section = report_sections.section_of("oom-table-1", oom_result(kills))
    assert section.rows[0][:2] == ["stock-static", 1]
    assert section.rows[0][6:9] == ["-", "-", "-"]
    assert "7 of the runs that were asked for are missing" in section.says
    assert section.command == "make this"
    assert report.picture(section).startswith(b"\x89PNG")


def test_names_of_results_are_whole_words():
    assert report_sections.section_of("demonstration", {}) is None


def step(ms):
    return {"event": "step", "ms": ms}


def test_steps_are_classed_by_what_was_asked_before_them():
    around = latency.AROUND_STEPS
    events = [step(1), {"event": "asked", "move": "trim"}, step(2), *[step(3)] * around, step(4), {"event": "stats"},
              {"event": "asked", "move": "restore"}, step(5), step(6)]
    assert latency.classify(events) == {
        "apart": [1, 4], "trim": [2], "restore": [5], "around": [3] * around + [6]}


def test_the_histogram_has_every_sample_to_the_last():
    draw = random.Random(1)
    values = [draw.uniform(15, 25) for _ in range(500)] + [900.0]
    bins = latency.histogram(values)
    assert sum(count for _, count in bins) == 501
    for edge, count in bins:
        assert count == sum(edge <= value < edge * latency.BIN for value in values)
    assert bins[-1][0] <= 900 < bins[-1][0] * latency.BIN and bins[-1][1] == 1
    assert latency.histogram([]) == []


def test_the_curve_of_longer_steps_ends_at_the_longest():
    assert report_sections.longer([[10, 3], [20, 0], [40, 1]]) == ([10, 20, 40], [1, 0.25, 0.25])


def test_turns_go_back_and_forth_and_are_not_done_twice():
    class Options:
        turns, works = 2, ["decode"]

    every = latency.schedule(Options, set())
    assert [side for _, _, side in every] == ["stock", "ours", "ours", "stock"]
    assert latency.schedule(Options, set(every[:3])) == every[3:]


def test_a_turn_of_prefill_has_fewer_cycles_and_at_least_one():
    assert [latency.cycles_of("decode", 15), latency.cycles_of("prefill", 15), latency.cycles_of("prefill", 1)] == [15, 3, 1]


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part whose bench is one line of Python, in a tree of its own."""
    monkeypatch.setattr(suite.rig, "BUILD", str(tmp_path / "build" / "bench"))
    monkeypatch.setattr(suite.rig, "library_build", lambda: "0123")
    (tmp_path / "build" / "bench").mkdir(parents=True)
    script = tmp_path / "bench.py"

    def write(text):
        script.write_text("import sys\nopen(%r, 'w').write(%r)\nsys.exit(int(sys.argv[1]))"
                          % (str(tmp_path / "build" / "x.json"), text))
    write('{"a": 1}')
    make = lambda status: suite.Part("x", str(script), (str(status),), "x.json", 1)  # noqa: E731
    return suite.Suite("all"), make, write, tmp_path


def test_a_part_that_is_done_is_not_done_again(part):
    every, make, _, tmp_path = part
    assert every.done(make(0)) is None
    assert every.run(make(0)) is None
    assert every.done(make(0))["status"] == 0
    assert every.done(make(1)) is None  # another command
    kept = tmp_path / "build" / "bench" / "all" / "x.json"
    assert json.loads(kept.read_text()) == {"a": 1, "command": make(0).command()}
    kept.unlink()
    assert every.done(make(0)) is None


def test_a_part_that_misses_its_bar_or_writes_nothing_says_so(part):
    every, make, write, tmp_path = part
    assert "missed its bar" in every.run(make(1))
    write("{")
    assert "status 0" in every.run(make(0))
    (tmp_path / "build" / "x.json").write_text("{}")
    (tmp_path / "bench.py").write_text("")
    os.utime(tmp_path / "build" / "x.json", (1, 1))  # of an earlier run
    assert "wrote no result" in every.run(make(0))


def test_a_boards_file_is_shown_with_its_benches(tmp_path):
    facts = report_sections.board.facts(str(tmp_path / "nothing"))
    value = {"format": 1, "board": facts, "machine": None, "warmth_after_c": None, "doctor": {"checks": [
        {"state": "limit", "name": "psi", "detail": "<b>off</b>", "cure": "psi=1"}]}, "parts": [
            {"name": "oom-table", "status": 1, "took_s": 60, "result": oom_result(1), "raw": [{}]},
            {"name": "scale", "left_out": "no memory"}]}
    value["machine"] = {"cpu": "A57", "cpus": 4, "kernel": "5", "memory_bytes": 2**32, "date": "today"}
    path = tmp_path / "psi-cache-device-x.json"
    path.write_text(json.dumps(value))
    assert report.build([str(path)], str(tmp_path / "page")) == []
    page = (tmp_path / "page" / "index.html").read_text()
    for text in ("A board: A57", "no memory", "missed its bar", "&lt;b&gt;off", 'id="oom-table-psi-cache-device-x"'):
        assert text in page


def test_told_to_stop_it_ends_its_bench_and_does_it_again(part):
    every, make, _, tmp_path = part
    (tmp_path / "bench.py").write_text("import time\ntime.sleep(60)\n")
    begun = []

    def start(*arguments, **more):
        begun.append(subprocess.Popen(*arguments, **more))
        return begun[-1]

    def leave(_number, _frame):
        raise SystemExit(1)

    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(SystemExit):
            every.run(make(0), start)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert begun[0].poll() == -signal.SIGTERM
    assert every.done(make(0)) is None
