#!/usr/bin/env bash
# build_wheel.sh OUT: build the macosx_14_0_arm64 wheel into OUT, on Linux or wherever pip finds ziglang, and check it.
# The wheel is for the version of `python3`, or of PYTHON.
set -euo pipefail
[ $# = 1 ] || { echo "usage: build_wheel.sh OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mapfile -t needs < <("$python" -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' "$root/pyproject.toml")
"$python" -m pip install -q --disable-pip-version-check --target "$work/site" ziglang==0.17.1 cmake ninja "${needs[@]}" ||
    { echo "pip cannot install zig and the build's tools" >&2; exit 3; }
export PYTHONPATH=$work/site PATH=$work/site/bin:$PATH

mkdir "$work/zig"
for tool in cc c++ ar ranlib; do
    printf '#!/bin/sh\nexec "%s" "%s/zig.py" %s "$@"\n' "$python" "$here" "$tool" >"$work/zig/zig-$tool"
    chmod +x "$work/zig/zig-$tool"
done

# SETUPTOOLS_EXT_SUFFIX: what Python on a Mac says; a module for the stable ABI is named by nanobind.
suffix=$("$python" -c 'import sys; print(f".cpython-3{sys.version_info[1]}-darwin.so")')
env FLASHMOE_ZIG="$work/zig" CC="$work/zig/zig-cc" CXX="$work/zig/zig-c++" CMAKE_TOOLCHAIN_FILE="$here/toolchain.cmake" \
    MACOSX_DEPLOYMENT_TARGET=14.0 ARCHFLAGS="-arch arm64" _PYTHON_HOST_PLATFORM=macosx-14.0-arm64 \
    SETUPTOOLS_EXT_SUFFIX="$suffix" \
    "$python" -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w "$out" \
    -C install.strip=false -C build-dir="$work/build" "$root"
"$python" "$here/check_wheel.py" "$out"/flashmoe-*-macosx_14_0_arm64.whl
