"""One page of all results: a table and a picture each, with the command that repeats it and the machine it ran on.

    .venv/bin/python bench/report.py                                # bench/results -> build/report
    .venv/bin/python bench/report.py bench/results build/bench/all  # of several directories; the last file of a name counts
    .venv/bin/python bench/report.py psi-cache-device-x.json        # what bench/device.py left

Writes build/report/index.html, which needs no other file, and the pictures beside it as PNG. What a result file holds
is shown, not judged. Kinds of results: bench/report_sections.py; a .txt is shown as it is. Ends with 1 when a file could
not be shown.
"""
import argparse
import base64
import html
import io
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import report_sections  # noqa: E402

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 3rem 0 0.3rem; border-top: 1px solid #ddd; padding-top: 1.2rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 1rem 0; }
th { text-align: left; border-bottom: 2px solid #888; vertical-align: bottom; } td, th { padding: 0.2rem 0.7rem 0.2rem 0; }
td { border-bottom: 1px solid #eee; } img { max-width: 100%; height: auto; } code { font-size: 0.85rem; }
.from { color: #555; font-size: 0.85rem; } pre { font-size: 0.8rem; overflow-x: auto; background: #f6f6f6; padding: 0.7rem; }
"""


def read(path):
    with open(path) as file:
        if path.endswith(".jsonl"):
            return [json.loads(line) for line in file if line.strip()]
        return json.load(file) if path.endswith(".json") else file.read()


def collect(directories):
    """{file name: path} of what is named, directories and files; of two with one name the one named last."""
    found = {}
    for directory in directories:
        if os.path.isfile(directory):
            found[os.path.basename(directory)] = directory
            continue
        if not os.path.isdir(directory):
            sys.exit("no directory of results: %s (make bench makes build/bench/all, a clone has bench/results)" % directory)
        for name in sorted(os.listdir(directory)):
            if name.endswith((".json", ".jsonl", ".txt")):
                found[name] = os.path.join(directory, name)
    return found


def picture(section):
    """PNG bytes."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    figure = Figure(figsize=section.size, layout="constrained")
    section.draw(figure)
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
    output = io.BytesIO()
    figure.savefig(output, dpi=130)
    return output.getvalue()


def machine_text(machine):
    if not machine:
        return "machine: not in the file"
    swap = machine.get("swap_bytes")
    return "%s, %s CPUs, Linux %s, %d MiB memory, %s; %s" % (
        machine["cpu"], machine["cpus"], machine["kernel"], machine["memory_bytes"] / 2**20,
        "no swap" if not swap else "%d MiB swap" % (swap / 2**20), machine["date"])


def table(head, rows):
    def line(cells, tag):
        return "<tr>%s</tr>" % "".join("<%s>%s</%s>" % (tag, html.escape(str(cell)), tag) for cell in cells)
    return '<div class="wide"><table>%s\n%s</table></div>' % (line(head, "th"), "\n".join(line(row, "td") for row in rows))


def shown(name, section, directory):
    """A section as HTML; its picture also goes to the directory."""
    image = ""
    if section.draw is not None:
        png = picture(section)
        with open(os.path.join(directory, name + ".png"), "wb") as file:
            file.write(png)
        image = '<img alt="%s" src="data:image/png;base64,%s">' % (html.escape(section.title),
                                                                 base64.b64encode(png).decode())
    tables = "".join(table(head, rows) for head, rows in ((section.head, section.rows), *section.more))
    return '<h2 id="%s">%s</h2><p>%s</p>%s%s<p class="from"><code>%s</code><br>%s<br>%s</p>' % (
        name, html.escape(section.title), html.escape(section.says), image, tables,
        html.escape(section.command), html.escape(machine_text(section.machine)), html.escape(name))


def with_parts(name, value):
    """[(name, value)]: a board's file holds results of several benches; else what it is."""
    if not isinstance(value, dict) or "board" not in value:
        return [(name, value)]
    return [(name, value)] + [("%s-%s" % (part["name"], name), part["result"]) for part in value["parts"] if part.get("result")]


def page(parts):
    """parts: [(title, name, html)]"""
    contents = "".join('<li><a href="#%s">%s</a></li>' % (name, html.escape(title)) for title, name, _ in parts)
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            "<title>llm-psi-cache: measured</title><style>%s</style></head><body><h1>llm-psi-cache: what was measured</h1>"
            "<p>Each result with the command that repeats it and the machine it ran on. Results of different machines or "
            "days are not to be compared with each other.</p><ol>%s</ol>\n%s\n</body></html>\n"
            % (STYLE, contents, "\n".join(part for _, _, part in parts)))


def build(directories, directory):
    """Writes the page. Returns [(file, problem)] of what could not be shown."""
    os.makedirs(directory, exist_ok=True)
    parts, texts, problems = [], [], []
    for file, path in collect(directories).items():
        name = os.path.splitext(file)[0]
        try:
            value = read(path)
            if isinstance(value, str):
                texts.append((name, name, '<h2 id="%s">%s</h2><pre>%s</pre>' % (name, name, html.escape(value))))
                continue
            for part, held in with_parts(name, value):
                found = report_sections.section_of(part, held)
                if found is None:
                    raise ValueError("no kind of result of this name in bench/report_sections.py")
                at, section = found
                parts.append((at, section.title, part, shown(part, section, directory)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            problems.append((file, "%s: %s" % (type(error).__name__, error)))
    parts.sort(key=lambda part: (part[0], part[2]))
    with open(os.path.join(directory, "index.html"), "w") as file:
        file.write(page([part[1:] for part in parts] + texts))
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", default=[os.path.join(HERE, "results")])
    parser.add_argument("--to", default=os.path.join(HERE, "..", "build", "report"))
    options = parser.parse_args()
    problems = build(options.directories, options.to)
    for file, problem in problems:
        print("not shown: %s: %s" % (file, problem), file=sys.stderr)
    print(os.path.relpath(os.path.join(options.to, "index.html")))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
