/* The limit: the same dialogue in C, with epoll and OpenSSL only.

       gcc -O2 probing_client.c -o client -lssl -lcrypto
       ./client IN_FLIGHT < targets        lines of "address port", IPv4

   Connect, banner, EHLO, STARTTLS, handshake, EHLO, QUIT; on 465 the handshake first. One SSL_CTX, TCP_NODELAY.
   What it does not do: time limits, names, reading what a reply says beyond its last line, the certificate, rows. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum step { CONNECT, BANNER, HELLO, STARTTLS, SHAKE, AGAIN, QUIT };

struct probe {
    int fd, port, used;
    enum step step;
    uint32_t wants;
    SSL *tls;
    char text[4096];
};

static int epoll, in_flight, good;
static SSL_CTX *context;

static int begin(void)
{
    char address[64];
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct probe *p;
    int port, one = 1;

    if (scanf("%63s %d", address, &port) != 2)
        return 0;
    p = calloc(1, sizeof *p);
    p->port = port;
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    p->wants = EPOLLOUT;
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    to.sin_port = htons(port);
    inet_pton(AF_INET, address, &to.sin_addr);
    if (connect(p->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
    epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &(struct epoll_event){.events = p->wants, .data.ptr = p});
    in_flight++;
    return 1;
}

static void end(struct probe *p)
{
    good += p->step == QUIT;
    SSL_free(p->tls);
    close(p->fd);
    free(p);
    in_flight--;
}

static int want(struct probe *p, uint32_t events)
{
    if (p->wants != events)
        epoll_ctl(epoll, EPOLL_CTL_MOD, p->fd, &(struct epoll_event){.events = p->wants = events, .data.ptr = p});
    return 0;
}

/* A command is shorter than any socket's buffer, so it is sent whole or the connection is gone. */
static int say(struct probe *p, enum step next, const char *command)
{
    int size = strlen(command);

    p->step = next;
    return (p->tls ? SSL_write(p->tls, command, size) : (int)send(p->fd, command, size, MSG_NOSIGNAL)) == size ? 0 : -1;
}

/* 1: a whole reply is there; 0: wait; -1: gone. */
static int reply(struct probe *p)
{
    for (;;) {
        int got, room = sizeof p->text - 1 - p->used;
        char *line, *next;

        got = p->tls ? SSL_read(p->tls, p->text + p->used, room) : (int)recv(p->fd, p->text + p->used, room, 0);
        if (got <= 0) {
            int waits = p->tls ? SSL_get_error(p->tls, got) == SSL_ERROR_WANT_READ : got < 0 && errno == EAGAIN;
            return waits ? want(p, EPOLLIN) : -1;
        }
        p->text[p->used += got] = 0;
        for (line = p->text; (next = strchr(line, '\n')); line = next + 1)
            if (line[3] != '-') {
                p->used = 0;
                return 1;
            }
    }
}

static int shake(struct probe *p)
{
    int done;

    if (!p->tls) {
        p->tls = SSL_new(context);
        SSL_set_fd(p->tls, p->fd);
        SSL_set_connect_state(p->tls);
    }
    p->step = SHAKE;
    if ((done = SSL_do_handshake(p->tls)) == 1)
        return 1;
    switch (SSL_get_error(p->tls, done)) {
    case SSL_ERROR_WANT_READ:
        return want(p, EPOLLIN);
    case SSL_ERROR_WANT_WRITE:
        return want(p, EPOLLOUT);
    }
    return -1;
}

/* Goes on until the far end has to be waited for: 0, or the probe is over: -1. */
static int go_on(struct probe *p)
{
    int now, error;
    socklen_t size = sizeof error;

    for (;;) {
        switch (p->step) {
        case CONNECT:
            getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error)
                return -1;
            p->step = p->port == 465 ? SHAKE : BANNER;
            break;
        case SHAKE:
            if ((now = shake(p)) < 1)
                return now;
            if (p->port == 465)
                p->step = BANNER;
            else if (say(p, AGAIN, "EHLO probe.example\r\n"))
                return -1;
            break;
        default:
            if ((now = reply(p)) < 1)
                return now;
            switch (p->step) {
            case BANNER:
                now = say(p, p->port == 465 ? AGAIN : HELLO, "EHLO probe.example\r\n");
                break;
            case HELLO:
                now = say(p, STARTTLS, "STARTTLS\r\n");
                break;
            case STARTTLS:
                p->step = SHAKE;
                now = 0;
                break;
            case AGAIN:
                now = say(p, QUIT, "QUIT\r\n");
                break;
            default:
                return -1;
            }
            if (now)
                return -1;
        }
    }
}

int main(int argc, char **argv)
{
    int most = argc > 1 ? atoi(argv[1]) : 256, more = 1;
    struct rusage used;
    struct epoll_event events[256];

    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    epoll = epoll_create1(0);
    do {
        int n;

        while (more && in_flight < most)
            more = begin();
        n = epoll_wait(epoll, events, 256, 10000);
        if (n == 0 && in_flight)
            break; /* ten seconds without a word: count what there is */
        for (int i = 0; i < n; i++)
            if (go_on(events[i].data.ptr))
                end(events[i].data.ptr);
    } while (more || in_flight);
    getrusage(RUSAGE_SELF, &used);
    printf("{\"done\": %d, \"cpu_s\": %.6f, \"peak_kb\": %ld}\n", good,
           used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
           used.ru_maxrss);
    return 0;
}
