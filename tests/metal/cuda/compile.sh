#!/usr/bin/env bash
# compile.sh LIST FOLDER: a cubin for every kernel and set of function constants in a list that GPU_RUN="record LIST" wrote.
set -euo pipefail
list=$(realpath "$1") folder=$2 here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
mkdir -p "$folder"
folder=$(realpath "$folder")
python3 "$here/../emulator/translate.py" cuda "$root"/shaders/params.h "$root"/shaders/common.h "$root"/shaders/*.metal >"$folder/shaders.cu"

compile() {
    read -ra words <<<"$2"
    defines=()
    for i in $(seq 0 15); do defines[i]="-DFUNCTION_CONSTANT_$i=1"; done # those that the kernel does not use
    for word in "${words[@]:1}"; do defines[${word%%=*}]="-DFUNCTION_CONSTANT_$word"; done
    nvcc -std=c++17 -arch="${ARCH:-sm_90}" -cubin -I"$3/../emulator/cuda" "${defines[@]}" ${NVCC_FLAGS:-} \
        "$1/shaders.cu" -o "$1/$(tr ' ' '_' <<<"$2").cubin" 2>"$1/$(tr ' ' '_' <<<"$2").log" || { cat "$1"/*.log >&2; exit 1; }
}
export -f compile
sort -u "$list" | xargs -d '\n' -P "${JOBS:-$(nproc)}" -I{} bash -c 'compile "$@"' _ "$folder" {} "$here"
