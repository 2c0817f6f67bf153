#!/bin/sh
# clang-format over our C sources, one version for everybody: format.sh -i, or format.sh --dry-run --Werror
set -u
. "$(dirname -- "$0")/common.sh"
version=19.1.7
tool=$ROOT/.venv/bin/clang-format
if [ "$("$tool" --version 2>/dev/null | grep -oE '[0-9.]+' | head -n 1)" != "$version" ]; then
    sh scripts/setup-venv.sh project || exit 1
    sh scripts/step.sh clang-format "installing clang-format $version into .venv" "is the network there?" \
        "$VENV_PYTHON" -m pip install --quiet "clang-format==$version" || exit 1
fi
find src include tests examples demo bench \( -name '*.c' -o -name '*.h' \) -exec "$tool" "$@" {} +
