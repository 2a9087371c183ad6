#!/usr/bin/env bash
# Checks and measures on a machine with a GPU: devices, kernel tests, sizes to tune, and one table:
# prompts of 512 and 4,096 tokens, 1, 8 and 32 streams, and the share of the memory's bandwidth.
#
#   scripts/gpu_check.sh [--wheels DIR] [--model FILE.gguf] [--device NAME] [--out DIR]
#                        [--synthetic "OPTIONS"] [--kernel-family simd|simt] [--skip-tests] [--minutes N]
#
# --wheels     folder of wheels: the dependencies and what the tests need (pytest, pytest-timeout,
#              gguf) are installed from it, offline, into a temporary folder, and Intel's CPU
#              runtime if it is there; without the option they must be installed already
# --model      what to measure; else a model of 7 billion parameters is written (4.1 GB)
# --synthetic  options of synthetic_model.py for another size
# --device     as serve --device; else the one that serve takes
# --minutes    for all (default 10): 4 in 10 of them at most for the tests, 2 for the search of sizes,
#              which is not stored; the benchmark has what is left
# --out        folder for the log of the tests and the benchmark's JSON
# In the environment: PYTHON (default python3), BENCH_OPTIONS (more options of bench.py).
#
# Nothing of the machine is changed. Ends with 1 if a test or the benchmark failed.

set -euo pipefail

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
fail() { echo "gpu_check: $*" >&2; exit 2; }

wheels='' model='' device='' out='' synthetic='' family='' tests=yes minutes=10
while [ $# -gt 0 ]; do
    case $1 in
        --wheels | --model | --device | --out | --synthetic | --kernel-family | --minutes)
            [ $# -ge 2 ] || fail "$1 needs a value" ;;&
        --wheels) wheels=$2; shift ;;
        --model) model=$2; shift ;;
        --device) device=$2; shift ;;
        --out) out=$2; shift ;;
        --synthetic) synthetic=$2; shift ;;
        --kernel-family) family=$2; shift ;;
        --minutes) minutes=$2; shift ;;
        --skip-tests) tests=no ;;
        -h | --help) usage; exit 0 ;;
        *) fail "unknown argument $1 (see --help)" ;;
    esac
    shift
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || fail "--minutes $minutes, expected a whole number above 0"
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "no folder $wheels"
[ -z "$model" ] || [ -f "$model" ] || fail "no model $model"
[ -z "$wheels" ] || wheels=$(realpath "$wheels")
[ -z "$model" ] || model=$(realpath "$model")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$(realpath "${out:-$work}")
mkdir -p "$out"
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed"
site=$work/site
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

requirements() {  # of the kernel tests and the benchmark, or the extra that is named
    "$python" - "$@" <<'PYTHON'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
tests = [name for name in extras["test"] if name.startswith(("pytest", "gguf"))]
print(*(extras[sys.argv[1]] if sys.argv[1:] else project["dependencies"] + tests), sep="\n")
PYTHON
}

install_wheels() {
    local pip=("$python" -m pip install --quiet --no-index --no-compile --find-links "$wheels"
        --root-user-action ignore)
    requirements >"$work/requirements"
    "${pip[@]}" --target "$site" --requirement "$work/requirements"
    if ls "$wheels"/intel_opencl_rt-* >/dev/null 2>&1; then  # a CPU device to test beside
        requirements cpu >"$work/cpu-requirements"
        # --target would leave out the libraries.
        "${pip[@]}" --ignore-installed --prefix "$work/cpu" --requirement "$work/cpu-requirements"
    fi
    export PYTHONPATH=$site:$PYTHONPATH
}

# Containers often have NVIDIA's driver but no .icd file that names it.
register_drivers() {
    local nvidia intel vendors=$work/vendors
    [ -z "${OPENCL_VENDOR_PATH:-}" ] || return 0
    nvidia=$(find_library libnvidia-opencl.so.1)
    if [ -n "$nvidia" ] && grep -qs nvidia /etc/OpenCL/vendors/*.icd; then nvidia=''; fi
    intel=$(find "$work/cpu" -name libintelocl.so 2>/dev/null | head -n 1 || true)
    [ -n "$nvidia$intel" ] || return 0
    mkdir "$vendors"
    cp /etc/OpenCL/vendors/*.icd "$vendors" 2>/dev/null || true
    if [ -n "$nvidia" ]; then
        echo "$nvidia" >"$vendors/nvidia.icd"
        case $nvidia in  # what it needs itself lies beside it
            */*) export LD_LIBRARY_PATH=${nvidia%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} ;;
        esac
    fi
    # The variable hides the drivers that kernels/opencl/platforms.py finds by itself.
    [ -n "$intel" ] || intel=$("$python" -c 'from gguf_serve.kernels.opencl.platforms import bundled_drivers as found
print(*found())')
    [ -z "$intel" ] || echo "$intel" >"$vendors/libintelocl.icd"
    export OPENCL_VENDOR_PATH=$vendors
}

find_library() {
    local folder path=${LD_LIBRARY_PATH:-}
    if ldconfig -p 2>/dev/null | grep -q "$1 "; then
        echo "$1"
        return
    fi
    for folder in ${path//:/ } /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu \
        /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib/wsl/lib; do
        if [ -e "$folder/$1" ]; then
            echo "$folder/$1"
            return
        fi
    done
}

within() {  # so many tenths of the time, a command
    local status=0 seconds=$((minutes * 6 * $1))
    shift
    timeout "$seconds" "$@" || status=$?
    [ $status != 124 ] || echo "gpu_check: ended after $seconds s"
    return $status
}

section() { printf '\n== %s\n' "$1"; }

[ -z "$wheels" ] || install_wheels
register_drivers

section devices
devices=$("$python" -m gguf_serve.server --list-devices)
echo "${devices:-none}"
[ -n "$devices" ] || fail "no OpenCL device found"
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.memory --format=csv || true
fi

status=0
if [ $tests = yes ]; then
    section "kernel tests"
    within 4 "$python" -m pytest tests/kernels -p no:cacheprovider -rfEs --tb=short 2>&1 |
        tee "$out/tests.log" || status=1
fi

section "sizes to tune"
tune=(--dry-run)
[ -z "$device" ] || tune+=(--device "$device")
[ -z "$family" ] || tune+=(--family "$family")
within 2 "$python" scripts/tune.py "${tune[@]}" || [ $? = 124 ] || status=1

section benchmark
if [ -z "$model" ]; then
    model=$work/synthetic.gguf
    # shellcheck disable=SC2086  # several options in one argument
    "$python" scripts/synthetic_model.py "$model" $synthetic
fi
# Loading, compiling and what follows the measurements take a part of what is left.
left=$(((minutes * 60 - SECONDS) * 6 / 10))
arguments=(-m "$model" --json "$out/bench.json" --profile --prompts 512,4096 --depth 0
    --streams 8,32 --most-seconds "$((left > 0 ? left : 0))")
[ -z "$device" ] || arguments+=(--device "$device")
[ -z "$family" ] || arguments+=(--kernel-family "$family")
# shellcheck disable=SC2086  # likewise
"$python" scripts/bench.py "${arguments[@]}" ${BENCH_OPTIONS:-} || status=1
exit $status
