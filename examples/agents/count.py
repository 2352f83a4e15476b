#!/usr/bin/env python3
"""Counts up to the number in the message, with a tool call on the way. For `--output json-lines`."""

import json
import re
import sys
import time


def frame(**fields):
    print(json.dumps(fields), flush=True)


number = re.search(r"\d+", sys.stdin.read())
end = min(int(number.group()), 1000) if number else 5
frame(type="progress", message=f"counting to {end}")
frame(type="tool-call", id="range-1", name="range", arguments={"start": 1, "end": end})
frame(type="tool-result", id="range-1", result=list(range(1, end + 1)))
for i in range(1, end + 1):
    frame(type="text", text=f"{i}\n")
    time.sleep(0.05)
