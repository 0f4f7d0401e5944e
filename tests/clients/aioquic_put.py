"""HTTP/3 PUT of a chunk with aioquic.

Parameters: url, ca, capability, file, chunk (the dictionary's members); optional ref, wait, headers, expect (list of
statuses, default 200 and 201), offset (the body is what follows it), stop_at (send so many bytes, then wait for a
line on stdin), change_id (take another connection ID then), progress, timeout (s). Prints status, headers and body of the answer.
"""

import json

import h3
import waystation as ws


async def main(params):
    with open(params["file"], "rb") as source:
        data = source.read()
    path, headers = ws.put_request(params, data)
    data = data[params.get("offset", 0) :]
    status, fields, body = None, {}, b""
    async with h3.client(params) as (client, authority):

        async def wait():
            await ws.told_to_go_on(params)
            if params.get("change_id"):
                client.change_connection_id()

        pause = (params["stop_at"], wait) if "stop_at" in params else None
        async for what, *value in client.request("PUT", authority, path, headers, data, pause):
            if what == "headers":
                status, fields = value
            else:
                body += value[0]
    answer = json.loads(body) if body else None
    return {
        "ok": status in params.get("expect", [200, 201]),
        "http": "3",
        "status": status,
        "headers": fields,
        "body": answer,
    }


ws.run(main)
