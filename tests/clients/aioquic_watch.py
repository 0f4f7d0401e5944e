"""Streaming GET /watch over HTTP/3 with aioquic.

Parameters: url, ca, capability; optional lanes, from, cursor, chunks (how many complete ones to wait for), state
(which they must reach), progress (a line per event), timeout (s). Prints what was seen.
"""

import contextlib
import json

import h3
import waystation as ws


async def main(params):
    headers = {"authorization": "Bearer " + params["capability"]}
    if header := ws.watch_header(params):
        headers["waystation-watch"] = header
    seen, decoder, status, refusal = ws.Seen(params, ws.teller(params)), ws.Decoder(), None, b""
    async with h3.client(params) as (client, authority):
        answer = client.request("GET", authority, "/watch", headers)
        async with contextlib.aclosing(answer):
            async for what, *value in answer:
                if what == "headers":
                    status, fields = value
                    ws.teller(params)({"event": "headers", "status": status})
                elif status != 200:
                    refusal += value[0]
                else:
                    for frame in decoder.push(value[0]):
                        seen.take(*frame)
                if seen.enough():
                    break
    summary = seen.summary()
    summary["ok"] = summary["ok"] and status == 200
    return {"http": "3", "status": status, "headers": fields, "refusal": json.loads(refusal or "null"), **summary}


ws.run(main)
