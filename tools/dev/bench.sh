# ./dev bench [NAME]: one script a benchmark in bench/, run on the release build.

dev_bench() {
    local name="${1:-}" script scripts=()

    dev_deps
    build_preset release
    mkdir -p bench/results
    if [ -n "$name" ]; then
        scripts=("bench/$name.py")
        [ -f "${scripts[0]}" ] || die "no benchmark '$name' in bench/"
    else
        scripts=(bench/[a-z]*.py)
    fi
    for script in "${scripts[@]}"; do
        say "$(basename "$script" .py)"
        "$PYTHON" "$script" --out "bench/results/$(basename "$script" .py).json"
    done
}
