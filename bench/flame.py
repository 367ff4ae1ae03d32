"""Stacks of `perf script` or of callgrind, folded and drawn as a flame graph.

Folded is a line a stack, `root;caller;callee COUNT`, as other tools read it. The
SVG needs no script: what a frame is and its share stand in its tooltip.
"""

import re
import zlib
from collections import Counter
from html import escape
from pathlib import Path

WIDTH, ROW, HEAD, LEAST = 1600, 17, 44, 0.4  # px; what is narrower is not drawn
CHAR = 6.6                                   # px of a letter

SAMPLE = re.compile(r"^(\S.*?)\s+(\d+)(?:/\d+)?\s+[\d.]+:")
FRAME = re.compile(r"^\s+[0-9a-f]+ (.*) \((.*)\)$")
CACHED = re.compile(r"^(?:\((\d+)\))? ?(.*)$")


# --- folding -----------------------------------------------------------------

def short(symbol, dso):
    """A function without its parameters; of an unknown one, where it is."""
    if symbol.startswith("[unknown]"):
        return f"[{Path(dso).name.strip('[]')}]"
    return re.sub(r"(?<=[\w>])\(.*$|(\.(lto_priv|constprop|part|isra|cold)\.?\d*)+", "",
                  symbol).replace(";", ":")


def of_perf(lines):
    """pid → its stacks, from `perf script`'s text; the root is the thread."""
    stacks, pid, stack = {}, None, []
    for line in lines:
        line = line.rstrip("\n")
        head, frame = SAMPLE.match(line), FRAME.match(line)
        if head:
            pid, stack = int(head[2]), [head[1]]
        elif frame:
            stack.insert(1, short(frame[1], frame[2]))
        elif not line and pid:
            stacks.setdefault(pid, Counter())[";".join(stack)] += 1
            pid = None
    return stacks


def of_callgrind(lines):
    """The command and the stacks of one callgrind.out file that was made with
    --separate-callers: a function is called `callee'caller'its caller` there.
    The line behind `calls=` is the callee's cost, which it has itself."""
    names, stacks, command, stack, callee = {}, Counter(), "", "?", False
    for line in lines:
        line = line.rstrip("\n")
        if line.startswith("cmd: "):
            command = line[5:]
        elif line.startswith(("fn=", "cfn=")):
            number, name = CACHED.match(line.split("=", 1)[1]).groups()
            name = names.setdefault(number, name) if number else name
            if line.startswith("fn="):
                stack = ";".join(short(part, "") for part in reversed(name.split("'")))
        elif line.startswith("calls="):
            callee = True
        elif line[:1] in "0123456789+-*" and line:
            cost = line.split()
            if not callee and len(cost) > 1:
                stacks[stack] += int(cost[1])
            callee = False
    return command, stacks


def write_folded(path, stacks):
    Path(path).write_text("".join(f"{stack} {n}\n" for stack, n in sorted(stacks.items())))


# --- drawing -----------------------------------------------------------------

class Frame:
    def __init__(self):
        self.total, self.callees = 0, {}

    def depth(self):
        return 1 + max((c.depth() for c in self.callees.values()), default=0)


def tree(stacks):
    root = Frame()
    for stack, n in stacks.items():
        frame = root
        frame.total += n
        for name in stack.split(";"):
            frame = frame.callees.setdefault(name, Frame())
            frame.total += n
    return root


def colour(name):
    """The same for the same name, warm; the kernel's and the libraries' differ."""
    chance = zlib.crc32(name.encode())
    base = (20, 45) if not name.startswith("[") else (190, 40)
    return f"hsl({base[0] + chance % base[1]},{60 + chance // 64 % 30}%,{62 + chance // 4096 % 12}%)"


def box(name, frame, x, y, width, root):
    share = 100 * frame.total / root.total
    room = int((width - 4) / CHAR)
    text = name if len(name) <= room else name[:max(0, room - 1)] + "…"
    label = (f'<text x="{x + 2:.1f}" y="{y + ROW - 5}">{escape(text)}</text>'
             if room > 3 else "")
    return (f'<g><title>{escape(name)}: {share:.2f} % ({frame.total:,})</title>'
            f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.3, 0.2):.1f}" height="{ROW - 1}" '
            f'fill="{colour(name)}"/>{label}</g>')


def boxes(frame, x, y, root):
    """Callers below, callees above, in the order of their names."""
    for name, callee in sorted(frame.callees.items()):
        width = WIDTH * callee.total / root.total
        if width >= LEAST:
            yield box(name, callee, x, y, width, root)
            yield from boxes(callee, x, y - ROW, root)
        x += width


def write_svg(path, title, stacks):
    root = tree(stacks)
    height = HEAD + ROW * root.depth()
    Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#fffdf7"/>\n'
        f'<text x="8" y="20" font-size="15">{escape(title)}</text>\n'
        + "\n".join(boxes(root, 0, height - ROW - 4, root)) + "\n</svg>\n")
