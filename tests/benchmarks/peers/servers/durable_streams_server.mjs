// The reference server, with its defaults.
import { DurableStreamTestServer } from "@durable-streams/server";

const server = new DurableStreamTestServer({ port: Number(process.argv[2]) });
await server.start();
server.server.keepAliveTimeout = 0; // else it closes the publisher's connection when that has rested for 5 s
