"""A small HTTP/3 client on aioquic."""

import asyncio
import contextlib

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset

import waystation as ws

PIECE = 16 * 1024


class Client(QuicConnectionProtocol):
    """One connection; answers arrive as events in a queue per request."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic)
        self._queues = {}

    def quic_event_received(self, event):
        """Called by aioquic."""
        if isinstance(event, StreamReset):
            self._put(event.stream_id, ConnectionResetError(f"stream reset, code {event.error_code:#x}"))
        elif isinstance(event, ConnectionTerminated):
            for queue in self._queues.values():
                queue.put_nowait(ConnectionError(f"closed, code {event.error_code:#x} {event.reason_phrase}"))
        for http in self._http.handle_event(event):
            if isinstance(http, (HeadersReceived, DataReceived)):
                self._put(http.stream_id, http)

    def _put(self, stream, event):
        if stream in self._queues:
            self._queues[stream].put_nowait(event)

    async def _send_body(self, stream, body, pause):
        stop_at, wait = pause or (len(body), None)
        at = 0
        while at < len(body):
            upto = min(at + PIECE, stop_at)
            self._http.send_data(stream, body[at:upto], end_stream=upto == len(body))
            self.transmit()
            await asyncio.sleep(0)
            at = upto
            if at == stop_at:
                stop_at = len(body)
                if wait:
                    await wait()

    async def request(self, method, authority, path, headers, body=None, pause=None):
        """Sends a request and yields ("headers", status, dict), then ("data", bytes) until its end.

        `pause` is (offset, coroutine function): the body stops there until that is done.
        """
        stream = self._quic.get_next_available_stream_id()
        queue = self._queues[stream] = asyncio.Queue()
        head = {":method": method, ":scheme": "https", ":authority": authority, ":path": path, **headers}
        encoded = [(key.encode(), value.encode()) for key, value in head.items()]
        self._http.send_headers(stream, encoded, end_stream=not body)
        self.transmit()
        if body:
            await self._send_body(stream, body, pause)
        ended = False
        try:
            while not ended:
                event = await queue.get()
                if isinstance(event, Exception):
                    ended = True
                    raise event
                ended = event.stream_ended
                if isinstance(event, DataReceived):
                    yield "data", event.data
                    continue
                fields = {key.decode(): value.decode() for key, value in event.headers}
                if not fields.get(":status", "200").startswith("1"):
                    yield "headers", int(fields.pop(":status")), fields
        finally:
            del self._queues[stream]
            if not ended:
                self._quic.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
                self.transmit()


@contextlib.asynccontextmanager
async def client(params, ticket=None, **more):
    """A connection to the relay of the parameters, its certificate verified.

    With the `ticket` of an earlier one nothing is waited for, and the first request goes out as early data.
    """
    host, port, name = ws.address(params)
    config = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name)
    config.load_verify_locations(cafile=params["ca"])
    config.session_ticket = ticket
    async with connect(
        host, port, configuration=config, create_protocol=Client, wait_connected=ticket is None, **more
    ) as connection:
        yield connection, f"{name}:{port}"
