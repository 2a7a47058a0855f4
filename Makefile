# make help prints what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
TOOLS := $(shell tools/install --dir)
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)
# A number of inputs, not a time: a busy machine may meet the end of a time
# with an input under way, which go test takes for a failure.
FUZZTIME ?= 1000x
# Of the differential test of the SQL judge, and a number that chooses them.
STATEMENTS ?= 100000
MASKED ?= 40000
SEED ?= 1
CORPUS ?= select|join|subselect|union|with|window|regress/json|documentation
export PATH := $(TOOLS)/bin:$(PATH)
# Everything but the end-to-end tests, which run the whole product.
UNIT = $(shell go list ./... | grep -v 'chaperone/e2e$$')
# Random statements compared with real servers: a part of its own, for the race
# detector finds nothing in them and makes them slow.
COMPARED = ^Test(Differential|Masker|Corpus|TranscoderAgreesWithTheGrammar)$$

help: ## print this
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## build bin/chaperone, one static binary
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/chaperone ./cmd/chaperone

demo: build ## run the main job on this machine; ONCE=1 exits after the story, K8S=1 adds Kubernetes, DIR= chooses the folder
	@tools/install demo $(if $(K8S),kubernetes)
	bin/chaperone demo $(if $(ONCE),--once) $(if $(K8S),--kubernetes) $(if $(DIR),--dir $(DIR)) $(if $(HTTPS_PORT),--https-port $(HTTPS_PORT)) $(if $(POSTGRES_PORT),--postgres-port $(POSTGRES_PORT))

tools: ## install the real servers and checkers that the tests use
	@tools/install envoy postgres postgres-tls dex keycloak redis openssh python suites jaeger kubernetes kubectl helm browser staticcheck govulncheck

test: tools build vet lint race e2e docs differential fuzz vuln ## run everything
	@echo "make test: all parts passed"

test-fast: ## unit tests without the race detector, in under a minute
	go test -skip '$(COMPARED)' $(UNIT)

vet: ## go vet
	go vet ./...

lint: tools ## formatting, staticcheck, module files in order
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	staticcheck ./...
	go mod tidy -diff
	@bash -n tools/install && bash -n .ci/run

race: tools ## unit tests with the race detector
	go test -race -timeout 25m -skip '$(COMPARED)' $(UNIT)

e2e: tools build ## the whole product: real Envoy, PostgreSQL, Redis, Dex, psql, curl
	go test -timeout 25m -count=1 -parallel 8 ./e2e/...

docs: build ## every command and file shown in the documents
	go test -count=1 -run TestDocs ./e2e/...

differential: tools ## 100,000 statements, judged and run on real servers: what was read-only must change nothing; STATEMENTS= SEED=
	go test -count=1 -run '$(COMPARED)' ./internal/sql/parser
	go test -timeout 30m -count=1 -run '$(COMPARED)' ./internal/sql -differential $(STATEMENTS) -seed $(SEED)

masker: tools ## 40,000 statements asked of servers that differ in masked values alone: answers must not; MASKED= SEED=
	go test -timeout 60m -count=1 -run '^TestMasker$$' ./internal/sql -masker $(MASKED) -seed $(SEED)

corpus: tools ## the same for PostgreSQL 15's own statements: those of its documentation and of the files that CORPUS= matches
	go test -timeout 60m -count=1 -run '^TestCorpus$$' ./internal/sql -corpus '$(CORPUS)'

fuzz: ## each fuzz target for FUZZTIME: 1000x inputs, or a time (30s)
	@set -eo pipefail; grep -rno --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' . | sed -E 's|/[^/]*:[0-9]+:func | |' | sort | while read -r p f; do \
		echo "fuzz $$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p </dev/null; done

suites: tools build ## the own test suites of pgx, lib/pq and psycopg2 whole, straight at PostgreSQL and through the gateway
	go test -timeout 90m -count=1 -run '^Test(Suites|GoldenCompatibility)$$' ./e2e -suites

vuln: tools ## known vulnerabilities, where their database can be reached
	@if out=$$(govulncheck ./... 2>&1); then echo "$$out" | tail -3; \
	elif echo "$$out" | grep -qE 'dial tcp|no such host|403 Forbidden|connection refused|fetching vulnerabilities'; then echo "vuln: the database cannot be reached from here; nothing was checked"; \
	else echo "$$out"; exit 1; fi

bench: tools build ## CPU per request and per transaction beside Envoy alone, as CSV and table
	@tools/install pgbouncer
	go test -timeout 20m -run '^$$' -bench . -benchtime 3s ./e2e/...

golden: ## write the golden files anew
	go test ./xds ./internal/... ./e2e -run Golden -update

.PHONY: suites help build demo tools soak test test-fast vet lint race e2e docs fuzz vuln bench golden differential masker corpus
