// link: joins two network namespaces by a link with a delay and a rate, for kernels without sch_netem. Packets go from
// one tun device to the other through this process. Segmentation offload is on: TCP keeps its ordinary segments while up
// to 64 KiB cross in one system call, so that 8 Gbit/s cost about half a core. Changes nothing outside the two namespaces.
//
// Build: cc -O2 -pthread -o link link.c
// Use:   link NAMESPACE_A NAMESPACE_B DELAY_MS RATE_MBIT     as root; the namespaces are made with `ip netns add`
//        A becomes 10.231.0.1, B 10.231.0.2. The delay is one way. Prints "up" and runs until it is killed.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOT_BYTES = 68 * 1024, // the largest packet with its header
    SLOTS = 4096,           // packets on their way in one direction; a full queue drops, as a router does
    IDLE_US = 100,          // how long a writer that has nothing to do looks away
    SLEEP_MIN_NS = 50000,   // a shorter sleep is not worth its system call
};

struct way {
    int from, to;
    int64_t delay_ns;
    double ns_per_byte;
    char *slots;
    struct { int64_t due_ns; int bytes; } queue[SLOTS];
    atomic_ullong head, tail; // one reader moves head, one writer moves tail
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void put_address(int s, struct ifreq *device, unsigned long what, const char *address) {
    struct sockaddr_in *to = (void *)&device->ifr_addr;
    memset(to, 0, sizeof *to);
    to->sin_family = AF_INET;
    if (inet_pton(AF_INET, address, &to->sin_addr) != 1 || ioctl(s, what, device)) die(address);
}

// Makes the device inside a namespace, and comes back to our own.
static int tun(const char *name, const char *address, const char *peer) {
    char path[128];
    int own = open("/proc/self/ns/net", O_RDONLY), fd, s, header = 10;
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int there = open(path, O_RDONLY);
    if (own < 0 || there < 0 || setns(there, CLONE_NEWNET)) die(path);
    struct ifreq device = {.ifr_name = "link0", .ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    if ((fd = open("/dev/net/tun", O_RDWR)) < 0 || ioctl(fd, TUNSETIFF, &device)) die("/dev/net/tun");
    if (ioctl(fd, TUNSETVNETHDRSZ, &header)) die("header size");
    if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)) die("segmentation offload");
    if ((s = socket(AF_INET, SOCK_DGRAM, 0)) < 0) die("socket");
    put_address(s, &device, SIOCSIFADDR, address);
    put_address(s, &device, SIOCSIFDSTADDR, peer);
    device.ifr_qlen = SLOTS;
    if (ioctl(s, SIOCSIFTXQLEN, &device) || ioctl(s, SIOCGIFFLAGS, &device)) die("queue");
    device.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &device)) die("up");
    close(s);
    if (setns(own, CLONE_NEWNET)) die("own namespace");
    close(there);
    close(own);
    return fd;
}

// Takes packets in, and says when each is due on the other side.
static void *take(void *arg) {
    struct way *w = arg;
    static _Thread_local char dropped[SLOT_BYTES];
    double free_at_ns = 0;
    for (;;) {
        uint64_t head = atomic_load_explicit(&w->head, memory_order_relaxed);
        int full = head - atomic_load_explicit(&w->tail, memory_order_acquire) >= SLOTS, i = head % SLOTS;
        int n = read(w->from, full ? dropped : w->slots + (size_t)i * SLOT_BYTES, SLOT_BYTES);
        if (n <= 0) die("read");
        if (full) continue;
        double now = now_ns();
        free_at_ns = (free_at_ns < now ? now : free_at_ns) + n * w->ns_per_byte;
        w->queue[i].due_ns = free_at_ns + w->delay_ns;
        w->queue[i].bytes = n;
        atomic_store_explicit(&w->head, head + 1, memory_order_release);
    }
    return 0;
}

// Gives each packet out when it is due.
static void *give(void *arg) {
    struct way *w = arg;
    for (;;) {
        uint64_t tail = atomic_load_explicit(&w->tail, memory_order_relaxed);
        if (atomic_load_explicit(&w->head, memory_order_acquire) == tail) {
            usleep(IDLE_US);
            continue;
        }
        int i = tail % SLOTS;
        int64_t wait = w->queue[i].due_ns - now_ns();
        if (wait > 0) {
            nanosleep(&(struct timespec){0, wait < SLEEP_MIN_NS ? SLEEP_MIN_NS : wait}, 0);
            continue;
        }
        // The device refuses a packet when its own queue is full: it is lost, as on any link.
        if (write(w->to, w->slots + (size_t)i * SLOT_BYTES, w->queue[i].bytes) < 0) {}
        atomic_store_explicit(&w->tail, tail + 1, memory_order_release);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 5) return fputs("usage: link NAMESPACE_A NAMESPACE_B DELAY_MS RATE_MBIT\n", stderr), 2;
    double delay_ms = atof(argv[3]), rate_mbit = atof(argv[4]);
    if (delay_ms < 0 || delay_ms >= 1000 || rate_mbit <= 0) return fputs("link: bad number\n", stderr), 2;
    prctl(PR_SET_TIMERSLACK, 1000);
    static struct way ways[2];
    int a = tun(argv[1], "10.231.0.1", "10.231.0.2"), b = tun(argv[2], "10.231.0.2", "10.231.0.1");
    pthread_t running;
    for (int i = 0; i < 2; i++) {
        struct way *w = &ways[i];
        w->from = i ? b : a;
        w->to = i ? a : b;
        w->delay_ns = delay_ms * 1e6;
        w->ns_per_byte = 8000.0 / rate_mbit;
        w->slots = mmap(0, (size_t)SLOT_BYTES * SLOTS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (w->slots == MAP_FAILED) die("memory");
        if (pthread_create(&running, 0, take, w) || pthread_create(&running, 0, give, w)) die("thread");
    }
    puts("up");
    fflush(stdout);
    pthread_join(running, 0);
}
