/* A model server that speaks OpenAI's API and costs next to nothing. A request's model says what it does:
 *
 *     paced-50-200             50 tokens a second, 200 of them, then the end; 0 a second: as fast as they are taken
 *     paced-50-200-stamped     each token is the time at which it was said: ` @<ns of CLOCK_MONOTONIC>@`
 *
 * A stream is a chunk with the role, its tokens, a chunk with finish_reason, `[DONE]`: each one send() and one chunk
 * of the transfer coding, as real servers do it. It keeps to the clock from a random moment of its first turn on, so
 * that no two streams run in step; a late one catches up.
 *
 *     hold 1       streams wait after their first chunk, until all readers are there
 *     start
 *
 * `start` is answered with the port. Commands: hold, go, mark.
 *
 * Streams stand in a heap, by when they have to speak next. */

#include "program.h"

enum {
    MOST_REQUEST = 4 << 20,
    MOST_CHUNK = 1024,
    AT_A_TIME = 64,      /* chunks, until it is another stream's turn */
    COALESCE_NS = 200000 /* least time between two looks at the heap: 5,000 wake-ups a second cost less than 20,000 */
};

static const char LIST[] = "{\"object\":\"list\",\"data\":[{\"id\":\"paced-50-200\",\"object\":\"model\",\"created\":0,"
                           "\"owned_by\":\"benchmark\"}]}";
static const char STREAM[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                             "Transfer-Encoding: chunked\r\n\r\n";
static const char *const WORDS[] = {" tok", " the", " and", " when", " then", " they", " who", " say"};

enum state {
    IDLE,
    BEGINNING,
    HELD,
    SPEAKING, /* in the heap */
    BLOCKED,  /* the reader does not take more */
};

struct stream {
    int fd;
    enum state state;
    size_t place; /* in the heap */

    char *request;
    size_t have, room;

    int64_t due_ns, began_ns;
    double every_ns;
    int64_t tokens, said; /* said counts the role and what ends it, too */
    bool stamped;
    char prefix[192]; /* of its chunks, up to the delta */
    size_t prefix_length;
    char unsent[MOST_CHUNK];
    size_t unsent_at, unsent_length;
};

static int poller, listener, timer;
static bool holding, some_gone;
static int64_t chunks, streams, held, finished, aborted, started;
static uint64_t chance;

/* xorshift: the libc's takes a lock. */
static uint64_t draw(void)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return chance;
}

/* The heap. */

static struct stream **heap;
static size_t heaped, heap_room;

static void put(struct stream *stream, size_t place)
{
    heap[place] = stream;
    stream->place = place;
}

/* Find a stream's place, when it is new there or when its time has changed. */
static void settle(struct stream *stream, size_t place)
{
    for (size_t up; place && heap[up = (place - 1) / 2]->due_ns > stream->due_ns; place = up) put(heap[up], place);
    for (size_t down; (down = place * 2 + 1) < heaped; place = down) {
        if (down + 1 < heaped && heap[down + 1]->due_ns < heap[down]->due_ns) down++;
        if (heap[down]->due_ns >= stream->due_ns) break;
        put(heap[down], place);
    }
    put(stream, place);
}

static void enter(struct stream *stream)
{
    heap = with_room(heap, &heap_room, heaped + 1, sizeof *heap);
    stream->state = SPEAKING;
    heaped++;
    settle(stream, heaped - 1);
}

static void withdraw(struct stream *stream)
{
    struct stream *last = heap[--heaped];
    if (last != stream) settle(last, stream->place);
}

/* What is said. */

/* An event as a chunk of the transfer coding; its length. */
static size_t frame(char *chunk, const struct stream *stream, const char *delta, const char *finish)
{
    enum { DIGITS = 3, HEAD = DIGITS + 2 };
    char *end = mempcpy(chunk + HEAD, stream->prefix, stream->prefix_length);
    end = stpcpy(end, delta);
    end = stpcpy(end, "},\"finish_reason\":");
    end = stpcpy(end, finish);
    end = stpcpy(end, "}]}\n\n");
    size_t left = (size_t)(end - chunk) - HEAD;
    for (int place = DIGITS - 1; place >= 0; place--, left >>= 4) chunk[place] = "0123456789abcdef"[left & 15];
    memcpy(chunk + DIGITS, "\r\n", 2);
    return (size_t)(stpcpy(end, "\r\n") - chunk);
}

/* The stream's next chunk, the last one of which has length 0. */
static size_t next_chunk(const struct stream *stream, char *chunk)
{
    char delta[80];
    if (!stream->said) return frame(chunk, stream, "\"role\":\"assistant\",\"content\":\"\"", "null");
    if (stream->said == stream->tokens + 1) return frame(chunk, stream, "", "\"stop\"");
    if (stream->said == stream->tokens + 2) return (size_t)(stpcpy(chunk, "e\r\ndata: [DONE]\n\n\r\n") - chunk);
    if (stream->said == stream->tokens + 3) return (size_t)(stpcpy(chunk, "0\r\n\r\n") - chunk);
    char *end = stpcpy(delta, "\"content\":\"");
    if (stream->stamped) {
        end = stpcpy(end, " @");
        write_stamp(end, now_ns());
        stpcpy(end + STAMP_DIGITS, "@\"");
    } else {
        stpcpy(stpcpy(end, WORDS[draw() % (sizeof WORDS / sizeof *WORDS)]), "\"");
    }
    return frame(chunk, stream, delta, "null");
}

/* When that is. What ends a stream follows on its last chunk at once. */
static int64_t due(const struct stream *stream)
{
    int64_t turn = stream->said - 1 < stream->tokens ? stream->said - 1 : stream->tokens;
    return stream->began_ns + (int64_t)((double)turn * stream->every_ns);
}

static void forget(struct stream *stream)
{
    if (stream->state == SPEAKING) withdraw(stream);
    if (stream->state != IDLE) {
        streams--;
        aborted++;
    }
    held -= stream->state == HELD;
    close(stream->fd);
    stream->fd = -1;
    some_gone = true; /* freed later: this turn of epoll may still speak of it */
    free(stream->request);
    stream->request = NULL;
}

/* Whether all of it went; what did not is kept, and the stream then waits for its reader. */
static bool send_or_keep(struct stream *stream, const char *what, size_t length)
{
    ssize_t sent = send(stream->fd, what, length, MSG_NOSIGNAL);
    if (sent == (ssize_t)length) return true;
    if (sent < 0 && errno != EAGAIN) {
        forget(stream);
        return false;
    }
    size_t gone = sent < 0 ? 0 : (size_t)sent;
    memmove(stream->unsent, what + gone, length - gone);
    stream->unsent_at = 0;
    stream->unsent_length = length - gone;
    if (stream->state == SPEAKING) withdraw(stream);
    stream->state = BLOCKED;
    watch(poller, EPOLL_CTL_MOD, stream->fd, EPOLLIN | EPOLLOUT, stream);
    return false;
}

static void read_request(struct stream *stream);

static void end(struct stream *stream)
{
    if (stream->state == SPEAKING) withdraw(stream);
    stream->state = IDLE;
    streams--;
    finished++;
    read_request(stream);
}

static int64_t phase(const struct stream *stream)
{
    return (int64_t)((double)(draw() >> 11) / (double)(1ULL << 53) * stream->every_ns);
}

static void begin_turns(struct stream *stream)
{
    stream->began_ns = now_ns() + phase(stream);
    stream->due_ns = due(stream);
    enter(stream);
}

/* The first chunk has gone. */
static void hold_or_begin(struct stream *stream)
{
    if (!holding) {
        begin_turns(stream);
        return;
    }
    stream->state = HELD;
    held++;
}

/* Say what is due, and stand in the heap for the next; the stream is in the heap. */
static void speak(struct stream *stream, int64_t now)
{
    for (int some = 0; some < AT_A_TIME && stream->due_ns <= now; some++) {
        char chunk[MOST_CHUNK];
        size_t length = next_chunk(stream, chunk);
        bool last = ++stream->said == stream->tokens + 4;
        chunks += !last;
        stream->due_ns = due(stream);
        if (!send_or_keep(stream, chunk, length)) return;
        if (last) {
            end(stream);
            return;
        }
    }
    /* What is left waits for the next look, so that a stream without a pace does not keep the others from speaking. */
    if (stream->due_ns <= now) stream->due_ns = now + 1;
    settle(stream, stream->place);
}

static void go_on(struct stream *stream)
{
    size_t length = stream->unsent_length - stream->unsent_at;
    ssize_t sent = send(stream->fd, stream->unsent + stream->unsent_at, length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) {
        forget(stream);
        return;
    }
    stream->unsent_at += (size_t)sent;
    if (stream->unsent_at < stream->unsent_length) return;
    watch(poller, EPOLL_CTL_MOD, stream->fd, EPOLLIN, stream);
    if (stream->said == stream->tokens + 4) {
        end(stream);
    } else if (stream->said == 1) {
        hold_or_begin(stream);
    } else {
        stream->due_ns = due(stream);
        enter(stream);
    }
}

/* Requests. */

static void answer(struct stream *stream, const char *status, const char *body)
{
    char whole[1024];
    int length = snprintf(whole, sizeof whole,
                          "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
                          strlen(body), body);
    if (send(stream->fd, whole, (size_t)length, MSG_NOSIGNAL) != length) forget(stream);
}

static void refuse(struct stream *stream, const char *status, const char *why)
{
    char body[400];
    snprintf(body, sizeof body, "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\"}}", why);
    answer(stream, status, body);
}

/* Behind this byte, if it comes next, spaces aside. */
static const char *behind(char byte, const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t')) at++;
    return at < end && *at == byte ? at + 1 : NULL;
}

/* The value of `"model":` in a body, copied; in text its quotation marks would be escaped. */
static bool find_model(const char *body, const char *end, char *model, size_t room)
{
    for (const char *at = body; (at = memmem(at, (size_t)(end - at), "\"model\"", 7)); at++) {
        const char *colon = behind(':', at + 7, end), *value = colon ? behind('"', colon, end) : NULL;
        const char *quote = value ? memchr(value, '"', (size_t)(end - value)) : NULL;
        if (!quote || (size_t)(quote - value) >= room) continue;
        *(char *)mempcpy(model, value, (size_t)(quote - value)) = 0;
        return true;
    }
    return false;
}

static void begin(struct stream *stream, const char *body, const char *end)
{
    char model[64], *rest;
    if (!find_model(body, end, model, sizeof model) || strncmp(model, "paced-", 6)) {
        refuse(stream, "404 Not Found", "expected a model like paced-50-200-stamped");
        return;
    }
    double per_second = strtod(model + 6, &rest);
    stream->tokens = *rest == '-' ? strtol(rest + 1, &rest, 10) : -1;
    stream->stamped = !strcmp(rest, "-stamped");
    if (stream->tokens < 0 || per_second < 0 || (*rest && !stream->stamped && strcmp(rest, "-plain"))) {
        refuse(stream, "404 Not Found", "expected a model like paced-50-200-stamped");
        return;
    }
    stream->every_ns = per_second > 0 ? (double)SECOND_NS / per_second : 0;
    stream->said = 0;
    stream->prefix_length = (size_t)snprintf(
        stream->prefix, sizeof stream->prefix,
        "data: {\"id\":\"chatcmpl-%" PRId64 "\",\"object\":\"chat.completion.chunk\",\"created\":%lld,\"model\":\"%s\","
        "\"choices\":[{\"index\":0,\"delta\":{",
        ++started, (long long)time(NULL), model);
    stream->state = BEGINNING;
    streams++;
    if (send(stream->fd, STREAM, sizeof STREAM - 1, MSG_NOSIGNAL) != sizeof STREAM - 1) {
        forget(stream);
        return;
    }
    char chunk[MOST_CHUNK];
    size_t length = next_chunk(stream, chunk);
    stream->said++;
    chunks++;
    if (send_or_keep(stream, chunk, length)) hold_or_begin(stream);
}

/* Of a head that ends here; -1 if it has none. */
static int64_t content_length(const char *head, const char *end)
{
    for (const char *line = head; line < end; line = (const char *)memchr(line, '\n', (size_t)(end - line)) + 1)
        if (!strncasecmp(line, "content-length:", 15)) return strtoll(line + 15, NULL, 10);
    return -1;
}

static bool ends_with(const char *text, const char *end, const char *suffix)
{
    size_t length = strlen(suffix);
    return (size_t)(end - text) >= length && !memcmp(end - length, suffix, length);
}

/* Answer the request at the beginning of what has come, if it is whole. */
static void read_request(struct stream *stream)
{
    char *request = stream->request, *blank = stream->have ? memmem(request, stream->have, "\r\n\r\n", 4) : NULL;
    if (!blank) return;
    const char *body = blank + 4;
    int64_t length = content_length(request, body);
    size_t whole = (size_t)(body - request) + (length > 0 ? (size_t)length : 0);
    if (stream->have < whole) return;

    bool post = !strncmp(request, "POST ", 5), get = !strncmp(request, "GET ", 4);
    const char *path = post || get ? strchr(request, ' ') + 1 : request;
    const char *end = strpbrk(path, " ?\r");
    if (post && ends_with(path, end, "/chat/completions") && length >= 0)
        begin(stream, body, body + length);
    else if (post && length < 0)
        refuse(stream, "411 Length Required", "expected a Content-Length");
    else if (get && ends_with(path, end, "/models"))
        answer(stream, "200 OK", LIST);
    else
        refuse(stream, "404 Not Found", "there are POST /chat/completions and GET /models");
    if (stream->fd < 0) return;
    stream->have -= whole;
    memmove(stream->request, stream->request + whole, stream->have);
}

static void receive(struct stream *stream)
{
    enum { PIECE = 16 << 10 };
    if (stream->have > MOST_REQUEST) die("a request longer than %d bytes", MOST_REQUEST);
    stream->request = with_room(stream->request, &stream->room, stream->have + PIECE, 1);
    ssize_t got = recv(stream->fd, stream->request + stream->have, PIECE, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        forget(stream);
        return;
    }
    stream->have += (size_t)got;
    if (stream->state == IDLE) read_request(stream);
}

/* All streams, so that those that are held can be told. */

static struct stream **all;
static size_t known, all_room;

static void welcome(void)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        all = with_room(all, &all_room, known + 1, sizeof *all);
        struct stream *stream = all[known++] = allocate(1, sizeof *stream);
        stream->fd = fd;
        send_at_once(fd);
        watch(poller, EPOLL_CTL_ADD, fd, EPOLLIN, stream);
    }
    if (errno != EAGAIN && errno != ECONNABORTED) die("accept: %s", strerror(errno));
}

/* Forget those that have gone; no turn of epoll speaks of them any more. */
static void sweep(void)
{
    if (!some_gone) return;
    size_t kept = 0;
    for (size_t each = 0; each < known; each++) {
        if (all[each]->fd < 0)
            free(all[each]);
        else
            all[kept++] = all[each];
    }
    known = kept;
    some_gone = false;
}

static void release(void)
{
    holding = false;
    for (size_t each = 0; each < known; each++) {
        struct stream *stream = all[each];
        if (stream->fd < 0 || stream->state != HELD) continue;
        held--;
        begin_turns(stream);
    }
}

static void obey(char *line)
{
    char *rest;
    begin_answer();
    if (says(line, "hold", &rest)) {
        holding = true;
    } else if (says(line, "go", &rest)) {
        release();
    } else if (says(line, "mark", &rest)) {
        print_count("chunks", chunks);
        print_count("streams", streams);
        print_count("held", held);
        print_count("finished", finished);
        print_count("aborted", aborted);
    } else {
        die("unknown command '%s'", line);
    }
    end_answer();
}

static void configure(void)
{
    char *rest, *line;
    while (line = next_line(), !says(line, "start", &rest)) {
        if (says(line, "hold", &rest))
            holding = number(rest) > 0;
        else
            die("unknown setting '%s'", line);
    }
}

static void speak_all(void)
{
    int64_t now = now_ns();
    while (heaped && heap[0]->due_ns <= now) speak(heap[0], now);
    static int64_t alarm_ns;
    if (!heaped) return;
    int64_t next_ns = heap[0]->due_ns > now + COALESCE_NS ? heap[0]->due_ns : now + COALESCE_NS;
    if (alarm_ns > now && alarm_ns <= next_ns) return;
    set_alarm(timer, alarm_ns = next_ns, 0);
}

int main(void)
{
    static struct epoll_event ready[MOST_READY];
    int port;
    configure();
    raise_open_files(0);
    chance = (uint64_t)now_ns() * 2 + 1;
    listener = listen_somewhere(&port);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(poller, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &input);
    watch(poller, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(poller, EPOLL_CTL_ADD, timer, EPOLLIN | EPOLLET, &timer); /* each alarm is told once, and need not be read */
    begin_answer();
    print_count("port", port);
    end_answer();
    for (obey_all(obey);;) {
        int happened = epoll_wait(poller, ready, MOST_READY, -1);
        for (int each = 0; each < happened; each++) {
            struct stream *stream = ready[each].data.ptr;
            if (ready[each].data.ptr == &listener) {
                welcome();
            } else if (ready[each].data.ptr == &input) {
                hear();
                obey_all(obey);
            } else if (ready[each].data.ptr != &timer && stream->fd >= 0) {
                if (ready[each].events & EPOLLOUT && stream->state == BLOCKED) go_on(stream);
                if (ready[each].events & (EPOLLIN | EPOLLERR | EPOLLHUP) && stream->fd >= 0) receive(stream);
            }
        }
        speak_all();
        sweep();
    }
}
