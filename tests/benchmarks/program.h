/* What the benchmarks' programs have in common.
 *
 * A program reads its configuration from stdin, a line each, up to `start`; then commands, a line each. `start` and
 * every command are answered by one line of JSON on stdout. What cannot go on says {"error": …} there and exits. The
 * program ends when stdin does: whoever runs it may die, and leaves nothing behind. */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
#define STAMP_DIGITS 19
#define STAMP_LENGTH (STAMP_DIGITS + 2) /* @<ns of CLOCK_MONOTONIC>@ */
#define MOST_READY 1024                 /* what one epoll_wait may tell */

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    char reason[500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    for (char *at = reason; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') *at = '\'';
    printf("{\"error\": \"%s\"}\n", reason);
    fflush(stdout);
    exit(1);
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("no memory for %zu times %zu bytes", count, size);
    return memory;
}

/* An array with room for so many elements at least; what is new in it is not set. */
static inline void *with_room(void *array, size_t *room, size_t needed, size_t size)
{
    if (needed <= *room) return array;
    *room = needed * 2;
    if (!(array = realloc(array, *room * size))) die("no memory for %zu times %zu bytes", *room, size);
    return array;
}

/* Time. */

static inline int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static inline double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Write a stamp's digits, without its two `@`. */
static inline void write_stamp(char *digits, int64_t ns)
{
    for (int place = STAMP_DIGITS - 1; place >= 0; place--, ns /= 10) digits[place] = (char)('0' + ns % 10);
}

static inline void set_alarm(int timer, int64_t at_ns, int64_t every_ns)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = at_ns / SECOND_NS, .tv_nsec = at_ns % SECOND_NS},
        .it_interval = {.tv_sec = every_ns / SECOND_NS, .tv_nsec = every_ns % SECOND_NS},
    };
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) < 0) die("timerfd_settime: %s", strerror(errno));
}

/* What we are told. */

static struct {
    char bytes[64 << 10];
    size_t used, have;
} input;

/* One read of stdin, which blocks unless epoll has said that there is something. */
static inline void hear(void)
{
    memmove(input.bytes, input.bytes + input.used, input.have - input.used);
    input.have -= input.used;
    input.used = 0;
    if (input.have == sizeof input.bytes) die("a line longer than %zu bytes", sizeof input.bytes);
    ssize_t got = read(STDIN_FILENO, input.bytes + input.have, sizeof input.bytes - input.have);
    if (got < 0 && errno == EINTR) return;
    if (got <= 0) exit(0);
    input.have += (size_t)got;
}

/* The next line, if it has been heard whole; good until the next `hear`. */
static inline char *heard(void)
{
    char *line = input.bytes + input.used;
    char *end = memchr(line, '\n', input.have - input.used);
    if (!end) return NULL;
    *end = 0;
    input.used += (size_t)(end - line) + 1;
    return line;
}

static inline char *next_line(void)
{
    char *line;
    while (!(line = heard())) hear();
    return line;
}

static inline char *next_bytes(size_t length)
{
    char *bytes = allocate(length, 1);
    for (size_t have = 0; have < length;) {
        if (input.used == input.have) hear();
        size_t piece = input.have - input.used < length - have ? input.have - input.used : length - have;
        memcpy(bytes + have, input.bytes + input.used, piece);
        input.used += piece;
        have += piece;
    }
    return bytes;
}

/* Whether a line begins with this word; what follows the word goes to `rest`. */
static inline bool says(char *line, const char *word, char **rest)
{
    size_t length = strlen(word);
    if (strncmp(line, word, length) || (line[length] != ' ' && line[length])) return false;
    *rest = line + length + (line[length] == ' ');
    return true;
}

static inline double number(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || value < 0) die("expected a number, got '%s'", text);
    return value;
}

static inline void obey_all(void (*obey)(char *line))
{
    for (char *line; (line = heard());) obey(line);
}

/* Sockets. */

static inline void raise_open_files(long needed)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((rlim_t)needed > limit.rlim_cur)
        die("needs %ld open files, may have %ld: raise the hard limit (ulimit -Hn)", needed, (long)limit.rlim_cur);
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, operation, fd, &event) < 0) die("epoll_ctl: %s", strerror(errno));
}

static inline void send_at_once(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

/* A listening socket on a free loopback port. */
static inline int listen_somewhere(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, SOMAXCONN) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        die("cannot listen: %s", strerror(errno));
    *port = ntohs(address.sin_port);
    return fd;
}

/* Answers. */

static inline void print_time(const char *name, int64_t ns)
{
    if (ns)
        printf(", \"%s\": %.9f", name, (double)ns / SECOND_NS);
    else
        printf(", \"%s\": null", name);
}

static inline void print_count(const char *name, int64_t count)
{
    printf(", \"%s\": %" PRId64, name, count);
}

static inline void begin_answer(void)
{
    printf("{\"at_s\": %.9f, \"cpu_s\": %.6f", (double)now_ns() / SECOND_NS, cpu_s());
}

static inline void end_answer(void)
{
    puts("}");
    fflush(stdout);
}
