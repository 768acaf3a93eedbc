# The menu. `tests/run` is the whole of it in one command and needs no just.

# What is on the menu
default:
    @just --list --unsorted

# Formatting and lints, warnings are errors
check:
    tests/run --only fmt,clippy,tidy

# Unit and integration tests of the crates, on real etcd too
test:
    tests/run --only unit

# The release build on three real etcds, with kubectl
e2e:
    tests/run --only e2e

# Charts, kustomizations and their scripts
deploy:
    tests/run --only deploy

# Write the goldens of deploy/ and the manifests that are copies, then compare
goldens:
    OUTRIGGER_REWRITE=1 tests/run --only deploy
    tests/run --only deploy

# The server's rights alone, for a namespace and an account of yours
rbac namespace="outrigger-system" account="outrigger":
    #!/usr/bin/env bash
    set -euo pipefail
    assets=$(tests/assets/get helm | tail -n 1)
    "$assets/helm" template outrigger deploy/helm/outrigger --namespace {{ namespace }} \
        --set serviceAccount.name={{ account }} --show-only templates/rbac.yaml

# The federation protocol on this many seeds
sim seeds="1000":
    OUTRIGGER_SEEDS={{ seeds }} tests/run --only simulation

# Measure list, create, memory or all, kube-apiserver and bare etcd in the same run, or aggregator (just bench memory --objects 300000)
bench name *args:
    #!/usr/bin/env bash
    set -euo pipefail
    assets=$(tests/assets/get etcd kubectl kube-apiserver kube-controller-manager | tail -n 1)
    cargo build --release --locked -p outrigger-apiserver
    target=$(cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    OUTRIGGER_ASSETS=$assets OUTRIGGER_BIN=$target/release/outrigger \
        cargo run --release --locked -p outrigger-tests --bin bench -- {{ name }} {{ args }}

# Write the golden documents anew (discovery, OpenAPI); read the diff before you commit it
golden:
    OUTRIGGER_WRITE_GOLDEN=1 cargo test --locked -p outrigger-apiserver --test it golden

# Bans, licences and sources of the dependencies (cargo install cargo-deny --locked)
deny:
    cargo deny --all-features --locked check bans licenses sources
