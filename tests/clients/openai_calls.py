"""Makes one call with OpenAI's Python library, and tells what it made of the answer: a line of JSON for each event, and for the end.

usage: openai_calls.py BASE_URL '{"call": "responses.create", "on": ["resp_…"], "args": {…}, "retries": 0}'
"""

import json
import sys

import openai

base, call = sys.argv[1], json.loads(sys.argv[2])
client = openai.OpenAI(
    base_url=base,
    api_key=call.get("key") or "none",
    max_retries=call.get("retries", 0),
    http_client=openai.DefaultHttpxClient(trust_env=False),
    timeout=60,
)


def tell(**line):
    print(json.dumps(line, default=str), flush=True)


def plain(value):
    return value.model_dump(mode="json", warnings=False) if hasattr(value, "model_dump") else value


method = client
for name in call["call"].split("."):
    method = getattr(method, name)
try:
    answer = method(*call.get("on", []), **call.get("args", {}))
    if call["call"] == "responses.stream":
        with answer as stream:
            for event in stream:
                tell(event=plain(event))
            final = stream.get_final_response()
            tell(result=plain(final), text=final.output_text)
    elif isinstance(answer, openai.Stream):
        for event in answer:
            tell(event=plain(event))
    else:
        tell(result=plain(answer), text=getattr(answer, "output_text", None))
    tell(end="clean")
except openai.APIError as error:
    classes = [c.__name__ for c in type(error).__mro__]
    tell(end=classes[0], status=getattr(error, "status_code", None), code=error.code, message=error.message, type=error.type)
except Exception as error:  # what the library lets through of its HTTP client
    tell(end=type(error).__name__, message=str(error))
