# ./dev bench [NAME|all] [OPTION…]: one script a benchmark in bench/, run on the
# release build; each starts its own servers and fills its own data.

bench_names() {
    local script

    for script in bench/[a-z]*.py; do
        script="$(basename "$script" .py)"
        case "$script" in
        common | flame | load | profiler | table) ;; # what the benchmarks share
        *) echo "$script" ;;
        esac
    done
}

run_bench() {
    local name="$1"

    shift
    say "$name                                                    median / least / most"
    "$PYTHON" "bench/$name.py" --out "bench/results/$name.json" "$@"
}

# From the results that are there into docs/PERFORMANCE.md.
bench_table() {
    "$PYTHON" bench/table.py
}

# Everything that needs nothing but this repository. Each runs even when one
# before it failed; the table is then of what there is.
bench_all() {
    local name failed=()

    run_bench instructions || failed+=(instructions) # counts: it has no pairs
    for name in $(bench_names | grep -vxE 'instructions|peers'); do
        rm -f "bench/results/$name.json"
        run_bench "$name" "$@" || failed+=("$name")
    done
    bench_table || failed+=(table)
    [ "${#failed[@]}" = 0 ] || die "failed: ${failed[*]}"
}

bench_usage() {
    cat <<'TEXT'
usage: ./dev bench all|NAME [--pairs N] [--scale PART]
       ./dev bench NAME --profile    flame graphs of host and worker
       ./dev bench table             the table of docs/PERFORMANCE.md again, which
                                     `all` writes at its end
TEXT
    bench_names | sed 's/^/  /'
    echo "all leaves out peers, which fetches other programs from package registries"
}

dev_bench() {
    local name="${1:-}"

    [ -n "$name" ] || { bench_usage; return; }
    shift
    if [ "$name" = --profile ]; then
        name="${1:?--profile NAME}"
        shift
        set -- --profile "$@"
    fi
    dev_deps
    build_preset release
    mkdir -p bench/results
    case "$name" in
    all) bench_all "$@" ;;
    table) bench_table ;;
    *)
        [ -f "bench/$name.py" ] || die "no benchmark '$name' in bench/"
        run_bench "$name" "$@"
        ;;
    esac
}
