// floor: the least that a downloader can do, as a yardstick. N threads, each with one connection; each asks for one
// part after the other by a ranged GET, receives it into an aligned buffer of its own and writes it in place, past the
// page cache; at the end every file is made durable. It never retries, verifies or resumes, and knows no TLS.
//
// Build: cc -O2 -pthread -o floor floor.c
// Use:   floor LIST THREADS PART_MIB        LIST has a line "http://ADDRESS:PORT/path<TAB>file" for each file
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FILES_MAX = 4096, THREADS_MAX = 256, HEAD_MAX = 8192, ALIGN = 4096 };

struct file {
    char address[64], path[1024], to[1024];
    int port, out;
    long long bytes, first_part; // parts are numbered through all files
};

static struct file files[FILES_MAX];
static int files_count;
static long long part_bytes, parts_count;
static atomic_llong next_part;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int dial(const struct file *f) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(f->port)};
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (s < 0 || inet_pton(AF_INET, f->address, &to.sin_addr) != 1 || connect(s, (void *)&to, sizeof to)) die("connect");
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return s;
}

// Sends a request and receives the answer's head. Returns Content-Length; what came of the body goes to `body`.
static long long ask(int s, const struct file *f, const char *method, const char *range, char *body, long long *got) {
    char head[HEAD_MAX];
    int have = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: %s:%d\r\n%s\r\n", method, f->path, f->address, f->port,
                        range);
    if (have >= (int)sizeof head || write(s, head, have) != have) die("send");
    char *end;
    for (have = 0;;) {
        ssize_t n = recv(s, head + have, sizeof head - 1 - have, 0);
        if (n <= 0) die("receive");
        head[have += n] = 0;
        if ((end = strstr(head, "\r\n\r\n"))) break;
    }
    char *length = strcasestr(head, "\r\ncontent-length:");
    if (strncmp(head + 9, *range ? "206" : "200", 3) || !length || length > end) {
        fprintf(stderr, "floor: %s: %.40s\n", f->path, head);
        exit(1);
    }
    *got = have - (end + 4 - head);
    if (*got) memcpy(body, end + 4, *got);
    return atoll(length + strlen("\r\ncontent-length:"));
}

static void fetch(int s, const struct file *f, long long from, long long bytes, char *buffer) {
    char range[128];
    long long got;
    snprintf(range, sizeof range, "Range: bytes=%lld-%lld\r\n", from, from + bytes - 1);
    if (ask(s, f, "GET", range, buffer, &got) != bytes) {
        fprintf(stderr, "floor: %s: wrong length\n", f->path);
        exit(1);
    }
    while (got < bytes) {
        ssize_t n = recv(s, buffer + got, bytes - got, MSG_WAITALL);
        if (n <= 0) die("receive");
        got += n;
    }
    // Direct writes come in whole blocks; the file is cut to its size afterwards.
    long long padded = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (pwrite(f->out, buffer, padded, from) != padded) die("write");
    if (padded != bytes && ftruncate(f->out, f->bytes)) die("truncate");
}

static void *work(void *unused) {
    (void)unused;
    const struct file *connected = 0;
    char *buffer;
    int s = -1;
    if (posix_memalign((void **)&buffer, 2 << 20, part_bytes + ALIGN)) die("memory");
    for (;;) {
        long long part = atomic_fetch_add(&next_part, 1);
        if (part >= parts_count) return 0;
        int n = 0;
        while (n + 1 < files_count && files[n + 1].first_part <= part) n++;
        const struct file *f = &files[n];
        if (!connected || strcmp(connected->address, f->address) || connected->port != f->port) {
            if (s >= 0) close(s);
            s = dial(f);
            connected = f;
        }
        long long from = (part - f->first_part) * part_bytes, left = f->bytes - from;
        fetch(s, f, from, left < part_bytes ? left : part_bytes, buffer);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return fputs("usage: floor LIST THREADS PART_MIB\n", stderr), 2;
    FILE *list = fopen(argv[1], "r");
    if (!list) die(argv[1]);
    int threads = atoi(argv[2]);
    part_bytes = atoll(argv[3]) << 20;
    if (threads < 1 || threads > THREADS_MAX || part_bytes < 1) return fputs("floor: bad number\n", stderr), 2;
    struct file *f = files;
    while (files_count < FILES_MAX &&
           fscanf(list, "http://%63[^:]:%d%1023s %1023s\n", f->address, &f->port, f->path, f->to) == 4)
        f = &files[++files_count];
    if (!files_count) return fputs("floor: the list is empty\n", stderr), 2;
    for (int i = 0; i < files_count; i++) {
        long long none;
        int s = dial(f = &files[i]);
        f->bytes = ask(s, f, "HEAD", "", 0, &none);
        close(s);
        f->first_part = parts_count;
        parts_count += (f->bytes + part_bytes - 1) / part_bytes;
        if ((f->out = open(f->to, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0644)) < 0) die(f->to);
    }
    pthread_t running[THREADS_MAX];
    for (int i = 0; i < threads; i++)
        if (pthread_create(&running[i], 0, work, 0)) die("thread");
    for (int i = 0; i < threads; i++) pthread_join(running[i], 0);
    for (int i = 0; i < files_count; i++)
        if (fsync(files[i].out)) die("fsync");
    return 0;
}
