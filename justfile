# One entry for developers. CI runs .ci/run, which is these pieces in order and needs no `just`.

# Lists what there is.
default:
    @just --list

# All that CI checks.
check:
    .ci/run

# Format, clippy and docs, warnings denied.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps

# All tests; those whose server is not installed say so and are skipped.
test *ARGS:
    cargo test --workspace {{ARGS}}

# The tests of ComfyUI's node pack: Python alone.
pack:
    python3 -m unittest discover -s comfyui/tests

# Licences, bans and sources of all dependencies, and known holes where their database can be reached.
deny:
    tests/deny.sh

# Installs the servers that the border tests fetch from.
setup:
    tests/setup.sh

# The status page in a headless Chromium: pictures in target/looks, judged by axe-core. Wants Chromium, a C compiler, and in
# TIERD_TEST_AXE the file axe.min.js of the package axe-core.
looks:
    cargo test --workspace --test daemon looks -- --ignored --nocapture

# Throws bytes at a parser of what comes from outside (fuzz/fuzz_targets), for five minutes. Wants cargo-fuzz and a nightly compiler.
fuzz TARGET="workflow":
    mkdir -p fuzz/corpus/{{TARGET}}
    cargo +nightly fuzz run -s none {{TARGET}} fuzz/corpus/{{TARGET}} {{ if TARGET == "workflow" { "tests/data/workflows" } else { "fuzz/seeds/" + TARGET } }} -- -max_total_time=300 -max_len=65536

# The main job, on an embedded default.
demo:
    cargo run --release -- demo
