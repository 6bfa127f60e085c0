#!/usr/bin/env bash
# LitServe 0.2.19 with its OpenAISpec, read by openai 3.57.0 (both PyPI; on Python 3.11): a model that fails in the
# middle of a stream looks, to OpenAI's own client, like one that has finished.
#
# Expected: LitServe documents its spec as made for OpenAI's clients, and on a failure it does send an error object of
# OpenAI's form, upon which that client raises an APIError. By the HTML standard ("Interpreting an event stream") an
# event ends with a blank line, and what has none when the stream ends is discarded; LitServe ends its other events so.
#
# Seen: the error object is the last thing sent, and no line end follows it, although the response itself ends cleanly.
# So the client rightly drops it: it hands out the text so far, no `finish_reason`, and raises nothing.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -- "-$server" || true; rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv python
timeout 170 python/bin/pip install --quiet --no-compile --disable-pip-version-check litserve==0.2.19 openai==3.57.0

cat > server.py <<'PY'
import sys

import litserve


class Model(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, prompt):
        yield "The bridge is safe "
        raise RuntimeError("the model failed")


if __name__ == "__main__":
    server = litserve.LitServer(Model(spec=litserve.OpenAISpec()), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
PY
cat > finding.py <<'PY'
import json
import sys
import time
import urllib.request

import openai

url = f"http://127.0.0.1:{sys.argv[1]}"
messages = [{"role": "user", "content": "hi"}]
for _ in range(300):
    try:
        urllib.request.urlopen(f"{url}/health").close()
        break
    except OSError:
        time.sleep(0.1)

body = json.dumps({"model": "m", "messages": messages, "stream": True}).encode()
request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as response:
    *events, rest = response.read().decode().split("\n\n")
error = json.loads(rest.removeprefix("data: "))["error"]
print(f"sent: {len(events)} event, then without a line end the error {error['message']!r}, a clean end")

text, reason = "", None
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
try:
    for chunk in client.chat.completions.create(model="m", messages=messages, stream=True):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason
    print(f"client: {text!r}, finish_reason {reason}")
except openai.APIError as error:
    print(f"client: {error!r}")
PY
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
setsid timeout 60 python/bin/python server.py "$port" > log 2>&1 &
server=$!
timeout 50 python/bin/python finding.py "$port" | tee seen
diff seen - <<'EXPECTED'
sent: 1 event, then without a line end the error 'Internal Server Error', a clean end
client: 'The bridge is safe ', finish_reason None
EXPECTED
