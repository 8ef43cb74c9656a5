# Every target sets itself up: virtual environment, pinned packages, build. A second run skips what is done.
#
#   make test PYTHON=python3.12                        another interpreter
#   make test VENV_ARGS=--system-site-packages         keep the torch that this Python has (>= 2.11), as on a GPU machine
#   make test ARGS="-k gemm_int8 -x"                   arguments for pytest
#   make bench ARGS="gemm_int8 --m 1 --n 4096 --k 4096"
VENV ?= .venv
ARGS ?=
# A process a core; PARALLEL= keeps them in this one, as ARGS=--pdb needs.
PARALLEL ?= -n auto --dist worksteal
BENCH_DEFAULT := gemm_int8 --device cpu --m 1,16,64,256 --n 4096 --k 4096 --peers onnxruntime,torch
PY := $(VENV)/bin/python
# cmake, ninja and clang-format come from the environment too.
RUN := PATH="$(abspath $(VENV))/bin:$$PATH"

READY := $(VENV)/.ready
BUILT := $(VENV)/.built
# vLLM pins its own versions of everything. One library serves both environments: its ABI is stable.
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_PY := $(VLLM_VENV)/bin/python
# What the demo needs where nothing is there yet and no GPU is: its own packages, and the CPU half of the library.
READY_FOR_DEMO := $(VENV)/.ready_for_demo
CPU_BUILT := $(VENV)/.cpu_built
CPU_HALF := -DLAMINA_CUDA=OFF -DLAMINA_EMULATOR=OFF -DLAMINA_SIMDE=OFF -DLAMINA_NATIVE=ON
SOURCES := setup.py pyproject.toml $(wildcard tests/probe/*.cc tests/probe/*.h tests/probe/*.txt) \
	$(shell find CMakeLists.txt cmake csrc -type f 2>/dev/null)
CXX_FILES = $(shell find csrc tests bench -type f \( -name '*.h' -o -name '*.cc' -o -name '*.c' -o -name '*.cu' -o -name '*.cuh' \))

FORCE:

.PHONY: FORCE help demo test test-all test-vllm bench mutants kernel-report wheel hub-kernel docs build lint types format clean

help:
	@echo "make demo      compress a real language model, compare size, speed and perplexity with torch and llama.cpp"
	@echo "make test      all tests but the slow ones; test-all: those too"
	@echo "make test-vllm the plugin in vLLM's CPU engine, in an environment of 2 GB of its own"
	@echo "make mutants   plant bugs in the kernels, count those that the tests catch"
	@echo "make bench     benchmark against peers in the same process"
	@echo "make kernel-report: registers, spills, instructions of the CUDA kernels, against their budgets"
	@echo "make wheel     the archive of the sources and a wheel for package indexes, in dist/, tried in a fresh environment"
	@echo "make hub-kernel: the wheel as a kernel of the Hugging Face hub, in build/hub;  BACKENDS=\"cpu cu130\""
	@echo "make docs      write the generated pages and figures of docs/"
	@echo "make build     compile the library into python/lamina"
	@echo "make lint      ruff, clang-format;  make types: mypy;  make format: rewrite"
	@echo "make clean     remove what was built;  the environment is in $(VENV)"

# What only `make wheel` needs, on top of all else.
READY_FOR_RELEASE := $(VENV)/.ready_for_release

$(READY) $(READY_FOR_DEMO) $(READY_FOR_RELEASE): pyproject.toml constraints.txt tools/venv.sh
	@tools/venv.sh $(VENV) $(if $(filter $@,$(READY)),dev,$(patsubst $(VENV)/.ready_for_%,%,$@))
	@touch $@

INSTALL := -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
# setup.py alone shows the progress of ninja; pip, which would hide it, installs what is built.
define BUILD
@$(RUN) $(PY) setup.py -q build_ext --inplace
@$(RUN) LAMINA_LIBRARY=python/lamina/_C.abi3.so $(PY) $(INSTALL)
@touch $@
endef

$(VLLM_READY): tests/vllm/requirements.txt tools/venv.sh pyproject.toml | $(BUILT)
	@tools/venv.sh $(VLLM_VENV) tests/vllm/requirements.txt
	@LAMINA_LIBRARY=python/lamina/_C.abi3.so $(VLLM_PY) $(INSTALL)
	@touch $@

# The stamps alone do not count where the library has been removed.
$(BUILT) $(CPU_BUILT): $(SOURCES) $(if $(wildcard python/lamina/_C.abi3.so),,FORCE)

$(BUILT): | $(READY)
	@echo "lamina: building"
	$(BUILD)

$(CPU_BUILT): export LAMINA_CMAKE_ARGS += $(CPU_HALF)
$(CPU_BUILT): | $(if $(wildcard $(READY)),$(READY),$(READY_FOR_DEMO))
	@echo "lamina: building the CPU half, which the demo needs; make build adds the CUDA kernels"
	$(BUILD)

build: $(READY) $(BUILT)

demo: $(if $(or $(wildcard $(BUILT)),$(shell nvidia-smi -L 2>/dev/null)),build,$(CPU_BUILT))
	$(RUN) lamina demo $(ARGS)

# A process of tests waits for the cores that the other processes use, instead of spinning on its own.
test test-all: export OMP_WAIT_POLICY ?= passive

test: build
	$(RUN) $(PY) -m pytest $(PARALLEL) $(ARGS)

test-all: build
	$(RUN) $(PY) -m pytest -m "" $(PARALLEL) $(ARGS)
	$(RUN) $(PY) -m pytest --hypothesis-profile=long $(PARALLEL) tests/probe

test-vllm: build $(VLLM_READY)
	$(VLLM_PY) -m pytest tests/vllm $(ARGS)

mutants: build
	$(RUN) $(PY) -m tools.mutants $(ARGS)

kernel-report: build
	$(RUN) $(PY) -m tools.kernel_report $(ARGS)

bench: build
	$(RUN) $(PY) bench/run.py $(or $(ARGS),$(BENCH_DEFAULT))

wheel: build $(READY_FOR_RELEASE)
	$(RUN) $(PY) -m tools.wheel $(ARGS)

hub-kernel: wheel
	$(RUN) $(PY) -m tools.hub_kernel "$$(ls -t dist/lamina-*manylinux*.whl | head -1)" build/hub $(BACKENDS)

docs: build
	$(RUN) $(PY) -m tools.ops_page > docs/ops.md
	$(RUN) $(PY) -m tests.support.bad_inputs > docs/errors.md
	$(RUN) $(PY) -m bench.study page
	$(RUN) $(PY) bench/figures.py

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) clang-format --dry-run -Werror $(CXX_FILES)

types: $(READY)
	$(RUN) $(PY) -m mypy

format: $(READY)
	$(RUN) ruff check --fix --exit-zero .
	$(RUN) ruff format .
	$(RUN) clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist python/lamina.egg-info python/lamina/*.so $(BUILT) $(CPU_BUILT)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find csrc python tests bench tools -type d -name __pycache__ -prune -exec rm -rf {} +
