"""The benches' pure parts: the draw of spikes, the order of runs, going on where one stopped, intervals, rows."""

import collections
import pathlib
import sys

import pytest

pytest.importorskip("numpy")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "bench"))
import figures  # noqa: E402
import oom_draw  # noqa: E402
import oom_rivals  # noqa: E402
import oom_summary  # noqa: E402
import records  # noqa: E402

MIB = oom_draw.MIB
PLAN = oom_draw.Plan(766 * MIB, 24576, 6144, 144 * MIB, 18 * 1024, 1 / 32)


def test_a_spike_depends_on_seed_and_number_alone():
    drawn = [oom_draw.spike(1, number, 700 * MIB) for number in range(50)]
    assert drawn == [oom_draw.spike(1, number, 700 * MIB) for number in range(50)]
    assert len(set(drawn)) == 50
    assert drawn[0] != oom_draw.spike(2, 0, 700 * MIB)
    # A committed table names its spikes by seed alone: this one must stay what it is.
    assert drawn[0] == oom_draw.Spike(size_bytes=667942912, bytes_per_s=313372569, moment=14, prompt=0)


def test_the_draw_has_harmless_spikes_and_deadly_ones():
    drawn = [oom_draw.spike(1, number, PLAN.most_bytes) for number in range(1000)]
    sizes = [spike.size_bytes for spike in drawn]
    assert min(sizes) >= oom_draw.SPIKE_LEAST_BYTES and max(sizes) <= PLAN.most_bytes
    assert 0.1 < sum(size < PLAN.slack_bytes for size in sizes) / 1000 < 0.4  # a static cache survives these
    assert 0.1 < sum(size > PLAN.room_bytes for size in sizes) / 1000 < 0.3  # lazy pages alone do not bear these
    rates = [spike.bytes_per_s for spike in drawn]
    assert oom_draw.RATE_LEAST_BYTES_PER_S <= min(rates) and max(rates) <= oom_draw.RATE_MOST_BYTES_PER_S
    assert {spike.moment for spike in drawn} == set(range(oom_draw.MOMENTS))
    assert {spike.prompt for spike in drawn} == set(range(oom_draw.PROMPTS))


def test_the_smaller_context_bears_the_largest_spike_and_is_the_largest_that_does():
    def need_bytes(tokens):  # of a static cache of so many tokens
        return PLAN.stock_bytes - (PLAN.context_tokens - tokens) * PLAN.bytes_per_token

    tokens = PLAN.smaller_tokens
    assert need_bytes(tokens) + PLAN.most_bytes <= PLAN.limit_bytes
    assert need_bytes(tokens + oom_draw.CONTEXT_STEP) + PLAN.most_bytes + oom_draw.FIT_BYTES > PLAN.limit_bytes
    small = next(side for side in oom_draw.SIDES if side.fits)
    assert PLAN.fill_of(small) + oom_draw.PROMPT_TOKENS + oom_draw.SPAN_TOKENS <= tokens


def test_a_plan_that_cannot_be_says_what_to_change():
    with pytest.raises(ValueError, match="--fill 32768"):
        oom_draw.Plan(0, 32768, 32768, 192 * MIB, 18 * 1024, 1 / 32).check()
    with pytest.raises(ValueError, match="--slack-mib"):
        oom_draw.Plan(0, 4096, 1024, 0, 18 * 1024, 1 / 32).check()


def test_each_side_has_its_runs_spread_and_each_place_in_turn():
    wanted = oom_draw.schedule(oom_draw.SIDES, 1000, 200, set())
    count = collections.Counter(side.name for side, _ in wanted)
    assert count == {side.name: 1000 if side.name in oom_draw.MAIN else 200 for side in oom_draw.SIDES}
    quantised = [number for side, number in wanted if side.name == "stock-quantised"]
    assert max(after - before for before, after in zip(quantised, quantised[1:], strict=False)) == 5
    first = collections.Counter(
        next(side.name for side, number in wanted if number == n) for n in range(70) if n % 5 != 4)
    assert first == {"stock-static": 28, "ours-auto": 28}
    first = collections.Counter(next(side.name for side, at in wanted if at == n) for n in range(4, 1000, 5))
    assert min(first.values()) >= 17 and len(first) == len(oom_draw.SIDES)


def test_what_is_done_is_not_done_again():
    every = oom_draw.schedule(oom_draw.SIDES, 20, 4, set())
    done = {(side.name, number) for side, number in every[:7]}
    assert oom_draw.schedule(oom_draw.SIDES, 20, 4, done) == every[7:]


def test_a_record_that_was_cut_off_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    records.append(path, {"number": 0})
    with open(path, "a") as file:
        file.write('{"number": 1, "kil')  # the power went
    records.append(path, {"number": 2})
    assert [record["number"] for record in records.load(path)] == [0, 2]
    assert [record["number"] for record in records.load(path, lambda record: record["number"] > 0)] == [2]
    assert records.load(tmp_path / "none") == []


def test_wilson():
    assert figures.wilson(0, 1000) == pytest.approx([0, 0.003827], abs=1e-6)
    assert figures.wilson(10, 10) == pytest.approx([0.722467, 1], abs=1e-6)
    assert figures.wilson(5, 10) == pytest.approx([0.236593, 0.763407], abs=1e-6)
    with pytest.raises(ValueError):
        figures.wilson(3, 2)


def test_the_bootstrap_draws_whole_runs():
    runs = [[1.0] * 50, [3.0] * 50]  # a hundred values, of two runs: all that is known is that runs differ
    assert figures.bootstrap(runs, figures.mean) == [1, 3]
    assert figures.bootstrap([[1.0, 2.0]], figures.mean) is None
    low, high = figures.bootstrap([[value] for value in range(100)], figures.mean)
    assert 40 < low < 49.5 < high < 59


def run(name="ours-auto", killed=False, **changes):
    """A record as a run leaves it; the spike from 1 s to 2 s."""
    return {"side": name, "number": 1, "build": "a", "killed": killed,
            "kills": {"count": int(killed), "engine": killed, "spike": False},
            "failed": False, "refused": 0, "trims": 1, "context_tokens": 32768, "fill_tokens": 8192, "spike": {},
            "spike_s": [1.0, 1.5, 2.0], "steps_ms": [[0.9, 10], [1.1, 20], [2.01, 40], [2.2, 80]], "tokens": 4,
            "peak_bytes": 100, "mean_bytes": 50, "group_peak_bytes": 200,
            "quality": {"unpressed": {"same": 4, "of": 4}, "stock": {"same": 1, "of": 4}}, **changes}


def test_steps_count_from_the_spikes_begin_to_its_end():
    assert oom_summary.pressed_steps(run()) == [20, 40]
    assert oom_summary.pressed_steps(run(spike_s=[1.0, None, None])) == [20, 40, 80]  # killed: it has no end
    assert oom_summary.pressed_steps(run(spike_s=[None] * 3)) == []


def test_a_row_counts_what_was_killed_and_judges_what_was_not():
    row = oom_summary.row("ours-auto", [run(), run(peak_bytes=300, build="b"), run(killed=True, peak_bytes=None)])
    assert row["builds"] == ["a", "b"]
    assert (row["runs"], row["kills"], row["engine_kills"]) == (3, 1, 1)
    assert row["kills_share_interval"] == figures.wilson(1, 3)
    assert (row["peak_bytes"], row["peak_most_bytes"], row["step_worst_ms"]) == (200, 300, 40)
    assert row["quality"]["judged_runs"] == row["quality"]["as_unpressed_runs"] == 2
    assert row["quality"]["tokens_as_stock_share"] == 0.25


def test_ratios_need_both_sides():
    both = oom_summary.summary([run(), run("stock-static", peak_bytes=200)], oom_draw.SIDES)
    assert [side["name"] for side in both["sides"]] == ["stock-static", "ours-auto"]
    assert both["ratios"]["peak_ours_to_static"] == 0.5
    assert both["ratios"]["step_p50_ours_to_unpressed"] is None


def test_step_ratios_are_of_the_same_spikes():
    slow = [[1.1, 100]]
    runs = [run(number=1), run(number=2), run(number=3, steps_ms=slow),  # nobody has the third without a limit
            run("ours-unpressed", number=1), run("ours-unpressed", number=2), run("ours-unpressed", number=4, steps_ms=slow)]
    ratios = oom_summary.summary(runs, oom_draw.SIDES)["ratios"]
    assert (ratios["step_p99_ours_to_unpressed"], ratios["step_p99_ours_to_unpressed_runs"]) == (1, 2)
    runs[3]["steps_ms"], runs[4]["steps_ms"] = [[1.1, 10]], [[1.1, 10]]
    assert oom_summary.summary(runs, oom_draw.SIDES)["ratios"]["step_p99_ours_to_unpressed"] == 4


def test_earlyoom_looks_more_often_the_less_there_is_and_kills_in_two_steps():
    total = 1000 * MIB
    assert oom_rivals.earlyoom_signal(101 * MIB, total) is None
    assert oom_rivals.earlyoom_signal(100 * MIB, total) == oom_rivals.signal.SIGTERM
    assert oom_rivals.earlyoom_signal(50 * MIB, total) == oom_rivals.signal.SIGKILL
    sleeps = [oom_rivals.earlyoom_sleep_s(mib * MIB, 10 * total) for mib in (100, 1000, 4000, 9000)]
    assert sleeps == pytest.approx([0.1, 0.1, 0.5, 1.0])


def test_a_server_that_is_started_again_says_how_long_that_took():
    again = [{"starts": 1, "again_s": 40.0}, {"starts": 2, "again_s": 50.0}, {"starts": 1, "again_s": None}]
    row = oom_summary.row("stock-restarted", [run(killed=True, again=each) for each in again] + [run(again=None)])
    assert (row["again_runs"], row["again_starts"], row["again_worst_s"]) == (3, 4, 50)
    assert "again_runs" not in oom_summary.row("stock-static", [run()])
