"""An AG-UI agent on loopback, by the public models of `ag-ui-protocol`: it reads a run as they have it, and answers with a tool call
and with what it was told. The first line that it prints is its port.

usage: agui_server.py
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ag_ui.core import (
    EventType,
    RunAgentInput,
    RunErrorEvent,
    RunFinishedEvent,
    RunStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)
from ag_ui.encoder import EventEncoder


def run(asked: RunAgentInput):
    ids = {"thread_id": asked.thread_id, "run_id": asked.run_id}
    yield RunStartedEvent(type=EventType.RUN_STARTED, **ids)
    said = [message.content for message in asked.messages]
    if said[-1] == "fail":
        yield RunErrorEvent(type=EventType.RUN_ERROR, message="told to", code="E1")
        return
    call = {"tool_call_id": "call"}
    yield ToolCallStartEvent(type=EventType.TOOL_CALL_START, tool_call_name="count", **call)
    yield ToolCallArgsEvent(type=EventType.TOOL_CALL_ARGS, delta='{"of": "messages"}', **call)
    yield ToolCallEndEvent(type=EventType.TOOL_CALL_END, **call)
    result = str(len(said))
    yield ToolCallResultEvent(type=EventType.TOOL_CALL_RESULT, message_id="result", content=result, **call)
    message = {"message_id": "answer"}
    yield TextMessageStartEvent(type=EventType.TEXT_MESSAGE_START, role="assistant", **message)
    for text in ("you said ", said[-1]):
        yield TextMessageContentEvent(type=EventType.TEXT_MESSAGE_CONTENT, delta=text, **message)
    yield TextMessageEndEvent(type=EventType.TEXT_MESSAGE_END, **message)
    yield RunFinishedEvent(type=EventType.RUN_FINISHED, **ids)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = RunAgentInput.model_validate_json(body)
        encoder = EventEncoder(accept=self.headers["accept"])
        self.send_response(200)
        self.send_header("content-type", encoder.get_content_type())
        self.end_headers()
        for event in run(asked):
            self.wfile.write(encoder.encode(event).encode())
            self.wfile.flush()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
