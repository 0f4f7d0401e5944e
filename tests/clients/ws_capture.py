"""WebSocket /capture with Python `websockets`: offers chunks and sends them as credit allows.

Parameters: url (wss://…), ca, capabilities (list), chunks ([{file, chunk}]); optional until (the state to wait for,
default "confirmed"), piece (bytes, default 16384), stop_at (send so many bytes of each chunk, then wait for a line on stdin),
origin, progress, timeout (s). Prints the states of each chunk.
"""

import hashlib
import json

import waystation as ws
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

LAST = ("confirmed", "rejected", "expired")


class Capture:
    """One connection's chunks: what was sent of each, and what the relay said."""

    def __init__(self, params, socket):
        self._params = params
        self._socket = socket
        self._tell = ws.teller(params)
        self.chunks = {}
        self.welcome = None
        self.hints = []
        self.bye = None
        self.stop_at = params.get("stop_at")

    async def begin(self):
        """HELLO, then an OFFER for each chunk."""
        await self._socket.send(ws.frame(ws.HELLO, {"protocol": 1, "capabilities": self._params["capabilities"]}))
        for handle, entry in enumerate(self._params["chunks"], 1):
            with open(entry["file"], "rb") as source:
                data = source.read()
            offer = {"length": len(data), "sha256": hashlib.sha256(data).hexdigest(), **entry["chunk"], "handle": handle}
            self.chunks[handle] = {"data": data, "sent": 0, "upto": 0, "states": [], "error": None, "receipt": None}
            await self._socket.send(ws.frame(ws.OFFER, offer))

    async def take(self, kind, body):
        """One frame of the relay."""
        value = json.loads(body)
        self._tell({"event": f"0x{kind:02x}", "value": value})
        chunk = self.chunks.get(value.get("handle"))
        if kind == ws.WELCOME:
            self.welcome = value
        elif kind == ws.SEND:
            chunk["sent"] = value["offset"]
            chunk["upto"] = value["offset"] + value["credit"]
            await self._pieces(value["handle"], chunk)
        elif kind == ws.CREDIT:
            chunk["upto"] += value["bytes"]
            await self._pieces(value["handle"], chunk)
        elif kind == ws.CAPTURE_STATE:
            if value.get("state") and value["state"] not in chunk["states"][-1:]:
                chunk["states"].append(value["state"])
            chunk["error"] = value.get("error", chunk["error"])
            chunk["receipt"] = value.get("receipt", chunk["receipt"])
        elif kind == ws.HINT:
            self.hints.append(value)
        elif kind == ws.BYE:
            self.bye = value

    async def _pieces(self, handle, chunk):
        size = self._params.get("piece", 16 * 1024)
        stop = min(len(chunk["data"]), chunk["upto"])
        if self.stop_at is not None:
            stop = min(stop, self.stop_at)
        while chunk["sent"] < stop:
            data = chunk["data"][chunk["sent"] : min(chunk["sent"] + size, stop)]
            await self._socket.send(ws.piece(ws.CAPTURE_PIECE, handle, chunk["sent"], data))
            chunk["sent"] += len(data)

    def stopped(self):
        """Whether every chunk is sent as far as it was to be."""
        return self.stop_at is not None and all(c["sent"] >= self.stop_at for c in self.chunks.values())

    async def go_on(self):
        """Sends the rest."""
        self.stop_at = None
        for handle, chunk in self.chunks.items():
            await self._pieces(handle, chunk)

    def over(self):
        """Whether every chunk is where it was to get, or can't get there."""
        if self.bye is not None:
            return True
        until = self._params.get("until", "confirmed")
        done = lambda c: until in c["states"] or (c["states"] and c["states"][-1] in LAST) or c["error"]
        return all(done(chunk) for chunk in self.chunks.values())

    def summary(self):
        """What was sent and said, for the one line of output."""
        until = self._params.get("until", "confirmed")
        chunks = [
            {"sent": c["sent"], "states": c["states"], "error": c["error"], "receipt": c["receipt"]}
            for c in self.chunks.values()
        ]
        return {
            "ok": self.welcome is not None and all(until in c["states"] for c in chunks),
            "chunks": chunks,
            "welcome": self.welcome,
            "hints": self.hints,
            "bye": self.bye,
        }


async def main(params):
    host, port, name = ws.address(params)
    async with connect(
        f"wss://{name}:{port}/capture",
        host=host,
        port=port,
        ssl=ws.tls(params),
        origin=params.get("origin"),
        subprotocols=["waystation.capture.v1"],
        compression=None,
        max_size=1 << 20,
    ) as socket:
        capture = Capture(params, socket)
        try:
            await capture.begin()
            while not capture.over():
                for frame in ws.split_message(await socket.recv()):
                    await capture.take(*frame)
                if capture.stopped():
                    await ws.told_to_go_on(params)
                    await capture.go_on()
            if capture.bye is None:
                await socket.send(ws.frame(ws.END, {"reason": "stopped"}))
                await socket.close()
            await socket.wait_closed()
        except ConnectionClosed:
            pass
        closed = {"code": socket.close_code, "reason": socket.close_reason}
        summary = capture.summary()
        summary["ok"] = summary["ok"] and socket.subprotocol == "waystation.capture.v1"
        return {"subprotocol": socket.subprotocol, "closed": closed, **summary}


ws.run(main)
