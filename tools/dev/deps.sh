# ./dev deps: Debian packages, librdkafka >= 2.8, the jars of Apache Kafka.
#
# Each part first looks whether it has anything to do, so that calling this
# before every other command costs a few milliseconds.

PACKAGES=(
    # compilers and checkers
    build-essential cmake ninja-build pkg-config clang clang-format clang-tidy
    valgrind lua-busted lua-check
    # what the host links
    luajit libluajit-5.1-dev libev-dev libpq-dev libjansson-dev
    libsimdjson-dev libmicrohttpd-dev libcurl4-openssl-dev libssl-dev
    libcmocka-dev
    # what librdkafka links
    zlib1g-dev liblz4-dev libzstd-dev libsasl2-dev dpkg-dev
    # the servers and the tools of the tests and of the demo
    postgresql maven default-jre-headless python3 python3-psycopg2
    python3-confluent-kafka python3-pytest python3-pytest-xdist
    python3-aiosmtpd pgbouncer openssl faketime
)
RDKAFKA_SUITE=trixie # Debian 13, whose librdkafka is the oldest we run with
RDKAFKA_MIN=2.8

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

missing_packages() {
    local package

    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null |
            grep -qx installed || printf '%s\n' "$package"
    done
}

deps_packages() {
    local missing

    mapfile -t missing < <(missing_packages "${PACKAGES[@]}")
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "Installing ${#missing[@]} Debian packages:"
    note "${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --simulate -qq "${missing[@]}" >/dev/null 2>&1 ||
        as_root apt-get update -q
    as_root apt-get install -q -y --no-install-recommends "${missing[@]}"
}

rdkafka_is_recent() {
    pkg-config --atleast-version="$RDKAFKA_MIN" rdkafka 2>/dev/null
}

# The machine's own mirror, from apt's deb822 or one-line sources. Security
# and third-party lines are not it: only a line whose suite is the release's.
apt_mirror() {
    local files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.sources
        /etc/apt/sources.list.d/*.list)
    local codename

    codename="$(. /etc/os-release && echo "$VERSION_CODENAME")"
    cat "${files[@]}" 2>/dev/null | awk -v suite="$codename" '
        /^deb[ \t]/ {
            for (i = 2; i < NF; i++)
                if ($i ~ /^(https?|file|mirror.*|copy):/ && $(i + 1) == suite) { print $i; exit }
        }
        /^URIs:/   { uri = $2 }
        /^Suites:/ { for (i = 2; i <= NF; i++) if ($i == suite && uri) { print uri; exit } }
    '
}

apt_keyring() {
    local keyring

    for keyring in /usr/share/keyrings/debian-archive-keyring.gpg \
        /usr/share/keyrings/debian-archive-keyring.pgp; do
        [ ! -f "$keyring" ] || { echo "$keyring"; return; }
    done
    die "no keyring of the Debian archive; install debian-archive-keyring"
}

# An apt with a configuration of its own: it sees one deb-src line and writes
# nowhere but into its folder, and checks the archive's signature as usual.
private_apt() {
    local home="$1"

    shift
    apt-get -q -o "Dir::Etc::sourcelist=$home/sources.list" \
        -o Dir::Etc::sourceparts=- -o "Dir::State=$home/state" \
        -o "Dir::Cache=$home/cache" -o "APT::Sandbox::User=$(id -un)" \
        -o APT::Get::List-Cleanup=0 "$@"
}

fetch_rdkafka_source() {
    local home="$1" mirror

    mirror="$(apt_mirror)"
    [ -n "$mirror" ] || die "no Debian mirror found in this machine's apt sources"
    mkdir -p "$home/state/lists/partial" "$home/cache/archives/partial" "$home/src"
    echo "deb-src [signed-by=$(apt_keyring)] $mirror $RDKAFKA_SUITE main" >"$home/sources.list"
    private_apt "$home" update
    (cd "$home/src" && private_apt "$home" source librdkafka)
}

deps_rdkafka() {
    local home="$CACHE/rdkafka" src

    ! rdkafka_is_recent || return 0
    if [ "$(apt-cache policy librdkafka-dev | awk '/Candidate:/ { print ($2 + 0 >= 2.8) }')" = 1 ]; then
        as_root apt-get install -q -y --no-install-recommends librdkafka-dev
        return
    fi
    say "Building librdkafka of Debian 13 into .cache/deps (about 90 s)"
    rm -rf "$home"
    fetch_rdkafka_source "$home" >"$CACHE/rdkafka.log" 2>&1 ||
        { tail -n 20 "$CACHE/rdkafka.log" >&2; die "cannot fetch librdkafka's source package"; }
    src="$(find "$home/src" -maxdepth 1 -type d -name 'librdkafka-*')"
    {
        cmake -S "$src" -B "$home/build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
            -DCMAKE_INSTALL_PREFIX="$CACHE/deps" -DCMAKE_INSTALL_LIBDIR=lib \
            -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DRDKAFKA_BUILD_STATIC=ON \
            -DRDKAFKA_BUILD_EXAMPLES=OFF -DRDKAFKA_BUILD_TESTS=OFF \
            -DWITH_SSL=ON -DWITH_SASL=ON -DWITH_ZLIB=ON -DWITH_ZSTD=ON \
            -DWITH_CURL=ON -DENABLE_LZ4_EXT=ON
        cmake --build "$home/build" --target rdkafka
        install_rdkafka "$src" "$home/build"
    } >>"$CACHE/rdkafka.log" 2>&1 ||
        { tail -n 20 "$CACHE/rdkafka.log" >&2; die "cannot build librdkafka"; }
    rm -rf "$home"
}

# Only the C library: upstream's install target wants the C++ one as well, and
# names a static build's pkg-config file so that nobody finds it.
install_rdkafka() {
    local src="$1" build="$2" version

    version="$(sed -n 's/^#define RD_KAFKA_VERSION *0x0*\([0-9]\)\([0-9a-f]\{2\}\)\([0-9a-f]\{2\}\).*/\1 0x\2 0x\3/p' "$src/src/rdkafka.h")"
    # shellcheck disable=SC2086 # three words
    version="$(printf '%d.%d.%d' $version)"
    mkdir -p "$CACHE/deps/lib/pkgconfig" "$CACHE/deps/include/librdkafka"
    cp "$src/src/rdkafka.h" "$src/src/rdkafka_mock.h" "$CACHE/deps/include/librdkafka/"
    cp "$build/src/librdkafka.a" "$CACHE/deps/lib/"
    cat >"$CACHE/deps/lib/pkgconfig/rdkafka.pc" <<TEXT
prefix=$CACHE/deps
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: rdkafka
Description: librdkafka of Debian 13, built by ./dev deps
Version: $version
Libs: -L\${libdir} -lrdkafka -lm -ldl -lpthread -lz -lzstd -llz4 -lssl -lcrypto -lsasl2 -lcurl
Cflags: -I\${includedir}
TEXT
}

# The real broker of the tests: Maven resolves the jars once.
deps_kafka() {
    local home="$CACHE/kafka"

    [ ! -f "$home/complete" ] || return 0
    say "Fetching the jars of Apache Kafka into .cache/kafka"
    mkdir -p "$home"
    cp "$ROOT/tools/dev/kafka-pom.xml" "$home/pom.xml"
    (cd "$home" && mvn -q -B dependency:copy-dependencies -DoutputDirectory=libs) ||
        die "maven could not fetch Apache Kafka"
    touch "$home/complete"
}

dev_deps() {
    mkdir -p "$CACHE"
    deps_packages
    deps_rdkafka
    if [ "${1:-}" != --no-kafka ]; then
        deps_kafka
    fi
}
