# make demo      train an SE network twice, eager and fused, and compare   (sets up .venv)
# make test      that it works: every room, backend and public function    (sets up .venv)
# make test-all  the whole test suite                                     (sets up .venv)
# make bench     SE blocks and networks, timed and reported in benchmarks/results and README
# make bench-full  the same, every map, contender, dtype and layout: hours   (both set up .venv)
# make gpu       a GPU: whether results are right, and the most wanted numbers, in eight minutes
# make sanitize  the CUDA kernels on the CPU under sanitizers              (sets up .venv)
# make lint      ruff
# make clean     remove .venv and what was built

PYTHON ?= python3
BIN := .venv/bin
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-all bench bench-full gpu sanitize lint clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python benchmarks/train.py

# A backend named in SE_FUSED_REQUIRE must run: its tests fail where they would otherwise be skipped.
# A process for each of up to 8 processors, of two threads each, which do not spin while they wait.
test test-all: export SE_FUSED_REQUIRE ?= cpp,triton
test test-all: export OMP_NUM_THREADS ?= 2
test test-all: export OMP_WAIT_POLICY ?= passive
test test-all: PARALLEL := -n logical --maxprocesses 8 --dist worksteal
test: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL)
test-all: test
	$(BIN)/python -m pytest $(PARALLEL) -m "thorough and not slow"

# Blocks with a malloc that keeps freed memory: the kernels' speed. Networks as users run them.
bench-full: ROWS := --full
bench bench-full: PYTEST := $(BIN)/python -m pytest -q --benchmark-quiet
bench bench-full: .venv/ready
	mkdir -p out
	$(BIN)/python benchmarks/malloc.py $(PYTEST) benchmarks/bench_block.py benchmarks/bench_tail.py $(ROWS) \
	  --benchmark-json=out/block.json
	$(PYTEST) benchmarks/bench_network.py $(ROWS) --benchmark-json=out/network.json
	file=$$($(BIN)/python benchmarks/collect.py out/block.json out/network.json) && \
	  $(BIN)/python benchmarks/report.py "$$file" --readme --plots "$${file%.json}"

# An interpreter whose torch sees a GPU is used as it is (make gpu PYTHON=/path/to/python3): nothing
# is installed or downloaded, the extension is built in place for that GPU. Else .venv is set up.
# make gpu DRY=1 tries all of it on the CPU, on tiny maps.
DRY ?=
GPU_OUT := out/gpu$(if $(DRY),-dry)
gpu:
	@python="$(PYTHON)"; \
	sees='import sys, torch; sys.exit(not ("$(DRY)" or torch.cuda.is_available()))'; \
	if ! "$$python" -c "$$sees" 2> /dev/null; then \
	  if [ -z "$(DRY)" ] && ! nvidia-smi -L > /dev/null 2>&1; then \
	    echo "make gpu: no GPU here: neither torch nor nvidia-smi sees one; make gpu DRY=1 runs on the CPU" >&2; \
	    exit 1; \
	  fi; \
	  $(MAKE) .venv/ready || exit 1; \
	  python=$(BIN)/python; \
	  "$$python" -c "$$sees" || { echo "make gpu: the torch of .venv sees no GPU" >&2; exit 1; }; \
	fi; \
	export PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"; \
	"$$python" benchmarks/gpu_stages/build.py $(if $(DRY),--dry); \
	"$$python" benchmarks/gpu.py --out $(GPU_OUT) $(if $(DRY),--dry); \
	right=$$?; readme=; \
	if [ $$right = 0 ] && [ -z "$(DRY)" ]; then readme=--readme; fi; \
	"$$python" benchmarks/report.py $(GPU_OUT)/results.jsonl --plots $$readme > $(GPU_OUT)/tables.md || exit 1; \
	echo "Tables: $(GPU_OUT)/tables.md"; \
	exit $$right

SANITIZERS := address thread initialised
sanitize: $(SANITIZERS:%=sanitize-%)
sanitize-%: .venv/ready
	SE_FUSED_SANITIZER=$* $(BIN)/python -m pytest -q -m "not slow" tests/cuda_host/test_cuda_kernels.py

lint: .venv/ready
	$(BIN)/ruff check .

.venv/ready: $(BUILD_INPUTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet "torch>=2.10" numpy
	SE_FUSED_NO_EXT=0 $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test,demo]" ruff
	touch $@

clean:
	rm -rf .venv build *.egg-info se_fused/*.so out
