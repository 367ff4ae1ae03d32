"""A TCP proxy that fails on demand, between a client and a server of 127.0.0.1.

The kinds are toxiproxy's: latency, bandwidth, slices, black hole, reset, down.
One more speaks PostgreSQL: it cuts a connection exactly at COMMIT, which no
proxy that knows only bytes can do. That is also why it is not toxiproxy: one
proxy of our own was needed anyhow, and that one would need a Go toolchain.
"""

import asyncio
import random
import socket
import struct
import threading
import time

CHUNK = 65536


class CommitWatch:
    """Follows what a client sends to PostgreSQL, up to its COMMITs.

    A COMMIT is a simple query, or the execution of a portal bound to a statement
    whose text is COMMIT, which counts at the Sync behind it.
    """

    STARTUPS = (80877103, 80877104)  # SSL, GSSAPI: answered with one byte, then again

    def __init__(self):
        self.buffer, self.begun = b"", False
        self.statements, self.portals, self.pending = set(), set(), False

    def feed(self, data):
        """The bytes up to the end of the first COMMIT in `data`, and the others;
        the second is None when there is no COMMIT."""
        self.buffer += data
        place = len(data) - len(self.buffer)  # of the buffer's start within data
        while True:
            size = self.message_size()
            if size is None:
                return data, None
            message, self.buffer = self.buffer[:size], self.buffer[size:]
            place += size
            if self.is_commit(message):
                return data[:place], data[place:]

    def message_size(self):
        head = 0 if not self.begun else 1
        if len(self.buffer) < head + 4:
            return None
        size = head + struct.unpack_from("!I", self.buffer, head)[0]
        return size if len(self.buffer) >= size else None

    def is_commit(self, message):
        if not self.begun:
            self.begun = struct.unpack_from("!I", message, 4)[0] not in self.STARTUPS
            return False
        kind, words = message[:1], message[5:].split(b"\0")
        if kind == b"Q":
            return words[0].strip().upper() == b"COMMIT"
        if kind == b"P":
            self.put(self.statements, words[0], words[1].strip().upper() == b"COMMIT")
        elif kind == b"B":
            self.put(self.portals, words[0], words[1] in self.statements)
        elif kind == b"E":
            self.pending = self.pending or words[0] in self.portals
        elif kind == b"S" and self.pending:
            self.pending = False
            return True
        return False

    @staticmethod
    def put(names, name, belongs):
        (names.add if belongs else names.discard)(name)


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server = proxy, client, server  # (reader, writer)
        self.watch = CommitWatch() if proxy.commit_chance is not None else None
        self.swallow = False  # the server's answer is not for the client

    async def run(self):
        tasks = [asyncio.create_task(self.pump(self.client[0], self.server[1], self.from_client)),
                 asyncio.create_task(self.pump(self.server[0], self.client[1], self.from_server))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    async def pump(self, reader, writer, pass_on):
        """What is late waits in a queue, so that latency costs no bandwidth."""
        queue = asyncio.Queue(256)

        async def receive():
            data = True
            while data:
                data = await reader.read(CHUNK)
                await queue.put((time.monotonic() + self.proxy.latency, data))
            await asyncio.Event().wait()  # the end is told by send(), after all before it

        async def send():
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - time.monotonic()))
                await self.proxy.open.wait()
                if not data:
                    return
                await pass_on(writer, data)

        tasks = [asyncio.create_task(receive()), asyncio.create_task(send())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def write(self, writer, data):
        step = self.proxy.slices or CHUNK
        for at in range(0, len(data), step):
            piece = data[at:at + step]
            writer.write(piece)
            await writer.drain()
            if self.proxy.bandwidth:
                await asyncio.sleep(len(piece) / self.proxy.bandwidth)
            elif self.proxy.slices:
                await asyncio.sleep(0)
        self.proxy.bytes += len(data)

    async def from_client(self, writer, data):
        while self.watch:
            data, rest = self.watch.feed(data)
            if rest is None:
                break
            if self.proxy.cuts_now():
                await self.cut(writer, data)
            await self.write(writer, data)
            data = rest
        await self.write(writer, data)

    async def cut(self, writer, data):
        """Ends the connection at a COMMIT: unsent, sent, or already answered."""
        how = self.proxy.rng.choice(self.proxy.commit_cuts)
        self.proxy.cuts[how] += 1
        self.swallow = True
        if how != "unsent":
            await self.write(writer, data)
        if how == "answered":
            await asyncio.sleep(self.proxy.commit_wait)
        raise ConnectionResetError

    async def from_server(self, writer, data):
        if not self.swallow:
            await self.write(writer, data)

    def close(self, hard=False):
        for _, writer in (self.client, self.server):
            if hard or self.swallow and writer is self.client[1]:
                sock = writer.get_extra_info("socket")
                if sock and sock.fileno() >= 0:  # RST, not FIN
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    """Listens on `port`; its faults are attributes, to be set from the test."""

    def __init__(self, target, port=0, commits=False, rng=None):
        self.target, self.port, self.rng = target, port, rng or random.Random(0)
        self.latency, self.bandwidth, self.slices, self.bytes = 0.0, None, None, 0
        self.commit_chance = 0.0 if commits else None
        self.commit_cuts, self.commit_wait = ("unsent", "sent", "answered"), 0.05
        self.cuts = dict.fromkeys(self.commit_cuts, 0)
        self.links, self.listener = set(), None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.call(self.begin())

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    async def begin(self):
        self.open = asyncio.Event()
        self.open.set()
        await self.listen()

    async def listen(self):
        self.listener = await asyncio.start_server(self.accept, "127.0.0.1", self.port)
        self.port = self.listener.sockets[0].getsockname()[1]

    async def accept(self, reader, writer):
        try:
            await self.open.wait()
            server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        link = Link(self, (reader, writer), server)
        self.links.add(link)
        try:
            await link.run()
        finally:
            self.links.discard(link)

    def cuts_now(self):
        return self.rng.random() < self.commit_chance

    # --- faults -------------------------------------------------------------

    def black_hole(self, on=True):
        """Connections stay and nothing gets through, until it is off again."""
        self.loop.call_soon_threadsafe(self.open.clear if on else self.open.set)

    def reset(self):
        """RST for every connection there is."""
        async def all_of_them():
            for link in list(self.links):
                link.close(hard=True)
        self.call(all_of_them())

    def down(self):
        """Nobody listens here any more."""
        async def close():
            self.listener.close()
            await self.listener.wait_closed()
        self.call(close())
        self.reset()

    def up(self):
        self.call(self.listen())

    def heal(self):
        self.latency, self.bandwidth, self.slices = 0.0, None, None
        if self.commit_chance is not None:
            self.commit_chance = 0.0
        self.black_hole(False)

    def end(self):
        async def stop():
            self.listener.close()
            for link in list(self.links):
                link.close(hard=True)
        self.call(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
