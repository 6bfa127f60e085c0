#!/usr/bin/env bash
# @durable-streams/client 0.2.7 (npm, September 2026; on Node 20.20): reading what a stream holds (`live: false`) stops
# after the server's first answer and takes the part for the whole.
#
# Expected: the Durable Streams protocol lets a server answer a catch-up read with a part: `Stream-Next-Offset` says
# where to go on, and `Stream-Up-To-Date: true` stands only on the answer that reaches the end. The client's README
# says of `live: false` that it reads up to the first such mark, and of `json()` that it gathers everything until then.
# So a stream that comes in three parts is three requests and all its items.
#
# Seen: one request, the items of the first part, no error; the response itself says that it is not up to date.
# `jsonStream()` is the same. Only with `live: "long-poll"` does `json()` go on to the end, as the README has it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

timeout 120 npm install --silent --no-audit --no-fund --prefix "$folder" @durable-streams/client@0.2.7

cat > finding.mjs <<'JS'
import { createServer } from "node:http"
import { stream } from "@durable-streams/client"

const parts = [[1, 2], [3, 4], [5]]
let requests = 0
const server = createServer((request, reply) => {
  requests++
  const offset = new URL(request.url, "http://localhost").searchParams.get("offset")
  const part = offset === null || offset === "-1" ? 0 : Number(offset)
  const last = part + 1 >= parts.length
  reply.writeHead(200, {
    "content-type": "application/json",
    "stream-next-offset": String(Math.min(part + 1, parts.length)),
    ...(last && { "stream-up-to-date": "true" }),
  })
  reply.end(JSON.stringify(parts[part] ?? []))
})
await new Promise((listening) => server.listen(0, "127.0.0.1", listening))
const url = `http://127.0.0.1:${server.address().port}/stream`

async function show(way, options, items) {
  requests = 0
  const response = await stream({ url, ...options })
  console.log(`${way}: items ${await items(response)}, requests ${requests}, up to date ${response.upToDate}`)
}
await show("live false, json()", { live: false }, (response) => response.json())
await show("live false, jsonStream()", { live: false }, async (response) => {
  const items = []
  for await (const item of response.jsonStream()) items.push(item)
  return items
})
await show("long-poll, json()", { live: "long-poll" }, (response) => response.json())
process.exit()
JS
timeout 30 node finding.mjs | tee seen
diff seen - <<'EXPECTED'
live false, json(): items 1,2, requests 1, up to date false
live false, jsonStream(): items 1,2, requests 1, up to date false
long-poll, json(): items 1,2,3,4,5, requests 3, up to date true
EXPECTED
