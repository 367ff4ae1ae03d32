# ./dev up [--no-demo] [--rate N]: build, then tools/up.py does the rest.

dev_up() {
    dev_deps --no-kafka
    build_preset release
    exec "$PYTHON" "$ROOT/tools/up.py" "$@"
}
