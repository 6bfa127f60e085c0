#!/usr/bin/env bash
# LiteLLM 1.110.2 with openai 3.57.0 (both PyPI; on Python 3.11): of a stream with two choices (`n=2`) only the first
# end is told, and it may be told of the wrong choice.
#
# Expected: in OpenAI's reference a chunk's choice has an `index` and, in its last chunk, the `finish_reason` of that
# index; the choices end independently. LiteLLM documents `n` and `stream` for OpenAI's providers and output in
# OpenAI's form, so each choice should end once, with its own reason, as it does with the openai package alone.
#
# Seen: whichever choice ends first takes the other's end with it. If choice 0 ends first, choice 1 never ends: its
# `length`, that is, that it was cut off, is lost. If choice 1 ends first, its `stop` is told of choice 0, which goes
# on with text after that end, and choice 0's own `length` is lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv python
timeout 170 python/bin/pip install --quiet --no-compile --disable-pip-version-check litellm==1.110.2 openai==3.57.0

cat > finding.py <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import litellm
import openai

first = 0  # the choice that ends first


class Upstream(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        second = 1 - first
        for index in 0, 1:
            self.chunk(index, {"role": "assistant", "content": "a"})
        self.chunk(first, {}, "stop")
        self.chunk(second, {"content": "b"})
        self.chunk(second, {}, "length")
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, index, delta, reason=None):
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
messages = [{"role": "user", "content": "hi"}]
client = openai.OpenAI(base_url=url, api_key="none")


def ends(chunks):
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return " ".join(f"{choice.index}:{choice.finish_reason}" for choice in choices if choice.finish_reason)


for first in 0, 1:
    plain = ends(client.chat.completions.create(model="m", messages=messages, n=2, stream=True))
    through = ends(litellm.completion("openai/m", messages, api_base=url, api_key="none", n=2, stream=True))
    print(f"{first} ends first: openai says {plain}, LiteLLM says {through}")
PY
# Without the variable LiteLLM asks the network for its price list.
LITELLM_LOCAL_MODEL_COST_MAP=True timeout 60 python/bin/python finding.py | tee seen
diff seen - <<'EXPECTED'
0 ends first: openai says 0:stop 1:length, LiteLLM says 0:stop
1 ends first: openai says 1:stop 0:length, LiteLLM says 0:stop
EXPECTED
