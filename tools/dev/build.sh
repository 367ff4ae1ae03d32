# ./dev build [PRESET], and what the others need of it.

JOBS="$(nproc)"

# build_preset PRESET [OPTION...]: configure when it never was so, then build.
build_preset() {
    local preset="$1"

    shift
    if [ ! -f "build/$preset/build.ninja" ] ||
        [ CMakePresets.json -nt "build/$preset/build.ninja" ]; then
        cmake --preset "$preset" >/dev/null
    fi
    cmake --build --preset "$preset" -j "$JOBS" "$@"
}

dev_build() {
    local preset="${1:-release}"

    case "$preset" in
    release | dev | asan | tsan) ;;
    *) die "no preset '$preset': release, dev, asan or tsan" ;;
    esac
    dev_deps --no-kafka
    build_preset "$preset"
}

c_files() {
    find src tests bench -name '*.c' -o -name '*.h' -o -name '*.cc' | sort
}

dev_fmt() {
    dev_deps --no-kafka
    c_files | xargs -r clang-format -i
}
