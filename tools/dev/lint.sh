# ./dev lint: every check that needs no program run.

# One file per process: clang-tidy 14 gives false va_list reports otherwise.
lint_tidy() {
    find src -name '*.c' | sort |
        xargs -r -P "$JOBS" -n 1 clang-tidy --quiet -p build/dev 2> >(
            grep -vE 'warnings? (generated|treated)|^Suppressed|^Use -' >&2
        )
}

lint_layers() {
    luajit tests/lint/layers.lua src
}

lint_features() {
    luajit tests/lint/features.lua docs/FEATURES.md
}

lint_format() {
    c_files | xargs -r clang-format --dry-run -Werror
}

lint_lua() {
    luacheck -q lua handlers tests
}

# Each check runs even when one before it failed: one round shows it all.
dev_lint() {
    local check failed=()

    dev_deps --no-kafka
    [ -f build/dev/compile_commands.json ] || build_preset dev
    for check in format layers features lua tidy; do
        say "lint: $check"
        "lint_$check" || failed+=("$check")
    done
    [ "${#failed[@]}" = 0 ] || die "lint failed: ${failed[*]}"
    echo "lint: all passed"
}
