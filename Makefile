# clip_search. `make help` lists the targets.
# scripts/*.sh do the work; this file declares the dependencies.

# The server to build for: its pg_config, by default the one on PATH, or that of the server `make deps` installs.
PG_CONFIG ?=
# Any Python from 3.10 to 3.13; it runs the tests, and fetches ONNX Runtime by pip.
PYTHON ?= python3
# Stages an installation below another directory, for packagers.
DESTDIR ?=
CHECKS ?=
SOAK ?=
FUZZ ?=
TARGETS ?=
KILLS ?=
BENCH ?=
MODEL ?=
PORT ?=
STAMPS ?=
GCOMPRIS ?=
PG_CONFIGS ?=
MAJOR ?=
SUITE ?=
ARCH ?=
ENGINE ?=
PGVECTOR_SRC ?=
CITUS_SRC ?=
ORDER ?=
ONLY ?=
FILES ?=
SHARD ?=
export ORDER ONLY FILES SHARD PG_CONFIG PYTHON DESTDIR TESTS K UNIT SOAK FUZZ TARGETS KILLS BENCH MODEL STAMPS GCOMPRIS PORT PG_CONFIGS MAJOR SUITE ARCH ENGINE PGVECTOR_SRC CITUS_SRC

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := all
.PHONY: all help deps build-deps install test demo cluster env stop model fuzz soak soak-kill bench eval clean

all: build-deps
	@scripts/build.sh

help:
	@scripts/help.sh

deps:
	@scripts/deps.sh

build-deps:
	@scripts/deps.sh build

install: deps
	@scripts/build.sh install

cluster: install
	@scripts/cluster.sh start

env:
	@scripts/cluster.sh env

stop:
	@scripts/cluster.sh stop
	@CLUSTER=test scripts/cluster.sh stop
	@CLUSTER=test.watch scripts/cluster.sh stop
	@CLUSTER=test.server scripts/cluster.sh stop

# The tests use a server of their own, which preloads nothing.
.PHONY: test-cluster
test-cluster: export CLUSTER = test
test-cluster: install
	@scripts/cluster.sh start

test: export CLUSTER = test
test: test-cluster
	@scripts/test.sh

.PHONY: lint
lint: build-deps
	@scripts/lint.sh $(CHECKS)

# Mutation testing: crates/clip with cargo-mutants, for hours; src/ with a list of mutations, on the tests' server.
.PHONY: mutants mutants-glue
mutants: install
	@scripts/record.sh mutants scripts/mutants.sh engine

mutants-glue: export CLUSTER = test
# Incremental: building a mutation takes seconds instead of a minute and a half.
mutants-glue: export CARGO_INCREMENTAL = 1
mutants-glue: test-cluster
	@scripts/record.sh mutants-glue scripts/mutants.sh glue

demo: cluster
	@scripts/demo.sh

.PHONY: webapp
webapp: cluster
	@scripts/webapp.sh

.PHONY: browser-test
browser-test: cluster
	@scripts/record.sh browser-test scripts/browser.sh

.PHONY: feasibility
feasibility: cluster
	@scripts/feasibility.sh

.PHONY: matrix
matrix:
	@scripts/record.sh matrix scripts/matrix.sh

.PHONY: valgrind
valgrind:
	@scripts/record.sh valgrind scripts/valgrind.sh

.PHONY: citus
citus:
	@scripts/record.sh citus scripts/citus.sh

.PHONY: check-arm64 arm64-test
check-arm64: build-deps
	@scripts/arm64.sh check

# Compares with the tests' server.
arm64-test: export CLUSTER = test
arm64-test: test-cluster
	@scripts/record.sh arm64-test scripts/arm64.sh test

.PHONY: deb deb-test
deb:
	@scripts/deb.sh

deb-test:
	@scripts/record.sh deb-test scripts/deb.sh test

# The Python package for crates/clip, and embedding outside the server with extra packages: Dask, S3, Parquet.
.PHONY: wheel bulk-test
wheel: build-deps
	@scripts/bulk.sh wheel

bulk-test: export CLUSTER = test
bulk-test: test-cluster
	@scripts/record.sh bulk-test scripts/bulk.sh test

.PHONY: clients-test
clients-test: export CLUSTER = test
clients-test: test-cluster
	@scripts/clients.sh

.PHONY: rpm
rpm:
	@scripts/record.sh rpm scripts/rpm.sh

.PHONY: image image-test
image:
	@scripts/image.sh

image-test:
	@scripts/record.sh image-test scripts/image.sh test

.PHONY: docs
docs: export CLUSTER = test
docs: test-cluster
	@scripts/docs.sh

model:
	@scripts/model.sh

# With FUZZ=seconds, the fuzzing is guided by coverage and needs no server.
fuzz: $(if $(FUZZ),,install)
	@scripts/record.sh fuzz scripts/fuzz.sh

soak: export CLUSTER = test
soak: test-cluster
	@SOAK=$(or $(SOAK),20) scripts/record.sh soak env K="storm or memory" scripts/test.sh

soak-kill: export CLUSTER = test
soak-kill: test-cluster
	@KILLS=$(or $(KILLS),200) scripts/record.sh soak-kill env K=test_kill scripts/test.sh

# Needs network on the first run: the reference decoders are Python packages.
.PHONY: image-corpus
image-corpus: build-deps
	@scripts/image-corpus.sh

# Reads the directories named by SUITES, with the same packages.
.PHONY: image-suites
image-suites: build-deps
	@scripts/image-suites.sh

.PHONY: soak-hostile
soak-hostile: export CLUSTER = test
soak-hostile: test-cluster
	@HOSTILE=$(or $(HOSTILE),3600) scripts/record.sh soak-hostile env K=test_hostile scripts/test.sh

bench: cluster
	@scripts/record.sh bench scripts/bench.sh

eval: cluster
	@scripts/record.sh eval scripts/eval.sh

clean:
	@scripts/cluster.sh remove
	@CLUSTER=test scripts/cluster.sh remove
	@CLUSTER=test.watch scripts/cluster.sh remove
	@CLUSTER=test.server scripts/cluster.sh remove
	@rm -rf target
