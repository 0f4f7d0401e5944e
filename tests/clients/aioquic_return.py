"""A client that comes back: HTTP/3 with aioquic, and its first request in 0-RTT.

Parameters: url, ca, capability, file, chunk (of the first visit), second (file and chunk of the second); optional
expect, timeout (s). The first visit brings a chunk and keeps the session; then the program says "stopped" and waits
for a line on stdin. The second visit sends its request with its first flight. Prints the second answer, and whether
the relay took the early data.
"""

import asyncio
import json

import h3
import waystation as ws


async def put(client, authority, params):
    """One PUT: status and body of the answer."""
    with open(params["file"], "rb") as source:
        data = source.read()
    path, headers = ws.put_request(params, data)
    status, body = None, b""
    async for what, *value in client.request("PUT", authority, path, headers, data):
        if what == "headers":
            status = value[0]
        else:
            body += value[0]
    return status, json.loads(body)


async def main(params):
    tickets = []
    async with h3.client(params, session_ticket_handler=tickets.append) as (client, authority):
        first, _ = await put(client, authority, params)
        while not tickets:
            await asyncio.sleep(0.01)
    await ws.told_to_go_on(params)
    async with h3.client(params, ticket=tickets[0]) as (client, authority):
        status, body = await put(client, authority, {**params, **params["second"]})
        # aioquic asserts nothing about it: what the relay did with the early data is only here.
        early = client._quic.tls.early_data_accepted
    ok = first == 201 and status in params.get("expect", [200, 201])
    return {"ok": ok, "http": "3", "early": early, "status": status, "body": body}


ws.run(main)
