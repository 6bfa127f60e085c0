/* Many subscribers of event streams in one process: counts what comes on all of them, and checks some of them closely.
 *
 *     host 127.0.0.1
 *     port 8080
 *     sample 100               connections, spread over all, that are checked closely
 *     target 0                 events after which a connection counts as complete
 *     connect_per_second 0     0: as fast as it goes
 *     contiguous 1             whether the ids' last integers have to be 1 apart
 *     subscribers 1000 52      connections, and the length of their request, which follows
 *     <request>
 *     start
 *
 * Commands: mark, latency, stall <n>, close <n>, stop.
 *
 * On the wire there is HTTP (a head, then a body that is chunked or goes on to the end), in that there are lines, in
 * those there are events. What is cut anywhere is taken up where it was cut, at each of these levels: `read_body` and
 * what it calls keep no more than a few bytes of a connection that is not checked. Lines are found by memchr, so that
 * an event costs some ten nanoseconds beside the read. Lines end by LF or CRLF; a CR alone does not end one here. */

#include "program.h"

static const char LIVE[] = "event: live";
enum { READ_SIZE = 256 << 10, MOST_HEAD = 64 << 10, FIELD = 5 /* of "data:" */ };
enum { PORTS_OF_AN_ADDRESS = 25000 }; /* what the kernel has for outgoing connections from one, and a margin */

/* A log-linear histogram: 128 buckets for each power of two, hence never wrong by more than 0.8 %. */

enum { FINE_BITS = 7, FINE = 1 << FINE_BITS, BUCKETS = (64 - FINE_BITS) * FINE };

struct histogram {
    uint64_t buckets[BUCKETS], count, most;
};

static void note(struct histogram *histogram, uint64_t value)
{
    int shift = value < FINE ? 0 : 63 - __builtin_clzll(value) - FINE_BITS;
    histogram->buckets[((size_t)shift << FINE_BITS) + (value >> shift)]++;
    histogram->count++;
    if (value > histogram->most) histogram->most = value;
}

static double quantile(const struct histogram *histogram, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)histogram->count), seen = 0;
    if (!histogram->count) return 0;
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen <= wanted) continue;
        size_t shift = bucket < FINE ? 0 : (bucket >> FINE_BITS) - 1;
        double middle = ((double)(bucket - (shift << FINE_BITS)) + 0.5) * (double)(1ULL << shift);
        return middle < (double)histogram->most ? middle : (double)histogram->most;
    }
    return (double)histogram->most;
}

/* The connections. */

enum state { WAITING, CONNECTING, ASKING, HEAD, BODY, OVER };
enum chunk { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, TRAILER };

struct request {
    char *bytes;
    size_t length;
    int connections;
};

/* What is checked closely. */
struct sample {
    char *line; /* what has come of one that was cut */
    size_t line_length, line_room;
    bool has_id, live; /* whose id is that of the event before it */
    int64_t id, first_id, last_id;
    uint8_t *seen; /* bits: first_id, first_id + 1, … */
    size_t seen_room;
};

struct connection {
    int fd;
    enum state state;
    enum chunk chunk;
    bool chunked, stalled, trailer_line, has_data;
    uint8_t line_have; /* of `line`: the first bytes of a line that was cut */
    char line[FIELD];
    uint64_t chunk_left, events;
    int64_t began_ns;
    const struct request *request;
    size_t sent;
    char *head; /* what has come of one that was cut */
    size_t head_length, head_room;
    struct sample *sample;
};

static struct connection *connections;
static int total, begun;
static int poller, sample_poller; /* the latter is ready in the former when one of its own is */
static char buffer[READ_SIZE];

static struct {
    struct sockaddr_in address;
    int sample;
    uint64_t target;
    double connect_per_second;
    bool contiguous;
} options = {.address = {.sin_family = AF_INET}, .contiguous = true};

static struct {
    int64_t connected, refused, answered, wrong_status, ended, closed, reset, left, stalled, begun_events, complete;
    int64_t events, bytes, reads;
    int64_t connected_ns, answered_ns, first_event_ns, complete_ns; /* when the last of all was; 0 before */
    int64_t holes, doubles, reorders, ids;
} count;

static struct histogram latency, first_byte;

/* One more of something that every connection does once. */
static void reached(int64_t *counter, int64_t *when_all)
{
    if (++*counter == total) *when_all = now_ns();
}

static void finish(struct connection *connection, int64_t *outcome)
{
    ++*outcome;
    count.stalled -= connection->stalled;
    connection->stalled = false;
    connection->state = OVER;
    close(connection->fd);
    free(connection->head);
    connection->head = NULL;
}

/* Events. */

/* Ids have to follow each other. A missing one is a hole until it comes after all, and was then only out of order. */
static void check_id(struct sample *sample)
{
    enum { LONGEST_GAP = 1 << 26 };
    int64_t id = sample->id;
    bool first = !sample->seen;
    count.ids++;
    if (!options.contiguous) return;
    if (first || id > sample->last_id + LONGEST_GAP) { /* too far to be remembered: a hole all the same */
        if (!first) count.holes += id - sample->last_id - 1;
        free(sample->seen);
        sample->seen = allocate(sample->seen_room = 256, 1);
        sample->first_id = sample->last_id = id;
    }
    if (id < sample->first_id) {
        count.reorders++;
        return;
    }
    uint64_t place = (uint64_t)(id - sample->first_id);
    if (place / 8 >= sample->seen_room) {
        size_t before = sample->seen_room;
        sample->seen = with_room(sample->seen, &sample->seen_room, place / 8 + 1, 1);
        memset(sample->seen + before, 0, sample->seen_room - before);
    }
    if (sample->seen[place / 8] >> place % 8 & 1) {
        count.doubles++;
    } else if (id > sample->last_id) {
        count.holes += id - sample->last_id - 1;
        sample->last_id = id;
    } else if (id != sample->first_id) {
        count.holes--;
        count.reorders++;
    }
    sample->seen[place / 8] |= (uint8_t)(1 << place % 8);
}

static void line_ended(struct connection *connection, bool blank, bool data)
{
    connection->has_data |= data;
    if (!blank) return;
    struct sample *sample = connection->sample;
    if (connection->has_data) {
        count.events++;
        if (++connection->events == 1) reached(&count.begun_events, &count.first_event_ns);
        if (connection->events == options.target) reached(&count.complete, &count.complete_ns);
        if (sample && sample->has_id && !sample->live) check_id(sample);
    }
    if (sample) sample->has_id = sample->live = false;
    connection->has_data = false;
}

static void count_lines(struct connection *connection, const char *at, const char *end)
{
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *line = at;
        size_t length = (size_t)((newline ? newline : end) - at);
        if (connection->line_have || !newline) { /* cut: its first bytes are all that matters */
            size_t room = FIELD - connection->line_have, more = length < room ? length : room;
            memcpy(connection->line + connection->line_have, at, more);
            connection->line_have += (uint8_t)more;
            line = connection->line;
            length = connection->line_have;
        }
        if (!newline) return;
        line_ended(connection, !length || (length == 1 && *line == '\r'), length >= FIELD && !memcmp(line, "data:", 5));
        connection->line_have = 0;
        at = newline + 1;
    }
}

/* Stamps may stand anywhere in a line of data, and there may be several. */
static void note_stamps(const char *at, const char *end, int64_t now)
{
    enum { LEAST_DIGITS = 10 }; /* a second after the machine has started */
    while ((at = memchr(at, '@', (size_t)(end - at)))) {
        int64_t then = 0;
        const char *digits = ++at;
        while (at < end && *at >= '0' && *at <= '9' && at - digits < STAMP_DIGITS) then = then * 10 + (*at++ - '0');
        if (at < end && *at == '@' && at - digits >= LEAST_DIGITS && then <= now) {
            note(&latency, (uint64_t)(now - then));
            at++;
        }
    }
}

static void examine_line(struct connection *connection, const char *line, const char *end, int64_t now)
{
    bool data = end - line >= FIELD && !memcmp(line, "data:", FIELD);
    if (end > line && end[-1] == '\r') end--;
    if (data) note_stamps(line, end, now);
    if (end - line == sizeof LIVE - 1 && !memcmp(line, LIVE, sizeof LIVE - 1)) connection->sample->live = true;
    if (end - line > 3 && !memcmp(line, "id:", 3)) {
        const char *digits = end;
        int64_t id = 0;
        while (digits > line && digits[-1] >= '0' && digits[-1] <= '9' && end - digits < 18) digits--;
        for (const char *at = digits; at < end; at++) id = id * 10 + (*at - '0');
        connection->sample->has_id = digits < end || !options.contiguous;
        connection->sample->id = id;
    }
    line_ended(connection, line == end, data);
}

static void examine_lines(struct connection *connection, const char *at, const char *end, int64_t now)
{
    struct sample *sample = connection->sample;
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((newline ? newline : end) - at);
        if (newline && !sample->line_length) {
            examine_line(connection, at, newline, now);
        } else {
            sample->line = with_room(sample->line, &sample->line_room, sample->line_length + length, 1);
            memcpy(sample->line + sample->line_length, at, length);
            sample->line_length += length;
            if (!newline) return;
            examine_line(connection, sample->line, sample->line + sample->line_length, now);
            sample->line_length = 0;
        }
        at = newline + 1;
    }
}

/* HTTP. */

static void read_lines(struct connection *connection, const char *at, const char *end, int64_t now)
{
    if (connection->sample)
        examine_lines(connection, at, end, now);
    else
        count_lines(connection, at, end);
}

static int hex_digit(char byte)
{
    if (byte >= '0' && byte <= '9') return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

static void read_chunks(struct connection *connection, const char *at, const char *end, int64_t now)
{
    while (at < end) {
        switch (connection->chunk) {
        case CHUNK_SIZE: {
            int digit = hex_digit(*at);
            if (digit >= 0) {
                connection->chunk_left = connection->chunk_left << 4 | (unsigned)digit;
                at++;
            } else if (*at == ';' || *at == '\r' || *at == '\n') {
                connection->chunk = CHUNK_EXTENSION;
            } else {
                die("connection %td: expected the size of a chunk, got byte 0x%02x", connection - connections,
                    (unsigned char)*at);
            }
            break;
        }
        case CHUNK_EXTENSION:
            if (*at++ == '\n') connection->chunk = connection->chunk_left ? CHUNK_DATA : TRAILER;
            break;
        case CHUNK_DATA: {
            uint64_t here = (uint64_t)(end - at);
            uint64_t piece = connection->chunk_left < here ? connection->chunk_left : here;
            read_lines(connection, at, at + piece, now);
            at += piece;
            if (!(connection->chunk_left -= piece)) connection->chunk = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (*at++ == '\n') connection->chunk = CHUNK_SIZE;
            break;
        case TRAILER: /* lines up to a blank one */
            if (*at == '\n') {
                if (!connection->trailer_line) {
                    finish(connection, &count.ended);
                    return;
                }
                connection->trailer_line = false;
            } else if (*at != '\r') {
                connection->trailer_line = true;
            }
            at++;
            break;
        }
    }
}

static void read_body(struct connection *connection, const char *at, const char *end, int64_t now)
{
    if (connection->chunked)
        read_chunks(connection, at, end, now);
    else
        read_lines(connection, at, end, now);
}

/* Whether a head has this field with this word in its value, in any case. */
static bool has_field(const char *head, size_t length, const char *name, const char *word)
{
    const char *end = head + length;
    for (const char *line = head; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        if (!newline) newline = end;
        if (!strncasecmp(line, name, strlen(name)))
            for (const char *at = line; at + strlen(word) <= newline; at++)
                if (!strncasecmp(at, word, strlen(word))) return true;
        line = newline + 1;
    }
    return false;
}

static void read_head(struct connection *connection, const char *at, size_t length, int64_t now)
{
    if (!connection->head_length) note(&first_byte, (uint64_t)(now_ns() - connection->began_ns));
    size_t had = connection->head_length, have = connection->head_length += length;
    connection->head = with_room(connection->head, &connection->head_room, have, 1);
    memcpy(connection->head + had, at, length);
    char *end = memmem(connection->head, have, "\r\n\r\n", 4);
    if (!end && have < MOST_HEAD) return;
    if (!end || have < 12 || memcmp(connection->head, "HTTP/1.1 200", 12)) {
        finish(connection, &count.wrong_status);
        return;
    }
    size_t head = (size_t)(end - connection->head) + 4;
    connection->chunked = has_field(connection->head, head, "transfer-encoding:", "chunked");
    connection->state = BODY;
    reached(&count.answered, &count.answered_ns);
    free(connection->head);
    connection->head = NULL;
    read_body(connection, at + (head - had), at + length, now);
}

/* Sockets. */

static int poller_of(const struct connection *connection)
{
    return connection->sample ? sample_poller : poller;
}

static bool ask(struct connection *connection)
{
    const struct request *request = connection->request;
    size_t left = request->length - connection->sent;
    ssize_t sent = send(connection->fd, request->bytes + connection->sent, left, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        finish(connection, &count.reset);
        return false;
    }
    connection->sent += sent < 0 ? 0 : (size_t)sent;
    if (connection->sent < request->length) return true;
    connection->state = HEAD;
    watch(poller_of(connection), EPOLL_CTL_MOD, connection->fd, EPOLLIN, connection);
    return true;
}

static void refuse(struct connection *connection)
{
    finish(connection, &count.refused);
}

static void begin(struct connection *connection)
{
    int place = (int)(connection - connections);
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) die("socket: %s", strerror(errno));
    send_at_once(connection->fd);
    if (total > PORTS_OF_AN_ADDRESS) {
        struct sockaddr_in source = {.sin_family = AF_INET};
        source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(place / PORTS_OF_AN_ADDRESS));
        setsockopt(connection->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        if (bind(connection->fd, (struct sockaddr *)&source, sizeof source) < 0) die("bind: %s", strerror(errno));
    }
    connection->began_ns = now_ns();
    connection->state = CONNECTING;
    watch(poller_of(connection), EPOLL_CTL_ADD, connection->fd, EPOLLIN | EPOLLOUT, connection);
    const struct sockaddr *address = (const struct sockaddr *)&options.address;
    if (connect(connection->fd, address, sizeof options.address) < 0 && errno != EINPROGRESS) refuse(connection);
}

static void begin_some(int64_t began_ns)
{
    enum { AT_A_TIME = 256 }; /* those that are connected want to be read meanwhile */
    int due = total;
    if (options.connect_per_second > 0) {
        double by_now = 1 + options.connect_per_second * (double)(now_ns() - began_ns) / SECOND_NS;
        if (by_now < total) due = (int)by_now;
    }
    for (int some = 0; begun < due && some < AT_A_TIME; some++) begin(&connections[begun++]);
}

static void connected(struct connection *connection)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        refuse(connection);
        return;
    }
    connection->state = ASKING;
    reached(&count.connected, &count.connected_ns);
    ask(connection);
}

static void receive(struct connection *connection)
{
    ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        finish(connection, got ? &count.reset : &count.closed);
        return;
    }
    count.reads++;
    count.bytes += got;
    int64_t now = connection->sample ? now_ns() : 0;
    if (connection->state == BODY)
        read_body(connection, buffer, buffer + got, now);
    else
        read_head(connection, buffer, (size_t)got, now);
}

static void serve(struct connection *connection, uint32_t events)
{
    if (connection->state == CONNECTING) {
        connected(connection);
    } else if (connection->state == ASKING && events & EPOLLOUT && !ask(connection)) {
        return;
    } else if (connection->stalled) { /* only told that the other side has gone */
        finish(connection, events & EPOLLERR ? &count.reset : &count.closed);
    } else if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        receive(connection);
    }
}

/* Commands. */

static bool is_open(const struct connection *connection)
{
    return connection->state > CONNECTING && connection->state < OVER;
}

static int stall(int wanted)
{
    int stalled = 0;
    for (struct connection *each = connections; each < connections + begun && stalled < wanted; each++) {
        if (!is_open(each) || each->sample || each->stalled) continue;
        /* Edge-triggered, and not for bytes: unread ones would wake us for ever. */
        watch(poller, EPOLL_CTL_MOD, each->fd, EPOLLRDHUP | EPOLLET, each);
        each->stalled = true;
        count.stalled++;
        stalled++;
    }
    return stalled;
}

static int leave(int wanted)
{
    int gone = 0;
    for (struct connection *each = connections + begun; each-- > connections && gone < wanted;) {
        if (!is_open(each) || each->sample) continue;
        finish(each, &count.left);
        gone++;
    }
    return gone;
}

static void print_first_byte(const char *name, double ns)
{
    printf(first_byte.count ? ", \"%s\": %.9f" : ", \"%s\": null", name, ns / SECOND_NS);
}

static void print_mark(void)
{
    begin_answer();
    print_count("connections", total);
    print_count("connected", count.connected);
    print_count("refused", count.refused);
    print_count("answered", count.answered);
    print_count("wrong_status", count.wrong_status);
    print_count("ended", count.ended);
    print_count("closed", count.closed);
    print_count("reset", count.reset);
    print_count("left", count.left);
    print_count("stalled", count.stalled);
    print_count("events", count.events);
    print_count("bytes", count.bytes);
    print_count("reads", count.reads);
    print_count("complete", count.complete);
    print_time("connected_at_s", count.connected_ns);
    print_time("answered_at_s", count.answered_ns);
    print_time("first_event_at_s", count.first_event_ns);
    print_time("complete_at_s", count.complete_ns);
    print_first_byte("first_byte_p50_s", quantile(&first_byte, 0.5));
    print_first_byte("first_byte_p99_s", quantile(&first_byte, 0.99));
    print_first_byte("first_byte_max_s", (double)first_byte.most);
}

static void print_end(void)
{
    uint64_t least = UINT64_MAX, most = 0;
    for (struct connection *each = connections; each < connections + total; each++) {
        if (each->events < least) least = each->events;
        if (each->events > most) most = each->events;
    }
    print_mark();
    print_count("least", (int64_t)least);
    print_count("most", (int64_t)most);
    print_count("holes", count.holes);
    print_count("doubles", count.doubles);
    print_count("reorders", count.reorders);
    print_count("ids", count.ids);
}

static void print_latency(void)
{
    begin_answer();
    print_count("count", (int64_t)latency.count);
    printf(", \"p50_us\": %.3f, \"p99_us\": %.3f, \"max_us\": %.3f", quantile(&latency, 0.5) / 1e3,
           quantile(&latency, 0.99) / 1e3, (double)latency.most / 1e3);
    memset(&latency, 0, sizeof latency);
}

static void obey(char *line)
{
    char *rest;
    bool stop = says(line, "stop", &rest);
    if (stop) {
        print_end();
    } else if (says(line, "mark", &rest)) {
        print_mark();
    } else if (says(line, "latency", &rest)) {
        print_latency();
    } else if (says(line, "stall", &rest)) {
        begin_answer();
        print_count("connections", stall((int)number(rest)));
    } else if (says(line, "close", &rest)) {
        begin_answer();
        print_count("connections", leave((int)number(rest)));
    } else {
        die("unknown command '%s'", line);
    }
    end_answer();
    if (stop) exit(0);
}

/* Configuration. */

static void make_connections(const struct request *requests, int kinds)
{
    for (int kind = 0; kind < kinds; kind++) total += requests[kind].connections;
    if (!total) die("no subscribers");
    raise_open_files(total + 16);
    connections = allocate((size_t)total, sizeof *connections);
    int64_t place = 0;
    for (int kind = 0; kind < kinds; kind++)
        for (int each = 0; each < requests[kind].connections; each++, place++) {
            connections[place].request = &requests[kind];
            /* Evenly: where the share of those before grows by a whole one. */
            int64_t before = place * options.sample / total, after = (place + 1) * options.sample / total;
            if (after > before) connections[place].sample = allocate(1, sizeof(struct sample));
        }
}

static void configure(void)
{
    enum { MOST_KINDS = 4096 };
    static struct request requests[MOST_KINDS];
    int kinds = 0;
    char *rest, *line;
    while (line = next_line(), !says(line, "start", &rest)) {
        if (says(line, "host", &rest)) {
            if (inet_pton(AF_INET, rest, &options.address.sin_addr) != 1)
                die("expected an IPv4 address, got '%s'", rest);
        } else if (says(line, "port", &rest)) {
            options.address.sin_port = htons((uint16_t)number(rest));
        } else if (says(line, "sample", &rest)) {
            options.sample = (int)number(rest);
        } else if (says(line, "target", &rest)) {
            options.target = (uint64_t)number(rest);
        } else if (says(line, "connect_per_second", &rest)) {
            options.connect_per_second = number(rest);
        } else if (says(line, "contiguous", &rest)) {
            options.contiguous = number(rest) > 0;
        } else if (says(line, "subscribers", &rest)) {
            if (kinds == MOST_KINDS) die("more than %d requests", MOST_KINDS);
            struct request *request = &requests[kinds++];
            if (sscanf(rest, "%d %zu", &request->connections, &request->length) != 2)
                die("expected two numbers, got '%s'", rest);
            request->bytes = next_bytes(request->length);
        } else {
            die("unknown setting '%s'", line);
        }
    }
    make_connections(requests, kinds);
}

/* Read the sampled connections before others: what waits for its turn here is no latency of the server's. */
static void serve_samples(void)
{
    static struct epoll_event ready[MOST_READY];
    int happened = epoll_wait(sample_poller, ready, MOST_READY, 0);
    for (int each = 0; each < happened; each++) serve(ready[each].data.ptr, ready[each].events);
}

int main(void)
{
    enum { OTHERS = 64 }; /* between two looks at the samples */
    static struct epoll_event ready[MOST_READY];
    configure();
    poller = epoll_create1(EPOLL_CLOEXEC);
    sample_poller = epoll_create1(EPOLL_CLOEXEC);
    watch(poller, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &input);
    watch(poller, EPOLL_CTL_ADD, sample_poller, EPOLLIN, NULL);
    print_mark();
    end_answer();
    obey_all(obey);
    for (int64_t began_ns = now_ns();;) {
        if (begun < total) begin_some(began_ns);
        int timeout_ms = begun == total ? -1 : options.connect_per_second > 0;
        int happened = epoll_wait(poller, ready, MOST_READY, timeout_ms);
        for (int each = 0; each < happened; each++) {
            struct connection *connection = ready[each].data.ptr;
            if (each % OTHERS == 0) serve_samples();
            if (!connection) continue; /* a sample, which has been served */
            if (ready[each].data.ptr == &input) {
                hear();
                obey_all(obey);
            } else if (connection->state != OVER) {
                serve(connection, ready[each].events);
            }
        }
    }
}
