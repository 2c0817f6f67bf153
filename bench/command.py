"""psi-cache bench and psi-cache report: finds a bench by its name and becomes it.

    psi-cache bench --list
    psi-cache bench oom-table --quick
    psi-cache bench all                # what make bench does: an hour
    psi-cache bench device             # the short form for a board, and one file to send in
    psi-cache report [FILE|DIRECTORY...] [--to DIRECTORY]

In a clone the benches are the clone's own, and results go to its build/. Installed, they are copied to psi-cache-bench in
the present directory ($PSI_BENCH_DIR names another), with results in its build/. The command starts this file with the
Python that it finds; only the standard library is needed here.
"""
import ast
import glob
import hashlib
import importlib.util
import os
import shutil
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
PARTS = ("bench", "demo")                       # what is copied
MARK = ".from-llm-psi-cache"                    # in a directory that we made; holds what was copied, as a digest
NO_BENCH = ("command", "engine", "rig", "loads", "random_model", "report", "marked")
ENGINELESS = ("scale", "decision-time", "trim-scattered", "store-direct", "device", "quality-plot")


def is_clone(top=TOP):
    return os.path.exists(os.path.join(top, "include", "psicache.h"))


def sources(directory):
    """{name: path} of the benches in a directory. vLLM's run in an environment of their own (make bench-vllm-...)."""
    found = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.py"))):
        name = os.path.basename(path)[:-3]
        if name in NO_BENCH or name.startswith("vllm_"):
            continue
        with open(path) as file:
            text = file.read()
        if "__main__" in text and (is_clone(os.path.dirname(directory)) or '"tests"' not in text):
            found[name.replace("_", "-")] = path
    return found


def says(path):
    """The first sentence of what a bench says of itself."""
    with open(path) as file:
        words = " ".join((ast.get_docstring(ast.parse(file.read())) or "").split("\n\n")[0].split())
    for end in (". ", ": ", "; "):
        if 30 < words.find(end) < 110:
            words = words[:words.find(end)]
    return words if len(words) < 112 else words[:109] + "..."


def shipped(top=TOP):
    """{relative path: path} of what a copy has."""
    found = {}
    for part in PARTS:
        for path in sorted(glob.glob(os.path.join(top, part, "**", "*"), recursive=True)):
            if os.path.isfile(path) and "__pycache__" not in path:
                found[os.path.relpath(path, top)] = path
    return found


def digest(files):
    total = hashlib.sha256()
    for name, path in files.items():
        with open(path, "rb") as file:
            total.update(name.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return total.hexdigest()


def unpacked(target, top=TOP):
    """Copies the benches to target, unless they are there. A directory with other things in it is left alone."""
    files = shipped(top)
    mark, wanted = os.path.join(target, MARK), digest(files)
    if os.path.isdir(target) and os.listdir(target) and not os.path.exists(mark):
        sys.exit("psi-cache bench: %s is there, and not of our making; go elsewhere, or set PSI_BENCH_DIR" % target)
    if os.path.exists(mark) and open(mark).read() == wanted:
        return target
    for name, path in files.items():
        os.makedirs(os.path.dirname(os.path.join(target, name)), exist_ok=True)
        shutil.copyfile(path, os.path.join(target, name))
    with open(mark, "w") as file:
        file.write(wanted)
    print("psi-cache bench: the benches are in %s, their results in %s" % (target, os.path.join(target, "build")),
          file=sys.stderr)
    return target


def home():
    """The directory whose bench/ is run."""
    return TOP if is_clone() else unpacked(os.environ.get("PSI_BENCH_DIR") or "psi-cache-bench")


def missing(modules):
    """What must be installed for these modules, as pip has it; None when nothing."""
    wanted = {"psi_cache": "llm-psi-cache", "numpy": "numpy", "matplotlib": "matplotlib", "llama_cpp": "llama-cpp-python"}
    lacks = [wanted[name] for name in modules if importlib.util.find_spec(name) is None]
    return "make setup" if lacks and is_clone() else "pip install " + " ".join(lacks) if lacks else None


def become(script, arguments):
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, script, *arguments])


def bench(arguments):
    known = sources(HERE)
    if not arguments or arguments[0] in ("--list", "-l"):
        print("psi-cache bench NAME [OPTION...]; each has --help, and bench/README.md says what it shows\n")
        for name, path in known.items():
            print("  %-26s %s" % (name, says(path)))
        return 0 if arguments else 2
    name = arguments[0].replace("_", "-")
    if name not in known:
        print("psi-cache bench: there is no bench '%s'; psi-cache bench --list names them" % arguments[0], file=sys.stderr)
        return 2
    cure = missing(("psi_cache", "numpy") if name in ENGINELESS else ("psi_cache", "numpy", "llama_cpp"))
    if cure:
        print("psi-cache bench: %s needs more than is installed here; cure: %s" % (name, cure), file=sys.stderr)
        return 1
    return become(os.path.join(home(), "bench", os.path.basename(known[name])), arguments[1:])


def report(arguments):
    cure = missing(("numpy", "matplotlib"))
    if cure:
        print("psi-cache report: needs more than is installed here; cure: %s" % cure, file=sys.stderr)
        return 1
    top = home()
    own = os.path.join(top, "build", "bench", "all")
    if not [word for word in arguments if not word.startswith("-")] and os.path.isdir(own):
        arguments = [own] + arguments
    return become(os.path.join(top, "bench", "report.py"), arguments)


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a list is often cut short
    subcommand = sys.argv[1] if len(sys.argv) > 1 else "bench"
    return report(sys.argv[2:]) if subcommand == "report" else bench(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
