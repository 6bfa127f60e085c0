/* What the kernel itself needs to send events to many connections: nothing here but a timer, and a send() to each.
 *
 *     per_second 50
 *     events 500
 *     batch 1          events joined in one send()
 *     event 42         the length of the event, which follows; a stamp in it is filled in with the time
 *     <event>
 *     start
 *
 * `start` is answered with the port. Commands: go (begin to send to all that are connected), mark. */

#include "program.h"

static const char STAMP[] = "@0000000000000000000@";
static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

struct connection {
    int fd;
    bool answered;
    uint8_t blank; /* how much of the blank line after a request head has come */
    int place;     /* in `connections` */
};

static struct {
    double per_second;
    int64_t events, batch;
    char *event;
    size_t length;
} options = {.batch = 1};

static struct connection **connections;
static int open_connections;
static size_t room;
static int poller, listener, timer;
static char *batch; /* what one send() takes */
static char *stamp; /* the digits of its first stamp, if an event has one */

static int64_t sends, bytes, events, dropped, done_ns;

static void leave(struct connection *connection)
{
    close(connection->fd);
    connections[connection->place] = connections[--open_connections];
    connections[connection->place]->place = connection->place;
    connection->fd = -1; /* never freed: this turn of epoll may still speak of it, and it is small */
}

/* What does not go whole into a socket's buffer ends the connection: its stream would be cut. */
static bool send_whole(struct connection *connection, const char *what, size_t length)
{
    ssize_t sent = send(connection->fd, what, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == (ssize_t)length) return true;
    dropped++;
    leave(connection);
    return false;
}

static void welcome(void)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        connections = with_room(connections, &room, (size_t)open_connections + 1, sizeof *connections);
        struct connection *connection = allocate(1, sizeof *connection);
        *connection = (struct connection){.fd = fd, .place = open_connections};
        connections[open_connections++] = connection;
        send_at_once(fd);
        watch(poller, EPOLL_CTL_ADD, fd, EPOLLIN, connection);
    }
    if (errno != EAGAIN && errno != ECONNABORTED) die("accept: %s", strerror(errno));
}

static void receive(struct connection *connection)
{
    static char request[64 << 10];
    ssize_t got = recv(connection->fd, request, sizeof request, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        leave(connection);
        return;
    }
    for (ssize_t each = 0; each < got && !connection->answered; each++) {
        bool goes_on = request[each] == "\r\n\r\n"[connection->blank];
        connection->blank = goes_on ? connection->blank + 1 : request[each] == '\r';
        connection->answered = connection->blank == 4;
        if (connection->answered && !send_whole(connection, OK, sizeof OK - 1)) return;
    }
}

/* One batch to all. It is stamped once, as an event is that is handed on to many. */
static void send_to_all(void)
{
    int64_t joined = options.events - events < options.batch ? options.events - events : options.batch;
    size_t length = options.length * (size_t)joined;
    int64_t now = now_ns();
    for (int64_t each = 0; stamp && each < joined; each++) write_stamp(stamp + (size_t)each * options.length, now);
    for (int each = open_connections; each-- > 0;) { /* from the end: who leaves is replaced by the last */
        if (!connections[each]->answered || !send_whole(connections[each], batch, length)) continue;
        sends++;
        bytes += (int64_t)length;
    }
    events += joined;
    if (events == options.events) done_ns = now_ns();
}

static void tick(void)
{
    uint64_t turns;
    if (read(timer, &turns, sizeof turns) != sizeof turns) return;
    while (turns-- && events < options.events) send_to_all(); /* who is late catches up */
    if (events >= options.events) set_alarm(timer, 0, 0);
}

static void obey(char *line)
{
    char *rest;
    begin_answer();
    if (says(line, "go", &rest)) {
        int64_t every_ns = (int64_t)((double)(SECOND_NS * options.batch) / options.per_second);
        set_alarm(timer, now_ns() + every_ns, every_ns);
    } else if (says(line, "mark", &rest)) {
        print_count("connections", open_connections);
        print_count("sends", sends);
        print_count("bytes", bytes);
        print_count("events", events);
        print_count("dropped", dropped);
        print_time("done_at_s", done_ns);
    } else {
        die("unknown command '%s'", line);
    }
    end_answer();
}

static void configure(void)
{
    char *rest, *line;
    while (line = next_line(), !says(line, "start", &rest)) {
        if (says(line, "per_second", &rest)) {
            options.per_second = number(rest);
        } else if (says(line, "events", &rest)) {
            options.events = (int64_t)number(rest);
        } else if (says(line, "batch", &rest)) {
            options.batch = (int64_t)number(rest);
        } else if (says(line, "event", &rest)) {
            options.length = (size_t)number(rest);
            options.event = next_bytes(options.length);
        } else {
            die("unknown setting '%s'", line);
        }
    }
    if (!options.length || options.per_second <= 0 || options.batch < 1) die("needs an event, per_second and batch");
    batch = allocate((size_t)options.batch, options.length);
    for (int64_t each = 0; each < options.batch; each++)
        memcpy(batch + (size_t)each * options.length, options.event, options.length);
    stamp = memmem(batch, options.length, STAMP, STAMP_LENGTH);
    if (stamp) stamp++;
}

int main(void)
{
    static struct epoll_event ready[MOST_READY];
    int port;
    configure();
    raise_open_files(0);
    listener = listen_somewhere(&port);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(poller, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &input);
    watch(poller, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(poller, EPOLL_CTL_ADD, timer, EPOLLIN, &timer);
    begin_answer();
    print_count("port", port);
    end_answer();
    for (obey_all(obey);;) {
        int happened = epoll_wait(poller, ready, MOST_READY, -1);
        for (int each = 0; each < happened; each++) {
            struct connection *connection = ready[each].data.ptr;
            if (ready[each].data.ptr == &listener) {
                welcome();
            } else if (ready[each].data.ptr == &timer) {
                tick();
            } else if (ready[each].data.ptr == &input) {
                hear();
                obey_all(obey);
            } else if (connection->fd >= 0) {
                receive(connection);
            }
        }
    }
}
