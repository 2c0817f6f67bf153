"""vLLM's API server as a child in a memory group, and clients for it. For the demo and the benches of vLLM."""
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

FLAG = '{"kv_connector": "PsiCacheConnector", "kv_role": "kv_producer"}'
NAME = "gemma"
WORDS = ("the robot drove along the river bank and counted birds while its arm held the lamp of the old harbour house "
         "where a keeper wrote down each ship that came in from the north with salt and timber and news").split()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prompt(number, tokens, shared_tokens=0):
    """A text of about so many tokens; texts of one `shared_tokens` begin alike."""
    chance = random.Random(number)
    opening = WORDS * (shared_tokens // len(WORDS) + 1)
    return " ".join(opening[:shared_tokens] + chance.choices(WORDS, k=tokens - shared_tokens))


class Server:
    """`ours`: with the connector. `group`: a MemoryGroup, or None."""

    def __init__(self, model, ours, kv_bytes, max_len, group=None, scheduler=None, environment=(), options=()):
        self.port = free_port()
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(self.port),
                   "--host", "127.0.0.1", "--served-model-name", NAME, "--max-model-len", str(max_len),
                   "--kv-cache-memory-bytes", str(kv_bytes), "--max-num-seqs", "16", "--enforce-eager", *options]
        command += ["--kv-transfer-config", FLAG] if ours else []
        command += ["--scheduler-cls", scheduler] if scheduler else []
        self.log = tempfile.TemporaryFile()
        settings = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1",  # as without a connector: vLLM would keep one more for it
                    **os.environ, "VLLM_LOGGING_LEVEL": "WARNING", "PSI_CACHE_VERBOSE": "2", **dict(environment)}
        start = group.start if group is not None else subprocess.Popen
        self.process = start(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=settings, start_new_session=True)

    def alive(self):
        return self.process.poll() is None

    def wait_ready(self, limit_s=900):
        until = time.monotonic() + limit_s
        while self.alive() and time.monotonic() < until:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return True
            except OSError:
                pass
            time.sleep(0.5)
        return False

    def pids(self):
        """By what each process is called: the API server, the engine's core, the worker."""
        found = {"server": self.process.pid}
        children = {self.process.pid}
        for _ in range(3):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/stat") as file:
                        parent = int(file.read().rsplit(")", 1)[1].split()[1])
                    with open(f"/proc/{pid}/cmdline", "rb") as file:
                        title = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
                except OSError:
                    continue
                if parent in children:
                    children.add(int(pid))
                    for name, word in (("core", "EngineCore"), ("worker", "Worker")):
                        if word in title:
                            found[name] = int(pid)
        return found

    def ask(self, text, tokens, timeout_s=900):
        """Token ids and text of a greedy answer. Raises OSError or ValueError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        body = {"model": NAME, "prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {content[:200]!r}")
        said = json.loads(content)
        return said["choices"][0]["text"], said["usage"]["completion_tokens"]

    def metric(self, name):
        """The sum of a metric's samples; None where there is none."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        except OSError:
            return None
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(values) if values else None

    def said(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def kill(self):
        """All of it, at once."""
        for pid in self.pids().values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def stop(self):
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.wait()


class Load(threading.Thread):
    """So many clients that ask one question after the other, until `count` are answered or it is told to stop."""

    def __init__(self, server, clients, count, prompt_tokens, tokens, shared_tokens=0, first=0):
        super().__init__(daemon=True)
        self.server, self.over = server, False
        self.done, self.failed = [], []  # (number, began, ended, tokens, text); (number, why)
        self._numbers = iter(range(first, first + count))
        self._lock = threading.Lock()
        self._shape = (prompt_tokens, shared_tokens, tokens)
        self._clients = [threading.Thread(target=self._client, daemon=True) for _ in range(clients)]

    def run(self):
        for client in self._clients:
            client.start()
        for client in self._clients:
            client.join()

    def _client(self):
        while not self.over:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            prompt_tokens, shared_tokens, tokens = self._shape
            began = time.monotonic()
            try:
                text, count = self.server.ask(prompt(number, prompt_tokens, shared_tokens), tokens)
                self.done.append((number, began, time.monotonic(), count, text))
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.failed.append((number, f"{type(error).__name__}: {error}"))
                if not self.server.alive():
                    return

    def tokens_per_s(self):
        if not self.done:
            return 0.0
        return sum(each[3] for each in self.done) / (max(e[2] for e in self.done) - min(e[1] for e in self.done))
