#!/usr/bin/env bash
# @langchain/openai 1.6.0 (npm, September 2026), with @langchain/core 1.4.0 and openai 7.59.0, on Node 20.20: a
# streamed response that failed in the middle looks finished.
#
# Expected: by OpenAI's reference of the Responses API a stream's last event carries the response:
# `response.completed`, `response.incomplete`, or `response.failed` when the model broke down. The package's converter
# documents that it throws where a response carries an error, and without a stream it does. A caller who streams
# expects the same error, or at least a status "failed", since half an answer must not pass for a whole one.
#
# Seen: without a stream the error is thrown. With one, `response.failed` is dropped: `stream()` ends quietly after
# half the text, and `invoke()` of a model that streams returns that half as its message. Neither has a status, nor the
# upstream's words.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

timeout 120 npm install --silent --no-audit --no-fund --prefix "$folder" \
    @langchain/openai@1.6.0 @langchain/core@1.4.0 openai@7.59.0

cat > finding.mjs <<'JS'
import { createServer } from "node:http"
import { ChatOpenAI } from "@langchain/openai"

const response = (status, output, error = null) => ({
  id: "resp_1", object: "response", created_at: 1, model: "m", status, output, error,
  incomplete_details: null, usage: null, tools: [], tool_choice: "auto", parallel_tool_calls: true,
})
const text = "The bridge is safe "
const message = { id: "msg_1", type: "message", status: "in_progress", role: "assistant", content: [] }
const part = { type: "output_text", text: "", annotations: [] }
const failed = response("failed", [], { code: "server_error", message: "the model failed" })
const place = { item_id: message.id, output_index: 0, content_index: 0 }
const events = [
  { type: "response.created", response: response("in_progress", []) },
  { type: "response.output_item.added", output_index: 0, item: message },
  { type: "response.content_part.added", ...place, part },
  { type: "response.output_text.delta", ...place, delta: text },
  { type: "response.failed", response: failed },
]

const server = createServer(async (request, reply) => {
  let body = ""
  for await (const piece of request) body += piece
  if (!JSON.parse(body).stream) {
    reply.writeHead(200, { "content-type": "application/json" })
    return reply.end(JSON.stringify(failed))
  }
  reply.writeHead(200, { "content-type": "text/event-stream" })
  events.forEach((event, sequence_number) =>
    reply.write(`event: ${event.type}\ndata: ${JSON.stringify({ ...event, sequence_number })}\n\n`))
  reply.end()
})
await new Promise((listening) => server.listen(0, "127.0.0.1", listening))

const model = (streaming) => new ChatOpenAI({
  model: "m", apiKey: "none", useResponsesApi: true, streaming, maxRetries: 0,
  configuration: { baseURL: `http://127.0.0.1:${server.address().port}/v1` },
})
async function show(way, call) {
  try {
    const answer = await call()
    console.log(`${way}: "${answer.text}", status ${answer.response_metadata.status}`)
  } catch (error) {
    console.log(`${way}: throws "${error.message}"`)
  }
}
async function streamed() {
  let whole
  for await (const piece of await model(true).stream("hi")) whole = whole?.concat(piece) ?? piece
  return whole
}
await show("invoke, no stream", () => model(false).invoke("hi"))
await show("invoke, streaming", () => model(true).invoke("hi"))
await show("stream", streamed)
process.exit()
JS
timeout 30 node finding.mjs | tee seen
diff seen - <<'EXPECTED'
invoke, no stream: throws "the model failed"
invoke, streaming: "The bridge is safe ", status undefined
stream: "The bridge is safe ", status undefined
EXPECTED
