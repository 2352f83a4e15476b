#!/usr/bin/env python3
"""A Lastword worker in Python's standard library: the adapter `Custom`.

It answers every message with its words in reverse order, and `again` with those of the message before. Replace `answer` by what your agent does. The rest is the worker
protocol (docs/worker-protocol.md); `lastword worker conformance -- python3 examples/worker.py` checks it.
"""

import http.client
import json
import os
import random
import signal
import ssl
import sys
import threading
import time
import urllib.parse
import uuid

GATEWAYS = os.environ.get("LASTWORD_WORKER_GATEWAY", "http://127.0.0.1:8081").split(",")
HISTORY = 20  # past exchanges of the conversation to get with each turn, at most 100
CAPACITY = int(os.environ.get("LASTWORD_TURNS_PER_WORKER", "1"))
DRAIN_SECONDS = int(os.environ.get("LASTWORD_DRAIN_SECONDS", "30"))
TOKEN_FILE = os.environ.get("LASTWORD_TOKEN_FILE", "")  # in a pod, in place of the credential
GATEWAY_CA = os.environ.get("LASTWORD_WORKER_GATEWAY_CA") or None  # to trust at https:// gateways
HEADERS = {
    "Authorization": "Bearer " + os.environ.get("LASTWORD_CREDENTIAL", ""),
    "Lastword-Incarnation": str(uuid.uuid4()),  # made anew by each process
    "Content-Type": "application/json",
}


def answer(message, history, cancelled):
    """Yields the reply piece by piece. `history` has the conversation's past exchanges, oldest first, each with `message` and
    `reply`. `cancelled` is an Event: stop when it is set."""
    if message == "again" and history:
        message = history[-1]["message"]
    if message.startswith("conformance-slow"):
        cancelled.wait(3)
    for word in reversed(message.split()):
        yield {"type": "text", "text": word + " "}


def units(frame):
    """Offsets count UTF-8 bytes of text, and 1 for any other frame."""
    return len(frame["text"].encode()) if frame["type"] == "text" else 1


class Status(Exception):
    """An answer other than 2xx."""

    def __init__(self, status, body):
        super().__init__(f"status {status}: {body[:200]!r}")
        self.status, self.body = status, body


def call(gateway, method, path, body=None, timeout=15, headers=HEADERS):
    """One call. Returns the open response; its caller reads it."""
    url = urllib.parse.urlsplit(gateway)
    if url.scheme == "https":
        trust = ssl.create_default_context(cafile=GATEWAY_CA)
        connection = http.client.HTTPSConnection(url.netloc, timeout=timeout, context=trust)
    else:
        connection = http.client.HTTPConnection(url.netloc, timeout=timeout)
    data = None if body is None else json.dumps(body)
    connection.request(method, url.path.rstrip("/") + "/worker/v1/" + path, data, headers)
    response = connection.getresponse()
    if response.status in (401, 403, 410):
        print(f"lastword wants nothing of this worker any more ({response.status})", file=sys.stderr)
        os._exit(3)
    if response.status >= 300:
        raise Status(response.status, response.read())
    return response


def post(gateway, path, body):
    return json.loads(call(gateway, "POST", path, body).read() or b"null")


def get_credential():
    """In a pod: exchanges the token of the pod's ServiceAccount for a credential. 401, 403 and 410 end the process."""
    pause = 0.1
    while True:
        for gateway in GATEWAYS:
            try:
                with open(TOKEN_FILE) as file:  # read for each attempt: the token is replaced before it expires
                    headers = {"Authorization": "Bearer " + file.read().strip()}
                answer = json.loads(call(gateway, "POST", "credential", headers=headers).read())
                HEADERS["Authorization"] = "Bearer " + answer["credential"]
                return
            except (OSError, ValueError, http.client.HTTPException, Status) as error:  # 425: the pod is not known yet
                print(f"{gateway}: no credential yet: {error}", file=sys.stderr)
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(5, pause * 2)


class Turn(threading.Thread):
    """One turn: runs the agent, posts its output, and says the last word."""

    def __init__(self, worker, push):
        super().__init__(daemon=True)
        self.worker, self.push, self.id = worker, push, push["turnId"]
        self.cancelled = threading.Event()
        self.frames = []  # all output; a worker with long output would drop what is acknowledged as durable
        self.sent = 0  # how many of the frames this gateway has
        self.end = 0
        self.reply_id = str(uuid.uuid4())  # the same in each repetition of the finish

    def run(self):
        try:
            for frame in answer(self.push["message"], self.push.get("history", []), self.cancelled):
                self.frames.append(frame)
                self.end += units(frame)
                self.say(self.post_output, once=True)  # what fails here is sent with the finish
            outcome = {"type": "reply"}
        except Exception as error:  # an error of the agent becomes the turn's last word
            message = "The agent failed."
            outcome = {"type": "error", "reason": "AgentError", "message": message, "detail": repr(error)}
        self.say(lambda gateway: self.finish(gateway, outcome))
        self.worker.over(self)

    def unsent(self):
        return {"offset": sum(map(units, self.frames[: self.sent])), "frames": self.frames[self.sent :]}

    def post_output(self, gateway):
        piece, count = self.unsent(), len(self.frames)
        post(gateway, f"turns/{self.id}/output?offset={piece['offset']}", {"frames": piece["frames"]})
        self.sent = count

    def finish(self, gateway, outcome):
        """Says the last word, with the output that no post has brought (bodies are limited to 4 MiB)."""
        finish = {"turnIds": [self.id], "replyId": self.reply_id, "outcome": outcome, "end": self.end}
        post(gateway, "finish", finish | {"tail": self.unsent()} if self.sent < len(self.frames) else finish)

    def say(self, speak, once=False):
        """Repeats a call until it is answered or the turn is cancelled."""
        pause = 0.1
        while not self.cancelled.is_set():
            try:
                return speak(self.worker.gateway)
            except Status as error:
                if error.status == 404:  # this worker does not hold the turn any more
                    self.cancelled.set()
                if error.status == 409:  # the gateway lacks output: send all of it again, for simplicity
                    self.sent = 0
            except (OSError, http.client.HTTPException):
                self.sent = 0  # the call may or may not have arrived
            if once:
                return None
            self.cancelled.wait(pause * random.uniform(0.5, 1))
            pause = min(5, pause * 2)
        return None


class Worker:
    def __init__(self):
        self.gateway = GATEWAYS[0]
        self.lock = threading.Condition()
        self.turns = {}  # in hand, by id
        self.seen = set()  # a turn is run once
        self.draining = False

    def take(self, push):
        """Begins a turn, or hands it back if the worker drains already."""
        with self.lock:
            if push["turnId"] in self.seen:
                return
            self.seen.add(push["turnId"])
            late = self.draining
            if not late:
                turn = self.turns[push["turnId"]] = Turn(self, push)
        if late:
            self.goodbye("draining", [push["turnId"]])
        else:
            turn.start()

    def stop(self, turn_id):
        with self.lock:
            turn = self.turns.pop(turn_id, None)
        if turn:
            turn.cancelled.set()

    def over(self, turn):
        with self.lock:
            self.turns.pop(turn.id, None)
            self.lock.notify_all()

    def in_hand(self):
        with self.lock:
            return list(self.turns)

    def goodbye(self, phase, hand_back=(), reason=None):
        said = {"phase": phase, "handBack": list(hand_back)} | ({"reason": reason} if reason else {})
        for _ in range(20):
            try:
                return post(self.gateway, "goodbye", said)
            except (OSError, http.client.HTTPException, Status):
                time.sleep(0.2)

    def drain(self, seconds, reason=None):
        """Begins to leave: takes no more turns, and finishes those in hand."""
        with self.lock:
            if self.draining:
                return
            self.draining = True
        threading.Thread(target=self.leave, args=(seconds, reason), daemon=True).start()

    def leave(self, seconds, reason):
        self.goodbye("draining", reason=reason)
        with self.lock:
            self.lock.wait_for(lambda: not self.turns, timeout=seconds)
        self.goodbye("gone")
        os._exit(0)

    def heartbeat(self, gateway, hello, stream, over):
        """Sends heartbeats; leaves this gateway when none was answered for half a lease."""
        answered = time.monotonic()
        while not over.wait(hello["heartbeatSeconds"]):
            try:
                said = post(gateway, "heartbeat", {"turns": self.in_hand()})
                answered = time.monotonic()
            except (OSError, http.client.HTTPException, Status):
                if time.monotonic() - answered > hello["leaseSeconds"] / 2:
                    stream.close()
                    return
                continue
            for turn_id in said["stop"]:
                self.stop(turn_id)
            for push in said["push"]:
                self.take(push)
            if said.get("drain") is not None:
                self.drain(said["drain"])

    def connection(self, gateway):
        """One stream of turns, until it breaks."""
        query = urllib.parse.urlencode(
            {"capacity": CAPACITY, "turns": ",".join(self.in_hand()), "history": HISTORY}
        )
        over = threading.Event()
        with call(gateway, "GET", "turns?" + query, timeout=60) as stream:
            try:
                for line in stream:
                    said = json.loads(line)
                    if said["type"] == "hello":
                        self.gateway = gateway
                        for turn in list(self.turns.values()):
                            turn.sent = 0  # a new gateway has only what was durable; send all again
                        threading.Thread(
                            target=self.heartbeat, args=(gateway, said, stream, over), daemon=True
                        ).start()
                    elif said["type"] == "turn":
                        self.take(said)
                    elif said["type"] == "cancel":
                        self.stop(said["turnId"])
                    elif said["type"] == "drain":
                        self.drain(said["seconds"])
            finally:
                over.set()

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: self.drain(DRAIN_SECONDS, "NodeShutdown"))
        signal.signal(signal.SIGINT, lambda *_: self.drain(DRAIN_SECONDS, "NodeShutdown"))
        if TOKEN_FILE and not os.environ.get("LASTWORD_CREDENTIAL"):
            get_credential()
        while True:
            for gateway in GATEWAYS:
                try:
                    self.connection(gateway)
                except (OSError, ValueError, http.client.HTTPException, Status) as error:
                    print(f"{gateway}: {error}", file=sys.stderr)
                time.sleep(random.uniform(0.1, 1))


if __name__ == "__main__":
    Worker().run()
