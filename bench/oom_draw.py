"""What the OOM table's runs are: sides, the limit, and a spike for each number. Nothing here runs or measures.

The limit leaves stock's static cache SLACK_BYTES beyond what it needs: more than a neighbour's usual wish, less than
its worst. Spikes are drawn evenly from a harmless size up to one that takes what is free with psi_cache and
GIVE_SHARE of what its cache can give; beyond that no cache of any kind can help. So of the draw about a quarter is
harmless to a static cache, a third is too much for one of 8-bit values, too, a tenth for pages that are merely taken
late, and a fifth leaves ours less than its reserve (1/16 of the limit), so that it trims.
"""
import dataclasses
import random

MIB = 1024 * 1024
MB = 1000 * 1000
SPIKE_LEAST_BYTES = 32 * MIB
RATE_LEAST_BYTES_PER_S, RATE_MOST_BYTES_PER_S = 100 * MB, 2000 * MB
GIVE_SHARE = 0.6
FIT_BYTES = 8 * MIB    # what the smaller context leaves free at the largest spike
CONTEXT_STEP = 256     # a context's tokens come in such steps (llama.cpp)
PROMPTS = 4            # different texts; each has an unpressed run of its own
PROMPT_TOKENS, PROMPT_PIECE = 256, 64
MOMENTS = 24           # a spike begins before one of the prompt's 4 pieces or one of the first 20 tokens
SPAN_TOKENS = 768      # most tokens that an answer may have


@dataclasses.dataclass(frozen=True)
class Side:
    """mode: as in rig.MODES. fits: has the smaller context. pressed: its spike is in the limit; else the same spike comes in a
    group without one: as much work for the machine, and memory for all. rival: what stands beside it
    (bench/oom_rivals.py): "restart", "earlyoom" (its rule, and a restart) or "zram". other: one of what people use
    instead, which the short form leaves out."""
    name: str
    mode: str
    cache_type: str = "f16"
    fits: bool = False
    pressed: bool = True
    rival: str = ""
    other: bool = False

    def reference(self):
        """Which unpressed runs of stock have the tokens that this side should have."""
        return "smaller" if self.fits else self.cache_type


SIDES = (Side("stock-static", "stock"), Side("ours-auto", "auto"), Side("stock-smaller", "stock", fits=True),
         Side("stock-quantised", "stock", cache_type="q8_0"), Side("ours-avg10", "avg10"),
         Side("stock-unpressed", "stock", pressed=False), Side("ours-unpressed", "auto", pressed=False),
         Side("stock-q4", "stock", cache_type="q4_0", other=True), Side("stock-zram", "stock", rival="zram", other=True),
         Side("stock-restarted", "stock", rival="restart", other=True),
         Side("stock-earlyoom-rule", "stock", rival="earlyoom", other=True))
MAIN = ("stock-static", "ours-auto")  # these have all the runs


@dataclasses.dataclass(frozen=True)
class Spike:
    size_bytes: int
    bytes_per_s: int
    moment: int  # steps of the engine (pieces of the prompt, then tokens) that come first
    prompt: int


def spike(seed, number, most_bytes):
    """The spike of run `number`: the same on every side, and whatever else is run."""
    draw = random.Random("%d/%d" % (seed, number))
    size_bytes = draw.uniform(SPIKE_LEAST_BYTES, most_bytes)
    rate = RATE_LEAST_BYTES_PER_S * (RATE_MOST_BYTES_PER_S / RATE_LEAST_BYTES_PER_S) ** draw.random()
    return Spike(int(size_bytes) // MIB * MIB, int(rate), draw.randrange(MOMENTS), draw.randrange(PROMPTS))


@dataclasses.dataclass(frozen=True)
class Plan:
    """stock_bytes: what stock needs with its cache of context_tokens (measured). fill_tokens: in the cache before
    the prompt."""
    stock_bytes: int
    context_tokens: int
    fill_tokens: int
    slack_bytes: int
    bytes_per_token: int
    floor_share: float

    @property
    def limit_bytes(self):
        return (self.stock_bytes + self.slack_bytes) // MIB * MIB

    @property
    def room_bytes(self):
        """Free with psi_cache: the slack, and the cells not written."""
        return self.slack_bytes + (self.context_tokens - self.fill_tokens - PROMPT_TOKENS) * self.bytes_per_token

    @property
    def give_bytes(self):
        return max(0, int((self.fill_tokens - self.context_tokens * self.floor_share) * self.bytes_per_token))

    @property
    def most_bytes(self):
        return int(self.room_bytes + GIVE_SHARE * self.give_bytes) // MIB * MIB

    @property
    def smaller_tokens(self):
        """The largest context with which a static cache bears the largest spike."""
        less_bytes = self.most_bytes - self.slack_bytes + FIT_BYTES
        tokens = self.context_tokens - -(-less_bytes // self.bytes_per_token)
        return tokens // CONTEXT_STEP * CONTEXT_STEP

    def context_of(self, side):
        return self.smaller_tokens if side.fits else self.context_tokens

    def fill_of(self, side):
        """As many as the context holds beside prompt and answer."""
        return min(self.fill_tokens, self.context_of(side) - PROMPT_TOKENS - SPAN_TOKENS)

    def check(self):
        if self.fill_tokens + PROMPT_TOKENS + SPAN_TOKENS > self.context_tokens:
            raise ValueError("--fill %d leaves no room for prompt and answer (%d tokens) in --context %d"
                             % (self.fill_tokens, PROMPT_TOKENS + SPAN_TOKENS, self.context_tokens))
        if self.smaller_tokens - PROMPT_TOKENS - SPAN_TOKENS < CONTEXT_STEP:
            raise ValueError("no smaller context bears the largest spike and still holds prompt and answer: give "
                             "more --slack-mib, or a larger --fill or --context")


def schedule(sides, runs, others, done):
    """[(side, number)] of what is missing, round by round. The sides that are not MAIN take part in every so many
    rounds, spread over all of them. Who begins moves on from round to round, so that each comes as often at each place.
    `done`: set of (name, number)."""
    wanted = []
    for number in range(runs):
        extra = number * others // runs != (number + 1) * others // runs
        turn = [side for side in sides if side.name in MAIN or extra]
        at = number % len(turn) if turn else 0
        wanted += [(side, number) for side in turn[at:] + turn[:at] if (side.name, number) not in done]
    return wanted
