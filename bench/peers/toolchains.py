"""Gets the peers ready below .cache/peers, from their pinned manifests and with
the toolchains that this machine has; or says in a line why it cannot."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "peers"


class Missing(Exception):
    """Why a peer is skipped."""


def tool(name, *more):
    """The path of a program, looked for in the folders `more`, too."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *more]))
    if not found:
        raise Missing(f"no {name} on this machine")
    return found


def call(folder, *argv, **env):
    done = subprocess.run([str(a) for a in argv], cwd=folder, env={**os.environ, **env},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        log = folder / "error.log"
        log.write_text(done.stdout + done.stderr)
        raise Missing(f"{Path(argv[0]).name} failed: {log}")


def built(kind, build):
    """A copy of the sources of a kind, built once for each content of them."""
    folder, digest = CACHE / kind, hashlib.sha256()
    for source in sorted(path for path in (HERE / kind).rglob("*") if path.is_file()):
        digest.update(source.read_bytes())
    stamp = folder / "complete"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        print(f"  getting the peers of {kind} ready in {folder}", flush=True)
        stamp.unlink(missing_ok=True)
        shutil.copytree(HERE / kind, folder, dirs_exist_ok=True)
        build(folder)
        stamp.write_text(digest.hexdigest())
    return folder


# --- one for each kind: what starts a program of it --------------------------------

def go(program):
    """What it fetches is hidden by a dot from its own `./...`."""
    def build(folder):
        call(folder, tool("go", "/usr/local/go/bin"), "build", "-o", "bin/", "./...",
             GOTOOLCHAIN="local", GOFLAGS="-modcacherw -buildvcs=false",
             GOMODCACHE=str(folder / ".mod"), GOCACHE=str(folder / ".cache"))

    return [built("go", build) / "bin" / program]


def node(script):
    """Node.js itself comes from npm, too: pg-boss needs a newer one than Debian's."""
    def build(folder):
        call(folder, tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund",
             npm_config_cache=str(folder / "cache"))

    folder = built("node", build)
    program = folder / "node_modules/.bin/node"
    if not program.exists():
        raise Missing("npm has no Node.js for this machine")
    return [program, folder / script]


def python(script):
    def build(folder):
        call(folder, sys.executable, "-m", "venv", "--clear", "venv")
        call(folder, "venv/bin/pip", "install", "--no-deps", "-r", "requirements.txt",
             PIP_CACHE_DIR=str(folder / "cache"))

    folder = built("python", build)
    return [folder / "venv/bin/python", folder / script]


def java(program):
    """A JRE is enough: the compiler is a jar, as the rest."""
    def build(folder):
        call(folder, tool("mvn"), "-q", "-B", "dependency:copy-dependencies",
             "-DoutputDirectory=libs", f"-Dmaven.repo.local={folder / 'repository'}")
        call(folder, tool("java"), "-cp", "libs/*", "org.eclipse.jdt.internal.compiler.batch.Main",
             "-17", "-d", "classes", "-cp", ":".join(str(p) for p in (folder / "libs").glob("*")),
             *folder.glob("*.java"))

    folder = built("java", build)
    return [tool("java"), "-Xmx1g", "-cp", f"{folder / 'classes'}:{folder / 'libs'}/*", program]
