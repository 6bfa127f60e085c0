#!/usr/bin/env bash
# spring-webflux 7.0.10 (Maven, with reactor-netty-http 1.3.7; on Java 17) and Gson 2.13.2 as the only JSON library on
# the classpath: a 404 is not told as a 404 when its body is JSON and events were asked for.
#
# Expected: Spring's reference says of WebClient's `retrieve()` that a 4xx or 5xx gives a WebClientResponseException,
# or the subclass of that status, by default. So whatever body was asked for, a 404 is NotFound, and a filter on that
# class ("stop at a 4xx, else retry") works. Spring finds Gson by itself, as it does Jackson.
#
# Seen: asked for a Flux of server-sent events (or of any object) the same 404 comes as an
# UnsupportedOperationException about decoding streams, without the status: the response's reader is chosen and throws
# before the status is looked at. A Mono of the same response is NotFound, and so is the Flux when the body is plain
# text.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" || true; rm -rf "$folder"' EXIT
cd "$folder"

cat > pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>finding</artifactId>
  <version>0</version>
  <dependencies>
    <dependency>
      <groupId>org.springframework</groupId>
      <artifactId>spring-context</artifactId>
      <version>7.0.10</version>
    </dependency>
    <dependency>
      <groupId>org.springframework</groupId>
      <artifactId>spring-webflux</artifactId>
      <version>7.0.10</version>
    </dependency>
    <dependency>
      <groupId>io.projectreactor.netty</groupId>
      <artifactId>reactor-netty-http</artifactId>
      <version>1.3.7</version>
    </dependency>
    <dependency>
      <groupId>com.google.code.gson</groupId>
      <artifactId>gson</artifactId>
      <version>2.13.2</version>
    </dependency>
  </dependencies>
</project>
XML
timeout 170 mvn -q -B -Dmaven.repo.local="$folder/maven" -Dmdep.outputFile=classpath \
    org.apache.maven.plugins:maven-dependency-plugin:3.11.0:build-classpath > log 2>&1

cat > server.py <<'PY'
from http.server import BaseHTTPRequestHandler, HTTPServer

KINDS = {"/json": ("application/json", b'{"message": "no such stream"}'), "/text": ("text/plain", b"no such stream")}


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        kind, body = KINDS[self.path]
        self.send_response(404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
print(server.server_port, flush=True)
server.serve_forever()
PY
cat > Finding.java <<'JAVA'
import java.util.Map;
import java.util.function.Consumer;
import org.springframework.core.ParameterizedTypeReference;
import org.springframework.http.codec.ServerSentEvent;
import org.springframework.web.reactive.function.client.WebClient;
import org.springframework.web.reactive.function.client.WebClient.ResponseSpec;

public final class Finding {
    private static WebClient client;

    public static void main(String[] arguments) {
        client = WebClient.create(arguments[0]);
        for (var path : new String[] {"text", "json"}) {
            show(path, "Mono of a map", response -> response.bodyToMono(Map.class).block());
            show(path, "Flux of maps", response -> response.bodyToFlux(Map.class).blockLast());
            show(path, "Flux of events", response -> response.bodyToFlux(
                    new ParameterizedTypeReference<ServerSentEvent<String>>() {}).blockLast());
        }
        System.exit(0);
    }

    private static void show(String path, String body, Consumer<ResponseSpec> read) {
        try {
            read.accept(client.get().uri(path).retrieve());
        } catch (RuntimeException error) {
            System.out.println("404 as " + path + ", " + body + ": " + error.getClass().getSimpleName());
        }
    }
}
JAVA
python3 server.py > port &
server=$!
timeout 20 sh -c 'until [ -s port ]; do sleep 0.1; done'
timeout 60 java -cp "$(cat classpath)" Finding.java "http://127.0.0.1:$(cat port)/" 2> log | tee seen
diff seen - <<'EXPECTED'
404 as text, Mono of a map: NotFound
404 as text, Flux of maps: NotFound
404 as text, Flux of events: NotFound
404 as json, Mono of a map: NotFound
404 as json, Flux of maps: UnsupportedOperationException
404 as json, Flux of events: UnsupportedOperationException
EXPECTED
