"""The console script psi-cache: becomes the executable of the same name that is installed beside it."""

from __future__ import annotations

import os
import sys

from . import _native


def main() -> int:
    """Replaces this process by psi-cache; returns (125) only where that cannot be done."""
    try:
        executable = _native.find("psi-cache")
        # The libraries are where it is; an in-tree build that is named in PSI_CACHE_LIB_DIR is found there.
        os.environ["PSI_CACHE_LIB_DIR"] = str(executable.parent)
        if sys.argv[1:2] in (["bench"], ["report"]):
            os.environ["PSI_CACHE_PYTHON"] = sys.executable  # they are Python: run them where this package is
        os.execv(str(executable), ["psi-cache", *sys.argv[1:]])
    except OSError as error:
        print(f"psi-cache: {error.strerror or error}", file=sys.stderr)
    return 125


if __name__ == "__main__":
    sys.exit(main())
