"""The wire formats as a client outside this project would write them: from docs/protocol.md, with the
standard library only. Nothing is shared with the Rust code, so each checks the other.

`waystation.py request` reads parameters on stdin and prints the path and headers of a PUT, for curl.
"""

import base64
import hashlib
import json
import sys
import time
import urllib.parse

VARINT_MAX = (1 << 62) - 1
MAX_CONTROL = 64 * 1024
MAX_PIECE = 256 * 1024 + 16

HELLO, OFFER, CAPTURE_PIECE, CAPABILITY, ALIVE, END = range(0x01, 0x07)
WELCOME, SEND, CAPTURE_STATE, CREDIT, HINT, BYE = range(0x11, 0x17)
WATCH, RENEW, LANES, FETCH = range(0x21, 0x25)
WATCHING, CHUNK, PIECE, COMPLETE, WITHDRAWN, STATE, OMITTED, CAPTURE, STREAM, ENDING, CURSOR = range(0x31, 0x3C)


class ProtocolError(Exception):
    """The peer broke the protocol."""


# --- varints (RFC 9000, section 16) and frames ---------------------------------------------------


def varint(value):
    """Encodes in the shortest form."""
    for prefix, size in ((0, 1), (1, 2), (2, 4), (3, 8)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError("over 62 bits")


def read_varint(data, at=0):
    """Returns (value, position after it), or None if `data` ends before it does."""
    if at >= len(data):
        return None
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        return None
    value = int.from_bytes(data[at : at + size], "big")
    return value & ((1 << (8 * size - 2)) - 1), at + size


def frame(kind, body):
    """Encodes a frame; a body that is not bytes becomes JSON."""
    if not isinstance(body, (bytes, bytearray)):
        body = json.dumps(body, separators=(",", ":")).encode()
    return varint(kind) + varint(len(body)) + body


def piece(kind, handle, offset, data):
    """Encodes a PIECE."""
    return frame(kind, varint(handle) + varint(offset) + data)


def read_piece(body):
    """Returns (handle, offset, bytes)."""
    handle = read_varint(body)
    offset = read_varint(body, handle[1]) if handle else None
    if not offset:
        raise ProtocolError("a PIECE without its two numbers")
    return handle[0], offset[0], body[offset[1] :]


class Decoder:
    """Takes frames out of bytes as they come."""

    def __init__(self):
        self._buffer = bytearray()

    def push(self, data):
        """Adds bytes and returns the frames that are whole now, as (type, body)."""
        self._buffer += data
        frames, at = [], 0
        while True:
            kind = read_varint(self._buffer, at)
            length = read_varint(self._buffer, kind[1]) if kind else None
            if not length:
                break
            size, body = length
            if size > (MAX_PIECE if kind[0] in (PIECE, CAPTURE_PIECE) else MAX_CONTROL):
                raise ProtocolError("a frame over the limit")
            if len(self._buffer) < body + size:
                break
            frames.append((kind[0], bytes(self._buffer[body : body + size])))
            at = body + size
        del self._buffer[:at]
        return frames

    def pending(self):
        """Whether an incomplete frame waits for its rest."""
        return bool(self._buffer)


def split_message(data):
    """The frames of one WebSocket message, which holds whole frames."""
    decoder = Decoder()
    frames = decoder.push(data)
    if decoder.pending():
        raise ProtocolError("a message that ends inside a frame")
    return frames


# --- headers and names ---------------------------------------------------------------------------


def chunk_ref(incident, stream, index):
    """The name of a chunk in a URL."""
    digest = hashlib.sha256()
    for text in ("waystation-chunk-v1", incident, stream, str(index)):
        data = text.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return base64.urlsafe_b64encode(digest.digest()[:16]).rstrip(b"=").decode()


def display_string(text):
    """RFC 9651, section 4.1.11."""
    safe = {byte for byte in range(0x20, 0x7F)} - set(b'%"')
    return '%"' + "".join(chr(b) if b in safe else f"%{b:02x}" for b in text.encode()) + '"'


def dictionary(members):
    """An RFC 9651 dictionary: integers, bytes, strings; `name` is a Display String."""

    def item(key, value):
        if key == "name":
            return display_string(value)
        if isinstance(value, int):
            return str(value)
        if isinstance(value, bytes):
            return ":" + base64.b64encode(value).decode() + ":"
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return ", ".join(f"{key}={item(key, value)}" for key, value in members.items())


def repr_digest(data):
    """RFC 9530."""
    return "sha-256=:" + base64.b64encode(hashlib.sha256(data).digest()).decode() + ":"


def put_request(params, data):
    """Path and headers of a PUT. `headers` of the parameters replace or add; null removes one.

    With `offset` the body is what follows it.
    """
    chunk, offset = dict(params["chunk"]), params.get("offset")
    if offset is not None:
        chunk["length"] = len(data)
    if "sig" in chunk:
        chunk["sig"] = base64.b64decode(chunk["sig"])
    path = "/chunks/" + params.get("ref", chunk_ref(chunk["incident"], chunk["stream"], chunk["index"]))
    headers = {
        "authorization": "Bearer " + params["capability"],
        "content-length": str(len(data) - (offset or 0)),
        "content-type": "application/octet-stream",
        "repr-digest": repr_digest(data),
        "waystation-chunk": dictionary(chunk),
        "prefer": f"wait={params.get('wait', 30)}",
    }
    if offset is not None:
        headers["upload-offset"] = str(offset)
    headers.update({key.lower(): value for key, value in params.get("headers", {}).items()})
    return path, {key: value for key, value in headers.items() if value is not None}


def watch_header(params):
    """`Waystation-Watch`, or None."""
    parts = []
    if "lanes" in params:
        parts.append("lanes=(" + " ".join(f'"{lane}"' for lane in params["lanes"]) + ")")
    start = params.get("from")
    if isinstance(start, dict):
        start = f"{start['stream']}/{start['index']}"
    for key, value in (("from", start), ("cursor", params.get("cursor"))):
        if value:
            parts.append(dictionary({key: value}))
    return ", ".join(parts) or None


# --- what a contact sees -------------------------------------------------------------------------


class Seen:
    """Follows the frames of a subscription and says when enough was seen.

    Enough is `chunks` complete chunks (default 1) and, if `state` is given, as many chunks in that state;
    or the relay's ENDING.
    """

    def __init__(self, params, tell):
        self._want = params.get("chunks", 1)
        self._state = params.get("state")
        self._tell = tell
        self._open = {}
        self._begin = time.monotonic()
        self.complete = []
        self.states = {}
        self.lists = {"withdrawn": [], "omitted": [], "capture": [], "streams": [], "unknown": []}
        self.single = {"watching": None, "ending": None, "cursor": None}

    def _ms(self):
        return round((time.monotonic() - self._begin) * 1000)

    def take(self, kind, body):
        """One frame."""
        if kind == PIECE:
            self._piece(*read_piece(body))
            return
        names = {WITHDRAWN: "withdrawn", OMITTED: "omitted", CAPTURE: "capture", STREAM: "streams"}
        singles = {WATCHING: "watching", ENDING: "ending", CURSOR: "cursor"}
        value = json.loads(body) if kind in (CHUNK, COMPLETE, STATE, *names, *singles) else None
        if kind in singles:
            self.single[singles[kind]] = value
        elif kind == CHUNK:
            self._open[value["handle"]] = {**value, "bytes": bytearray(), "first_ms": None}
            self._note(value["stream"], value["index"], value["state"])
        elif kind == COMPLETE:
            self._complete(value["handle"])
        elif kind == STATE:
            self._note(value["stream"], value["index"], value["state"])
        elif kind in names:
            if kind == WITHDRAWN:
                chunk = self._open.pop(value["handle"], {})
                value = {**value, "stream": chunk.get("stream"), "index": chunk.get("index")}
            self.lists[names[kind]].append(value)
        else:
            self.lists["unknown"].append(kind)
        self._tell({"event": f"0x{kind:02x}", "ms": self._ms(), "value": value})

    def _note(self, stream, index, state):
        history = self.states.setdefault(f"{stream}/{index}", [])
        if not history or history[-1] != state:
            history.append(state)

    def _piece(self, handle, offset, data):
        chunk = self._open.get(handle)
        if chunk is None:
            raise ProtocolError("a PIECE of a chunk that was not announced")
        if offset != len(chunk["bytes"]):
            raise ProtocolError("a PIECE that leaves a gap or repeats bytes")
        if chunk["first_ms"] is None:
            chunk["first_ms"] = self._ms()
        chunk["bytes"] += data
        self._tell({"event": "piece", "stream": chunk["stream"], "index": chunk["index"], "received": len(chunk["bytes"])})

    def _complete(self, handle):
        chunk = self._open.pop(handle, None)
        if chunk is None:
            raise ProtocolError("COMPLETE of a chunk that was not announced")
        data = bytes(chunk.pop("bytes"))
        chunk["received"] = len(data)
        chunk["intact"] = len(data) == chunk["length"] and hashlib.sha256(data).hexdigest() == chunk["sha256"]
        chunk["complete_ms"] = self._ms()
        self.complete.append(chunk)

    def enough(self):
        """Whether what was asked for has been seen."""
        if self.single["ending"] is not None:
            return True
        reached = sum(self._state in history for history in self.states.values())
        return len(self.complete) >= self._want and (self._state is None or reached >= self._want)

    def summary(self):
        """What was seen, for the one line of output."""
        intact = all(chunk["intact"] for chunk in self.complete)
        partial = [
            {"stream": c["stream"], "index": c["index"], "received": len(c["bytes"])} for c in self._open.values()
        ]
        return {
            "ok": intact and len(self.complete) >= self._want and (self._state is None or self.enough()),
            "chunks": self.complete,
            "partial": partial,
            "states": self.states,
            **self.lists,
            **self.single,
        }


# --- parameters in, one line out -----------------------------------------------------------------


def parameters():
    """One JSON object: the first argument, or the first line of stdin."""
    return json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.readline())


async def told_to_go_on(params):
    """Says that the sender has stopped, and waits for a line on stdin; false if that ends instead."""
    import asyncio

    teller(params)({"event": "stopped"})
    return bool(await asyncio.to_thread(sys.stdin.readline))


def emit(value):
    """One line of JSON."""
    print(json.dumps(value), flush=True)


def teller(params):
    """With `progress`, each event is a line of its own, before the last one."""
    return emit if params.get("progress") else lambda event: None


def finish(value):
    """Prints the result and ends: 0 if it is ok, else 1."""
    emit(value)
    sys.exit(0 if value.get("ok") else 1)


def run(main):
    """Runs an asyncio program with its parameters and a time limit."""
    import asyncio

    params = parameters()
    try:
        value = asyncio.run(asyncio.wait_for(main(params), params.get("timeout", 30)))
    except Exception as error:  # whatever it is, the test that started this wants to read it
        value = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    finish(value)


def address(params):
    """Host, port and the name to verify, of `url`."""
    url = urllib.parse.urlsplit(params["url"])
    return url.hostname, url.port, params.get("server_name", url.hostname)


def tls(params):
    """A context that trusts only the certificate of the parameters."""
    import ssl

    context = ssl.create_default_context(cafile=params["ca"])
    # A self-signed end entity is its own anchor here; the strict profile wants an authority above it.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    return context


if __name__ == "__main__":
    if sys.argv[1:] != ["request"]:
        sys.exit("usage: waystation.py request < parameters")
    given = json.load(sys.stdin)
    with open(given["file"], "rb") as source:
        where, fields = put_request(given, source.read())
    emit({"path": where, "headers": fields})
