# Thin over infra/setup/venv.sh (what must exist before Python) and the `letterpress` command.
# `make help` lists the targets.
STACK ?= local
MODEL ?=
LETTERPRESS := .venv/bin/letterpress
SETUP := ./infra/setup/venv.sh
RUN := worker,router,infra
TEST := $(RUN),dev
PYTEST_ARGS ?=
SOAK_RUNS ?= 10
# Many tests wait for processes that they started: two at a time finish earlier, on two cores too. Their temporary
# folders have short names, because sockets go there (a unix socket's path ends at 107 bytes).
TEST_PROCESSES ?= 2
export TORCH_BACKEND PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup installed setup-test deploy plan preview doctor status logs admin destroy sweep watch endpoint test bench bench-gpu soak lint format pins schema

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  STACK=name|path.yaml picks a stack (default: local), MODEL=repository|folder its weights,"
	@echo "  TORCH_BACKEND=cpu|cu126|auto the build of torch, PYTHON=... the interpreter, YES=1 rents unasked."

setup:
	@$(SETUP) $(RUN)

# What looks at a stack or ends it makes do with what is installed, also offline and after an upgrade.
installed:
	@test -x $(LETTERPRESS) || $(SETUP) $(RUN)

setup-test:
	@$(SETUP) $(TEST)
	@$(LETTERPRESS) setup --tests

deploy: setup ## set up what is missing, preview, bring the stack up, wait until it makes an image
	@$(LETTERPRESS) deploy '$(STACK)' $(if $(MODEL),--model '$(MODEL)') $(if $(YES),--yes)

plan: installed ## what it would cost, per image, beside the hosted API (IMAGES=n a month)
	@$(LETTERPRESS) plan '$(STACK)' $(if $(IMAGES),--images-per-month '$(IMAGES)')

preview: setup ## show what `make deploy` would change
	@$(LETTERPRESS) preview '$(STACK)' $(if $(MODEL),--model '$(MODEL)')

doctor: installed ## look for what would make a deploy fail, before anything is spent (LIVE=1 asks the provider, too)
	@$(LETTERPRESS) doctor '$(STACK)' $(if $(MODEL),--model '$(MODEL)') $(if $(LIVE),--live)

status: installed ## a table: resource, state, since, url, pool, jobs
	@$(LETTERPRESS) status '$(STACK)'

logs: installed ## the last lines of every process of the stack (FOLLOW=1 to stay)
	@$(LETTERPRESS) logs '$(STACK)' $(if $(FOLLOW),--follow)

admin: installed ## print the admin console's address, once it answers (a router elsewhere: open the tunnel to it)
	@$(LETTERPRESS) admin '$(STACK)'

endpoint: installed ## the endpoint and its key, as JSON
	@$(LETTERPRESS) endpoint --json --stack '$(STACK)'

destroy: installed ## end everything the stack started, and only that
	@$(LETTERPRESS) destroy '$(STACK)'

watch: installed ## replace lost machines, follow the backlog, return to spot, keep to the budget (until Ctrl-C)
	@$(LETTERPRESS) watch '$(STACK)'

sweep: installed ## list what is rented in the stack's name and is in no state, and ask (DELETE=name|all deletes unasked)
	@$(LETTERPRESS) sweep '$(STACK)' $(if $(filter all,$(DELETE)),--all,$(if $(DELETE),--delete '$(DELETE)'))

test: setup-test ## set up what is missing, run every test that needs no GPU (PYTEST_ARGS=..., COVERAGE=1 tells what they run)
	@data=$$(mktemp -d /tmp/lp.XXXXXX) && trap 'rm -rf "$$data"' EXIT && export COVERAGE_FILE="$$data/coverage" && \
	  .venv/bin/pytest --basetemp="$$data/t" -n $(TEST_PROCESSES) --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-report=) \
	    -m "not soak and not gpu" $(PYTEST_ARGS) $(if $(COVERAGE),&& .venv/bin/coverage report)

bench-gpu: ## the engine beside the pipeline on this machine's GPU; writes docs/benchmarks.md (PART=rows|batching|served|compiled, JSON=file of another card)
	@$(SETUP) $(TEST),bench
	@.venv/bin/python -m tests.gpu.bench --part $(or $(PART),all) --json $(or $(JSON),docs/bench-gpu.json)
	@.venv/bin/python -m tests.gpu.report $(or $(JSON),docs/bench-gpu.json) docs/benchmarks.md

bench: setup-test ## figures and ratios of the router, its store and the worker, on the CPU (docs/benchmarks.md)
	@.venv/bin/python -m tests.load.router_bench
	@.venv/bin/python -m tests.load.store_bench
	@.venv/bin/python -m tests.load.worker_bench

soak: setup-test ## the long runs of the reliability suite (SOAK_RUNS=10 seeds)
	@SOAK_RUNS=$(SOAK_RUNS) .venv/bin/pytest -m soak $(PYTEST_ARGS)

lint: setup-test ## ruff, mypy --strict, import contracts, hadolint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	@! test -x .venv/bin/hadolint || .venv/bin/hadolint --failure-threshold info worker/Dockerfile

format: setup-test ## rewrite the code as `make lint` wants it
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

schema: setup ## write docs/stack.schema.json from the code
	@$(LETTERPRESS) schema > docs/stack.schema.json

pins: setup-test ## refresh constraints.txt to the newest versions that fit pyproject.toml
	.venv/bin/python -m pip install --quiet -c constraints.txt uv
	.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-emit-index-url --no-annotate --no-header --quiet -o constraints.txt
