#!/usr/bin/env bash
# RESTEasy 7.0.1.Final (Maven, org.jboss.resteasy:resteasy-client; on Java 17): in its SseEventSource a comment that is
# nothing but a colon takes the line behind it along.
#
# Expected: the HTML standard, "Parsing an event stream": a comment is a colon, any number of characters, none
# included, and a line end; it is ignored and nothing else is. A bare colon is what some servers send to keep a
# connection alive, between events and, where they stream from a buffer, right before the next one.
#
# Seen: with a bare colon in front, an `id` is lost (the event arrives without one, and the reader's cursor stays
# behind), and so is `data`: one line of two, or all of it, without an error. With one character behind the colon, be
# it a blank, all events are right.
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
      <groupId>org.jboss.resteasy</groupId>
      <artifactId>resteasy-client</artifactId>
      <version>7.0.1.Final</version>
    </dependency>
  </dependencies>
</project>
XML
timeout 170 mvn -q -B -Dmaven.repo.local="$folder/maven" -Dmdep.outputFile=classpath \
    org.apache.maven.plugins:maven-dependency-plugin:3.11.0:build-classpath > log 2>&1

cat > server.py <<'PY'
from http.server import BaseHTTPRequestHandler, HTTPServer

EVENTS = """#
id: 1
data: one

data: two
#
data: lines
id: 2

#
data: three
id: 3

data: end

"""


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        comment = {"/bare": ":", "/blank": ": "}[self.path]
        self.wfile.write(EVENTS.replace("#", comment).encode())

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
print(server.server_port, flush=True)
server.serve_forever()
PY
cat > Finding.java <<'JAVA'
import jakarta.ws.rs.client.ClientBuilder;
import jakarta.ws.rs.sse.SseEventSource;
import java.util.concurrent.CountDownLatch;

public final class Finding {
    public static void main(String[] arguments) throws InterruptedException {
        var client = ClientBuilder.newClient();
        for (var path : new String[] {"blank", "bare"}) {
            System.out.println(path);
            var ended = new CountDownLatch(1);
            var source = SseEventSource.target(client.target(arguments[0] + path)).build();
            source.register(event -> {
                var data = event.readData();
                if (data.equals("end")) {
                    ended.countDown();
                } else if (ended.getCount() > 0) {
                    System.out.println("  " + event.getId() + ": '" + data.replace("\n", " / ") + "'");
                }
            });
            source.open();
            ended.await();
        }
        System.exit(0);
    }
}
JAVA
python3 server.py > port &
server=$!
timeout 20 sh -c 'until [ -s port ]; do sleep 0.1; done'
timeout 60 java -cp "$(cat classpath)" Finding.java "http://127.0.0.1:$(cat port)/" 2> log | tee seen
diff seen - <<'EXPECTED'
blank
  1: 'one'
  2: 'two / lines'
  3: 'three'
bare
  null: 'one'
  2: 'two'
  3: ''
EXPECTED
