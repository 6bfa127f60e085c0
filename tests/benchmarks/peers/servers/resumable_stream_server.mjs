// Streams that POSTs feed, with subscribers who join by resumeExistingStream, as the README of resumable-stream has it.
import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream/redis";

const clients = [createClient({ url: process.env.REDIS_URL }), createClient({ url: process.env.REDIS_URL })];
await Promise.all(clients.map((client) => client.connect()));
const [publisher, subscriber] = clients;
const context = createResumableStreamContext({ waitUntil: () => {}, publisher, subscriber });
const producers = new Map(); // controllers, by the stream's name

async function open(id, response) {
  const start = (controller) => producers.set(id, controller);
  const stream = await context.createNewResumableStream(id, () => new ReadableStream({ start }));
  stream.pipeTo(new WritableStream()); // whoever started it has gone
  response.writeHead(204).end();
}

async function append(id, request, response) {
  producers.get(id).enqueue(`data: ${await text(request)}\n\n`);
  response.writeHead(204).end();
}

async function view(id, resumeAt, response) {
  const stream = await context.resumeExistingStream(id, resumeAt);
  if (!stream) {
    response.writeHead(422).end();
    return;
  }
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" }).flushHeaders();
  const reader = stream.getReader();
  response.on("close", () => reader.cancel().catch(() => {})); // it may have failed already
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    if (!response.write(next.value)) await once(response, "drain");
  }
  response.end();
}

function serve(request, response) {
  const url = new URL(request.url, "http://localhost");
  const id = url.pathname.split("/")[2];
  if (request.method === "PUT") return open(id, response);
  if (request.method === "POST") return append(id, request, response);
  return view(id, Number(url.searchParams.get("resumeAt")), response);
}

const server = createServer((request, response) => {
  serve(request, response).catch((error) => {
    console.error(error);
    if (response.headersSent) response.destroy();
    else response.writeHead(500).end(String(error));
  });
});
server.keepAliveTimeout = 0; // the publisher's connection may rest
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 8192 });
