# Varnish in front of two nodes; to be used as /etc/varnish/default.vcl. Tried with 7.1.
#
# Nothing is cached here: Varnish is a proxy that was there already. What a node says is passed on as it is. Only where
# no node could be reached does Varnish answer itself: an EventSource so that it tries again (any other answer than 200
# would end it for good), everybody else with an honest 503.
#
# HTTP/1.1 only: leave `-p feature=+http2` away, since Varnish gives a stream that was cut a clean end in HTTP/2. For TLS
# put Hitch or another in front that offers nothing but HTTP/1.1 (`alpn-protos = "http/1.1"`).
#
# A reader who is too slow is the node's to cut, not Varnish's to keep in memory: `-p transit_buffer=256k`.
#
# A reader takes two threads for as long as it watches: `-p thread_pool_max=5000` (times two pools) is room for 5,000.
# That one has left is noticed with the third keep-alive after it, 45 s.

vcl 4.1;

import directors;

probe readyz {
    # 503 while a node drains, so that what is new goes elsewhere before its door closes. Every node answers to localhost.
    .request = "GET /readyz HTTP/1.1" "Host: localhost" "Connection: close";
    .interval = 1s;
    .timeout = 1s;
    .window = 2;
    .threshold = 1;
    .initial = 1;
}

backend node_1 {
    .host = "node-1";
    .port = "8080";
    .connect_timeout = 2s;
    .probe = readyz;
}

backend node_2 {
    .host = "node-2";
    .port = "8080";
    .connect_timeout = 2s;
    .probe = readyz;
}

sub vcl_init {
    new nodes = directors.round_robin();
    nodes.add_backend(node_1);
    nodes.add_backend(node_2);
}

sub vcl_recv {
    set req.backend_hint = nodes.backend();
    # Nobody but us says where a request came from.
    set req.http.X-Forwarded-For = client.ip;
    set req.http.X-Forwarded-Host = req.http.Host;
    set req.http.X-Forwarded-Proto = "http";  # "https" where TLS ends in front of Varnish
    unset req.http.Forwarded;

    # What an EventSource follows; it always asks for text/event-stream. JSON and NDJSON readers of these paths do not.
    unset req.http.Event-Source;
    if (req.method == "GET" && req.http.Accept ~ "text/event-stream"
        && req.url ~ "^/(generations/[^/?]+/events|events|feed|v1/completions/stream)(\?|$)") {
        set req.http.Event-Source = "yes";
    }
    return (pass);
}

sub vcl_backend_fetch {
    # A new connection for each request: a node that is gone is then noticed before a byte of it was sent.
    set bereq.http.Connection = "close";

    if (bereq.http.Event-Source) {
        # A node is never silent for more than 15 s here (REPLAY_KEEPALIVE_S), so a minute of silence is a node that died
        # without a word.
        set bereq.first_byte_timeout = 60s;
        set bereq.between_bytes_timeout = 60s;
    } else {
        # A caller without a stream waits in silence for the whole answer; the OpenAI SDK gives it ten minutes.
        set bereq.first_byte_timeout = 600s;
        set bereq.between_bytes_timeout = 600s;
    }
}

sub vcl_backend_error {
    # Another node for a GET that starts nothing. Everything else may have been seen by the node, and is never sent again.
    if (bereq.method == "GET" && bereq.url !~ "^/v1/completions/stream" && bereq.retries == 0) {
        set bereq.backend = nodes.backend();
        return (retry);
    }
    if (bereq.http.Event-Source) {
        set beresp.status = 200;
        set beresp.http.Content-Type = "text/event-stream";
        set beresp.http.Cache-Control = "no-store";
        # Without a blank line after it, `retry:` sets the wait and does not make an event. The end is a clean one, since
        # Varnish cannot break off what it says itself.
        synthetic({"retry: 1000
"});
        return (deliver);
    }
}

sub vcl_synth {
    # The same where a node broke off right behind its head, so that there is an answer of which nothing is to be had.
    if (req.http.Event-Source && resp.status == 503) {
        set resp.status = 200;
        set resp.http.Content-Type = "text/event-stream";
        set resp.http.Cache-Control = "no-store";
        synthetic({"retry: 1000
"});
        return (deliver);
    }
}
