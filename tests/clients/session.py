"""Shows a stream of Server-Sent Events as httpx-sse sees it: a line of JSON for each event, until its end.

usage: session.py URL
"""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse

with httpx.Client(timeout=httpx.Timeout(60), trust_env=False) as client:
    with connect_sse(client, "GET", sys.argv[1]) as source:
        source.response.raise_for_status()
        for event in source.iter_sse():
            line = {"event": event.event, "id": event.id, "data": event.json(), "at": time.time()}
            print(json.dumps(line), flush=True)
