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

# The federation protocol on this many seeds
sim seeds="1000":
    OUTRIGGER_SEEDS={{ seeds }} tests/run --only simulation

# Measure one of: list, create, memory; kube-apiserver and bare etcd in the same run
bench name:
    #!/usr/bin/env bash
    set -euo pipefail
    case "{{ name }}" in
        list | create | memory) ;;
        *) echo "just bench: '{{ name }}' is none of list, create, memory" >&2; exit 2 ;;
    esac
    assets=$(tests/assets/get etcd kubectl kube-apiserver | tail -n 1)
    cargo build --release --locked -p outrigger-apiserver
    target=$(cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    OUTRIGGER_ASSETS=$assets ETCD=$assets/etcd KUBECTL=$assets/kubectl KUBE_APISERVER=$assets/kube-apiserver \
        OUTRIGGER_BIN=$target/release/outrigger \
        cargo bench --locked -p outrigger-tests --bench {{ name }}

# Bans, licences and sources of the dependencies (cargo install cargo-deny --locked)
deny:
    cargo deny --all-features --locked check bans licenses sources
