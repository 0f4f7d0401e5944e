"""WebSocket /watch with Python `websockets`.

Parameters: url (wss://…), ca, capability; optional origin, lanes, from, cursor, chunks, state, progress, timeout (s).
Prints what was seen.
"""

import waystation as ws
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(params):
    host, port, name = ws.address(params)
    hello = {"protocol": 1, "capability": params["capability"]}
    hello.update({key: params[key] for key in ("lanes", "from", "cursor") if key in params})
    seen, tell = ws.Seen(params, ws.teller(params)), ws.teller(params)
    async with connect(
        f"wss://{name}:{port}/watch",
        host=host,
        port=port,
        ssl=ws.tls(params),
        origin=params.get("origin"),
        subprotocols=["waystation.watch.v1"],
        compression=None,
        max_size=4 << 20,
    ) as socket:
        tell({"event": "open", "subprotocol": socket.subprotocol})
        await socket.send(ws.frame(ws.WATCH, hello))
        try:
            while not seen.enough():
                message = await socket.recv()
                if isinstance(message, str):
                    raise ws.ProtocolError("a text message")
                for frame in ws.split_message(message):
                    seen.take(*frame)
            if seen.single["ending"] is not None:
                await socket.wait_closed()
        except ConnectionClosed:
            pass
        closed = {"code": socket.close_code, "reason": socket.close_reason}
        summary = seen.summary()
        summary["ok"] = summary["ok"] and socket.subprotocol == "waystation.watch.v1"
        return {"subprotocol": socket.subprotocol, "closed": closed, **summary}


ws.run(main)
