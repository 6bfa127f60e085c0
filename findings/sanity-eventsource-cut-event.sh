#!/usr/bin/env bash
# @sanity/eventsource 5.0.4 (npm, July 2026; on Node 20.20), which is eventsource 2.0.2 in Node: an event that is cut
# before its blank line is never given out; its data turns up in front of another event's, under that one's id.
#
# Expected: the HTML standard, "Interpreting an event stream": at the end of the stream what is pending is discarded,
# and an event that has no blank line yet is not dispatched. The id that a reconnect sends as `Last-Event-ID` is set
# when an event is dispatched. So a reader that has event 1 and half of event 2 asks with id 1, and gets 2 and 3 as
# they are.
#
# Seen: it asks with id 2, so the server goes on with 3; and what it has kept of 2 is put before the data of 3. The
# reader gets two events, the second one with the id of 3 and data that the server never sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

timeout 120 npm install --silent --no-audit --no-fund --prefix "$folder" @sanity/eventsource@5.0.4 eventsource@2.0.2

cat > finding.cjs <<'JS'
const { createServer } = require("node:http")
const EventSource = require("@sanity/eventsource")

const words = ["one", "two", "three"]
const event = (id) => `id: ${id}\ndata: ${words[id - 1]}\n\n`
let requests = 0
const server = createServer((request, reply) => {
  const last = Number(request.headers["last-event-id"] ?? 0)
  reply.writeHead(200, { "content-type": "text/event-stream" })
  if (requests++ === 0) {
    reply.write("retry: 100\n\n" + event(1) + event(2).slice(0, -1), () => reply.socket.end())
    return
  }
  console.log(`comes back with Last-Event-ID ${last}`)
  for (let id = last + 1; id <= words.length; id++) reply.write(event(id))
})
server.listen(0, "127.0.0.1", () => {
  const source = new EventSource(`http://127.0.0.1:${server.address().port}/`)
  source.onmessage = ({ lastEventId, data }) => {
    console.log(`event ${lastEventId}: ${JSON.stringify(data)}`)
    if (lastEventId === "3") process.exit()
  }
})
JS
timeout 30 node finding.cjs | tee seen
diff seen - <<'EXPECTED'
event 1: "one"
comes back with Last-Event-ID 2
event 3: "two\nthree"
EXPECTED
