"""One JSON line a run, appended as soon as the run is over: what a long bench stops at and goes on from."""
import json
import os


def append(path, record):
    """Whole on the disk before it returns. A line that a power cut left half is ended first, so that it spoils
    nothing but itself."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(path, counts=lambda record: True):
    """The records for which counts(record) holds; half a line is left out."""
    if not os.path.exists(path):
        return []
    found = []
    with open(path) as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # that run is done again
            if counts(record):
                found.append(record)
    return found
