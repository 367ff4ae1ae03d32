# ./dev bench [NAME|all] [OPTION…]: one script a benchmark in bench/, run on the
# release build; each starts its own servers and fills its own data.

bench_names() {
    local script

    for script in bench/[a-z]*.py; do
        script="$(basename "$script" .py)"
        case "$script" in
        common | flame | load | profiler) ;; # what the benchmarks share
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

bench_usage() {
    cat <<'TEXT'
usage: ./dev bench NAME|all [--pairs N] [--scale PART]
       ./dev bench NAME --profile    flame graphs of host and worker
TEXT
    bench_names | sed 's/^/  /'
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
    if [ "$name" = all ]; then
        run_bench instructions # which counts, and has no pairs
        for name in $(bench_names | grep -vx -e instructions -e peers); do
            run_bench "$name" "$@"
        done
    else
        [ -f "bench/$name.py" ] || die "no benchmark '$name' in bench/"
        run_bench "$name" "$@"
    fi
}
