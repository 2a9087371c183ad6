#!/bin/bash
# Makes a folder from which a machine without a network installs and serves.
#
#   scripts/wheelhouse.sh FOLDER [MODEL.gguf]
#
# The folder gets wheels of this checkout and of all it needs, for machines with this system,
# kind of processor and version of Python, and a model: the demonstration's if none is given.
# On the other machine:
#
#   python3 -m venv .venv
#   .venv/bin/pip install --no-index --find-links FOLDER/wheels 'gguf-serve[cpu]'
#   .venv/bin/serve -m FOLDER/*.gguf
#
# PYTHON names another interpreter than python3, EXTRAS others than [cpu].
set -euo pipefail

[ $# = 1 ] || [ $# = 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1 model=${2:-} python=${PYTHON:-python3} extras=${EXTRAS-[cpu]}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkdir -p "$folder/wheels"
"$python" -m pip wheel --quiet --wheel-dir "$folder/wheels" "$checkout$extras"

# That nothing is missing shows when it is installed, as it will be over there.
"$python" -m venv --without-pip "$scratch/venv"
"$python" -m pip --python "$scratch/venv/bin/python" install --quiet --no-index \
  --find-links "$folder/wheels" "gguf-serve$extras"
if [ -z "$model" ]; then
  model=$("$scratch/venv/bin/python" -c '
from gguf_serve.server.demo import demo_model
print(demo_model(lambda done, total: None))')
fi
cp "$model" "$folder/"
du -sh "$folder" | sed 's/\t/ in /'
