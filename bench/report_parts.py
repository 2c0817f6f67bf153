"""What all sections of the report are made of: the Section itself, how numbers are written, how axes look."""
import dataclasses

MIB = 1024 * 1024
COLOURS = {"ours": "#1f6f8b", "stock": "#d1495b", "other": "#8c8c8c", "light": "#9ecad6"}


@dataclasses.dataclass
class Section:
    title: str
    says: str
    head: list
    rows: list
    draw: object = None      # draw(figure): fills a matplotlib figure
    size: tuple = (8.0, 3.4)  # of the picture, in inches
    command: str = ""
    machine: dict = None
    more: list = ()          # further tables: (head, rows)


def number(value, form="%.1f", scale=1):
    return "-" if value is None else form % (value / scale)


def colour(name):
    return COLOURS["stock"] if name.startswith("stock") else COLOURS["ours"] if name.startswith("ours") else \
        COLOURS["other"]


def plain(axis):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, axis="y", color="#eeeeee")
    axis.set_axisbelow(True)


def dots(axis, sides, key, spread, size):
    """A row a side, a mark a round: x where it was killed. sides: {name: rounds}."""
    for y, (side, rounds) in enumerate(sides.items()):
        for at, r in enumerate(rounds):
            axis.plot(r[key], y + spread * (at / len(rounds) - 0.5), "x" if r["killed"] else "o", color=colour(side),
                      markersize=size, alpha=0.7)
    axis.set_yticks(range(len(sides)), sides)
    axis.set_xlim(left=0)
    axis.invert_yaxis()
    plain(axis)


def plain_log(axis):
    """A logarithmic axis whose marks are numbers. Call it when all is drawn: how many there are depends on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: "{:,g}".format(value) if value < 1 else "{:,.0f}".format(value)))
    axis.set_minor_formatter(NullFormatter())


def whiskers(values, intervals):
    """Error bars for matplotlib, of [low, high] intervals; none where there is no interval."""
    return [[value - (interval or [value])[0] for value, interval in zip(values, intervals)],
            [(interval or [value])[-1] - value for value, interval in zip(values, intervals)]]
