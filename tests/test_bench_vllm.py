"""What the benches of vLLM make of what they saw. They need no vLLM for that."""

import pathlib
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SOURCE / "bench"), str(SOURCE / "demo")]
import vllm_differences  # noqa: E402
import vllm_reaction  # noqa: E402
import vllm_throughput  # noqa: E402


def test_texts_differ_where_their_first_other_token_is():
    reference = {"tokens": [[1, 2, 3], [4, 5]], "gaps": [[9.0, 0.5, 9.0], [9.0, 9.0]]}
    assert vllm_differences.differences(reference, {"tokens": [[1, 7, 3], [4, 5]]}) == [(0, 1, 0.5)]
    assert vllm_differences.differences(reference, {"tokens": [[1, 2], [4, 5]]}) == [(0, 2, 9.0)]


def test_what_is_not_a_number_is_counted():
    assert vllm_differences.not_numbers({"gaps": [[1.0, float("nan")], [float("inf"), 0.0]]}) == 2


def test_who_comes_first_in_a_pair_makes_no_difference():
    assert vllm_throughput.balanced([0.8, 1.25, 0.9, 1.1, 7.0]) == pytest.approx([1.0, 0.99**0.5])


@pytest.mark.parametrize(
    ("case", "found", "steps", "missed"),
    [
        ("idle", [49000, 51000, None], [0, 0, 0], 1),
        ("busy", [199000, 201000], [0, 0], 1),
        ("preempting", [900000, 900000], [701, 699], 1),
        ("idle", [None], [0], 0),
    ],
)
def test_reactions_against_their_bar(case, found, steps, missed):
    judged = vllm_reaction.judged(case, found, steps)
    assert judged["missed"] == missed
    assert judged["answered"] == sum(us is not None for us in found)


def test_the_longest_pause_that_touches_a_spike():
    stream = vllm_reaction.Stream(None)
    stream.times = [0.0, 0.1, 0.5, 0.6, 2.0]
    assert stream.longest_ms(0.2, 0.55) == 400.0
    assert stream.longest_ms(0.55, 0.58) == 100.0
    assert stream.longest_ms(3.0, 4.0) == 0.0
