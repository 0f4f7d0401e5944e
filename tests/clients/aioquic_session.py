"""/watch over WebTransport with aioquic.

Parameters: url, ca, capability; optional lanes, from, cursor, chunks, state, progress, timeout (s). Prints what was
seen, and which frames came on the control stream and which on streams of chunks.
"""

import asyncio

import waystation as ws
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection
from aioquic.h3.events import HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamReset


class Session(QuicConnectionProtocol):
    """A connection for one session; what comes of it is put in one queue."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic, enable_webtransport=True)
        self.came = asyncio.Queue()

    def quic_event_received(self, event):
        """Called by aioquic."""
        if isinstance(event, StreamReset):
            self.came.put_nowait(event)
        for http in self._http.handle_event(event):
            self.came.put_nowait(http)

    def open(self, authority, frame):
        """Asks for a session, and says the first frame on its control stream."""
        session = self._quic.get_next_available_stream_id()
        head = {":method": "CONNECT", ":protocol": "webtransport", ":scheme": "https", ":authority": authority,
                ":path": "/watch"}
        self._http.send_headers(session, [(key.encode(), value.encode()) for key, value in head.items()])
        self.control = self._http.create_webtransport_stream(session)
        # aioquic 1.7 reads answers on a stream of its own as those of a request, with frames of HTTP/3.
        with self._http._get_or_create_stream(self.control) as stream:
            stream.frame_type, stream.session_id = FrameType.WEBTRANSPORT_STREAM, session
        self._quic.send_stream_data(self.control, frame)
        self.transmit()


async def main(params):
    host, port, name = ws.address(params)
    config = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, server_name=name, max_datagram_frame_size=65536
    )
    config.load_verify_locations(cafile=params["ca"])
    hello = {"protocol": 1, "capability": params["capability"]}
    hello.update({key: params[key] for key in ("lanes", "from", "cursor") if key in params})
    seen, status, decoders, kinds = ws.Seen(params, ws.teller(params)), None, {}, {"control": set(), "chunk": set()}
    async with connect(host, port, configuration=config, create_protocol=Session) as session:
        session.open(f"{name}:{port}", ws.frame(ws.WATCH, hello))
        while not seen.enough():
            event = await session.came.get()
            if isinstance(event, HeadersReceived):
                status = int(dict(event.headers)[b":status"])
            elif isinstance(event, WebTransportStreamDataReceived):
                place = "control" if event.stream_id == session.control else "chunk"
                for kind, body in decoders.setdefault(event.stream_id, ws.Decoder()).push(event.data):
                    kinds[place].add(kind)
                    seen.take(kind, body)
    summary = seen.summary()
    summary["ok"] = summary["ok"] and status == 200
    return {"status": status, **summary, "kinds": {place: sorted(which) for place, which in kinds.items()}}


ws.run(main)
