"""Figures in Markdown that come from a result file, compared with that file.

    .venv/bin/python bench/marked.py        # of README.md, docs and bench/README.md

A figure is marked by a comment right behind it, which no reader sees:
    61<!-- restore-against-recompute-4000.json results.0.ratio --> times faster
that is: a file of bench/results, and the path of a value in it. A part of a path is a name, an index, * (each item), or
NAME[KEY=VALUE] (the items of a list for which it holds). Several values become one with sum, count, min, max or median
behind the path; xFACTOR behind it changes the unit: `results.0.restore_us x0.001` is milliseconds. The figure in the
text may be rounded, to the digits that it has. Ends with 1 when one does not agree, and names it.
"""
import decimal
import functools
import glob
import json
import os
import re
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.join(HERE, "..")
RESULTS = os.path.join(HERE, "results")
MARK = re.compile(r"(?P<figure>\S+?)<!-- (?P<file>[\w.-]+\.json) (?P<path>\S+)(?: (?P<many>[a-z]+))?"
                  r"(?: x(?P<factor>[\d.e-]+))? -->")
ANY_MARK = re.compile(r"<!-- [\w.-]+\.json ")  # also one that is written wrongly
FIGURE = re.compile(r"-?\d[\d,]*(?:\.\d+)?$")
MANY = {"sum": sum, "count": len, "min": min, "max": max, "median": statistics.median}


@functools.lru_cache(maxsize=None)
def result(path):
    with open(path) as file:
        return json.load(file)


def values_at(value, path):
    """The values at a path: one, or several where it has a * or a condition. ValueError where it leads nowhere."""
    found = [value]
    for part in path.split("."):
        name, _, condition = part.partition("[")
        try:
            if name == "*":
                found = [item for each in found for item in (each.values() if isinstance(each, dict) else each)]
            else:
                found = [each[int(name)] if isinstance(each, list) else each[name] for each in found]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError("no %s on the way %s" % (part, path)) from None
        if condition:
            key, _, wanted = condition.rstrip("]").partition("=")
            found = [item for each in found for item in each if str(item.get(key)) == wanted]
    return found


def value_of(mark, directory):
    path = os.path.join(directory, mark["file"])
    if not os.path.exists(path):
        raise ValueError("no file bench/results/%s" % mark["file"])
    values = values_at(result(path), mark["path"])
    if mark["many"]:
        if mark["many"] not in MANY:
            raise ValueError("%s is none of %s" % (mark["many"], ", ".join(MANY)))
        values = [MANY[mark["many"]](values)]
    if len(values) != 1 or not isinstance(values[0], (int, float)):
        raise ValueError("%s is not one number; put one of %s behind it" % (mark["path"], ", ".join(MANY)))
    return values[0] * float(mark["factor"] or 1)


def agrees(text, value):
    """Whether the figure is the value, rounded to the figure's digits. A half may go either way."""
    figure = decimal.Decimal(text.replace(",", ""))
    half = decimal.Decimal(1).scaleb(figure.as_tuple().exponent) / 2
    return abs(figure - decimal.Decimal(repr(float(value)))) <= half * decimal.Decimal("1.000001")


def problems_of(text, directory=RESULTS):
    """[(line, what is wrong)] of the marks in a text, and how many marks it has."""
    found, count = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        marks = list(MARK.finditer(line))
        count += len(marks)
        if len(marks) != len(ANY_MARK.findall(line)):
            found.append((number, "a mark that cannot be read, or stands behind no figure"))
        for mark in marks:
            figure = FIGURE.search(mark["figure"])
            try:
                if not figure:
                    raise ValueError("no figure before it: %s" % mark["figure"])
                value = value_of(mark, directory)
                if not agrees(figure[0], value):
                    raise ValueError("the text says %s, the file %.6g" % (figure[0], value))
            except ValueError as problem:
                found.append((number, "%s %s: %s" % (mark["file"], mark["path"], problem)))
    return found, count


def documents():
    return [os.path.join(TOP, "README.md"), os.path.join(HERE, "README.md"),
            *sorted(glob.glob(os.path.join(TOP, "docs", "*.md")))]


def main():
    total, wrong = 0, 0
    for path in documents():
        with open(path) as file:
            found, count = problems_of(file.read())
        total, wrong = total + count, wrong + len(found)
        for line, problem in found:
            print("%s:%d: %s" % (os.path.relpath(path, TOP), line, problem))
    print("%d marked figures, %d do not agree" % (total, wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
