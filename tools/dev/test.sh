# ./dev test [quick|unit|lua|instructions|integration|faults [--long] [-k ROW]|NAME]
#
# Servers are started by the tests that need them (tests/integration/), never
# taken from the machine.

test_ctest() {
    local preset="$1"

    shift
    build_preset "$preset"
    ctest --preset "$preset" --no-tests=error -j "$JOBS" "$@"
}

test_unit() {
    test_ctest dev -L 'unit|lint'
}

test_lua() {
    test_ctest dev -L lua
}

# The same unit tests where memory errors and data races are fatal. Left out of
# TSan: librdkafka's threads (it starts them with thrd_create, which gcc 12's
# TSan does not follow and crashes on), and tests of the handlers' time limits
# (Lua is so slow there that the soft limit comes before the one they test).
test_sanitizers() {
    say "unit tests under asan"
    test_ctest asan -L unit
    say "unit tests under tsan"
    test_ctest tsan -L unit -E 'kafka_source|worker_limits|worker_probe'
}

# The hosts that tests/integration/test_sanitizers.py runs: it fails without.
build_sanitized() {
    build_preset asan --target moontide
    build_preset tsan --target moontide
}

# Two scenarios at a time: each has its own host and database, and the broker
# is shared. `--dist loadfile` would serialise the long files.
test_pytest() {
    build_preset dev
    PYTHONDONTWRITEBYTECODE=1 "$PYTHON" -m pytest -q -p no:cacheprovider \
        -n "${TEST_JOBS:-$JOBS}" "$@"
}

# What one event costs, counted: the release may not have become slower.
test_instructions() {
    build_preset release
    "$PYTHON" bench/instructions.py --check
}

test_integration() {
    build_sanitized
    test_pytest tests/integration
}

# The fault plan: docs/RELIABILITY.md. One line for each scenario goes to
# tests/faults/results/; `--dist loadgroup` keeps the three-broker rows together.
# What holds times against limits runs afterwards, with nothing beside it.
test_faults() {
    local beside=0 alone=0 none_chosen=5

    MOONTIDE_FAULTS_RUN="${MOONTIDE_FAULTS_RUN:-$(date +%Y%m%d-%H%M%S)}"
    export MOONTIDE_FAULTS_RUN
    test_pytest tests/faults --dist loadgroup -rxX -m "not alone" "$@" || beside=$?
    TEST_JOBS=0 test_pytest tests/faults -rxX -m alone "$@" || alone=$?
    [ "$alone" != "$none_chosen" ] || return "$beside"
    [ "$beside" != "$none_chosen" ] || return "$alone"
    return $((beside | alone))
}

test_named() {
    local name="$1"

    if [ -f "tests/unit/test_$name.c" ]; then
        test_ctest dev -R "^unit\.$name\$"
    elif [ "$name" = sanitizers ]; then
        build_sanitized
        test_pytest tests/integration/test_sanitizers.py
    elif [ -f "tests/integration/test_$name.py" ]; then
        test_pytest "tests/integration/test_$name.py"
    else
        build_preset dev
        ctest --preset dev --no-tests=error -R "$name" ||
            TEST_JOBS=0 test_pytest tests/integration -k "$name"
    fi
}

test_all() {
    say "unit tests, layers"
    test_unit
    say "Lua specs"
    test_lua
    test_sanitizers
    say "instructions per event"
    test_instructions
    say "scenarios with PostgreSQL and Apache Kafka"
    test_integration
}

dev_test() {
    local what="${1:-all}"

    case "$what" in
    quick | unit | lua) dev_deps --no-kafka ;;
    *) dev_deps ;;
    esac
    case "$what" in
    all) test_all ;;
    quick) test_ctest dev -L 'unit|lint|lua' ;;
    unit) test_unit ;;
    lua) test_lua ;;
    integration) test_integration ;;
    instructions) test_instructions ;;
    faults) shift; test_faults "$@" ;;
    *) test_named "$what" ;;
    esac
}
