# Storelay. `make demo` shows the whole chain, `make test` proves it; both install what they
# need themselves.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)"
LINT_VERSION := v2.15.0

.PHONY: build demo test check lint fuzz bench bench-slow nightly sim powercut dist clean

build: ## both programs, in bin/
	@$(GOBUILD) -o bin/storelay-agent ./agent
	@$(GOBUILD) -o bin/storelay-relay ./relay

demo: build ## one relay, three stores, live; DEMO_SECONDS=20 stops by itself
	@go run ./e2e/demo -bin bin -seconds "$${DEMO_SECONDS:-0}"

test: need-postgresql ## everything, with the race detector
	go vet ./...
	GOOS=windows go vet ./agent/... ./drivers/... ./protocol/... ./config/...
	go vet -tags powercut ./e2e/powercut
	go test -race -timeout 20m ./...

check: lint test ## before you push

lint: bin/golangci-lint
	bin/golangci-lint run ./...

bin/golangci-lint:
	@echo "building golangci-lint $(LINT_VERSION), once"
	@GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME
	@for pkg in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

bench: need-postgresql ## every benchmark, with its yardstick in the same run
	go test -run '^$$' -bench . -benchtime 2s ./...

bench-slow: need-e2fsprogs ## the agent's benchmark on a disk that takes WRITES a second, 2 for a sync; Linux, root
	e2e/slowdisk.sh $(WRITES) go test -run '^$$' -bench 'Append|RawFsync' -benchtime 3s ./agent/journal
	e2e/slowdisk.sh $(WRITES) go test -run '^$$' -bench BenchmarkAgent -benchtime 1x ./e2e
WRITES ?= 400

nightly: need-postgresql ## what takes hours: thousands of starts and seeds, long fuzzing, power cuts; Linux, root
	STORELAY_LONGER=20 go test -count=1 -timeout 2h -run 'TestEDG05(AgentKilled|LineCut|ACrashLoop)' ./e2e
	$(MAKE) sim RUNS=10000
	$(MAKE) powercut
	$(MAKE) fuzz FUZZTIME=2m

RUNS ?= 1000
SEED ?=
FILE ?=
sim: ## the whole chain on a virtual clock: SEED=n one run, RUNS=n many, FILE=f a kept schedule
	@go run ./e2e/sim/run $(if $(FILE),-file $(FILE),$(if $(SEED),-seed $(SEED) $(if $(V),-v),-runs $(RUNS)))

CUTS ?= 20
POWERCUT ?= .
powercut: need-e2fsprogs ## power cuts, full and dying disks under the agent; Linux, root; CUTS=4 POWERCUT=TestPowerCuts is the short run
	POWERCUT_CUTS=$(CUTS) go test -tags powercut -count=1 -v -timeout 15m -run '$(POWERCUT)' ./e2e/powercut

dist: ## both programs for every system, with checksums, in dist/
	@rm -rf dist && mkdir -p dist
	@for target in linux/amd64 linux/arm64 linux/arm windows/amd64 windows/arm64 windows/386; do \
	  os=$${target%/*} arch=$${target#*/}; ext=; [ $$os = windows ] && ext=.exe; \
	  echo "storelay-agent $$target"; \
	  GOOS=$$os GOARCH=$$arch GOARM=6 $(GOBUILD) -o dist/storelay-agent-$$os-$$arch$$ext ./agent || exit 1; \
	done
	@for arch in amd64 arm64; do \
	  echo "storelay-relay linux/$$arch"; \
	  GOOS=linux GOARCH=$$arch $(GOBUILD) -o dist/storelay-relay-linux-$$arch ./relay || exit 1; \
	done
	@cd dist && sha256sum * > SHA256SUMS

clean:
	rm -rf bin dist

.PHONY: need-postgresql
need-postgresql: # the tests run a private server of their own; they need its programs
	@command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { \
	  echo "installing postgresql, once"; \
	  sudo=; [ $$(id -u) = 0 ] || sudo=sudo; \
	  { $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends postgresql; } >/tmp/storelay-apt.log 2>&1 \
	  || { cat /tmp/storelay-apt.log; echo "install PostgreSQL's server programs and run this again"; exit 1; }; }

.PHONY: need-e2fsprogs
need-e2fsprogs: # power cuts make, mount and check file systems in image files
	@{ command -v mkfs.ext4 && command -v e2fsck && command -v losetup && command -v mount; } >/dev/null || { \
	  echo "installing e2fsprogs, util-linux and mount, once"; \
	  sudo=; [ $$(id -u) = 0 ] || sudo=sudo; \
	  { $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends e2fsprogs util-linux mount; } >/tmp/storelay-apt.log 2>&1 \
	  || { cat /tmp/storelay-apt.log; echo "install mkfs.ext4, e2fsck, losetup and mount, and run this again"; exit 1; }; }
